"""What is changed in the pages and scripts that Material makes; each change says why."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from mkdocs.exceptions import PluginError

SCRIPT = {
    # The search index is fetched when somebody searches, and not with every page.
    '$(location.protocol!=="file:")': "$(!1)",
    'V("search.highlight")?': 'V("search.highlight")&&location.search.includes("h=")?',
    # A button to copy is no landmark, and a box that scrolls can be reached by keyboard.
    '"nav",{class:"md-code__nav"}': '"div",{class:"md-code__nav"}',
    '{class:"md-typeset__scrollwrap"}': '{class:"md-typeset__scrollwrap",tabIndex:0}',
}
SEARCH = 'data-md-component="search" role="dialog"'
PLAIN = re.compile(r'<span class="(?:n|w|p)">([^<]*)</span>')
PRE = re.compile(r"<pre.*?</pre>", re.S)


def finish(site: Path) -> None:
    """Change what Material made, and leave out what no page needs.

    Raises:
        PluginError: if Material's script is not the one for which the changes are written, or Node.js fails.
    """
    [script] = (site / "assets" / "javascripts").glob("bundle.*.min.js")
    text = script.read_text(encoding="utf-8")
    for old, new in SCRIPT.items():
        if text.count(old) != 1:
            raise PluginError(f"{script.name} has {text.count(old)} times {old!r}: look at docs_tools/theme.py")
        text = text.replace(old, new)
    script.write_text(text, encoding="utf-8")
    for page in sorted(site.rglob("*.html")):
        text = page.read_text(encoding="utf-8").replace(SEARCH, f'{SEARCH} aria-label="Search"')
        text = re.sub(r"<th([^>]*)></th>", r"<td\1></td>", text)
        # Names and signs have the colour of the text anyway.
        text = PRE.sub(lambda match: PLAIN.sub(r"\1", match[0]), text)
        page.write_text(text, encoding="utf-8")
    done = subprocess.run(["node", Path(__file__).with_name("slim.mjs"), site], capture_output=True, text=True)
    if done.returncode:
        raise PluginError(done.stderr)
