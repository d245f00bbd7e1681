"""What can go wrong around a kernel: no compiler, a bad one, another process, an overflow; and gradient scaling."""

import importlib
import os
import stat
import subprocess
import sys
import textwrap
import warnings

import pytest
import torch

import reimpl.optim
from helpers import OPTIONS, assert_same, pair, parameters, set_gradients, snapshot, take_steps
from reimpl.optim.engines import counting, kernel

engine = importlib.import_module("reimpl.optim.engines.fused")  # the package has a function of this name
FUSED, FOREACH = {"fused": True}, {"foreach": True}
HAVE_TORCHS = ["SGD", "Adagrad", "Adam", "AdamW"]


def members(optimizer):
    return [param for group in optimizer.param_groups for param in group["params"]]


def assert_near(first, second, rtol=1e-5):
    first, second = snapshot(first), snapshot(second)
    assert list(first) == list(second)
    for key, tensor in first.items():
        torch.testing.assert_close(tensor, second[key], rtol=rtol, atol=rtol / 10, msg=lambda m, key=key: f"{key}: {m}")


# No kernel.


@pytest.fixture
def nothing_known(monkeypatch, tmp_path):
    """As in a new process on a new machine."""
    monkeypatch.setattr(kernel, "KERNELS", {})
    monkeypatch.setattr(engine, "WARNED", set())
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    counting.library.cache_clear()
    yield tmp_path
    counting.library.cache_clear()


def script(folder, text):
    file = folder / "compiler"
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return str(file)


def no_compiler(folder, monkeypatch):
    monkeypatch.setenv("CXX", str(folder / "missing"))
    return "there is no C\\+\\+ compiler '.*missing'"


def empty_path(folder, monkeypatch):
    monkeypatch.setenv("PATH", str(folder))
    return "there is no C\\+\\+ compiler 'g\\+\\+'"


def failing_compiler(folder, monkeypatch):
    monkeypatch.setenv("CXX", script(folder, "echo a note >&2; echo 'kernel.cpp:1:2: error: boom' >&2; exit 1"))
    return "compiler failed: .*error: boom"


def silent_compiler(folder, monkeypatch):
    monkeypatch.setenv("CXX", script(folder, "exit 3"))
    return "compiler failed: it says nothing"


def not_a_program(folder, monkeypatch):
    file = folder / "compiler"
    file.write_bytes(b"\x7fELFno")
    file.chmod(0o755)
    monkeypatch.setenv("CXX", str(file))
    return "OSError: .*compiler"


def garbage_from_the_compiler(folder, monkeypatch):
    monkeypatch.setenv("CXX", script(folder, 'while [ "$1" != -o ]; do shift; done; echo garbage > "$2"'))
    return "OSError: .*\\.so"


def nothing_from_the_compiler(folder, monkeypatch):
    monkeypatch.setenv("CXX", script(folder, "exit 0"))
    return "FileNotFoundError"


def no_room_on_disk(folder, monkeypatch):
    (folder / "cache").write_text("a file where the folder should be")
    return "(NotADirectory|FileExists)Error"


CAUSES = {
    function.__name__: function
    for function in (
        no_compiler,
        empty_path,
        failing_compiler,
        silent_compiler,
        not_a_program,
        garbage_from_the_compiler,
        nothing_from_the_compiler,
        no_room_on_disk,
    )
}


@pytest.mark.parametrize("cause", CAUSES)
def test_the_foreach_engine_takes_over(name, cause, nothing_known, monkeypatch):
    """With one warning that names the cause, and with its own bits."""
    text = CAUSES[cause](nothing_known, monkeypatch)
    options = OPTIONS[name] | ({"momentum": 0} if name == "SGD" else {})
    optimizer = pair(name)[0](parameters(), **options, **FUSED)
    with pytest.warns(RuntimeWarning, match=f"fused=True: the foreach engine takes over .*{text}") as caught:
        take_steps(optimizer, 1)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        take_steps(optimizer, 2, first=1)
    assert_same(optimizer, take_steps(pair(name)[0](parameters(), **options, **FOREACH), 3))


def test_another_optimizer_of_the_rule_does_not_warn_again(nothing_known, monkeypatch):
    no_compiler(nothing_known, monkeypatch)
    with pytest.warns(RuntimeWarning, match="adam_rule"):
        take_steps(pair("Adam")[0](parameters(), **FUSED), 2)
    take_steps(pair("Adam")[0](parameters(torch.float64), amsgrad=True, weight_decay=0.1, **FUSED), 2)
    with pytest.warns(RuntimeWarning, match="adadelta_rule"):
        take_steps(pair("Adadelta")[0](parameters(), **FUSED), 2)


