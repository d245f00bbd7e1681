"""Source code, quoted as installed: by the dotted path of a function, and by lines that are named, not numbered."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

TORCH_VERSION = torch.__version__.partition("+")[0]
COMMENTS = ("#", "//")


class QuoteError(ValueError):
    """A quotation names what is not there, or not there once."""


@dataclass(frozen=True)
class Line:
    """A line of source code, and where it stands in its file."""

    number: int
    text: str


@dataclass(frozen=True)
class Source:
    """The source of a function, method, class or file."""

    path: str
    file: str
    """Begins with the package's name, as `torch/optim/sgd.py`."""
    lines: tuple[Line, ...]

    def find(self, anchor: str) -> int:
        """Return the index of the one line that an anchor means.

        Args:
            anchor: a part of the line; `a >> b` is the first line with b after the one line with a.

        Raises:
            QuoteError: if no line, or more than one, has it.
        """
        first, *rest = anchor.split(" >> ")
        found = [i for i, line in enumerate(self.lines) if first in line.text]
        if len(found) != 1:
            many = f"{len(found)} lines ({', '.join(str(self.lines[i].number) for i in found)})" if found else "no line"
            raise QuoteError(f"{many} of {self.path} in {self.file} has {first!r}")
        at = found[0]
        for part in rest:
            after = next((i for i in range(at + 1, len(self.lines)) if part in self.lines[i].text), None)
            if after is None:
                raise QuoteError(f"no line of {self.path} in {self.file} after {self.lines[at].text!r} has {part!r}")
            at = after
        return at

    def cut(self, anchors: str) -> tuple[Line, ...]:
        """Return the lines from one anchor to another, `a .. b`, the one line of a single anchor, or all for none."""
        if not anchors:
            return self.lines
        first, _, last = anchors.partition(" .. ")
        start = self.find(first.strip())
        end = self.find(last.strip()) if last else start
        if end < start:
            raise QuoteError(f"{last!r} stands before {first!r} in {self.path}")
        return self.lines[start : end + 1]

    def place(self, lines: tuple[Line, ...]) -> str:
        """Return where lines stand, as `torch/optim/sgd.py:361-364`."""
        first, last = lines[0].number, lines[-1].number
        return f"{self.file}:{first}" + (f"-{last}" if last != first else "")

    def url_of(self, lines: tuple[Line, ...]) -> str | None:
        """Return the address of lines in torch's repository, at the version that is installed; None for ours."""
        if not self.file.startswith("torch/"):
            return None
        place, _, numbers = self.place(lines).partition(":")
        address = place.replace("torch/include/ATen", "aten/src/ATen").replace("torch/include/c10", "c10")
        return f"https://github.com/pytorch/pytorch/blob/v{TORCH_VERSION}/{address}#L{numbers.replace('-', '-L')}"


def dedented(lines: tuple[Line, ...]) -> list[str]:
    """Return the text of lines without the indentation that all of them have."""
    return textwrap.dedent("\n".join(line.text for line in lines)).split("\n")


@functools.cache
def source(path: str) -> Source:
    """Return the source of what a path names, without a docstring of several lines.

    Args:
        path: dotted, as `torch.optim.sgd._single_tensor_sgd`; or a file of the package torch, as
            `torch/include/ATen/native/Pool.h`.

    Raises:
        QuoteError: if there is nothing of this name, or no Python source of it.
    """
    if "/" in path:
        file = Path(torch.__file__).parent.parent / path
        if not file.is_file():
            raise QuoteError(f"there is no file {path}")
        text = file.read_text(encoding="utf-8").splitlines()
        return Source(path, path, tuple(Line(i, line) for i, line in enumerate(text, 1)))
    found = inspect.unwrap(_named(path))
    try:
        lines, start = inspect.getsourcelines(found)
        module = inspect.getmodule(found)
    except (TypeError, OSError) as error:
        raise QuoteError(f"there is no Python source of {path}") from error
    if module is None or module.__file__ is None:
        raise QuoteError(f"there is no file of {path}")
    package = module.__name__.partition(".")[0]
    top = Path(str(importlib.import_module(package).__file__)).parent.parent
    text = textwrap.dedent("".join(lines)).splitlines()
    skipped = _docstring(text)
    kept = tuple(Line(start + i, line.rstrip()) for i, line in enumerate(text) if i not in skipped)
    return Source(path, Path(module.__file__).relative_to(top).as_posix(), kept)


