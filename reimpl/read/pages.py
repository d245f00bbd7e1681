"""The pages of the documentation as text: the questions on them, what is quoted in them, and how to find an answer."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from reimpl.read.quote import Step, align

HERE = Path(__file__).parent
FENCE = re.compile(r"^(`{3,})(.*)$")
HEADING = re.compile(r"^(#{1,6}) +(.*?)(?: *\{ *#([\w-]+)[^}]*\})? *$")
NUMBER = re.compile(r"\[([^\[\]\n]+)\]\{= *(.+?) *\}", re.S)
REFERENCE = re.compile(r"\{torch: *([\w./]+)(?: *\| *(.+?))? *\}")
THREAD = re.compile(r"[\w.-]+/[\w.-]+#\d+(?:/#\d+)*")
ASKED = "Asked as: "
ANSWER = re.compile(r'^!!! answer(?: ".*")?\n((?:    .*\n|\n)+)', re.M)
WORD = re.compile(r"[a-z0-9_]+(?:[.-][a-z0-9_]+)*")
COMMON = frozenset(
    [
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "be",
        "between",
        "by",
        "can",
        "difference",
        "do",
        "does",
        "for",
        "from",
        "how",
        "i",
        "if",
        "in",
        "is",
        "it",
        "its",
        "mean",
        "my",
        "not",
        "of",
        "on",
        "or",
        "pytorch",
        "should",
        "so",
        "than",
        "that",
        "the",
        "there",
        "this",
        "to",
        "torch",
        "use",
        "used",
        "what",
        "when",
        "where",
        "which",
        "why",
        "will",
        "with",
        "you",
        "your",
    ]
)


@dataclass(frozen=True)
class Question:
    """A question that a page answers."""

    page: str
    """The page's file, as `optim/sgd.md`."""
    subject: str
    """The page's title."""
    anchor: str
    text: str
    asked: tuple[str, ...]
    """The same question in other people's words."""
    answer: str
    """Short, and complete in itself."""
    words: Counter[str] = field(repr=False, compare=False)

    @property
    def address(self) -> str:
        """Where it stands on the site, relative to its root."""
        folder, _, name = self.page.removesuffix(".md").rpartition("/")
        return "/".join(filter(None, [folder, "" if name == "index" else name, f"#{self.anchor}"]))


@dataclass(frozen=True)
class Section:
    """A heading of a page and what stands under it, up to the next of any level from 1 to 3."""

    level: int
    title: str
    anchor: str
    text: str
    line: int
    """Where it begins in the file, counted from 1."""


def folder() -> Path:
    """Return the folder with the pages: inside of an installed package, beside the package in its repository."""
    inside = HERE / "docs"
    return inside if inside.is_dir() else HERE.parent.parent / "docs"


def pages() -> dict[str, str]:
    """Return the text of every page by the name of its file."""
    top = folder()
    return {f.relative_to(top).as_posix(): f.read_text(encoding="utf-8") for f in sorted(top.rglob("*.md"))}


