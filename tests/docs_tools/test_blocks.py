"""A page whose code fails, or whose prose says another number than its code, cannot be built."""

import re

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("pandas")

from docs_tools.blocks import BlockError, run_pages, run_section
from reimpl.read.pages import sections

PLOT = """### A plot { #plot }

```python fold title="A line" alt="A line that rises."
import matplotlib.pyplot as plt

x = [0.5, 2.5]
plt.plot([0, 1], x)
plt.show()
```

It ends at [2.5]{= x[-1]}.
"""


def run(text):
    (section,) = sections(text)
    return run_section("page.md", section)


def test_a_plot_is_drawn_in_the_colours_of_the_page():
    result = run(PLOT)
    assert result.problems == []
    (shown,) = result.shown
    assert 'aria-label="A line"' in shown
    assert "<desc>A line that rises.</desc>" in shown
    assert "var(--plot-0)" in shown
    assert "#0103" not in shown


def test_the_same_plot_has_the_same_bytes():
    assert run(PLOT).shown == run(PLOT).shown


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("[2.5]{=", "[2.4]{=", r"page.md:11: the page says 2.4, the code 2.5 \(x\[-1\]\)"),
        ("x[-1]", "y[-1]", r"page.md:11: y\[-1\]: NameError"),
        ("plt.show()", "assert x[0] > 1", r"(?s)page.md:4: the block failed.*line 8.*AssertionError"),
        ("plt.show()", "import warnings; warnings.warn('odd')", "UserWarning: odd"),
        (' alt="A line that rises."', "", "needs title="),
    ],
)
def test_what_is_wrong_is_named_with_its_line(old, new, problem):
    assert PLOT.count(old) == 1
    (found,) = run(PLOT.replace(old, new)).problems
    assert re.search(problem, found), found


def test_what_is_printed_and_the_last_value_are_shown():
    result = run("### A\n\n```python run\nprint('a < b')\n6 * 7\n```\n")
    assert result.shown == ['<pre class="output" tabindex="0"><code>a &lt; b\n42</code></pre>']


def test_a_table_is_shown():
    result = run("### A\n\n```python run\nimport pandas as pd\n\npd.DataFrame({'n': [1]})\n```\n")
    assert "<td>1</td>" in result.shown[0]
    assert "style=" not in result.shown[0]


def test_numbers_in_code_are_left_alone():
    assert run("### A\n\n```python run\nx = '[1]{= 2}'\n```\n").problems == []


def test_sections_share_no_names(tmp_path, monkeypatch):
    monkeypatch.setattr("docs_tools.blocks.CACHE", tmp_path)
    text = "# A\n\n## B\n\n```python run\nx = 1\n```\n\n## C\n\n```python run\nassert x\n```\n"
    with pytest.raises(BlockError, match="NameError: name 'x' is not defined"):
        run_pages({"page.md": text})
