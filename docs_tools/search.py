"""The index of the site's search: words in place of formulas, and the words in which people ask."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable
from pathlib import Path

from pylatexenc.latex2text import LatexNodes2Text

from reimpl.read.pages import Question

FORMULA = re.compile(r"\\\((.*?)\\\)|\\\[.*?\\\]", re.S)
# Material's own weights let one word of a heading outweigh everything under it: of 61 phrases that users type
# (`tests/site/phrases.json`), 46 found their page first and 57 among the first three; with these, 53 and 59.
WEIGHTS = {"title": 20.0, "text": 1.0, "tags": 20.0}
LISTS = ("", "bibliography/", "notation/")
"""Pages with a word on everything, which explain nothing of it."""


def prepare(file: Path, questions: Iterable[Question]) -> None:
    """Write short formulas of the index as text, leave out long ones, and add to each question how it is asked.

    Args:
        file: the index that mkdocs has written.
        questions: what the pages answer. Their phrases become tags, a field of the index that the site does not show.
    """
    asked = {question.address: list(question.asked) for question in questions}
    to_text = LatexNodes2Text()

    def replace(match: re.Match[str]) -> str:
        return html.escape(to_text.latex_to_text(html.unescape(match[1] or "")), quote=False)

    index = json.loads(file.read_text(encoding="utf-8"))
    for entry in index["docs"]:
        for key in ("title", "text"):
            entry[key] = FORMULA.sub(replace, entry[key])
        if entry["location"] in asked:
            entry["tags"] = asked[entry["location"]]
        page, _, anchor = entry["location"].partition("#")
        if page in LISTS:
            entry["boost"] = 0.2
        elif not anchor:
            entry["boost"] = 0.4 * entry.get(
                "boost", 1
            )  # what answers is a section, and Material folds those below their page
    index["config"]["fields"] = {name: {"boost": weight} for name, weight in WEIGHTS.items()}
    file.write_text(json.dumps(index, separators=(",", ":"), ensure_ascii=False), encoding="utf-8")