def test_scaled_gradients_without_a_kernel(nothing_known, monkeypatch):
    no_compiler(nothing_known, monkeypatch)
    optimizer = pair("Adam")[0](parameters(), **FUSED)
    with pytest.warns(RuntimeWarning, match="takes over"):
        scaled_steps(optimizer, 4, bad=(2,))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = scaled_steps(pair("Adam")[0](parameters(), **FOREACH), 4, bad=(2,))
    assert_near(optimizer, expected)


def clip_by_norm(param, grad, *, lr):
    param.add_(grad / grad.norm(), alpha=-lr)


def decide_by_value(param, grad, *, lr):
    if grad > 0:
        param.add_(grad, alpha=-lr)


def use_another_tensor(param, grad, *, lr):
    param.add_(grad * torch.ones(()), alpha=-lr)


def raise_an_error(param, grad, *, lr):
    raise NotImplementedError("not today")


class Custom(reimpl.optim.optimizer.RuleOptimizer):
    counts_steps = reads_steps = False

    def __init__(self, params, lr=0.1, foreach=None, fused=None):
        super().__init__(
            params, {"lr": lr, "foreach": foreach, "fused": fused, "differentiable": False, "maximize": False}
        )

    def new_state(self, group):
        return {}

    def coefficients(self, group, step, param):
        return {"lr": group["lr"]}


@pytest.mark.parametrize(
    ("rule", "cause"), [(clip_by_norm, "it calls `norm`"), (use_another_tensor, "it combines an element with Tensor")]
)
def test_a_rule_that_is_not_elementwise(rule, cause, nothing_known):
    class Unusual(Custom):
        pass

    Unusual.rule = staticmethod(rule)
    optimizer = Unusual(parameters(shapes=((3,), (4,))), fused=True)
    with pytest.warns(RuntimeWarning, match=f"takes over {rule.__name__}: .*{cause}") as caught:
        take_steps(optimizer, 3)
    assert len(caught) == 1
    assert_same(optimizer, take_steps(Unusual(parameters(shapes=((3,), (4,))), foreach=True), 3))


def test_a_rule_that_raises(nothing_known):
    """Nothing that the foreach engine could do: its error comes through, and nothing has changed."""

    class Raising(Custom):
        rule = staticmethod(raise_an_error)

    optimizer = Raising(parameters(), fused=True)
    before = snapshot(optimizer)
    with (
        pytest.warns(RuntimeWarning, match="not today"),
        pytest.raises(NotImplementedError, match="not today"),
    ):
        take_steps(optimizer, 1)
    assert_same(before, snapshot(optimizer))


@pytest.mark.parametrize("dtype", [torch.float8_e5m2, torch.int32])
def test_dtypes_without_a_kernel(dtype, nothing_known):
    param = torch.ones(3).to(dtype)
    spec = kernel.Spec(clip_by_norm, (dtype, dtype), (), maximize=False, scaled=False, device=param.device)
    with pytest.raises(kernel.NoKernelError, match=f"there are no kernels for {dtype}"):
        kernel.find_kernel(spec, {"lr": 0.1}, None)


def test_meta_tensors(name, nothing_known):
    params = [param.detach().to("meta").requires_grad_() for param in parameters()]
    optimizer = pair(name)[0](params, **FUSED)
    for param in params:
        param.grad = torch.empty_like(param)
    with pytest.warns(RuntimeWarning, match="there are no kernels for meta devices"):
        optimizer.step()


def test_an_interrupted_compilation_is_tried_again(nothing_known, monkeypatch):
    def interrupt(source):
        raise KeyboardInterrupt

    optimizer = pair("Adam")[0](parameters(), **FUSED)
    before = snapshot(optimizer)
    with monkeypatch.context() as patch:
        patch.setattr(kernel, "compile_for_processor", interrupt)
        with pytest.raises(KeyboardInterrupt):
            take_steps(optimizer, 1)
    assert_same(before, optimizer)
    assert_near(take_steps(optimizer, 2), take_steps(pair("Adam")[0](parameters(), **FOREACH), 2))


# Other processes.


