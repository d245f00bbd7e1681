"""The index of all questions that the pages answer."""

from __future__ import annotations

import os

from reimpl.read.pages import Question

GROUPS = {
    "optim": "Optimizers",
    "nn": "Layers and losses",
    "questions": "Training and numbers",
    "use": "In real use",
    "": "How it works",
}


def group_of(question: Question) -> str:
    """Return the part of the site that a question's page is in."""
    return GROUPS.get(question.page.partition("/")[0], GROUPS[""])


def link(question: Question, page: str, text: str) -> str:
    """Return a link to a question, from a page."""
    target = os.path.relpath(question.page, os.path.dirname(page) or ".")
    return f"[{text}]({target}#{question.anchor})"


def index(among: list[Question], page: str) -> str:
    """Return the index: by subject, and by the words in which people ask."""
    lines = [
        '<div class="filter"><label for="filter">Show those that contain</label>'
        '<input id="filter" type="search" autocomplete="off" placeholder="momentum keras"></div>',
        "",
        f"{len(among)} questions, and {sum(len(q.asked) for q in among)} ways in which they are asked.",
        "",
        "## By subject",
        "",
    ]
    for group in GROUPS.values():
        of_group = [question for question in among if group_of(question) == group]
        if not of_group:
            continue
        lines += [f"### {group}", ""]
        for subject in dict.fromkeys(question.subject for question in of_group):
            lines += [f"**{subject}**", "{ .subject }", ""]
            lines += [f"- {link(q, page, q.text)}" for q in of_group if q.subject == subject]
            lines.append("")
    lines += ["## As they are asked", ""]
    asked = sorted(
        {(phrase, q.page, q.anchor): q for q in among for phrase in q.asked}.items(), key=lambda x: x[0][0].lower()
    )
    lines += [f"- {link(q, page, phrase)}" for (phrase, _, _), q in asked]
    return "\n".join(lines)