def outside_fences(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a page that are not inside of a fence, with their index."""
    closing = ""
    for i, line in enumerate(text.splitlines()):
        fence = FENCE.match(line.strip())
        if closing:
            closing = "" if fence and fence[1] == closing and not fence[2] else closing
        elif fence:
            closing = fence[1]
        else:
            yield i, line


def sections(text: str) -> list[Section]:
    """Return the sections of a page; what stands before its first heading is one without a title."""
    lines = text.splitlines(keepends=True)
    marks = [(0, 0, "", "")]
    for i, line in outside_fences(text):
        heading = HEADING.match(line)
        if heading and len(heading[1]) <= 3:
            marks.append((i, len(heading[1]), heading[2], heading[3] or ""))
    ends = [*(i for i, *_ in marks[1:]), len(lines)]
    found = [
        Section(level, title, anchor, "".join(lines[i:end]), i + 1)
        for (i, level, title, anchor), end in zip(marks, ends, strict=True)
    ]
    return [section for section in found if section.text.strip()]


def title_of(text: str) -> str:
    """Return the title of a page."""
    return next((section.title for section in sections(text) if section.level == 1), "")


def plain(text: str) -> str:
    """Return prose of a page as it reads: without the code behind numbers, and without marks of references."""
    text = NUMBER.sub(lambda match: match[1], text)
    text = REFERENCE.sub(lambda match: match[1], text)
    text = re.sub(r"\[@([a-z]+)(\d{4})\w*((?:, [^\]]*)?)\]", r"\1 \2\3", text)
    return re.sub(r"(?<!!)\[([^\]]+)\]\([^)]+\)", r"\1", text)


def questions(texts: dict[str, str] | None = None) -> list[Question]:
    """Return every question that the pages answer, page by page."""
    found = []
    for page, text in (pages() if texts is None else texts).items():
        subject = title_of(text)
        for section in sections(text):
            answer = ANSWER.search(section.text)
            if not answer or not section.anchor:
                continue
            asked = next((line for line in section.text.splitlines() if line.startswith(ASKED)), ASKED)
            listed = (phrase.strip(" .") for phrase in plain(asked[len(ASKED) :]).split(" · "))
            phrases = tuple(phrase for phrase in listed if phrase and not THREAD.fullmatch(phrase))
            short = " ".join(plain(answer[1]).split())
            words = Counter[str]()
            for weight, part in (
                (8, section.title),
                (5, subject),
                (6, " ".join(phrases)),
                (3, short),
                (1, plain(section.text)),
            ):
                words.update({word: weight * count for word, count in Counter(terms(part)).items()})
            found.append(Question(page, subject, section.anchor, section.title, phrases, short, words))
    return found


def terms(text: str) -> list[str]:
    """Return the words of a text that carry meaning, without endings."""
    return [_stem(word) for word in WORD.findall(text.lower()) if word not in COMMON]


def _stem(word: str) -> str:
    """Return a word without the ending of a plural or participle."""
    for ending in ("ings", "ing", "ies", "es", "ed", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 4:
            return word.removesuffix(ending)
    return word


def search(query: str, among: list[Question] | None = None) -> list[Question]:
    """Return the questions that a query may mean, the likeliest first.

    A word counts the more the fewer questions have it, and less and less the more often it stands in one. All counts
    up to twice where the query is how the question is asked, word for word.
    """
    asked, spelled = set(terms(query)), set(WORD.findall(query.lower()))
    among = questions() if among is None else among
    having = Counter(word for question in among for word in question.words)

    def likeness(phrase: str) -> float:
        words = set(WORD.findall(phrase.lower()))
        return len(spelled & words) / len(spelled | words)

    def score(question: Question) -> float:
        words = sum(
            math.log(1 + question.words[word]) * math.log(1 + len(among) / having[word])
            for word in asked
            if question.words[word]
        )
        return words * (1 + max(map(likeness, (question.text, *question.asked))))

    scored = sorted(((score(question), i) for i, question in enumerate(among)), key=lambda pair: (-pair[0], pair[1]))
    return [among[i] for value, i in scored if value > 0]


def quotations(text: str) -> Iterator[str]:
    """Yield the path of everything of torch's that a page quotes or refers to."""
    for match in REFERENCE.finditer(text):
        yield match[1]
    for match in re.finditer(r"^<!-- source: (torch\.[\w.]+|torch/[\w./]+)(?: \|.*)? -->$", text, re.M):
        yield match[1]
    for spec in alignments(text):
        for line in spec.split("\n==")[0].splitlines():
            if line.startswith("torch:"):
                yield from (path.strip() for path in line[len("torch:") :].split(",") if path.strip())


def alignments(text: str) -> list[str]:
    """Return what the fences `sources` of a page say (see `quote.align`)."""
    return re.findall(r"^```sources\n(.*?)^```$", text, re.M | re.S)


def beside(name: str) -> list[Step]:
    """Return the aligned source of a class that a page is about, as `optim.SGD` or `SGD`; nothing without a page."""
    wanted = name.removeprefix("reimpl.").removeprefix("torch.").lower()
    for text in pages().values():
        about = [section.lower() for section in re.findall(r"^<!-- evidence: ([\w.]+) -->$", text, re.M)]
        if wanted in about or wanted in {section.rpartition(".")[2] for section in about}:
            return [step for spec in alignments(text) for step in align(spec)]
    return []
