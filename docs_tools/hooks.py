"""What mkdocs calls while it builds the site; each part has a module of its own."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File

HERE = Path(__file__).parent
SOURCE = re.compile(r"^<!-- source: ([\w./]+)(?: \| *(.+?))? -->$", re.M)
SOURCES = re.compile(r"^```sources\n(.*?)^```$", re.M | re.S)
DIRECTIVE = re.compile(r"^<!-- ([a-z]+(?: [a-z]+)?)(?:: (.+?))? -->$", re.M)


class Build:
    """What is found once, before the first page."""

    texts: dict[str, str]
    results: dict[str, list[Any]]
    questions: list[Any]
    symbols: dict[str, list[Any]]
    html: dict[str, str]
    changed: list[Any]
    written_for: str


build = Build()
log = get_plugin_logger("reimpl")


def on_config(config: Any) -> Any:
    """Let the hooks import the package and each other."""
    root = str(HERE.parent)
    if root not in sys.path:
        sys.path.insert(0, root)
    from docs_tools import reference

    for entry in config.nav or ():
        if "Reference" in entry:
            entry["Reference"] = reference.navigation()
    return config


def on_files(files: Any, config: Any) -> Any:
    """Run the code of all pages, and collect what pages say about each other."""
    from docs_tools import blocks, evidence, notation, reference
    from reimpl.read import drift
    from reimpl.read.pages import questions
    from reimpl.read.quote import TORCH_VERSION

    pages = [file for file in files.documentation_pages() if file.abs_src_path]
    build.texts = {file.src_uri: Path(file.abs_src_path).read_text(encoding="utf-8") for file in pages}
    order = named(config.nav or [])
    ordered = sorted(build.texts, key=lambda page: order.index(page) if page in order else len(order))
    build.questions = questions({page: build.texts[page] for page in ordered})
    build.symbols = notation.symbols(build.texts.get("notation.md", ""))
    build.html = {}
    try:
        if config.nav:
            evidence.check()
        build.results = blocks.run_pages(build.texts, fresh="FRESH" in os.environ)
    except (blocks.BlockError, evidence.StaleError) as error:
        raise PluginError(str(error)) from error
    if config.nav and (unknown := drift.missing(build.texts)):
        raise PluginError(f"no digest is kept of {', '.join(unknown)}: run python -m docs_tools.digests")
    build.changed, build.written_for = list(drift.changes(build.texts)), drift.kept()["torch"]
    for change in build.changed:
        where = ", ".join(change.pages)
        log.info(f"torch {TORCH_VERSION} has another {change.path} than {where} quotes: reimpl read drift")
    for path, text in reference.pages().items() if config.nav else ():
        files.append(File.generated(config, path, content=text))
    return files


def named(nav: Any) -> list[str]:
    """Return the pages of a navigation in their order."""
    if isinstance(nav, str):
        return [nav]
    return [page for entry in (nav.values() if isinstance(nav, dict) else nav) for page in named(entry)]


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Put in what the page's code shows, the sources and tables that it asks for, and its links."""
    from reimpl.read.quote import QuoteError

    name = page.file.src_uri
    if name not in build.texts:
        return markdown
    try:
        return fill(markdown, name)
    except QuoteError as error:
        raise PluginError(f"{name}: {error}") from error


def fill(markdown: str, name: str) -> str:
    """Return a page's Markdown with everything filled in; what is HTML already waits in `build.html`."""
    from docs_tools import bibliography, sources
    from reimpl.read.pages import ASKED, NUMBER, REFERENCE
    from reimpl.read.quote import source

    markdown = bibliography.cite(with_results(with_changes(markdown, name), name), name)
    markdown = SOURCES.sub(lambda match: kept(sources.beside(match[1])), markdown)
    markdown = SOURCE.sub(lambda match: kept(sources.piece(match[1], match[2] or "")), markdown)
    markdown = DIRECTIVE.sub(lambda match: directive(match, markdown, name), markdown)

    def refer(match: re.Match[str]) -> str:
        of = source(match[1])
        lines = of.cut(match[2]) if match[2] else of.lines[:1]
        return f"[`{of.place(lines)}`]({of.url_of(lines)})"

    markdown = outside_code(markdown, lambda text: REFERENCE.sub(refer, NUMBER.sub(r"\1", text)))
    return re.sub(rf"^({ASKED}.*)$", r"\1\n{ .asked }", markdown, flags=re.M)


