"""The evidence on the site: its numbers are the full file's, and it is about the code as it is."""

import ast
import copy
import json
import re
import shutil
from html.parser import HTMLParser

import pytest

from docs_tools import evidence
from reimpl.verify import cases, verify
from reimpl.verify.deviations import DEVIATIONS
from reimpl.verify.layers import TABLES
from reimpl.verify.optimizers import OPTIMIZERS
from reimpl.verify.runner import digest, skeleton

SECTIONS = ("optim.Rprop", "optim.NAdam", "nn.BatchNorm1d", "nn.BatchNorm2d", "nn.functional.batch_norm")


@pytest.fixture(scope="module")
def full():
    chosen = [case for case in cases(quick=True) if case.section in SECTIONS]
    some = [case for case in chosen if case.section.startswith("nn.") or "complex" in case.dtype_name][::2]
    some += [case for case in chosen if case.section.startswith("optim.")][::9]
    deviations = [deviation for deviation in DEVIATIONS if deviation.where.startswith("foreach=True")]
    return json.loads(json.dumps(verify(unique(some), ["SGD"], deviations=deviations).to_json()))


def unique(chosen):
    """Return the cases, each once."""
    return list({case.name: case for case in chosen}.values())


@pytest.fixture(scope="module")
def condensed(full):
    return json.loads(evidence.compact(evidence.condense(evidence.read(full))))


def copied_tree(tmp_path, condensed):
    """Return a copy of the package and of its evidence."""
    shutil.copytree(evidence.ROOT / "reimpl", tmp_path / "reimpl", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "docs" / "evidence").mkdir(parents=True)
    (tmp_path / "docs" / "evidence" / "cpu.json").write_text(json.dumps(condensed), encoding="utf-8")
    return tmp_path


def edit(file, old, new):
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")


@pytest.fixture
def tree(tmp_path, condensed):
    return copied_tree(tmp_path, condensed)


@pytest.fixture
def shown(tmp_path, condensed, monkeypatch):
    """Let the pages show the small run."""
    (tmp_path / "cpu.json").write_text(json.dumps(condensed), encoding="utf-8")
    monkeypatch.setattr(evidence, "FOLDER", tmp_path)
    return tmp_path


def test_the_numbers_add_up_to_the_full_ones(full, condensed):
    rows = [(section, row) for section, found in condensed["sections"].items() for row in found["rows"]]
    for section, row in rows:
        mine = [
            case
            for case in full["cases"]
            if (case["engine"], case["dtype"]) == (row["engine"], row["dtype"])
            and (case["section"] == section or f" {section.removeprefix('nn.')}(" in case["name"])
        ]
        for kind in ("exact", "close", "differs"):
            assert row[kind] == sum(case["verdict"] == kind for case in mine), (section, row)
        assert row["claimed_close"] == sum(case["claim"] == "close" for case in mine)
        assert row["failed"] == sum(not case["holds"] for case in mine) == 0
        assert row["factor"] <= row["allowed"]
    assert sum(row["cases"] for _, row in rows) == len(full["cases"]) > 80
    assert {row["engine"] for _, row in rows} == {"loop", "foreach", "fused", "kernels", "first principles"}
    assert condensed["sections"]["optim.SGD"]["training"]["accuracy"] == full["trainings"][0]["accuracy"]
    assert condensed["sections"]["nn.BatchNorm2d"]["runs"] == ["SGD"]


def test_scenarios_and_reasons_cover_the_cases(condensed):
    for section, found in condensed["sections"].items():
        assert sum(found["scenarios"].values()) == sum(row["cases"] for row in found["rows"]), section
        close = sum(row["claimed_close"] for row in found["rows"])
        assert sum(reason["cases"] for reason in found["close"]) == close, section


def test_every_claim_of_less_than_every_bit_has_its_reason():
    seen = {}
    for case in cases():
        if case.claim == "close" and case.section.startswith("optim."):
            seen.setdefault(evidence.why_close(case), set()).add(case.optimizer)
    assert seen.keys() == set(evidence.reasons())
    # A reason that names an optimizer's class is given of that one.
    for why, optimizers in seen.items():
        named = set(re.findall(r"\w+", why)) & set(OPTIMIZERS)
        assert not named or named & optimizers, why


def test_an_altered_file_is_refused(full):
    altered = copy.deepcopy(full)
    altered["cases"][0]["verdict"] = "differs"
    with pytest.raises(ValueError, match="the summary is"):
        evidence.read(altered)
    altered["cases"][0]["name"] += " "
    with pytest.raises(ValueError, match="the registry has no case"):
        evidence.read(altered)


