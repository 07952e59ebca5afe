"""Figures of the report: accuracy by eps for each attack, or a dot chart of a single eps.

They are inline SVG in the page's own colours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from defend.results.model import COLUMNS, Number, Row, Section
from defend.results.report.inline_svg import INK, inline_svg

# Okabe, Ito: told apart by the colour-blind, on light and on dark.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_GREY = "#8C8C8C"
_WINE, _OLIVE = "#882255", "#999933"  # of Paul Tol's muted colours
LEGEND_WIDTH = 5  # entries in a row of a legend
MAX_TICKS = 9
_DASHES = {"worst": "-", "oblivious": "--", "query": ":", "transfer": "-."}
_MARKERS = {
    "clean": "d",
    "oblivious": "s",
    "identity": "^",
    "declared": "v",
    "learned": "D",
    "worst": "o",
    "query": "P",
    "transfer": "X",
    "relaxed": "*",
    "autograd": "h",
}
# Colours of a dot chart; the clean accuracy is in ink.
_COLOURS = dict(zip(list(_MARKERS)[1:], (*PALETTE, _GREY, _WINE, _OLIVE), strict=True))
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "defend",
    "font.size": 9.0,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "text.parse_math": False,
}


@dataclass(frozen=True, kw_only=True)
class Plot:
    """An SVG to be put into the page as it is, with the legend that the page makes itself."""

    title: str
    svg: str
    colours: tuple[tuple[str, str], ...]  # (defense, colour), none for a dot chart
    dashes: tuple[tuple[str, str], ...]  # (level, line style)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The axis of the numbers."""

    label: str
    limit: float | None  # the largest number in print; None if there is none

    @classmethod
    def of(cls, section: Section) -> Scale:
        """Return the axis of a section's task."""
        task = section.task
        if task.unit != "share":
            return cls(label=task.unit, limit=None)
        return cls(label=f"{task.score_means}, % of all images", limit=100)


def make_plots(sections: Sequence[Section]) -> list[Plot]:
    """Return a figure for each attack of each section that has numbers."""
    plots: list[Plot] = []
    for section in sections:
        for attack in dict.fromkeys(row.attack for row in section.rows):
            rows = [row for row in section.rows if row.attack == attack]
            if any(_has_numbers(row) for row in rows):
                key = section.key
                title = f"{key.dataset}, {key.classifier}, {attack}, {key.norm}"
                scale = Scale.of(section)
                plots.append(_make_plot(title, rows, scale, id_prefix=f"f{len(plots)}-"))
    return plots


def _make_plot(title: str, rows: Sequence[Row], scale: Scale, id_prefix: str) -> Plot:
    if len({row.eps for row in rows}) == 1:
        with rc_context(STYLE):
            svg = inline_svg(_draw_dots(rows, scale), id_prefix)
        return Plot(title=f"{title}, eps {rows[0].eps_text}", svg=svg, colours=(), dashes=())
    defenses = list(dict.fromkeys(row.defense for row in rows))
    colours = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(defenses)}
    levels = [level for level in _DASHES if any(_is_measured(row, level) for row in rows)]
    with rc_context(STYLE):
        svg = inline_svg(_draw_curves(rows, colours, levels, scale), id_prefix)
    return Plot(
        title=title,
        svg=svg,
        colours=tuple(colours.items()),
        dashes=tuple((COLUMNS[level], _DASHES[level]) for level in levels),
    )


def _draw_curves(
    rows: Sequence[Row], colours: dict[str, str], levels: Sequence[str], scale: Scale
) -> Figure:
    figure = Figure((5.4, 3.1), layout="constrained")
    axes = figure.add_subplot()
    by_eps = sorted(rows, key=lambda row: row.eps)
    for defense, colour in colours.items():
        of_defense = [row for row in by_eps if row.defense == defense]
        for level in levels:
            _draw_line(axes, list(_points(of_defense, level)), colour, _DASHES[level])
    labels = {0.0: "0"} | {row.eps: row.eps_text for row in by_eps}
    ticks = _thin_out(list(labels))
    axes.set_xticks(ticks, [labels[eps] for eps in ticks])
    axes.set_xlim(0, max(labels) * 1.02)
    if scale.limit is not None:
        axes.set_ylim(0, scale.limit + 2)
    axes.set(xlabel="eps", ylabel=scale.label)
    _style_axes(axes, "y")
    return figure


