"""Classes of others: how they are found, which cases they get, and what was found in three packages."""

import copy
import importlib
import json
import re
from importlib import metadata
from pathlib import Path

import pytest
import torch

import reimpl.optim
from reimpl.cli import main
from reimpl.verify import comparison, judge_foreign, run_contract
from reimpl.verify.foreign import ForeignClassError, find_class

DOCS = (Path(__file__).parents[2] / "docs" / "write.md").read_text(encoding="utf-8")
FLOAT32 = (torch.float32,)


class TextbookAdam(torch.optim.Optimizer):
    """Adam in plain operators, which round elsewhere than torch's, with state of other names."""

    def __init__(self, params, lr=0.1, betas=(0.9, 0.999), eps=1e-8, weight_decay=0, maximize=False):
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "maximize": maximize}
        )

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for param in (param for param in group["params"] if param.grad is not None):
                state = self.state[param]
                if not state:
                    state.update(t=0, m=torch.zeros_like(param), v=torch.zeros_like(param))
                state["t"] += 1
                grad = (-param.grad if group["maximize"] else param.grad) + group["weight_decay"] * param
                state["m"] = beta1 * state["m"] + (1 - beta1) * grad
                state["v"] = beta2 * state["v"] + (1 - beta2) * grad * grad
                self.move(param, state["m"] / (1 - beta1 ** state["t"]), state["v"] / (1 - beta2 ** state["t"]), group)

    def move(self, param, mean, square, group):
        param -= group["lr"] * mean / (square.sqrt() + group["eps"])


def numbers_only(cases):
    """Return the cases without tensor options, which a textbook does not broadcast."""
    return [case for case in cases if not any("tensor" in str(value) for value in case.options.values())]


def judged(optimizer, reference, dtypes=FLOAT32, quick=True):
    of = comparison(optimizer, reference, dtypes, quick)
    return [judge_foreign(of, case) for case in numbers_only(of.cases)]


def test_textbook_is_close():
    verdicts = judged(TextbookAdam, torch.optim.Adam, (torch.float32, torch.float64), quick=False)
    assert len(verdicts) > 50
    assert all(verdict.holds for verdict in verdicts), [str(v.difference) for v in verdicts if not v.holds]
    assert {verdict.kind for verdict in verdicts} == {"close"}


class MisplacedEps(TextbookAdam):
    def move(self, param, mean, square, group):
        param -= group["lr"] * mean / (square + group["eps"]).sqrt()


class DriftingBeta(TextbookAdam):
    def move(self, param, mean, square, group):
        super().move(param, mean * (1 + 2e-6), square, group)


@pytest.mark.parametrize("optimizer", [MisplacedEps, DriftingBeta])
def test_planted_faults_differ(optimizer):
    verdicts = judged(optimizer, torch.optim.Adam, (torch.float32, torch.float64), quick=False)
    differing = [verdict for verdict in verdicts if verdict.kind == "differs"]
    assert {verdict.case.dtype for verdict in differing} == {torch.float32, torch.float64}


def test_torch_itself_is_exact():
    verdicts = judged(torch.optim.Adam, torch.optim.Adam, (torch.float32, torch.bfloat16, torch.complex64))
    assert {verdict.kind for verdict in verdicts} == {"exact"}
    assert {verdict.case.engine for verdict in verdicts} == {"loop", "foreach", "fused"}
    assert "exchange" in {verdict.case.scenario.name for verdict in verdicts}


def test_ours_is_judged_like_any_other():
    assert all(verdict.holds for verdict in judged(reimpl.optim.RMSprop, torch.optim.RMSprop))


def test_what_the_signature_does_not_allow_is_left_out():
    of = comparison(TextbookAdam, torch.optim.Adam, FLOAT32)
    assert {case.engine for case in of.cases} == {"loop"}
    assert not any("amsgrad" in case.options for case in of.cases)
    assert "exchange" not in {case.scenario.name for case in of.cases}
    assert "groups" in {case.scenario.name for case in of.cases}
    notes = "\n".join(of.notes)
    assert re.search(r"^[\d,]+ cases left out: no argument fused$", notes, re.M)
    assert re.search(r"^\d+ cases left out: no argument amsgrad$", notes, re.M)
    assert "its state is t (int), m (float32), v (float32), torch's is step (float32), exp_avg (float32)" in notes
    assert "the default of lr is 0.1, torch's is 0.001; compared with torch's" in notes
    assert {case.options["lr"] for case in numbers_only(of.cases)} == {0.001, 0.1}, "torch's default is passed"


