"""Runs the code of the pages, and keeps what it shows.

A block is a fence `python run` (its code is shown, then what it shows) or `python fold title="…" alt="…"` (what it
shows, if anything, then its code, folded). It shows what it prints, the value of its last line, and every figure.
Blocks share their names within a section, a heading of level 2 or 3; `[0.5]{= x:.1f}` in the section's prose is checked
against the names at its end.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import html
import io
import json
import multiprocessing
import os
import re
import shlex
import traceback
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from docs_tools import figures
from reimpl.read.pages import NUMBER, Section, outside_fences, sections

CACHE = Path(__file__).parent / ".cache"
BLOCK = re.compile(r"^```python (run|fold)\b(.*)\n((?:.*\n)*?)```$", re.M)


class BlockError(Exception):
    """A block raised, or a number in the prose is not what the code says."""


@dataclass(frozen=True)
class Block:
    """A piece of code on a page."""

    kind: str
    options: dict[str, str]
    code: str
    line: int
    """Where the code begins in the page's file."""


@dataclass
class Result:
    """What the blocks of a section showed, in their order, and what its numbers are."""

    shown: list[str] = field(default_factory=list)
    numbers: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def blocks_of(section: Section) -> list[Block]:
    """Return the blocks of a section."""
    found = []
    for match in BLOCK.finditer(section.text):
        options = dict(part.partition("=")[::2] for part in shlex.split(match[2]))
        line = section.line + section.text.count("\n", 0, match.start(3))
        found.append(Block(match[1], options, match[3], line))
    return found


def numbers_of(section: Section) -> list[tuple[int, str, str]]:
    """Return the numbers in the prose of a section: line, what is written, and the code that it comes from."""
    prose = dict(outside_fences(section.text))
    text = "\n".join(prose.get(i, "") for i in range(section.text.count("\n") + 1))
    return [(section.line + text.count("\n", 0, m.start()), m[1], m[2]) for m in NUMBER.finditer(text)]


def run_section(page: str, section: Section) -> Result:
    """Run the blocks of a section in names of their own."""
    scope: dict[str, Any] = {"__name__": page}
    result = Result()
    for block in blocks_of(section):
        try:
            result.shown.append(run_block(page, block, scope))
        except Exception:
            lines = traceback.format_exc().splitlines()
            start = next((i for i, line in enumerate(lines) if f'"{page}"' in line), len(lines) - 1)
            result.problems.append(f"{page}:{block.line}: the block failed\n    " + "\n    ".join(lines[start:]))
            return result
    for line, written, code in numbers_of(section):
        try:
            value = str(eval(f"f'''{{{code}}}'''", scope))
        except Exception as error:
            result.problems.append(f"{page}:{line}: {code}: {type(error).__name__}: {error}")
            continue
        result.numbers.append(value)
        if normal(written) != normal(value):
            result.problems.append(f"{page}:{line}: the page says {written}, the code {value} ({code})")
    return result


def normal(number: str) -> str:
    """Return a number as Python writes it."""
    return number.replace("−", "-").replace("\u202f", "").replace("\u00a0", "").replace(",", "").strip("` ")