def _points(rows: Sequence[Row], level: str) -> Iterator[tuple[float, Number]]:
    """Yield (eps, number), from the clean accuracy at eps 0. A failed cell breaks the line."""
    clean = next((row.numbers["clean"] for row in rows if _is_measured(row, "clean")), None)
    points = [(row.eps, row.numbers[level]) for row in rows if level in row.numbers]
    if clean is not None and points and points[0][0] > 0:
        yield 0.0, clean
    yield from points


def _draw_line(axes: Axes, points: Sequence[tuple[float, Number]], colour: str, dash: str) -> None:
    eps = [x for x, _ in points]
    spans = _Spans.of(number for _, number in points)
    axes.fill_between(eps, spans.low, spans.high, color=colour, alpha=0.12, linewidth=0)
    axes.plot(
        eps,
        spans.middle,
        dash,
        color=colour,
        linewidth=1.5,
        marker="o",
        markersize=2.5,
        markeredgewidth=0,
    )


def _draw_dots(rows: Sequence[Row], scale: Scale) -> Figure:
    """Draw a line of marks for each defense, with a marker for each level."""
    levels = [level for level in _MARKERS if any(_is_measured(row, level) for row in rows)]
    height = 0.9 + 0.42 * len(rows)
    if len(levels) > LEGEND_WIDTH:
        height += 0.2
    figure = Figure((5.4, height), layout="constrained")
    axes = figure.add_subplot()
    for i, level in enumerate(levels):
        _draw_marks(axes, rows, level, shift=0.13 * (i - (len(levels) - 1) / 2))
    axes.set_yticks(range(len(rows)), [row.defense for row in rows])
    if scale.limit is not None:
        axes.set_xlim(-1, scale.limit + 1)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set(xlabel=scale.label)
    figure.legend(
        loc="outside upper center",
        ncols=min(len(levels), LEGEND_WIDTH),
        frameon=False,
        handletextpad=0.2,
        columnspacing=1.2,
    )
    _style_axes(axes, "x")
    return figure


def _draw_marks(axes: Axes, rows: Sequence[Row], level: str, shift: float) -> None:
    numbers = {
        y + shift: row.numbers[level] for y, row in enumerate(rows) if _is_measured(row, level)
    }
    spans = _Spans.of(numbers.values())
    axes.errorbar(
        spans.middle,
        list(numbers),
        xerr=spans.errors(),
        fmt=_MARKERS[level],
        color=_COLOURS.get(level, INK),
        markersize=4.5,
        elinewidth=0.8,
        label=COLUMNS[level],
    )


@dataclass(frozen=True)
class _Spans:
    """Numbers with their intervals as they are printed; not a number if the cell failed."""

    low: list[float]
    middle: list[float]
    high: list[float]

    @classmethod
    def of(cls, numbers: Iterable[Number]) -> _Spans:
        """Return the spans of the numbers."""
        listed = list(numbers)
        return cls(
            [_scaled(number, number.low) for number in listed],
            [_scaled(number, number.value) for number in listed],
            [_scaled(number, number.high) for number in listed],
        )

    def errors(self) -> list[list[float]]:
        """Return how far the intervals reach below and above."""
        return [
            [abs(middle - end) for middle, end in zip(self.middle, ends, strict=True)]
            for ends in (self.low, self.high)
        ]


def _scaled(number: Number, value: float | None) -> float:
    return nan if value is None else number.scale * value


def _style_axes(axes: Axes, grid_axis: Any) -> None:
    axes.grid(axis=grid_axis, color=INK, alpha=0.12, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=2.5)


def _thin_out(ticks: Sequence[float]) -> list[float]:
    """Return some of the ticks, the ends included, no two nearer than a label is wide."""
    ordered = sorted(ticks)
    if len(ordered) < 2:
        return ordered
    gap = (ordered[-1] - ordered[0]) / MAX_TICKS
    shown = [ordered[0]]
    for tick in ordered[1:-1]:
        if tick - shown[-1] >= gap and ordered[-1] - tick >= gap:
            shown.append(tick)
    return [*shown, ordered[-1]]


def _has_numbers(row: Row) -> bool:
    return any(number.value is not None for number in row.numbers.values())


def _is_measured(row: Row, column: str) -> bool:
    return column in row.numbers and row.numbers[column].value is not None
