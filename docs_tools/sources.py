"""Shows source code: ours beside torch's, step by step, and single pieces with the lines that they really have."""

from __future__ import annotations

import functools
import html
import re

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import CppLexer, PythonLexer

from reimpl.read.quote import Line, Side, align, dedented, source

MATH = re.compile(r"\$([^$]+)\$")
CODE = re.compile(r"`([^`]+)`")
HEADS = '<div class="heads" aria-hidden="true"><span>reimpl</span><span>torch</span></div>'


@functools.cache
def colored(text: str, is_cpp: bool) -> list[str]:
    """Return lines of code as HTML."""
    lexer = CppLexer(stripnl=False) if is_cpp else PythonLexer(stripnl=False)
    return highlight(text, lexer, HtmlFormatter(nowrap=True)).splitlines()


def listing(lines: tuple[Line, ...], file: str, url: str | None) -> str:
    """Return lines of code with their numbers, under the name of their file."""
    code = colored("\n".join(dedented(lines)) + "\n", not file.endswith(".py"))
    rows = "\n".join(f'<span data-line="{line.number}">{text}</span>' for line, text in zip(lines, code, strict=True))
    place = f"{file}:{lines[0].number}"
    name = f'<a href="{url}">{place}</a>' if url else f"<span>{place}</span>"
    return (
        f'<div class="listing no-copy" data-search-exclude><div class="file">{name}</div>'
        f'<pre class="highlight" tabindex="0"><code>{rows}</code></pre></div>'
    )


def piece(path: str, anchors: str) -> str:
    """Return a function, or lines of it, as HTML."""
    of = source(path)
    lines = of.cut(anchors)
    return listing(lines, of.file, of.url_of(lines))


def side(of: Side, name: str) -> str:
    """Return one side of a step."""
    pieces = [listing(lines, part.file, part.url_of(lines)) for part, lines in of.parts if lines]
    return f'<div class="side {name}">{"".join(pieces)}</div>'


def words(text: str) -> str:
    """Return a line of prose as HTML, with its formulas left to KaTeX."""
    text = html.escape(text, quote=False)
    text = CODE.sub(r"<code>\1</code>", text)
    return MATH.sub(r'<span class="arithmatex">\\(\1\\)</span>', text)


def beside(text: str) -> str:
    """Return what a fence `sources` says, as HTML: each step a heading, and two columns of code."""
    rows = []
    for step in align(text):
        about = f"<span>{words(step.about)}</span>" if step.about else ""
        rows.append(
            f'<div class="step"><div class="what"><strong>{words(step.title)}</strong>{about}</div>'
            f"{side(step.ours, 'ours')}{side(step.torch, 'torch')}</div>"
        )
    return f'<div class="beside" data-search-exclude>{HEADS}{"".join(rows)}</div>'


def versus(ours: str, theirs: str) -> str:
    """Return two functions, or lines of them (`path | a .. b`), beside each other in boxes that scroll."""
    pieces = (part.partition(" | ") for part in (ours, theirs))
    sides = "".join(f'<div class="side">{piece(path, anchors)}</div>' for path, _, anchors in pieces)
    return f'<div class="beside versus" data-search-exclude>{HEADS}<div class="step">{sides}</div></div>'