def test_a_failed_claim_is_shown(full, shown):
    failed = copy.deepcopy(full)
    case = next(case for case in failed["cases"] if case["section"] == "optim.NAdam" and case["engine"] == "loop")
    case["verdict"] = "differs"
    cases_counted = re.compile(r"result=pass (.*) exact=(\d+) (.*) differs=0 claims_failed=0")
    failed["summary"] = cases_counted.sub(
        lambda m: f"result=fail {m[1]} exact={int(m[2]) - 1} {m[3]} differs=1 claims_failed=1", failed["summary"]
    )
    found = evidence.condense(evidence.read(failed))
    (shown / "cpu.json").write_text(evidence.compact(found), encoding="utf-8")
    assert "differs: 1" in evidence.rows("optim.NAdam")
    assert "**1 claims are not met**" in evidence.rows("optim.NAdam")
    assert "every claim is met" in evidence.rows("optim.Rprop")


def test_an_error_of_torch_that_makes_a_bound_useless_is_shown(full, shown):
    poor = copy.deepcopy(full)
    case = next(case for case in poor["cases"] if case["section"] == "optim.NAdam" and case["engine"] == "fused")
    case["reference_error"] = "inf"
    (shown / "cpu.json").write_text(evidence.compact(evidence.condense(evidence.read(poor))), encoding="utf-8")
    assert f"(fused, {case['dtype']}: 1)" in evidence.rows("optim.NAdam")
    assert "says little" not in evidence.rows("optim.Rprop")


def test_a_function_has_what_was_found_of_its_layers(shown):
    text = evidence.rows("nn.functional.batch_norm")
    engines = re.findall(r'<th scope="row">([^<]+)<', text)
    assert engines == [f"BatchNorm{n}d, first principles" for n in (1, 2, 3)]
    assert "Claimed: every bit of 0 cases" in text
    assert re.findall(r'<th scope="row">([^<]+)<', evidence.rows("nn.BatchNorm1d")) == ["kernels", "first principles"]


def test_the_command_is_of_what_was_run(condensed):
    words = condensed["command"].split()
    assert words[:3] == ["reimpl", "verify", "--quick"]
    assert sorted(words[3:]) == sorted([*SECTIONS, "train.SGD"])


def test_fresh_evidence_is_not_stale(tree, condensed):
    assert evidence.stale(condensed, tree) == {}
    evidence.check(tree)


def test_a_changed_rule_is_stale(tree, condensed):
    edit(tree / "reimpl/optim/rprop.py", "sign()", "sgn()")
    assert evidence.stale(condensed, tree) == {"optim.Rprop": ["reimpl/optim/rprop.py"]}
    with pytest.raises(evidence.StaleError, match=r"^reimpl/optim/rprop\.py has changed since docs/evidence/cpu\.json"):
        evidence.check(tree)


def test_changed_arithmetic_of_a_layer_is_stale(tree, condensed):
    edit(tree / "reimpl/nn/functional/operation.py", "tensor.float()", "tensor.double()")
    assert evidence.stale(condensed, tree).keys() == {"nn.BatchNorm1d", "nn.BatchNorm2d", "nn.BatchNorm3d"}


def test_what_all_optimizers_share_makes_them_all_stale(tree, condensed):
    edit(tree / "reimpl/optim/engines/symbolic.py", "import math", "import math, cmath")
    files = ["reimpl/optim/engines/symbolic.py"]
    assert evidence.stale(condensed, tree) == dict.fromkeys(["optim.Rprop", "optim.NAdam", "optim.SGD"], files)


def test_a_new_file_is_stale_where_it_is_imported(tree, condensed):
    (tree / "reimpl/optim/sign.py").write_text("def sign(x):\n    return x\n", encoding="utf-8")
    assert evidence.stale(condensed, tree) == {}
    edit(tree / "reimpl/optim/rprop.py", "import torch\n", "import torch\nfrom reimpl.optim.sign import sign\n")
    assert evidence.stale(condensed, tree) == {"optim.Rprop": ["reimpl/optim/rprop.py", "reimpl/optim/sign.py"]}


def test_docstrings_comments_and_layout_change_nothing(tree, condensed):
    file = tree / "reimpl/optim/rprop.py"
    edit(file, '"""', '"""Rprop. ')
    edit(file, "class Rprop", "# A comment.\n\n\nclass Rprop")
    edit(tree / "reimpl/optim/optimizer.py", '    """', '    """Of all: ')
    assert evidence.stale(condensed, tree) == {}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ('def f():\n    "a"\n    return 1', "def f():\n    return 1  # b", True),
        ("x = 1", "x = 1.0", False),
        ("x = 1", "x = True", False),
        ("x = 'a'", "x = 'b'", False),
        ("a - b", "b - a", False),
        ("a - b", "a + b", False),
        ("a < b", "a <= b", False),
        ("f(a=1)", "f(b=1)", False),
        ("x = None", "x = ()", False),
    ],
)
def test_digest(one, other, same):
    assert (digest(one) == digest(other)) is same


def test_a_digest_is_not_of_fields_that_a_newer_python_has():
    found = str(skeleton(ast.parse("def f():\n    return None")))
    assert "FunctionDef" in found
    assert not re.search("decorator_list|returns|type_", found)