def test_what_torchs_fused_kernel_refuses_is_left_out():
    cases = comparison(torch.optim.SGD, torch.optim.SGD, (torch.float32, torch.complex64)).cases
    fused = [case for case in cases if case.engine == "fused"]
    assert not any(case.dtype.is_complex for case in fused)
    assert {case.options["momentum"] for case in fused if case.scenario.name == "missing"} == {0}


def test_scenario_that_needs_an_argument_is_left_out():
    class Descends(TextbookAdam):
        def __init__(self, params, lr=0.001, betas=(0.9, 0.999), eps=1e-8, weight_decay=0):
            super().__init__(params, lr, betas, eps, weight_decay)

    assert "groups" not in {case.scenario.name for case in comparison(Descends, torch.optim.Adam, FLOAT32).cases}


def test_exception_is_a_difference():
    class Broken(torch.optim.SGD):
        def step(self, closure=None):
            raise ZeroDivisionError("nothing to divide by")

    class Unmade(torch.optim.SGD):
        def __init__(self, params, lr):
            raise ValueError("no")

    (*_, verdict) = judged(Broken, torch.optim.SGD)
    assert verdict.kind == "differs"
    assert str(verdict.difference).startswith("step 1, whole[]: 'ZeroDivisionError: nothing to divide by'")
    assert judged(Unmade, torch.optim.SGD)[0].difference.step == 0


MODULE = """
import torch

class Mine(torch.optim.RMSprop):
    pass

class Other:
    pass
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A current directory with a module in it."""
    (tmp_path / "my_optimizers.py").write_text(MODULE)
    (tmp_path / "broken_optimizers.py").write_text("import no_such_package")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*importlib.sys.path])
    yield tmp_path
    importlib.sys.modules.pop("my_optimizers", None)


def test_a_class_of_the_current_directory_is_found(folder):
    assert find_class("my_optimizers.Mine").__name__ == "Mine"
    assert find_class("torch.optim.Adam") is torch.optim.Adam


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_optimisers.Mine", "cannot import 'my_optimisers': ModuleNotFoundError: No module named 'my_optimisers'"),
        ("broken_optimizers.Mine", "cannot import 'broken_optimizers': ModuleNotFoundError: No module named 'no_such"),
        ("my_optimizers.Yours", "module 'my_optimizers' has no 'Yours'"),
        ("my_optimizers.Other", "my_optimizers.Other is no subclass of torch.optim.Optimizer"),
    ],
)
def test_no_such_class(folder, name, message, capsys):
    with pytest.raises(ForeignClassError, match=re.escape(message)):
        find_class(name)
    with pytest.raises(SystemExit) as exit_:
        main(["verify", name])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_command_runs_the_contract(folder, capsys):
    assert main(["verify", "my_optimizers.Mine", "--json", "evidence.json"]) == 0
    output = capsys.readouterr().out
    assert re.search(r"no gradients +holds", output)
    assert re.search(r"tried with parameters \[17, 5\], \[33\], \[\], gradients", output)
    last = output.strip().splitlines()[-1]
    assert re.match(r"reimpl-verify: result=pass checks=\d+ failed=0 skipped=\d+ device=cpu torch=", last)
    evidence = json.loads((folder / "evidence.json").read_text())
    assert evidence["subject"] == "my_optimizers.Mine"
    assert {check["kind"] for check in evidence["checks"]} <= {"holds", "skipped"}


def test_command_reports_a_failing_check(capsys, tmp_path):
    pytest.importorskip("jinja2")
    assert main(["verify", "torch.optim.LBFGS", "--html", str(tmp_path / "page.html")]) == 1
    output = capsys.readouterr().out
    assert re.search(r"missing gradients +fails", output)
    assert re.search(r"^missing gradients: loop: 2 steps with a gradient and 2 without: param\[2\]", output, re.M)
    assert "result=fail" in output.splitlines()[-1]
    page = (tmp_path / "page.html").read_text()
    assert "missing gradients" in page
    assert "LBFGS" in page


def test_command_compares(folder, capsys):
    arguments = ["verify", "my_optimizers.Mine", "--against", "torch.optim.RMSprop", "--dtype", "float32", "--quick"]
    assert main(arguments) == 0
    output = capsys.readouterr().out
    assert re.search(r"Mine +foreach +\d+ +\d+", output)
    assert "result=pass cases=" in output.splitlines()[-1]
    assert main([*arguments, "--list"]) == 0
    assert "optim.Mine" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["torch.optim.SGD", "--against", "reimpl.optim.SGD"], "no cases are registered for reimpl.optim.sgd.SGD"),
        (["optim.SGD", "--against", "torch.optim.SGD"], "an optimizer class is judged alone"),
        (["--against", "torch.optim.SGD"], "an optimizer class is judged alone"),
        (["torch.optim.SGD", "optim.SGD"], "an optimizer class is judged alone"),
        (["torch.optim.SGD", "--dtype", "float32"], "which a class has with --against"),
        (["torch.optim.Optimizer"], "Optimizer cannot be tried"),
    ],
)
def test_bad_arguments_of_the_command(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["verify", *arguments])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