def run_block(page: str, block: Block, scope: dict[str, Any]) -> str:
    """Run a block and return what it shows, as HTML."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    tree = ast.parse("\n" * (block.line - 1) + block.code, page)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    plt.close("all")
    with contextlib.redirect_stdout(printed), warnings.catch_warnings(), mpl.rc_context(figures.style()):
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "FigureCanvasAgg is non-interactive", UserWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        exec(compile(tree, page, "exec"), scope)
        value = eval(compile(ast.Expression(last.value), page, "eval"), scope) if isinstance(last, ast.Expr) else None
        drawn = [plt.figure(number) for number in plt.get_fignums()]
        shown = [figure(one, block) for one in drawn]
    plt.close("all")
    if hasattr(value, "to_html"):
        shown.append(table(value, block))
    elif value is not None and not drawn:
        print(value, file=printed)
    if printed.getvalue().strip():
        text = html.escape(printed.getvalue().rstrip(), quote=False)
        shown.insert(0, f'<pre class="output" tabindex="0"><code>{text}</code></pre>')
    return "\n".join(shown)


def figure(of: Any, block: Block) -> str:
    """Return a figure as HTML."""
    title, about = block.options.get("title", ""), block.options.get("alt", "")
    if not title or not about:
        raise BlockError('a block that draws needs title="…" and alt="…"')
    svg = figures.to_svg(of, title, about)
    return (
        f'<figure class="plot" data-search-exclude><div class="canvas" tabindex="0">{svg}</div>'
        f"<figcaption>{html.escape(title)}</figcaption></figure>"
    )


def table(value: Any, block: Block) -> str:
    """Return a data frame as HTML."""
    title = block.options.get("title", "")
    text = value.to_html(index=False, border=0, justify="left", float_format=lambda x: f"{x:.6g}", classes="data")
    text = re.sub(r' style="[^"]*"', "", text).replace("dataframe data", "data")
    name = html.escape(title or "table")
    caption = f"<figcaption>{name}</figcaption>" if title else ""
    # `<table class` keeps Material's script from wrapping it again.
    scroll = f'<div class="scroll" tabindex="0" role="region" aria-label="{name}">{text}</div>'
    return f'<figure class="result">{scroll}{caption}</figure>'


def run_pages(texts: dict[str, str], fresh: bool = False) -> dict[str, list[Result]]:
    """Run the blocks of all pages, and return the results of each page's sections.

    Args:
        texts: the pages by the names of their files.
        fresh: run all, also what is in the cache.

    Raises:
        BlockError: if a block raised, or a number differs, with all that did.
    """
    wanted = [(page, section) for page, text in texts.items() for section in sections(text)]
    print_of_code = fingerprint()
    keys = [key_of(page, section, print_of_code) for page, section in wanted]
    results = [None if fresh else cached(key) for key in keys]
    missing = [i for i, result in enumerate(results) if result is None]
    for i, result in zip(missing, run_in_processes([wanted[i] for i in missing]), strict=True):
        results[i] = result
        if not result.problems:
            CACHE.mkdir(exist_ok=True)
            (CACHE / keys[i]).write_text(json.dumps(asdict(result)), encoding="utf-8")
    found: dict[str, list[Result]] = {page: [] for page in texts}
    for (page, _), result in zip(wanted, results, strict=True):
        assert result is not None
        found[page].append(result)
    problems = [problem for of in found.values() for result in of for problem in result.problems]
    if problems:
        raise BlockError("\n".join(problems))
    return found


def run_in_processes(wanted: list[tuple[str, Section]]) -> Iterable[Result]:
    """Run sections among as many processes as there are cores."""
    busy = [(page, section) for page, section in wanted if blocks_of(section) or numbers_of(section)]
    if not busy:
        return [Result() for _ in wanted]
    # Each section has a process of its own, forked from one that has done nothing but import, and one thread, so that
    # sums have one order.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["docs_tools.preload"])
    workers = min(len(busy), os.cpu_count() or 1)
    with context.Pool(workers, one_thread, maxtasksperchild=1) as pool:
        ran = iter(pool.starmap(run_section, busy, chunksize=1))
    return [next(ran) if blocks_of(section) or numbers_of(section) else Result() for _, section in wanted]


def one_thread() -> None:
    """Let torch compute with one thread."""
    import torch

    torch.set_num_threads(1)


def fingerprint() -> str:
    """Return a digest of what results depend on beside the page: the package, the tools and the versions."""
    import matplotlib as mpl
    import torch

    here = Path(__file__).parent
    digest = hashlib.sha256(f"{torch.__version__} {mpl.__version__}".encode())
    for file in sorted([*(here.parent / "reimpl").rglob("*.py"), here / "blocks.py", here / "figures.py"]):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def key_of(page: str, section: Section, print_of_code: str) -> str:
    """Return the name under which a section's result is kept."""
    what = [print_of_code, page, *(repr((b.kind, b.options, b.code)) for b in blocks_of(section))]
    what += [f"{written} {code}" for _, written, code in numbers_of(section)]
    return hashlib.sha256("\n".join(what).encode()).hexdigest()


def cached(key: str) -> Result | None:
    """Return the result that an earlier build kept."""
    file = CACHE / key
    return Result(**json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None
