"""The parts of a page that are made from other files: symbols, sources, the index of questions, the search."""

import json

from docs_tools import notation, questions, search, sources
from reimpl.read.pages import questions as read

NOTATION = """# Notation

## Everywhere { #all }

| symbol | meaning | in the code |
|---|---|---|
| <a id="epsilon"></a>$\\epsilon$ | small number | `eps` |

## Optimizers { #optim }

| symbol | meaning | in the code |
|---|---|---|
| <a id="g"></a>$g_t$ | gradient | `grad` |
| <a id="gamma"></a>$\\gamma$ | learning rate | `lr` |

## Layers { #nn }

| symbol | meaning | in the code |
|---|---|---|
| <a id="scale"></a>$\\gamma$, $\\beta$ | scale and shift | `weight` |
"""
PAGE = """# Page

### Why `x`? { #why }

Asked as: x explained · what is x · pytorch/pytorch#1

!!! answer
    Because of y, which is 3.
"""


def test_symbols_are_those_of_the_pages_formulas_and_of_its_part():
    known = notation.symbols(NOTATION)
    line = notation.used("$\\gamma\\, g_{t-1}$", "optim/sgd.md", known)
    assert "[$\\gamma$ learning rate](../notation.md#gamma)" in line
    assert "[$g_t$ gradient](../notation.md#g)" in line
    assert "scale" not in line
    assert "epsilon" not in line
    assert "scale and shift" in notation.used("$$\\beta$$", "nn/batchnorm.md", known)


def test_a_symbol_is_no_part_of_a_longer_name():
    known = notation.symbols(NOTATION)
    assert "gradient" not in notation.used("$\\lg x$ and $\\nabla \\log_2$", "optim/sgd.md", known)


def test_sources_stand_beside_each_other_with_links_to_torch():
    spec = """
ours: reimpl.optim.sgd.sgd_rule
torch: torch.optim.sgd._single_tensor_sgd
== Everything | $a < b$ and `c`
"""
    html = sources.beside(spec)
    assert '<span class="arithmatex">\\(a &lt; b\\)</span> and <code>c</code>' in html
    assert "https://github.com/pytorch/pytorch/blob/v" in html
    assert html.count('<div class="file">') == 2
    assert html.index("reimpl/optim/sgd.py") < html.index("torch/optim/sgd.py")


def test_the_index_links_to_each_question_by_every_phrase():
    found = questions.index(read({"optim/page.md": PAGE}), "questions/index.md")
    assert "- [Why `x`?](../optim/page.md#why)" in found
    assert "- [what is x](../optim/page.md#why)" in found
    assert "1 questions, and 2 ways" in found
    assert "#1" not in found


def test_the_search_gets_words_for_formulas_and_the_phrases(tmp_path):
    file = tmp_path / "search_index.json"
    entry = {
        "location": "optim/page/#why",
        "title": "Why \\(\\theta\\)?",
        "text": "So: \\[\\gamma b\\] and \\(a &lt; b\\).",
    }
    file.write_text(json.dumps({"config": {"fields": {}}, "docs": [entry]}))
    search.prepare(file, read({"optim/page.md": PAGE}))
    (found,) = json.loads(file.read_text())["docs"]
    assert found["tags"] == ["x explained", "what is x"]
    assert found["title"] == "Why θ?"
    assert found["text"] == "So:  and a &lt; b."
