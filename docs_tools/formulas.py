"""Formulas without JavaScript: every one of the built pages is rendered by one run of KaTeX."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

from mkdocs.exceptions import PluginError

TOOLS = Path(__file__).parent
KATEX = TOOLS / "node_modules" / "katex" / "dist"
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\(?:\((.*?)\\\)|\[(.*?)\\\])</\1>', re.S)


def render_site(site: Path) -> None:
    """Render the formulas of every page, and copy KaTeX's style sheet and fonts."""
    if not KATEX.is_dir():
        raise PluginError(f"KaTeX is not installed; run: npm ci --prefix {TOOLS.name}")
    pages = {path: path.read_text(encoding="utf-8") for path in sorted(site.rglob("*.html"))}
    where = {formula(match): path for path, text in pages.items() for match in FORMULA.finditer(text)}
    rendered = render(list(where), [str(path.relative_to(site)) for path in where.values()])
    for path, text in pages.items():
        if "arithmatex" in text:
            path.write_text(FORMULA.sub(lambda match: rendered[formula(match)], text), encoding="utf-8")
    target = site / "katex"
    (target / "fonts").mkdir(parents=True, exist_ok=True)
    shutil.copy(KATEX / "katex.min.css", target)
    for font in (KATEX / "fonts").glob("*.woff2"):
        shutil.copy(font, target / "fonts")


def formula(match: re.Match[str]) -> tuple[str, bool]:
    """Return a formula's TeX, and whether it stands on lines of its own."""
    return html.unescape(match[2] or match[3] or ""), match[1] == "div"


def render(formulas: list[tuple[str, bool]], pages: list[str]) -> dict[tuple[str, bool], str]:
    """Return the HTML of each formula."""
    given = json.dumps([{"tex": tex, "display": display} for tex, display in formulas])
    try:
        done = subprocess.run(["node", TOOLS / "render.mjs"], input=given, capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise PluginError("the documentation's formulas are rendered by Node.js; there is no `node` here") from error
    found = json.loads(done.stdout)
    wrong = [f"{page}: {x['error']}" for page, x in zip(pages, found, strict=True) if isinstance(x, dict)]
    if wrong:
        raise PluginError("\n".join(wrong))
    return dict(zip(formulas, found, strict=True))
