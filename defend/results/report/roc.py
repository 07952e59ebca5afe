"""Figures of the report for tasks with a curve: the ROC of each cell of a section."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib import rc_context
from matplotlib.figure import Figure

from defend.records import Record
from defend.results.diagnostics import describe_cell
from defend.results.model import Section
from defend.results.report.curves import PALETTE, STYLE, Plot
from defend.results.report.inline_svg import INK, inline_svg


def make_rocs(sections: Sequence[Section]) -> list[Plot]:
    """Return a figure for each section whose cells have a curve, at the eps of its worst cases."""
    plots: list[Plot] = []
    for section in sections:
        cells = [r for worst in section.worst for r in worst.cells if r.curve]
        if cells:
            with rc_context(STYLE):
                svg = inline_svg(_draw(cells), f"r{len(plots)}-")
            title = f"{section.title}, eps {cells[0].eps_text}"
            plots.append(Plot(title=title, svg=svg, colours=(), dashes=()))
    return plots


def _draw(cells: Sequence[Record]) -> Figure:
    figure = Figure((5.4, 3.1 + 0.16 * len(cells)), layout="constrained")
    axes = figure.add_subplot()
    for i, record in enumerate(cells):
        far, tar = ([100 * value for value in axis] for axis in zip(*record.curve, strict=True))
        colour = PALETTE[i % len(PALETTE)]
        axes.plot(far, tar, marker=".", color=colour, label=describe_cell(record))
    axes.set_xscale("log")
    axes.set_ylim(0, 102)
    axes.set(xlabel="FAR, %", ylabel="TAR, %")
    axes.grid(color=INK, alpha=0.12, linewidth=0.6)
    figure.legend(loc="outside lower center", ncols=1, frameon=False)
    return figure
