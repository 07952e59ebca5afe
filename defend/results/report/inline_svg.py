"""A figure as SVG for use inside a page."""

from __future__ import annotations

import re
from io import StringIO

from matplotlib.figure import Figure

INK = "#010203"  # replaced by the colour of the text around the figure


def inline_svg(figure: Figure, id_prefix: str) -> str:
    """Return the figure without namespaces and metadata, with ids of its own.

    Its style sheet is left out, because that would reach the whole page.
    """
    out = StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)
    root, content = svg.split(">", 1)
    root = re.sub(r' (xmlns(:\w+)?|version|width|height)="[^"]*"', "", root)
    svg = f'{root} role="img">{content}'
    svg = svg.replace("xlink:href=", "href=").replace(INK, "currentColor")
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{id_prefix}", svg)
