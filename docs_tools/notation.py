"""The symbols of the notation page, and which of them a page uses."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from reimpl.read.pages import sections

ROW = re.compile(r"^\| *(?:<a id=\"([\w-]+)\"></a>)?(\$.+?\$(?:, *\$.+?\$)*) *\| *(.+?) *\| *(.*?) *\|$", re.M)
FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+)\$", re.S)


@dataclass(frozen=True)
class Symbol:
    """A symbol of the notation page."""

    anchor: str
    tex: tuple[str, ...]
    meaning: str

    def is_in(self, formulas: str) -> bool:
        """Return whether one of its forms stands in formulas."""
        return any(re.search(pattern(tex), formulas) for tex in self.tex)


def pattern(tex: str) -> str:
    """Return what matches a symbol and no longer name that has it as a part."""
    before = "" if tex.startswith("\\") else r"(?<![A-Za-z\\])"
    base = re.sub(r"_(\{\w+\}|\w)$", "", tex) if tex.endswith(("_t", "_{t}")) else tex
    return before + re.escape(base) + r"(?![A-Za-z])"


def symbols(notation: str) -> dict[str, list[Symbol]]:
    """Return the symbols of the notation page, by the anchor of the section in which they stand."""
    found: dict[str, list[Symbol]] = {}
    for section in sections(notation):
        for anchor, tex, meaning, _ in ROW.findall(section.text):
            forms = tuple(re.findall(r"\$(.+?)\$", tex))
            found.setdefault(section.anchor, []).append(Symbol(anchor, forms, meaning))
    return found


def used(markdown: str, page: str, known: dict[str, list[Symbol]]) -> str:
    """Return a line that names the symbols of a page's formulas, each a link to the notation page."""
    formulas = " ".join(" ".join(match) for match in FORMULA.findall(markdown))
    part = page.partition("/")[0]
    to = os.path.relpath("notation.md", os.path.dirname(page) or ".")
    there = [*known.get("all", []), *known.get(part, [])]
    items = [f"[${one.tex[0]}$ {one.meaning}]({to}#{one.anchor})" for one in there if one.is_in(formulas)]
    return f"Symbols: {' · '.join(items)}\n{{ .symbols }}"