PACKAGES = {
    "lion-pytorch": ("0.2.5", "lion_pytorch.Lion"),
    "schedulefree": ("1.4.1", "schedulefree.AdamWScheduleFree"),
    "pytorch-optimizer": ("4.1.0", "pytorch_optimizer.AdaDelta"),
}


def installed(package):
    """Return the class of a package that is judged; skip if that version is not here."""
    version, name = PACKAGES[package]
    try:
        found = metadata.version(package)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{package} is not installed")
    if found != version:
        pytest.skip(f"{package} is {found} here; the findings are about {version}")
    return find_class(name)


def documented(package):
    """Return the checks and scenarios of the findings that the documentation lists."""
    return re.findall(rf"^\| {package} {PACKAGES[package][0]} \| `\w+` \| ([\w ]+) \|", DOCS, re.M)


@pytest.mark.parametrize("package", PACKAGES)
def test_the_documentation_lists_what_the_contract_finds(package):
    found = [outcome.check for outcome in run_contract(installed(package)) if outcome.kind == "fails"]
    listed = [name for name in documented(package) if not name.endswith(" scenario")]
    assert sorted(found) == sorted(listed)


def test_adadelta_of_pytorch_optimizer_differs_in_groups_alone():
    of = comparison(installed("pytorch-optimizer"), torch.optim.Adadelta, FLOAT32)
    verdicts = [judge_foreign(of, case) for case in of.cases]
    differing = [verdict for verdict in verdicts if not verdict.holds]
    assert {f"{verdict.case.scenario.name} scenario" for verdict in differing} == {"groups scenario"}
    assert not any(verdict.case.options["maximize"] for verdict in differing), "only the group's own is ignored"
    assert documented("pytorch-optimizer").count("groups scenario") == 1


def one_parameter(value, gradient):
    param = torch.tensor([value], requires_grad=True)
    param.grad = torch.tensor([gradient])
    return param


@pytest.mark.parametrize("package", ["lion-pytorch", "pytorch-optimizer"])
def test_by_hand_copies_cannot_step(package):
    optimizer = installed(package)([one_parameter(1.0, 1.0)])
    optimizer.step()
    with pytest.raises(AttributeError, match="object has no attribute"):
        copy.deepcopy(optimizer).step()


def test_by_hand_lion_keeps_the_direction_of_complex_gradients():
    param = one_parameter(0j, 3 + 4j)
    installed("lion-pytorch")([param], lr=1.0).step()
    assert torch.allclose(param.detach(), torch.tensor([-0.6 - 0.8j]))


def test_by_hand_schedule_free_divides_the_gradient():
    param = one_parameter(1.0, 8.0)
    optimizer = installed("schedulefree")([param])
    optimizer.train()
    optimizer.step()
    assert param.grad.item() == pytest.approx(1.0)


def test_by_hand_schedule_free_moves_across_a_complex_gradient():
    param = one_parameter(0j, 1j)
    optimizer = installed("schedulefree")([param], lr=1.0)
    optimizer.train()
    optimizer.step()
    assert abs(param.detach().imag.item()) < 1e-6
    assert abs(param.detach().real.item()) > 0.05


def test_by_hand_schedule_free_counts_for_the_group():
    """After nine empty steps, the first gradient is divided by sqrt((1 - beta2) / (1 - beta2^10)) of its size."""
    param = one_parameter(0.0, 1.0)
    gradient, param.grad = param.grad, None
    optimizer = installed("schedulefree")([param])
    optimizer.train()
    for _ in range(9):
        optimizer.step()
    param.grad = gradient
    optimizer.step()
    assert param.grad.item() == pytest.approx(((1 - 0.999**10) / (1 - 0.999)) ** 0.5, rel=1e-4)


def test_by_hand_adadelta_of_pytorch_optimizer():
    param = one_parameter(1.0, 1.0)
    optimizer = installed("pytorch-optimizer")([param], maximize=True, weight_decays=0.1)
    optimizer.step()
    assert param.grad.item() == -1.0
    group = {"params": [one_parameter(1.0, 1.0)], "maximize": True}
    installed("pytorch-optimizer")([group]).step()
    assert group["params"][0].item() < 1.0, "it went down, not up"
