"""Figures for the report: accuracy by eps, one for each attack; a dot chart where there is a single eps. Inline SVG in the page's own colours."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from math import nan
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from defend.results.table import COLUMNS, Number, Row, Section

PALETTE = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
)  # Okabe, Ito: told apart by the colour-blind, on light and dark
LEGEND = 5  # entries beside each other
_INK = "#010203"  # replaced by currentColor
_DASHES = {"worst": "-", "oblivious": "--", "query": ":", "transfer": "-."}
_MARKS = {
    "clean": "d",
    "oblivious": "s",
    "identity": "^",
    "declared": "v",
    "learned": "D",
    "worst": "o",
    "query": "P",
    "transfer": "X",
}
_COLOURS = dict(
    zip((c for c in _MARKS if c != "clean"), (*PALETTE, "#8C8C8C"), strict=True)
)  # of a dot chart; one more than the palette has
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "defend",
    "font.size": 9.0,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "text.parse_math": False,
}


@dataclass(frozen=True, kw_only=True)
class Plot:
    """An SVG to be put into the page as it is, with the legend that the page sets itself."""

    title: str
    svg: str
    colours: tuple[tuple[str, str], ...]  # (defense, colour), none for a dot chart
    dashes: tuple[tuple[str, str], ...]  # (level, line style)


def plots(sections: Sequence[Section]) -> list[Plot]:
    """One for each (section, attack) that has numbers."""
    made: list[Plot] = []
    for section in sections:
        for attack in dict.fromkeys(row.attack for row in section.rows):
            rows = [row for row in section.rows if row.attack == attack]
            if any(_measured(row, c) for row in rows for c in row.numbers):
                made.append(
                    _plot(
                        f"{section.dataset}, {section.classifier}, {attack}, {section.norm}",
                        rows,
                        f"f{len(made)}-",
                    )
                )
    return made


def _plot(title: str, rows: Sequence[Row], prefix: str) -> Plot:
    single = len({row.eps for row in rows}) == 1
    defenses = list(dict.fromkeys(row.defense for row in rows))
    colours = {d: PALETTE[i % len(PALETTE)] for i, d in enumerate(defenses)}
    levels = [c for c in _DASHES if any(_measured(row, c) for row in rows)]
    with rc_context(_STYLE):
        figure = _dots(rows) if single else _curves(rows, colours, levels)
        svg = _inline(figure, prefix)
    if single:
        return Plot(title=f"{title}, eps {rows[0].eps_text}", svg=svg, colours=(), dashes=())
    return Plot(
        title=title,
        svg=svg,
        colours=tuple(colours.items()),
        dashes=tuple((COLUMNS[c], _DASHES[c]) for c in levels),
    )


def _curves(rows: Sequence[Row], colours: dict[str, str], levels: Sequence[str]) -> Figure:
    figure = Figure((5.4, 3.1), layout="constrained")
    axes = figure.add_subplot()
    for defense, colour in colours.items():
        mine = sorted((row for row in rows if row.defense == defense), key=lambda row: row.eps)
        for level in levels:
            _line(axes, list(_points(mine, level)), colour, _DASHES[level])
    ticks = {0.0: "0"} | {row.eps: row.eps_text for row in sorted(rows, key=lambda row: row.eps)}
    shown = _thinned(list(ticks))
    axes.set_xticks(shown, [ticks[e] for e in shown])
    axes.set(
        xlim=(0, max(ticks) * 1.02), ylim=(0, 102), xlabel="eps", ylabel="right, % of all images"
    )
    _quiet(axes, "y")
    return figure


def _points(rows: Sequence[Row], level: str) -> Iterator[tuple[float, Number]]:
    """(eps, number), from the clean accuracy at eps 0. A failed cell breaks the line."""
    clean = next((row.numbers["clean"] for row in rows if _measured(row, "clean")), None)
    there = [row for row in rows if level in row.numbers]
    if clean is not None and there and there[0].eps > 0:
        yield 0.0, clean
    yield from ((row.eps, row.numbers[level]) for row in there)


def _line(axes: Axes, points: Sequence[tuple[float, Number]], colour: str, dash: str) -> None:
    eps = [e for e, _ in points]
    low, mid, high = _percents(n for _, n in points)
    axes.fill_between(eps, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.plot(
        eps, mid, dash, color=colour, linewidth=1.5, marker="o", markersize=2.5, markeredgewidth=0
    )


def _dots(rows: Sequence[Row]) -> Figure:
    """A line for each defense, a mark for each level."""
    levels = [c for c in _MARKS if any(_measured(row, c) for row in rows)]
    figure = Figure(
        (5.4, 0.9 + 0.2 * (len(levels) > LEGEND) + 0.42 * len(rows)), layout="constrained"
    )
    axes = figure.add_subplot()
    for i, level in enumerate(levels):
        marked = {
            y + 0.13 * (i - (len(levels) - 1) / 2): row.numbers[level]
            for y, row in enumerate(rows)
            if _measured(row, level)
        }
        low, mid, high = _percents(marked.values())
        spans = [[abs(m - v) for m, v in zip(mid, ends, strict=True)] for ends in (low, high)]
        colour = _COLOURS.get(level, _INK)
        axes.errorbar(
            mid,
            list(marked),
            xerr=spans,
            fmt=_MARKS[level],
            color=colour,
            markersize=4.5,
            elinewidth=0.8,
            label=COLUMNS[level],
        )
    axes.set_yticks(range(len(rows)), [row.defense for row in rows])
    axes.set(xlim=(-1, 101), ylim=(len(rows) - 0.5, -0.5), xlabel="right, % of all images")
    figure.legend(
        loc="outside upper center",
        ncols=min(len(levels), LEGEND),
        frameon=False,
        handletextpad=0.2,
        columnspacing=1.2,
    )
    _quiet(axes, "x")
    return figure


def _percents(numbers: Iterable[Number]) -> list[list[float]]:
    """low, accuracy, high; not a number where the cell failed."""
    some = list(numbers)
    return [
        [nan if getattr(n, k) is None else 100 * float(getattr(n, k)) for n in some]
        for k in ("low", "accuracy", "high")
    ]


def _quiet(axes: Axes, along: Any) -> None:
    axes.grid(axis=along, color=_INK, alpha=0.12, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=2.5)


def _thinned(ticks: Sequence[float], most: int = 9) -> list[float]:
    """Evenly chosen, the ends included, none nearer to another than a label is wide."""
    ordered = sorted(ticks)
    gap = (ordered[-1] - ordered[0]) / most
    shown = [ordered[0]]
    for tick in ordered[1:-1]:
        if tick - shown[-1] >= gap and ordered[-1] - tick >= gap:
            shown.append(tick)
    return [*shown, ordered[-1]] if len(ordered) > 1 else shown


def _measured(row: Row, column: str) -> bool:
    return column in row.numbers and row.numbers[column].accuracy is not None


def _inline(figure: Figure, prefix: str) -> str:
    """For use inside HTML: no namespaces, no metadata, ids of its own, ink in the colour of the text around it."""
    out = StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(
        r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL
    )  # its style sheet would reach the whole page
    root, rest = svg.split(">", 1)
    svg = re.sub(r' (xmlns(:\w+)?|version|width|height)="[^"]*"', "", root) + ' role="img">' + rest
    svg = svg.replace("xlink:href=", "href=").replace(_INK, "currentColor")
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}", svg)