def run_python(text, timeout=120, **environment):
    """Run a program with the test's modules at hand, in which a warning is an error."""
    folders = [os.path.dirname(os.path.dirname(__file__)), os.getcwd(), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", textwrap.dedent(text)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders), **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def test_second_process_does_not_compile(nothing_known, monkeypatch):
    """The compiler is gone by then."""
    compiler = script(nothing_known, f'echo called >> {nothing_known}/calls; exec g++ "$@"')
    monkeypatch.setenv("CXX", compiler)
    for optimizer_name in ("SGD", "Adam"):
        optimizer = take_steps(pair(optimizer_name)[0](parameters(), **OPTIONS[optimizer_name], **FUSED), 2)
    calls = (nothing_known / "calls").read_text()
    assert calls.count("called") == 3  # two rules, and the counting of steps
    os.remove(compiler)
    found = run_python(
        """
        from helpers import *
        for name in ("SGD", "Adam"):
            optimizer = take_steps(pair(name)[0](parameters(), **OPTIONS[name], fused=True), 2)
        print([param.tolist() for param in optimizer.param_groups[0]["params"]])
        """
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == str([param.tolist() for param in members(optimizer)])


def test_nothing_but_kernels_stays_on_disk(nothing_known):
    take_steps(pair("SGD")[0](parameters(), **FUSED), 1)
    assert [file.suffix for file in (nothing_known / "cache" / "reimpl").iterdir()] == [".so"]


def test_processes_that_compile_the_same_at_once(nothing_known):
    program = "from helpers import *; take_steps(pair('SGD')[0](parameters(), momentum=0.9, fused=True), 2)"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([os.path.dirname(os.path.dirname(__file__)), os.getcwd()]),
    }
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", program]
    running = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) for _ in range(2)]
    for process in running:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors


@pytest.mark.skipif(not hasattr(os, "fork"), reason="os.fork is not there")
def test_after_a_fork():
    """Also while a data loader's workers, which are forks, are at work; one thread, as they have."""
    found = run_python(
        """
        import os, signal, sys
        import torch
        from torch.utils.data import DataLoader
        from helpers import *

        torch.set_num_threads(2)
        shapes = ((200_000,), (7, 3))

        def run(count, optimizer=None, first=0):
            optimizer = optimizer or pair("Adam")[0](parameters(shapes=shapes), **OPTIONS["Adam"], fused=True)
            return take_steps(optimizer, count, first)

        optimizer = run(2)
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            torch.set_num_threads(1)
            run(2, optimizer, 2)
            run(1)
            take_steps(pair("Adadelta")[0](parameters(), fused=True), 2)  # compiled, or loaded, in the child
            torch.save(snapshot(optimizer), sys.stdout.buffer.fileno() and "/dev/null")
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0, status

        class Stepping(torch.utils.data.Dataset):
            def __len__(self):
                return 8

            def __getitem__(self, index):
                return run(1).param_groups[0]["params"][1].detach()

        context = "fork"
        for batch in DataLoader(Stepping(), batch_size=2, num_workers=2, multiprocessing_context=context):
            run(1, optimizer, 2)
            assert batch.isfinite().all()
        """
    )
    assert found.returncode == 0, found.stderr


# Gradient scaling.


def scaled_steps(optimizer, count, bad=(), init_scale=1024.0, unscale=False, decay=None):
    scaler = torch.amp.GradScaler("cpu", init_scale=init_scale, growth_interval=2)
    params = members(optimizer)
    weights = [torch.randn(param.shape, generator=torch.Generator().manual_seed(i)) for i, param in enumerate(params)]
    for step in range(count):
        optimizer.zero_grad()
        factor = float("inf") if step in bad else 1.0 + step
        loss = sum(
            (param * weight * factor + param.square()).sum() for param, weight in zip(params, weights, strict=True)
        )
        scaler.scale(loss).backward()
        if unscale:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(params, 1.0)
        scaler.step(optimizer)
        scaler.update()
    optimizer.scale = scaler.get_scale()
    return optimizer


def test_scaler_leaves_the_gradients_to_the_step(name):
    ours, theirs = pair(name)
    assert ours(parameters(), **FUSED)._step_supports_amp_scaling
    for options in ({}, FOREACH, {"fused": False}):
        assert not getattr(ours(parameters(), **options), "_step_supports_amp_scaling", False)
    if name in HAVE_TORCHS and (name != "Adagrad" or torch.__version__ >= "2.13"):  # 2.11's Adagrad does not say so
        assert theirs(parameters(), **FUSED)._step_supports_amp_scaling


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("bad", [(), (2,), (1, 2), (0,)], ids=str)
def test_scaler(name, bad, unscale):
    """Against torch's fused kernel, or its loop where it has none."""
    if name == "SGD" and 0 in bad:
        pytest.skip("torch keeps a buffer of whatever was in memory; see below")
    for more in ({}, {"weight_decay": 0} if name != "Rprop" else {}, {"maximize": True}):
        options = OPTIONS[name] | more
        ours, theirs = pair(name)
        found = scaled_steps(ours(parameters(), **options, **FUSED), 5, bad, unscale=unscale)
        choice = FUSED if name in HAVE_TORCHS else {"foreach": False}
        expected = scaled_steps(theirs(parameters(), **options, **choice), 5, bad, unscale=unscale)
        assert found.scale == expected.scale
        assert_near(found, expected)
        for param, other in zip(members(found), members(expected), strict=True):
            torch.testing.assert_close(param.grad, other.grad)


