"""What the reference shows, and what its check refuses, without building a site."""

import re

import pytest

griffe = pytest.importorskip("griffe")
from docs_tools import reference  # noqa: E402

EXPORTS = {
    "reimpl/__init__.py": '"""Top."""\nfrom reimpl.swap import swap\n__all__ = ["swap"]\n',
    "reimpl/swap.py": '"""Swap."""\ndef swap():\n    """Swap things."""\n',
    "reimpl/optim/__init__.py": '"""Optimizers."""\nfrom torch.optim import Optimizer\n'
    'from reimpl.optim.sgd import SGD\n__all__ = ["SGD", "Optimizer"]\n',
    "reimpl/optim/sgd.py": '"""Descent."""\ndef sgd_rule():\n    """Step."""\ndef helper(): ...\n'
    'class Base:\n    """Shared."""\nclass SGD(Base):\n    """Descend.\n\n    More.\n    """\n'
    '    def step(self):\n        """Step."""\n    def hook(self): ...\n    def _own(self):\n        """Own."""\n',
    "reimpl/nn/__init__.py": '"""Layers."""\nfrom reimpl.nn import functional\n__all__ = ["functional"]\n',
    "reimpl/nn/functional/__init__.py": '"""Functions."""\n__all__ = []\n',
    "reimpl/watch/__init__.py": '"""Watching."""\n__all__ = []\n',
    "reimpl/verify/__init__.py": '"""Instrument."""\n__all__ = ["LIMIT"]\nLIMIT = 1\n"""A limit."""\n',
    "reimpl/verify/pytest.py": '"""In tests."""\nimport re\ndef contract():\n    """Give."""\ndef _private(): ...\n',
    "reimpl/bench/__init__.py": '"""Times."""\n__all__ = []\n',
    "reimpl/read/__init__.py": '"""Reading."""\n__all__ = []\n',
}
NAMES = {
    "reimpl.swap",
    "reimpl.optim.SGD",
    "reimpl.optim.SGD.step",
    "reimpl.optim.Optimizer",
    "reimpl.optim.sgd.sgd_rule",
    "reimpl.optim.sgd.Base",
    "reimpl.nn.functional",
    "reimpl.verify.LIMIT",
    "reimpl.verify.pytest.contract",
}


@pytest.fixture
def root(tmp_path):
    for name, text in EXPORTS.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


def complaints(root, left_out=()):
    anchors = NAMES | set(reference.PACKAGES)
    return reference.complaints(reference.packages(reference.load(root)), anchors - set(left_out))


def test_the_public_names(root):
    found = reference.packages(reference.load(root))
    assert {path for package in found for path in [*(name.path for name in package.names), *package.members]} == NAMES


def test_nothing_to_complain_of(root):
    assert complaints(root) == []


@pytest.mark.parametrize("name", [*sorted(NAMES), "reimpl.optim"])
def test_a_name_that_is_left_out(root, name):
    assert f"{name} is not in the reference" in complaints(root, [name])


@pytest.mark.parametrize(
    ("file", "docstring", "name"),
    [
        ("reimpl/swap.py", '"""Swap things."""', "reimpl.swap"),
        ("reimpl/optim/sgd.py", '"""Step."""', "reimpl.optim.sgd.sgd_rule"),
        ("reimpl/verify/__init__.py", '"""A limit."""', "reimpl.verify.LIMIT"),
        ("reimpl/verify/pytest.py", '"""Give."""', "reimpl.verify.pytest.contract"),
        ("reimpl/bench/__init__.py", '"""Times."""', "reimpl.bench"),
    ],
)
def test_a_name_without_docstring(root, file, docstring, name):
    path = root / file
    path.write_text(path.read_text(encoding="utf-8").replace(docstring, "0", 1), encoding="utf-8")
    assert complaints(root) == [f"{name} has no docstring"]


def test_the_check_reads_the_pages_that_were_built(root, tmp_path):
    page = tmp_path / "site" / "reference" / "index.html"
    page.parent.mkdir(parents=True)
    headings = sorted(NAMES | set(reference.PACKAGES))
    page.write_text("".join(f'<h2 class="doc" id="{name}">' for name in headings), encoding="utf-8")
    assert reference.check(tmp_path / "site", root) == []
    page.write_text("".join(f'<h2 class="doc" id="{name}">' for name in headings[1:]), encoding="utf-8")
    assert reference.check(tmp_path / "site", root) == [f"{headings[0]} is not in the reference"]


def test_pages_and_navigation(root):
    pages = reference.pages(root)
    assert pages.keys() == set(re.findall(r"reference/[\w/]+\.md", str(reference.navigation(root))))
    assert "::: reimpl.optim.SGD\n" in pages["reference/optim/sgd.md"]
    assert "helper" not in pages["reference/optim/sgd.md"]
    assert pages["reference/optim/sgd.md"].index("optim.SGD") < pages["reference/optim/sgd.md"].index("sgd_rule")


def test_a_file_of_the_same_name_hides_what_it_holds(root):
    assert "#reimpl.swap" in reference.pages(root)["reference/reimpl.md"]
    assert "::: reimpl.swap.swap\n" in reference.pages(root)["reference/reimpl.md"]


def test_the_package_itself_has_its_names():
    found = {package.path: {name.path for name in package.names} for package in reference.packages(reference.load())}
    assert {"reimpl.optim.Adam", "reimpl.optim.adam.adam_rule", "reimpl.optim.lr_scheduler"} <= found["reimpl.optim"]
    assert {"reimpl.nn.Conv1d", "reimpl.nn.conv.Conv"} <= found["reimpl.nn"]


def test_own_sections():
    docstring = "Do.\n\nState:\n    step: a count.\n\n"
    docstring += "Differs from torch:\n    One line,\n    two.\n\n    More.\n\nSource: it.\n"
    title = '<span class="doc-section-title">{}:</span> '
    expected = "Do.\n\nArgs: State\n    step: a count.\n\n" + title.format("Differs from torch")
    expected += "One line,\ntwo.\n\nMore.\n\n" + title.format("Source") + "it.\n"
    assert reference.with_own_sections(docstring) == expected


def test_tidy():
    untidy = '<p>\n  </p>\n\n  <a href="" id="reimpl.swap"></a>\n<th></th><pre>a\n\n  b</pre>  \n\n x'
    assert reference.tidy(untidy) == '\n<span id="reimpl.swap"></span>\n<td></td><pre>a\n\n  b</pre>\nx'
