"""What the pages of the documentation claim in code, runs."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
PAGES = [str(page.relative_to(DOCS)) for page in sorted(DOCS.rglob("*.md"))]
RUN = re.compile(r"```python run\n(.*?)```", re.S)


@pytest.mark.parametrize("page", PAGES)
def test_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = RUN.findall((DOCS / page).read_text(encoding="utf-8"))
    if page.startswith("nn/"):
        assert blocks, "a page on a layer proves what it says"
    scope = {}
    for block in blocks:
        exec(compile(block, page, "exec"), scope)


@pytest.mark.parametrize("page", PAGES)
def test_every_test_that_a_page_names_is_there(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    for name in re.findall(r"`((?:tests|reimpl|benchmarks)/[\w/]+\.py)`", text):
        assert (DOCS.parent / name).is_file(), name


def test_every_page_is_in_the_navigation():
    navigation = (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8")
    assert all(page in navigation for page in PAGES)
