"""The reference: a page for every public name, found in the packages themselves, and the check that none is missing.

The pages hold mkdocstrings' directives. Nothing here imports the package: griffe reads its source, and mkdocstrings
calls `OwnSections` for the headings of a docstring that only this project has.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import griffe

ROOT = Path(__file__).parent.parent
FOLDER = "reference"
BY_FILE = ("reimpl.optim", "reimpl.nn", "reimpl.nn.functional")
"""Packages with a page for each of their files; all names of another stand on one page."""
PACKAGES = (
    "reimpl",
    *BY_FILE,
    "reimpl.watch",
    "reimpl.verify",
    "reimpl.verify.pytest",
    "reimpl.bench",
    "reimpl.read",
)

ANCHOR = re.compile(r'\bid="(reimpl[\w.]*)"')
SECTION = re.compile(
    r"^(Returns|Shape|Costs|Differs from [^:\n]+|Source):(?: +(?=\S)|\n((?:\n|    .*(?:\n|\Z))+))", re.M
)

PREFORMATTED = re.compile(r"(<pre.*?</pre>)", re.S)
BLANKS = re.compile(r"\s*\n\s*")
MARKED = re.compile(r'<a href="" id="([\w.]+)"></a>')
STATE = re.compile("^State:$", re.M)

INDEX = """\
# Reference

Every public name, with its docstring. How it works, and why, is the subject of the other pages."""


class Name(NamedTuple):
    """A public name."""

    path: str
    """As users spell it: `reimpl.optim.Adam`."""
    target: str
    """Where it is defined: `reimpl.optim.adam.Adam`; outside of `reimpl` if it is torch's own."""
    summary: str
    """The docstring's first line, empty if there is none."""
    line: int
    """Where in its file."""

    @property
    def is_torchs(self) -> bool:
        """Whether torch defines it, and documents it."""
        return not self.target.startswith("reimpl.")

    @property
    def is_package(self) -> bool:
        """Whether it has pages of its own."""
        return self.target in PACKAGES

    @property
    def is_rule(self) -> bool:
        """Whether it stands below the class that is made of it."""
        return self.path.endswith("_rule")

    def is_exported_by(self, package: str) -> bool:
        """Return whether it is a name of the package, and not of one of its files."""
        return self.path.rpartition(".")[0] == package

    @property
    def module(self) -> str:
        """The file that defines it."""
        return self.target.rpartition(".")[0]


class Package(NamedTuple):
    """A package, and what it offers."""

    path: str
    docstring: str
    names: list[Name]
    files: dict[str, str]
    """The docstring of each file that defines one of the names."""
    members: list[str]
    """Methods and attributes of its classes that have a docstring, and so an anchor."""

    def page(self, file: str = "") -> str:
        """Return the path of its page, or of one of its files' page."""
        return f"{FOLDER}/{(file or self.path).removeprefix('reimpl.').replace('.', '/')}.md"


def load(root: Path = ROOT) -> griffe.Module:
    """Read the package's source."""
    found = griffe.load("reimpl", search_paths=[root], try_relative_path=False, allow_inspection=False)
    assert isinstance(found, griffe.Module)
    return found


def packages(top: griffe.Module) -> list[Package]:
    """Return what is to be documented."""
    found = []
    for path in PACKAGES:
        module = find(top, path)
        names = list(names_of(module, top))
        files = {name.module: text_of(find(top, name.module)) for name in names if is_shown(name)}
        members = [member for name in names if is_shown(name) for member in members_of(name, top)]
        found.append(Package(path, text_of(module), names, files, members))
    return found


def names_of(module: Any, top: griffe.Module) -> Iterator[Name]:
    """Yield a package's public names; with them, the bases of its classes and the rules, which stand beside them."""
    spelled = [str(name) for name in module.exports or ()]
    if module.exports is None:
        spelled = [name for name, member in module.members.items() if not member.is_alias and member.is_public]
    shown = set()
    for name in spelled:
        target = module.imports.get(name, f"{module.path}.{name}")
        yield name_at(f"{module.path}.{name}", target, top)
        shown.add(target)
    for target in sorted(shown):
        file = top if target.startswith("torch.") else find(top, target.rpartition(".")[0])
        beside = [f"{file.path}.{file.name}_rule"] if file.name + "_rule" in file.members else []
        for path in [*beside, *bases(target, file, top)]:
            if path not in shown:
                shown.add(path)
                yield name_at(path, path, top)


def bases(path: str, file: Any, top: griffe.Module) -> Iterator[str]:
    """Yield the public bases of a class that its own file defines."""
    found = find(top, path) if path.startswith("reimpl.") else None
    for base in getattr(found, "bases", ()):
        member = file.members.get(str(base))
        if member is not None and not member.is_alias and not member.name.startswith("_"):
            yield member.path
            yield from bases(member.path, file, top)


def name_at(path: str, target: str, top: griffe.Module) -> Name:
    """Return what is known of a name."""
    if not target.startswith("reimpl."):
        return Name(path, target, "", 0)
    found = find(top, target)
    return Name(path, target, text_of(found).partition("\n")[0], found.lineno or 0)


def members_of(name: Name, top: griffe.Module) -> Iterator[str]:
    """Yield the paths of a class's members that are shown."""
    for member in find(top, name.target).members.values():
        if not member.is_alias and not member.name.startswith("_") and member.docstring:
            yield f"{heading(name, top)}.{member.name}"


def find(top: griffe.Module, path: str) -> Any:
    """Return the object at a path."""
    return top if path == top.path else top[path.removeprefix(f"{top.path}.")]


