"""Plots that belong to the page: SVG whose colours are the site's, in light and in dark."""

from __future__ import annotations

import hashlib
import html
import io
import re
from typing import Any

# A colour that no plot uses by chance, and the style sheet's name of what it stands for.
TEXT, FAINT, PAPER = "#010203", "#010204", "#010205"
SERIES = [f"#0103{i:02x}" for i in range(8)]
VARIABLES = {TEXT: "--plot-text", FAINT: "--plot-grid", PAPER: "--plot-paper"} | {
    color: f"--plot-{i}" for i, color in enumerate(SERIES)
}
DIGITS = re.compile(r"-?\d+\.\d{2,}")
GEOMETRY = re.compile(r'( (?:d|x|y|x1|x2|y1|y2|width|height|points|viewBox)="|(?:translate|rotate)\()([^")]*)')


def style() -> dict[str, Any]:
    """Return matplotlib's settings for the site's plots."""
    from cycler import cycler

    return {
        "figure.figsize": (5.6, 3.0),
        "figure.constrained_layout.use": True,
        "figure.facecolor": "none",
        "savefig.facecolor": "none",
        "axes.facecolor": "none",
        "axes.edgecolor": FAINT,
        "axes.labelcolor": TEXT,
        "axes.titlecolor": TEXT,
        "axes.titlesize": 9,
        "axes.labelsize": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.prop_cycle": cycler(color=SERIES),
        "axes.formatter.use_mathtext": False,
        "axes.unicode_minus": True,
        "font.size": 9,
        "font.family": "DejaVu Sans",
        "grid.color": FAINT,
        "grid.linewidth": 0.6,
        "legend.edgecolor": "none",
        "legend.facecolor": PAPER,
        "legend.framealpha": 1.0,
        "legend.fontsize": 8.5,
        "legend.labelcolor": TEXT,
        "lines.linewidth": 1.8,
        "lines.markersize": 4,
        "path.simplify_threshold": 0.3,
        "text.color": TEXT,
        "xtick.color": TEXT,
        "ytick.color": TEXT,
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
        "svg.fonttype": "none",
        "svg.hashsalt": "reimpl",
        "image.cmap": "viridis",
    }


def to_svg(figure: Any, title: str, about: str) -> str:
    """Return a figure as an SVG element to stand in a page.

    Args:
        figure: matplotlib's.
        title: what the reader sees under it.
        about: what one who doesn't see it needs to know.
    """
    from matplotlib.ticker import NullLocator

    for axes in figure.axes:  # the ticks between powers of ten would be most of the drawing
        for axis, scale in ((axes.xaxis, axes.get_xscale()), (axes.yaxis, axes.get_yscale())):
            if scale == "log":
                axis.set_minor_locator(NullLocator())
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(
        r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->| font-family: 'DejaVu Sans';", "", svg, flags=re.S
    )
    svg = GEOMETRY.sub(lambda match: match[1] + DIGITS.sub(_rounded, match[2]), svg)
    svg = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", svg)
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    svg = "\n".join(line.strip() for line in svg.splitlines() if line.strip())
    key = "f" + hashlib.sha256(svg.encode()).hexdigest()[:8]
    svg = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{key}-", svg)
    view = re.search(r'viewBox="([^"]*)"', svg)
    assert view is not None
    about = html.escape(about)
    head = f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{view[1]}" role="img"'
    head += f' aria-label="{html.escape(title)}">\n<desc>{about}</desc>'
    return head + svg.partition(">")[2]


def _rounded(match: re.Match[str]) -> str:
    """Return a number with one decimal: a tenth of a point is not seen."""
    return f"{float(match[0]):.1f}".removesuffix(".0")
