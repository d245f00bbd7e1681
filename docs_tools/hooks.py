"""What the documentation is built with beside mkdocs: source code from the package, and formulas without JavaScript."""

from __future__ import annotations

import ast
import html
import importlib
import inspect
import json
import re
import shutil
import subprocess
import textwrap
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

TOOLS = Path(__file__).parent
KATEX = TOOLS / "node_modules" / "katex" / "dist"
RESULTS = TOOLS.parent / "benchmarks" / "results"
TIMES = re.compile(r"^<!-- layer times: ([\w.-]+) -->$", re.M)
SOURCE = re.compile(r"^<!-- source: ([\w.]+) -->$", re.M)
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\(?:\((.*?)\\\)|\[(.*?)\\\])</\1>', re.S)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Put in the source code and tables that a page asks for, and make of a block that the tests run a plain one."""

    def show(match: re.Match[str]) -> str:
        try:
            return f"```python\n{source_of(match[1])}```"
        except (AttributeError, ModuleNotFoundError) as error:
            raise PluginError(f"{page.file.src_uri}: there is no {match[1]} to show: {error}") from error

    markdown = TIMES.sub(lambda match: times_table(RESULTS / match[1]), markdown)
    return SOURCE.sub(show, markdown.replace("```python run\n", "```python\n"))


def times_table(file: Path) -> str:
    """Return the table of a run of `benchmarks/layers.py`."""
    evidence = json.loads(file.read_text(encoding="utf-8"))
    where = evidence["environment"]
    lines = [
        "| layer | input | torch, ms | on kernels | first principles | peak, MiB | torch's |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for row in evidence["layers"]:
        times = f"{1e3 * row['torch']:.2f} | {row['kernels'] / row['torch']:.2f} | "
        times += f"{row['first_principles'] / row['torch']:.2f}"
        memory = f"{row['peak'] / 2**20:.1f} | {row['torch_peak'] / 2**20:.1f}"
        lines.append(f"| `{row['layer']}` | {' × '.join(map(str, row['shape']))} | {times} | {memory} |")
    lines += [
        "",
        f"Forward and backward, measured with torch {where['torch']} on {where['device_name']}, "
        f"{where['threads']} threads, {where['date'][:10]}: torch's time, and ours as a multiple of it.",
    ]
    return "\n".join(lines)


def source_of(path: str) -> str:
    """Return the source of a function, class or method by its dotted path."""
    parts = path.split(".")
    for length in range(len(parts) - 1, 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for name in parts[length:]:
            found = getattr(found, name)
        return without_long_docstring(textwrap.dedent(inspect.getsource(found)))
    raise ModuleNotFoundError(path)


def without_long_docstring(source: str) -> str:
    """Return the source of a function or class without a docstring of several lines: the page says it better."""
    definition = ast.parse(source).body[0]
    first = getattr(definition, "body", [definition])[0]
    is_text = (
        isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    )
    if not is_text or first.end_lineno == first.lineno:
        return source
    lines = source.splitlines(keepends=True)
    rest = lines[first.end_lineno :]
    return "".join([*lines[: first.lineno - 1], *rest]).replace(":\n\n", ":\n", 1)


def on_post_build(config: Any, **_: Any) -> None:
    """Render every formula of every page by one run of KaTeX, and copy its style sheet and fonts."""
    if not KATEX.is_dir():
        raise PluginError(f"KaTeX is not installed; run: npm ci --prefix {TOOLS.name}")
    site = Path(config.site_dir)
    pages = {path: path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    where = {formula(match): path for path, text in pages.items() for match in FORMULA.finditer(text)}
    rendered = render(list(where), [str(path.relative_to(site)) for path in where.values()])
    for path, text in pages.items():
        if "arithmatex" in text:
            path.write_text(FORMULA.sub(lambda match: rendered[formula(match)], text), encoding="utf-8")
    target = site / "katex"
    (target / "fonts").mkdir(parents=True, exist_ok=True)
    shutil.copy(KATEX / "katex.min.css", target)
    for font in (KATEX / "fonts").glob("*.woff2"):
        shutil.copy(font, target / "fonts")


def formula(match: re.Match[str]) -> tuple[str, bool]:
    """Return a formula's TeX, and whether it stands on lines of its own."""
    return html.unescape(match[2] or match[3] or ""), match[1] == "div"


def render(formulas: list[tuple[str, bool]], pages: list[str]) -> dict[tuple[str, bool], str]:
    """Return the HTML of each formula."""
    given = json.dumps([{"tex": tex, "display": display} for tex, display in formulas])
    try:
        done = subprocess.run(["node", TOOLS / "render.mjs"], input=given, capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise PluginError("the documentation's formulas are rendered by Node.js; there is no `node` here") from error
    found = json.loads(done.stdout)
    wrong = [f"{page}: {x['error']}" for page, x in zip(pages, found, strict=True) if isinstance(x, dict)]
    if wrong:
        raise PluginError("\n".join(wrong))
    return dict(zip(formulas, found, strict=True))