def text_of(found: Any) -> str:
    """Return a docstring, empty if there is none."""
    return found.docstring.value if found.docstring else ""


def is_shown(name: Name) -> bool:
    """Return whether a name is documented on a page of its package."""
    return not name.is_torchs and not name.is_package


def heading(name: Name, top: griffe.Module) -> str:
    """Return the path by which mkdocstrings finds an object: a file of the same name hides what it holds."""
    hidden = name.path != name.target and find(top, name.path).is_module
    return name.target if hidden else name.path


def pages(root: Path = ROOT) -> dict[str, str]:
    """Return the Markdown of each page, by its path in the documentation."""
    top = load(root)
    found = packages(top)
    texts = {f"{FOLDER}/index.md": document("Reference", [INDEX, listing((p.path, p.docstring) for p in found)])}
    for package in found:
        shown = sorted(filter(is_shown, package.names), key=lambda name: (name.module, name.is_rule, name.line))
        start = [f"# `{package.path}` {{: #{package.path} }}", package.docstring]
        if package.path not in BY_FILE:
            texts[package.page()] = document(package.path, [*start, *(directive(name, top) for name in shown)])
            continue
        listed = [name for name in package.names if name.is_exported_by(package.path)]
        ours = listing((name.path, name.summary) for name in listed if not name.is_torchs)
        theirs = [f"- [](){{: #{name.path} }}`{name.path}`: torch's own." for name in listed if name.is_torchs]
        texts[package.page()] = document(package.path, [*start, "\n".join([ours, *theirs])])
        for file, docstring in package.files.items():
            inside = [name for name in shown if name.module == file]
            body = [f"# `{file}`", docstring, *(directive(name, top) for name in inside)]
            texts[package.page(file)] = document(file, body)
    return texts


def document(title: str, blocks: Iterable[str]) -> str:
    """Return a page. The search should find what explains a name before it finds this."""
    return "\n\n".join([f"---\ntitle: {title}\nsearch:\n  boost: 0.5\n---", *blocks]) + "\n"


def listing(names: Iterable[tuple[str, str]]) -> str:
    """Return a list of links, each with the first line of a docstring."""
    return "\n".join(f"- [`{path}`][{path}]: {docstring.partition(chr(10))[0]}" for path, docstring in names)


def directive(name: Name, top: griffe.Module) -> str:
    """Return what mkdocstrings replaces by a docstring, with an anchor where it would not give the public name one."""
    path = heading(name, top)
    # `reimpl.watch` is a function and a package: the package's page has that anchor.
    anchor = "" if path == name.path or name.path in PACKAGES else f"[](){{: #{name.path} }}\n\n"
    options: dict[str, Any] = {"heading": name.path, "toc_label": name.path.rpartition(".")[2]}
    options |= {"show_source": True} if name.is_rule else {}  # elsewhere it would weigh more than the docstring
    return f"{anchor}::: {path}\n    options: {json.dumps(options)}"


def navigation(root: Path = ROOT) -> list[Any]:
    """Return the reference's part of the navigation."""
    entries: list[Any] = [f"{FOLDER}/index.md"]
    for package in packages(load(root)):
        if package.path in BY_FILE:
            files = [{file.rpartition(".")[2]: package.page(file)} for file in sorted(package.files)]
            entries.append({package.path: [{"Overview": package.page()}, *files]})
        else:
            entries.append({package.path: package.page()})
    return entries


def check(site: Path, root: Path = ROOT) -> list[str]:
    """Return what is wrong with the reference in a built site."""
    built = "\n".join(page.read_text(encoding="utf-8") for page in (site / FOLDER).rglob("*.html"))
    return complaints(packages(load(root)), set(ANCHOR.findall(built)))


def complaints(found: Iterable[Package], anchors: set[str]) -> list[str]:
    """Return the public names that have no docstring, or no anchor among those of the site."""
    said = []
    for package in found:
        names = {package.path: package.docstring}
        names |= {name.path: name.summary for name in package.names if not name.is_torchs}
        said += [f"{path} has no docstring" for path, docstring in names.items() if not docstring]
        wanted = [package.path, *(name.path for name in package.names), *package.members]
        said += [f"{path} is not in the reference" for path in wanted if path not in anchors]
    return said


class OwnSections(griffe.Extension):
    """Docstrings as the pages show them: with the sections of this project, and no type twice."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        """Rewrite a docstring."""
        if not obj.docstring:
            return
        obj.docstring.value = with_own_sections(obj.docstring.value)
        for section in obj.docstring.parsed:
            if section.kind in (griffe.DocstringSectionKind.parameters, griffe.DocstringSectionKind.attributes):
                for item in section.value:  # the signature says it, a line above
                    item.annotation = item.value = None


def with_own_sections(docstring: str) -> str:
    """Return a docstring whose sections griffe and Markdown know."""

    def prose(match: re.Match[str]) -> str:
        text = textwrap.dedent(match[2] or "").strip("\n")
        return f'<span class="doc-section-title">{match[1]}:</span> {text}' + "\n\n" * bool(match[2])

    return SECTION.sub(prose, STATE.sub("Args: State", docstring))


def tidy(content: str) -> str:
    """Return a page's HTML without the blanks of mkdocstrings' templates, and without what has no accessible name."""
    parts = PREFORMATTED.split(content)
    for i in range(0, len(parts), 2):
        text = BLANKS.sub("\n", parts[i]).replace("<p>\n</p>", "").replace("<th></th>", "<td></td>")
        parts[i] = MARKED.sub(r'<span id="\1"></span>', text)
    return "".join(parts)
