"""Checks single pages while they are written: `python -m docs_tools.check docs/optim/sgd.md --preview DIR`."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

from docs_tools.blocks import numbers_of, run_in_processes
from reimpl.read.pages import NUMBER, REFERENCE, alignments, folder, questions, sections
from reimpl.read.quote import QuoteError, align, source

ALWAYS = ("notation.md", "bibliography.md")


def main() -> int:
    """Check the pages; return 1 if something is wrong."""
    parser = argparse.ArgumentParser("docs_tools.check", description=__doc__)
    parser.add_argument("pages", nargs="+", type=Path, metavar="PAGE")
    parser.add_argument("--write", action="store_true", help="write what the code says into the prose's numbers")
    parser.add_argument("--preview", type=Path, metavar="DIR", help="build a site of these pages alone")
    options = parser.parse_args()
    problems = [problem for page in options.pages for problem in check(page, options.write)]
    print("\n".join(problems) or "all blocks run, all numbers are right, all quotations are found")
    if options.preview and not problems:
        preview(options.pages, options.preview)
    return 1 if problems else 0


def check(page: Path, write: bool) -> list[str]:
    """Return what is wrong with a page."""
    text = page.read_text(encoding="utf-8")
    name = page.resolve().relative_to(folder()).as_posix()
    results = list(run_in_processes([(name, section) for section in sections(text)]))
    if write:
        values = iter([value for result in results for value in result.numbers])
        known = {(w, c) for section in sections(text) for _, w, c in numbers_of(section)}
        if len(known) <= sum(len(r.numbers) for r in results) and all(
            not r.problems or "the page says" in " ".join(r.problems) for r in results
        ):
            text = NUMBER.sub(lambda m: f"[{next(values)}]{{= {m[2]}}}" if (m[1], m[2]) in known else m[0], text)
            page.write_text(text, encoding="utf-8")
            for result in results:
                result.problems.clear()
    problems = [problem for result in results for problem in result.problems]
    for match in REFERENCE.finditer(text):
        try:
            source(match[1]).cut(match[2] or "")
        except QuoteError as error:
            problems.append(f"{name}: {error}")
    for spec in alignments(text):
        try:
            align(spec)
        except QuoteError as error:
            problems.append(f"{name}: {error}")
    problems += [
        f"{name}#{question.anchor}: the short answer has a formula, which a terminal cannot show"
        for question in questions({name: text})
        if "$" in question.answer
    ]
    return problems


def preview(pages: list[Path], target: Path) -> None:
    """Build the pages alone, without the strictness that needs all others."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    with tempfile.TemporaryDirectory() as directory:
        for name in ALWAYS:
            shutil.copy(folder() / name, directory)
        shutil.copytree(folder() / "assets", Path(directory) / "assets")
        for page in pages:
            copy = Path(directory) / page.resolve().relative_to(folder())
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(page, copy)
        config = load_config("mkdocs.yml", docs_dir=directory, site_dir=str(target.resolve()), strict=False)
        config.nav = None
        build(config)


if __name__ == "__main__":
    os.environ.update(NO_MKDOCS_2_WARNING="1", DISABLE_MKDOCS_2_WARNING="true")
    sys.exit(main())