def test_gradients_are_unscaled_after_the_step(name):
    optimizer = pair(name)[0](parameters(), **OPTIONS[name], **FUSED)
    plain = pair(name)[0](parameters(), **OPTIONS[name], **FUSED)
    for step in range(3):
        set_gradients(members(optimizer), step)
        set_gradients(members(plain), step)
        gradients = [param.grad for param in members(optimizer)]
        for gradient in gradients:
            gradient.mul_(64)
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(64.0), torch.tensor(0.0)
        optimizer.step()
        plain.step()
        for param, other, gradient in zip(members(optimizer), members(plain), gradients, strict=True):
            assert param.grad is gradient
            assert torch.equal(gradient, other.grad)
    assert_same(optimizer, plain)


@pytest.mark.parametrize("found", [1.0, 2.0])
def test_overflow_changes_nothing(name, found):
    for first in (0, 2):
        optimizer = take_steps(pair(name)[0](parameters(), **OPTIONS[name], **FUSED), first)
        before = {key: value for key, value in snapshot(optimizer).items() if "step" not in key}
        set_gradients(members(optimizer), 3)
        members(optimizer)[0].grad.fill_(float("inf"))
        kept = [param.grad.clone() for param in members(optimizer)]
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(64.0), torch.tensor(found)
        optimizer.step()
        after = snapshot(optimizer)
        for key, tensor in before.items():
            assert torch.equal(tensor, after[key]), key
        assert all(value == first for key, value in after.items() if key.endswith(".step"))
        assert all(torch.equal(param.grad, grad) for param, grad in zip(members(optimizer), kept, strict=True))
        del optimizer.grad_scale, optimizer.found_inf
        straight = take_steps(pair(name)[0](parameters(), **OPTIONS[name], **FUSED), first + 2)
        assert_same(straight, take_steps(optimizer, 2, first=first))


def test_sgd_that_begins_with_an_overflow_keeps_no_buffer():
    """Where torch's fused SGD keeps memory that nobody has written to."""
    optimizer = scaled_steps(pair("SGD")[0](parameters(), momentum=0.9, **FUSED), 1, bad=(0,))
    assert not any(optimizer.state.values())
    optimizer = scaled_steps(pair("SGD")[0](parameters(), momentum=0.9, **FUSED), 3, bad=(0,))
    assert_near(optimizer, scaled_steps(pair("SGD")[0](parameters(), momentum=0.9, **FOREACH), 3, bad=(0,)))


def test_a_scale_that_changes_compiles_nothing(name, monkeypatch):
    optimizer = scaled_steps(pair(name)[0](parameters(), **OPTIONS[name], **FUSED), 6)  # all kernels of RAdam and ASGD
    known = sum(map(len, kernel.KERNELS.values()))
    scaled_steps(optimizer, 6, init_scale=2.0**20)
    assert sum(map(len, kernel.KERNELS.values())) == known


@pytest.mark.parametrize("form", ["transposed", "a row of a matrix", "negative"])
def test_scaled_gradients_in_other_layouts(name, form):
    """The foreach engine has them; they come out unscaled too."""
    forms = {
        "transposed": lambda grad: grad.mT.contiguous().mT,
        "a row of a matrix": lambda grad: torch.stack([grad, grad], -1)[..., 1],
        "negative": lambda grad: torch._neg_view(-grad),
    }
    ends = []
    for scale in (8.0, None):
        optimizer = pair(name)[0](parameters(shapes=((4, 3), (5, 5), (2,))), **OPTIONS[name], **FUSED)
        for step in range(3):
            set_gradients(members(optimizer), step)
            first = members(optimizer)[0]
            first.grad = forms[form](first.grad)
            if scale is not None:
                for param in members(optimizer):
                    param.grad.mul_(scale)
                optimizer.grad_scale, optimizer.found_inf = torch.tensor(scale), torch.tensor(0.0)
            optimizer.step()
        ends.append((optimizer, [param.grad.clone() for param in members(optimizer)]))
    assert_near(ends[0][0], ends[1][0])
    for grad, other in zip(ends[0][1], ends[1][1], strict=True):
        assert torch.equal(grad, other)
