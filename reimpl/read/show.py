"""Prints answers and source code in a terminal."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.markdown import Markdown
from rich.panel import Panel
from rich.rule import Rule
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from reimpl.read.drift import Change
from reimpl.read.pages import Question
from reimpl.read.quote import Line, Side, Source, Step, dedented

MATH = re.compile(r"\$([^$]+)\$")
SYMBOLS = {
    "theta": "θ", "gamma": "γ", "lambda": "λ", "mu": "μ", "tau": "τ", "beta": "β", "epsilon": "ε", "alpha": "α",
    "rho": "ρ", "eta": "η", "sigma": "σ", "Delta": "Δ", "nabla": "∇", "partial": "∂", "leftarrow": "←", "to": "→",
    "sqrt": "√", "cdot": "·", "times": "×", "odot": "⊙", "max": "max", "min": "min", "le": "≤", "ge": "≥", "sum": "Σ",
    "hat": "", "frac": "", "tfrac": "", "text": "", "mathrm": "", "left": "", "right": "", "quad": " ", "infty": "∞",
}  # fmt: skip
MARGIN = 4


def print_question(found: Sequence[Question], others: int = 5) -> None:
    """Print the short answer to the first question, where it is derived, and which other questions were found."""
    console = Console()
    first, *rest = found
    console.print(Rule(Text(first.text.replace("`", ""), style="bold"), align="left", style="dim"))
    console.print(Markdown(first.answer))
    console.print(Text.assemble(("derived and shown: ", "dim"), f"{first.subject.replace('`', '')}, ", first.address))
    if rest:
        console.print(Text("\nalso:", style="dim"))
    for question in rest[:others]:
        console.print(Text.assemble("  ", question.text.replace("`", ""), ("  " + question.address, "dim")))


def print_steps(title: str, steps: Sequence[Step]) -> None:
    """Print our source beside torch's, step by step."""
    console = Console(width=max(100, shutil.get_terminal_size().columns))
    width = console.width // 2 - MARGIN
    for step in steps:
        table = Table(box=None, show_header=False, expand=True, padding=(0, 1))
        table.add_column(ratio=1)
        table.add_column(ratio=1)
        table.add_row(side(step.ours, width), side(step.torch, width))
        about = Text.assemble((in_words(step.title), "bold"), "  ", in_words(step.about))
        console.print(
            Panel(table, title=about, title_align="left", subtitle=title, subtitle_align="right", border_style="dim")
        )


def print_source(of: Source) -> None:
    """Print a function with the numbers that its lines have."""
    Console().print(listing(of.lines, of.file))


def side(of: Side, width: int) -> RenderableType:
    """Return one side of a step."""
    return Group(*(listing(lines, source.file, width) for source, lines in of.parts if lines))


def listing(lines: tuple[Line, ...], file: str, width: int | None = None) -> RenderableType:
    """Return lines of code in colour, under the name of their file."""
    code = "\n".join(dedented(lines))
    lexer = "python" if file.endswith(".py") else "cpp"
    return Group(
        Text(f"{file}:{lines[0].number}", style="dim"),
        Syntax(
            code,
            lexer,
            theme="ansi_dark",
            line_numbers=True,
            start_line=lines[0].number,
            word_wrap=True,
            code_width=width and width - 6,
        ),
    )


def print_changes(found: Sequence[Change], torch_version: str, written_for: str) -> None:
    """Print which of torch's functions are no longer those that the pages quote."""
    console = Console(highlight=False)
    console.print(f"The pages are written for torch {written_for}; torch {torch_version} is installed.")
    if not found:
        console.print("Every function that they quote is the same.")
    for change in found:
        console.print(Rule(Text(f"{change.path}  (quoted in {', '.join(change.pages)})"), align="left"))
        for line in change.lines:
            style = {"+": "green", "-": "red", "@": "cyan", "!": "red"}.get(line[0], "")
            console.print(Text(line, style=style))


def in_words(text: str) -> str:
    """Return a line of a page with its formulas as plain characters."""

    def plain(match: re.Match[str]) -> str:
        tex = re.sub(r"\\([A-Za-z]+)", lambda name: SYMBOLS.get(name[1], name[1]), match[1])
        return re.sub(r"\\[,;!:]|[{}\\]", "", tex).strip()

    return MATH.sub(plain, text).replace("`", "")