def _named(path: str) -> Any:
    """Return what a dotted path names."""
    parts = path.split(".")
    for length in range(len(parts) - 1, 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        try:
            for name in parts[length:]:
                found = getattr(found, name)
        except AttributeError:
            break
        return found
    raise QuoteError(f"there is nothing called {path}")


def _docstring(text: list[str]) -> range:
    """Return the indices of the lines of a docstring that takes several."""
    definition = ast.parse("\n".join(text)).body[0]
    body = getattr(definition, "body", [definition])
    first = body[0]
    is_text = (
        isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    )
    if not is_text or first.end_lineno == first.lineno or len(body) == 1:
        return range(0)
    end = first.end_lineno or 0
    while end < len(text) and not text[end].strip():
        end += 1
    return range(first.lineno - 1, end)


@dataclass(frozen=True)
class Side:
    """The lines of one side of a step, cut from one function each."""

    parts: tuple[tuple[Source, tuple[Line, ...]], ...]


@dataclass(frozen=True)
class Step:
    """A step of an algorithm: what it does, our lines, and torch's."""

    title: str
    about: str
    ours: Side
    torch: Side


def align(text: str) -> list[Step]:
    """Return the aligned steps of functions of ours and of torch's.

    Args:
        text: `ours:` and `torch:`, each with the paths of functions, separated by commas; then the steps. A step begins
            with `== title | what it does`, followed by its anchors: `ours: anchor`, `torch: anchor`, each as often as
            needed. A piece of code goes from its anchor to the next anchor in the same function. What stands before the
            first anchor of a function belongs to the first step, unless that is called `-`, which leaves it out.

    Raises:
        QuoteError: for an anchor that does not mean one line, or a line of another form.
    """
    sides: dict[str, list[Source]] = {"ours": [], "torch": []}
    steps: list[tuple[str, str, dict[str, list[str]]]] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        if line.startswith("=="):
            title, _, about = line[2:].partition(" | ")
            steps.append((title.strip(), about.strip(), {"ours": [], "torch": []}))
            continue
        side, colon, rest = line.partition(":")
        if side not in sides or not colon:
            raise QuoteError(f"a line of sources is neither `== title`, `ours:` nor `torch:`: {line!r}")
        if steps:
            steps[-1][2][side].append(rest.strip())
        else:
            sides[side] += [source(path.strip()) for path in rest.split(",") if path.strip()]
    places = {side: _starts(sources, [s[2][side] for s in steps]) for side, sources in sides.items()}
    return [
        Step(title, about, *(Side(tuple(_pieces(sides[side], places[side], i))) for side in ("ours", "torch")))
        for i, (title, about, _) in enumerate(steps)
        if title != "-"
    ]


def _starts(sources: list[Source], anchors: list[list[str]]) -> list[list[tuple[int, int]]]:
    """Return for each source where its pieces begin, and to which step each belongs."""
    starts: list[list[tuple[int, int]]] = [[] for _ in sources]
    for step, wanted in enumerate(anchors):
        for anchor in wanted:
            found = []
            problems = []
            for i, of in enumerate(sources):
                try:
                    found.append((i, of.find(anchor)))
                except QuoteError as error:
                    problems.append(str(error))
            if len(found) != 1:
                raise QuoteError("; ".join(problems) or f"{len(found)} of the functions have {anchor!r}")
            i, at = found[0]
            while at > 0 and sources[i].lines[at - 1].text.strip().startswith(COMMENTS):
                at -= 1
            starts[i].append((at, step))
    return [sorted({(0, 0), *of} if not any(at == 0 for at, _ in of) else of) for of in starts]


def _pieces(
    sources: list[Source], starts: list[list[tuple[int, int]]], step: int
) -> Iterable[tuple[Source, tuple[Line, ...]]]:
    """Return the pieces of one step, in the order in which they stand."""
    for of, begins in zip(sources, starts, strict=True):
        ends = [*(at for at, _ in begins[1:]), len(of.lines)]
        for (start, belongs), end in zip(begins, ends, strict=True):
            if belongs == step:
                yield of, _stripped(of.lines[start:end])


def _stripped(lines: tuple[Line, ...]) -> tuple[Line, ...]:
    """Return the lines without empty ones at either end."""
    full = [i for i, line in enumerate(lines) if line.text.strip()]
    return lines[full[0] : full[-1] + 1] if full else ()