def with_changes(markdown: str, name: str) -> str:
    """Return a page with a word on what it quotes and the installed torch has otherwise."""
    from reimpl.read.quote import TORCH_VERSION

    changed = [change.path for change in build.changed if name in change.pages]
    if not changed:
        return markdown
    note = f"This page is written for torch {build.written_for} and was built with {TORCH_VERSION}, where "
    note += f"{', '.join(f'`{path}`' for path in changed)} changed."
    return re.sub(r"^(# .*\n)", rf'\1\n!!! warning "Another torch"\n    {note}\n', markdown, count=1, flags=re.M)


def outside_code(markdown: str, change: Any) -> str:
    """Return a page with its prose changed, and its fences as they are."""
    parts = re.split(r"(^```.*?^```$|^    ```.*?^    ```$)", markdown, flags=re.M | re.S)
    return "".join(part if i % 2 else change(part) for i, part in enumerate(parts))


def with_results(markdown: str, name: str) -> str:
    """Return a page with what its blocks showed."""
    from docs_tools.blocks import BLOCK, blocks_of
    from reimpl.read.pages import sections

    shown = iter(
        [
            pair
            for section, result in zip(sections(build.texts[name]), build.results[name], strict=True)
            for pair in zip(blocks_of(section), result.shown, strict=True)
        ]
    )

    def replace(_: re.Match[str]) -> str:
        block, html = next(shown)
        code = f"```python\n{block.code}```"
        if block.kind == "run":
            return f"{code}\n\n{kept(html)}" if html else code
        folded = "\n".join(f"    {line}".rstrip() for line in code.splitlines())
        name = "Code of this experiment" if html else "Code of these numbers"
        return f'{kept(html) if html else ""}\n\n??? code "{name}"\n{folded}\n'

    return BLOCK.sub(replace, markdown)


def kept(html: str) -> str:
    """Return a mark for a piece of HTML that Markdown is not to see."""
    key = f"kept-{len(build.html)}"
    build.html[key] = html
    return f"\n<div data-{key}></div>\n"


def directive(match: re.Match[str], markdown: str, name: str) -> str:
    """Return what a directive asks for."""
    from docs_tools import bibliography, evidence, notation, questions, sources, times

    up = "../" * name.count("/")
    answers = {
        "symbols": lambda _: notation.used(markdown, name, build.symbols),
        "questions index": lambda _: questions.index(build.questions, name),
        "bibliography": lambda _: bibliography.page(bibliography.citations(bibliography.DOCS)),
        "evidence": lambda section: evidence.rows(section, up),
        "evidence summary": lambda _: evidence.summary(),
        "evidence page": lambda _: evidence.page(),
        "times": lambda optimizer: evidence.bench_rows(optimizer),
        "layer times": lambda _: times.layers(),
        "versus": lambda pair: kept(sources.versus(*pair.split(" || "))),
    }
    if match[1] not in answers:
        raise PluginError(f"{name}: there is no directive {match[0]}")
    try:
        return answers[match[1]](match[2])
    except (ValueError, OSError) as error:
        raise PluginError(f"{name}: {match[0]}: {error}") from error


def on_page_content(html: str, **_: Any) -> str:
    """Put in the HTML that Markdown has not seen, and keep folded code out of the search."""
    html = re.sub(r"(?:<p>)?<div data-(kept-\d+)></div>(?:</p>)?", lambda match: build.html[match[1]], html)
    return html.replace('<details class="code">', '<details class="code" data-search-exclude>')


def on_post_page(output: str, **_: Any) -> str:
    """Leave out of a page what no reader needs."""
    from docs_tools import reference

    return reference.tidy(output)


def on_post_build(config: Any) -> None:
    """Check that the reference is complete, render the formulas, and make the site light and easy to search."""
    from docs_tools import formulas, reference, search, theme

    if config.nav and (missing := reference.check(Path(config.site_dir))):
        raise PluginError("\n".join(missing))
    site = Path(config.site_dir)
    formulas.render_site(site)
    search.prepare(site / "search" / "search_index.json", build.questions)
    theme.finish(site)
