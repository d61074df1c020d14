"""Overload ladders as a picture: what came of what was offered, and how long it took."""

from collections.abc import Sequence
from pathlib import Path

from ladder import SLO_SECONDS, Ladder, Step
from matplotlib.axes import Axes
from matplotlib.figure import Figure

PANEL_INCHES = (6.0, 4.0)
DPI = 110
# Safe for the colour-blind (Okabe and Ito): what was accepted, and what was refused.
ACCEPTED, REFUSED = "#0072B2", "#D55E00"


def draw(ladders: Sequence[Ladder], path: Path) -> None:
    """A row for each system; steps that do not count are left out."""
    width, height = PANEL_INCHES
    figure = Figure(figsize=(2 * width, height * len(ladders)), layout="constrained")
    for (rates, latencies), ladder in zip(figure.subplots(len(ladders), 2, squeeze=False), ladders, strict=True):
        steps = [step for step in ladder.steps if step.counts]
        _draw_rates(rates, ladder, steps)
        _draw_latencies(latencies, ladder, steps)
        for axes in (rates, latencies):
            _finish(axes, ladder, steps)
    figure.savefig(path, dpi=DPI)


def _draw_rates(axes: Axes, ladder: Ladder, steps: Sequence[Step]) -> None:
    offered = [step.offered for step in steps]
    ideal = [min(rate, ladder.peak) for rate in offered]
    axes.plot(offered, ideal, color="grey", linestyle=":", label="ideal goodput")
    axes.plot(offered, [step.goodput for step in steps], color=ACCEPTED, marker="o", label="goodput")
    axes.plot(offered, [step.refusals for step in steps], color=REFUSED, marker="s", label="refused")
    axes.set_title(f"{ladder.system}: answers")
    axes.set_ylabel("per second")
    axes.set_yscale("symlog", linthresh=10)
    axes.set_ylim(bottom=0)


def _draw_latencies(axes: Axes, ladder: Ladder, steps: Sequence[Step]) -> None:
    offered = [step.offered for step in steps]
    series = {
        "accepted": (ACCEPTED, [step.latency for step in steps]),
        "refused": (REFUSED, [step.refused for step in steps]),
    }
    for name, (color, taken) in series.items():
        axes.plot(offered, [1000 * of.p50 for of in taken], color=color, marker="o", label=f"{name}, p50")
        axes.plot(
            offered, [1000 * of.p99 for of in taken], color=color, marker="^", linestyle="--", label=f"{name}, p99"
        )
    axes.axhline(1000 * SLO_SECONDS, color="grey", linestyle=":", label="SLO")
    axes.set_title(f"{ladder.system}: latency since due")
    axes.set_ylabel("ms")
    axes.set_yscale("log")


def _finish(axes: Axes, ladder: Ladder, steps: Sequence[Step]) -> None:
    axes.axvline(ladder.capacity, color="lightgrey", zorder=0)
    axes.set_xscale("log")
    ticks = [f"{step.offered:,.0f} = {step.share:g} x" for step in steps]
    axes.set_xticks([step.offered for step in steps], ticks, rotation=45, ha="right")
    axes.set_xticks([], minor=True)
    axes.set_xlabel("offered requests per second, and as a multiple of the capacity")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