def test_every_class_has_its_files():
    graph = evidence.imports(evidence.ROOT)
    named = {section: evidence.files_of(section, graph) for section in sections()}
    assert "reimpl/optim/adam.py" in named["optim.AdamW"]
    assert "reimpl/nn/functional/dropout.py" in named["nn.LSTM"]
    assert "reimpl/nn/conv.py" in named["nn.functional.conv2d"]
    assert "reimpl/nn/functional/loss.py" not in named["nn.Linear"]
    for section, files in named.items():
        assert all((evidence.ROOT / file).is_file() for file in files), section
    owned = {file for files in named.values() for file in files}
    unowned = {file for file in graph.keys() - owned if not file.endswith("__init__.py")}
    assert unowned == {"reimpl/nn/container.py"}  # which computes nothing


def sections():
    functions = {f"nn.functional.{function}" for function, _ in TABLES.values() if function}
    return [f"optim.{name}" for name in OPTIMIZERS] + [f"nn.{name}" for name in TABLES] + sorted(functions)


@pytest.mark.parametrize("section", ["optim.Sgd", "nn.Conv2d", "SGD", "nn.functional.pad", "nn.functional.", ""])
def test_an_unknown_section_raises(section, shown):
    with pytest.raises(ValueError, match="there is no evidence of"):
        evidence.rows(section)
    if section != "nn.Conv2d":  # which only the small run has not
        with pytest.raises(ValueError, match="there is no section"):
            evidence.files_of(section, {})


def test_unknown_times_raise():
    with pytest.raises(ValueError, match="there are no times of 'LBFGS'; there are of SGD"):
        evidence.bench_rows("LBFGS")


def test_text_is_no_markup():
    found = evidence.grid('a "b"', ["x<y", "z"], [["`a < b` & c", "<i>"]])
    assert '<th scope="row"><code>a &lt; b</code> &amp; c</th>' in found
    assert "x&lt;y" in found
    assert "&lt;i&gt;" in found
    assert "&quot;b&quot;" in found


class Tables(HTMLParser):
    """Checks that tags are closed in order, each table stands in a container, and each row has all columns."""

    def __init__(self):
        super().__init__()
        self.open, self.labels, self.widths = [], [], []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "table":
            assert self.open[-1] == "div"
            self.widths.append([])
        if tag == "div":
            assert (attributes["class"], attributes["tabindex"], attributes["role"]) == ("scroll", "0", "region")
            self.labels.append(attributes["aria-label"])
        if tag == "tr":
            self.widths[-1].append(0)
        if tag in ("th", "td"):
            self.widths[-1][-1] += 1
            assert tag == "td" or "scope" in attributes
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def well_formed(text):
    parser = Tables()
    parser.feed(text)
    parser.close()
    assert not parser.open
    assert len(set(parser.labels)) == len(parser.labels) == len(parser.widths) > 0
    assert all(len(set(widths)) == 1 for widths in parser.widths)


@pytest.mark.parametrize("section", sections())
def test_rows_of_every_class_are_there(section):
    text = evidence.rows(section)
    well_formed(text)
    assert "every claim is met" in text


@pytest.mark.parametrize("make", [evidence.page, evidence.summary, lambda: evidence.bench_rows("Adam")])
def test_tables_are_well_formed(make):
    well_formed(make())


def test_the_summary_adds_up(shown, condensed):
    counts = [int(number.replace(",", "")) for number in re.findall(r'"number">([\d,]+)<', evidence.summary())]
    by_kind = list(zip(*[iter(counts)] * 4, strict=True))
    *parts, total = by_kind
    assert tuple(map(sum, zip(*parts, strict=True))) == total
    assert all(cases == exact + close + differs for cases, exact, close, differs in by_kind)
    assert f"cases={total[0]} exact={total[1]} close={total[2]}" in condensed["summary"]


def test_another_device_is_shown_and_may_be_stale(shown, condensed):
    assert "no GPU has run this yet" in evidence.rows("optim.Rprop")
    assert "No GPU has run the cases yet" in evidence.page()
    other = copy.deepcopy(condensed)
    other["environment"] |= {"device": "cuda", "device_name": "Some GPU"}
    (shown / "cuda.json").write_text(json.dumps(other), encoding="utf-8")
    for text in (evidence.rows("optim.Rprop"), evidence.page(), evidence.summary()):
        assert "Some GPU" in text
        assert "no GPU has" not in text.replace("No", "no")
        assert "The code has changed" not in text
        well_formed(text)
    assert "`reimpl verify optim.Rprop --device cuda`" in evidence.rows("optim.Rprop")
    other["code"]["reimpl/optim/rprop.py"] = "0"
    (shown / "cuda.json").write_text(json.dumps(other), encoding="utf-8")
    assert "The code has changed" in evidence.rows("optim.Rprop")
    assert "The code has changed" not in evidence.rows("optim.NAdam")
    assert "That is so of `optim.Rprop`." in evidence.page()


def test_the_committed_evidence_is_whole():
    found = evidence.load(evidence.FOLDER / "cpu.json")
    assert found["holds"]
    assert found["command"] == "reimpl verify"
    assert sum(row["cases"] for section in found["sections"].values() for row in section["rows"]) == len(cases())
    assert (evidence.FOLDER / "cpu.json").stat().st_size < 150_000
