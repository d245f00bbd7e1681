"""The pages are all there, and each has what a page has; that their code runs, the build itself shows."""

import re
from pathlib import Path

import pytest

import reimpl.nn
import reimpl.optim
from reimpl.read.pages import questions, sections

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = {page.relative_to(DOCS).as_posix(): page.read_text(encoding="utf-8") for page in sorted(DOCS.rglob("*.md"))}
OPTIMIZERS = sorted(page for page in PAGES if page.startswith("optim/") and page != "optim/index.md")
LAYERS = sorted(page for page in PAGES if page.startswith("nn/") and page != "nn/index.md")
ORDER = ["The formula", "beside torch's", "Questions", "other frameworks", "Equivalence", "Further reading"]


@pytest.mark.parametrize("page", [*OPTIMIZERS, *LAYERS])
def test_a_page_has_its_parts_in_order(page):
    heads = [section.title for section in sections(PAGES[page]) if section.level == 2]
    found = [next((i for i, head in enumerate(heads) if part in head), None) for part in ORDER]
    if page == "nn/containers.md":  # nothing is computed there
        found = [at for at in found if at is not None]
    assert None not in found, dict(zip(ORDER, found, strict=True))
    assert found == sorted(found)


@pytest.mark.parametrize("page", [*OPTIMIZERS, *LAYERS])
def test_a_page_asks_and_answers(page):
    found = questions({page: PAGES[page]})
    assert len(found) >= 3
    assert all(question.asked for question in found), "other words in which it is asked"


def evidenced(kind):
    return set(re.findall(rf"^<!-- evidence: {kind}\.(\w+) -->$", "\n".join(PAGES.values()), re.M))


def test_every_optimizer_has_a_page_with_its_evidence():
    classes = {name for name in reimpl.optim.__all__ if isinstance(getattr(reimpl.optim, name), type)}
    own = {name for name in classes if getattr(reimpl.optim, name).__module__.startswith("reimpl.")}
    assert own - {"RuleOptimizer"} == evidenced("optim")


def test_every_layer_has_a_page():
    classes = {name for name in reimpl.nn.__all__ if isinstance(getattr(reimpl.nn, name), type)}
    for name in classes:
        assert any(re.search(rf"\b{name}\b", PAGES[page]) for page in LAYERS), name


@pytest.mark.parametrize("page", PAGES)
def test_every_test_that_a_page_names_is_there(page):
    named = r"`((?:tests|reimpl|benchmarks|examples|docs_tools)/[\w/]+\.py)(?:::(\w+))?`"
    for name, function in re.findall(named, PAGES[page]):
        assert (ROOT / name).is_file(), name
        assert not function or f"\ndef {function}(" in (ROOT / name).read_text(encoding="utf-8"), f"{name}::{function}"


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert [page for page in PAGES if f" {page}\n" not in navigation] == []
