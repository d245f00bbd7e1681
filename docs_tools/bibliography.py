"""The works that the documentation cites: what a citation becomes, and the page that lists them."""

from __future__ import annotations

import posixpath
import re
import tomllib
import unicodedata
from collections.abc import Iterator
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

DOCS = Path(__file__).parent.parent / "docs"
WORKS = DOCS / "bibliography.toml"
PAGE = "bibliography.md"
DIRECTIVE = "<!-- bibliography -->"
OTHERS = "others"
"""Stands last in a list of authors that is not complete."""

# Code comes first, so that it is passed over: a block in a fence, closed by one as long or by the end; code in a line.
PIECE = re.compile(
    r"^[ \t]*(?P<fence>`{3,}|~{3,})[^`\n]*\n(?:.*?^[ \t]*(?P=fence)[`~]*[ \t]*$|.*\Z)"
    r"|(?<!`)(?P<ticks>`+)(?!`)(?:(?!\n[ \t]*\n).)+?(?<!`)(?P=ticks)(?!`)"
    r"|\[@(?P<citation>[^\]]*)\]",
    re.M | re.S,
)
TITLE = re.compile(r"^# +(.+?)[ #]*$", re.M)
FRONT_MATTER_TITLE = re.compile(r"\A---\n(?:.*\n)*?title: *[\"']?(.+?)[\"']?\n")

Used = dict[str, list[tuple[str, str]]]


@cache
def works() -> dict[str, dict[str, Any]]:
    """Return every work by its key."""
    return tomllib.loads(WORKS.read_text(encoding="utf-8"))


def cite(markdown: str, page: str) -> str:
    """Make a link of every `[@key]` and `[@key, place]` of a page."""
    target = posixpath.relpath(PAGE, posixpath.dirname(page) or ".")

    def link(match: re.Match[str]) -> str:
        if match["citation"] is None:
            return match[0]
        key, place = parsed(match["citation"], page)
        return f"[{label(key)}{', ' if place else ''}{place}]({target}#{key})"

    return PIECE.sub(link, markdown)


def citations(docs: Path) -> Used:
    """Return the pages that cite each work, as title and path below the folder of all pages."""
    works.cache_clear()  # a server that builds again reads the works again
    used: Used = {}
    for path in sorted(docs.rglob("*.md")):
        page = path.relative_to(docs).as_posix()
        markdown = path.read_text(encoding="utf-8")
        for key in sorted(set(keys(markdown, page))):
            used.setdefault(key, []).append((title(markdown) or page, page))
    return used


def uncited(used: Used) -> list[str]:
    """Return the keys of the works that no page cites."""
    return [key for key in works() if key not in used]


def page(used: Used) -> str:
    """Return the list of the works that pages cite, by family name and year."""
    return "\n".join(entry(key, used[key]) for key in sorted(used, key=order))


def keys(markdown: str, page: str) -> Iterator[str]:
    """Yield the key of every citation on a page."""
    for match in PIECE.finditer(markdown):
        if match["citation"] is not None:
            yield parsed(match["citation"], page)[0]


def parsed(citation: str, page: str) -> tuple[str, str]:
    """Return the key of a citation, which has to be a work's, and the place that it names."""
    key, _, place = " ".join(citation.split()).partition(", ")
    if key not in works():
        close = get_close_matches(key, works(), n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise PluginError(f"{page}: [@{key}] is in no table of {WORKS.name}{hint}")
    return key, place


def label(key: str) -> str:
    """Return names and year, as they stand in a text."""
    names = [family(author) for author in works()[key]["authors"]]
    if len(names) > 2 or OTHERS in names:
        names = [f"{names[0]} et al."]
    return f"{' and '.join(names)}, {year(key)}"


def year(key: str) -> str:
    """Return a work's year, with the letter that tells it from others of the same name and year."""
    return f"{works()[key]['year']}{key[-1] if key[-1].isalpha() else ''}"


def family(author: str) -> str:
    """Return the family name, with the small words in front of it: van Laarhoven."""
    names = author.split(" ")
    start = len(names) - 1
    while start > 0 and names[start - 1].islower():
        start -= 1
    return " ".join(names[start:])


def order(key: str) -> tuple[list[str], str]:
    """Return what the list is sorted by; ü is sorted as u."""
    names = [unicodedata.normalize("NFKD", family(author)).casefold() for author in works()[key]["authors"]]
    return ["".join(letter for letter in name if not unicodedata.combining(letter)) for name in names], year(key)


def entry(key: str, pages: list[tuple[str, str]]) -> str:
    """Return a work's line of the list, with the anchor that citations point to."""
    work = works()[key]
    *first, last = work["authors"]
    authors = last if not first else f"{', '.join(first)} {'et al.' if last == OTHERS else f'and {last}'}"
    name = f"[{work['title']}]({work['url']})" if "url" in work else work["title"]
    parts = [f"{authors} ({year(key)})", name, work.get("venue"), work.get("note")]
    text = " ".join(f"{part.removesuffix('.')}." for part in parts if part)
    cited = ", ".join(f"[{title}]({url})" for title, url in pages)
    return f'- <span id="{key}"></span>{text} Cited on: {cited}.'


def title(markdown: str) -> str | None:
    """Return a page's title."""
    found = FRONT_MATTER_TITLE.match(markdown) or TITLE.search(markdown)
    return found[1] if found else None
