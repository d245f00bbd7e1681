"""Whether torch's functions are still those that the pages quote: a digest of each of their lines is kept."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reimpl.read import pages
from reimpl.read.quote import TORCH_VERSION, QuoteError, source

FILE = "quoted.json"


@dataclass(frozen=True)
class Change:
    """A function of torch's that is no longer the one that the pages quote."""

    path: str
    pages: tuple[str, ...]
    lines: tuple[str, ...]
    """As in a unified diff: lines that stay and new ones as installed; of one that is gone only the digest is known."""


def quoted(texts: dict[str, str]) -> dict[str, tuple[str, ...]]:
    """Return everything of torch's that pages quote, and which pages do."""
    found: dict[str, list[str]] = {}
    for page, text in texts.items():
        for path in pages.quotations(text):
            found.setdefault(path, [])
            if page not in found[path]:
                found[path].append(page)
    return {path: tuple(found[path]) for path in sorted(found)}


def digest(line: str) -> str:
    """Return a short digest of a line, which its indentation does not change."""
    return hashlib.sha256(line.strip().encode()).hexdigest()[:8]


def record(texts: dict[str, str]) -> dict[str, Any]:
    """Return the digests of what the pages quote, of the torch that is installed."""
    return {
        "torch": TORCH_VERSION,
        "quoted": {path: " ".join(digest(line.text) for line in source(path).lines) for path in quoted(texts)},
    }


def kept() -> dict[str, Any]:
    """Return the digests that are kept with the pages."""
    found: dict[str, Any] = json.loads((pages.folder() / FILE).read_text(encoding="utf-8"))
    return found


def write(file: Path, texts: dict[str, str]) -> None:
    """Keep the digests of what is quoted now."""
    file.write_text(json.dumps(record(texts), indent=1) + "\n", encoding="utf-8")


def missing(texts: dict[str, str]) -> list[str]:
    """Return what the pages quote and no digest is kept of, or the other way around."""
    return sorted(set(quoted(texts)) ^ set(kept()["quoted"]))


def changes(texts: dict[str, str] | None = None) -> Iterator[Change]:
    """Yield every quoted function that has changed, or is gone."""
    known = kept()["quoted"]
    for path, where in quoted(pages.pages() if texts is None else texts).items():
        before = known.get(path, "").split()
        try:
            lines = [line.text for line in source(path).lines]
        except QuoteError as error:
            yield Change(path, where, (f"! {error}",))
            continue
        if before != [digest(line) for line in lines]:
            yield Change(path, where, tuple(difference(before, lines)))


def difference(before: list[str], lines: list[str]) -> Iterator[str]:
    """Yield the lines that are installed as a unified diff against digests."""
    matcher = difflib.SequenceMatcher(None, before, [digest(line) for line in lines], autojunk=False)
    for group in matcher.get_grouped_opcodes(3):
        yield f"@@ line {group[0][3] + 1} @@"
        for kind, old_start, old_end, start, end in group:
            if kind == "equal":
                yield from (f"  {line}" for line in lines[start:end])
            else:
                yield from (f"- (a line with the digest {gone})" for gone in before[old_start:old_end])
                yield from (f"+ {line}" for line in lines[start:end])
