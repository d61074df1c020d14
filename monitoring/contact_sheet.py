"""All dashboards in one picture, drawn from what a Prometheus has of the last minutes; needs `make .venv/.bench`.

python -m monitoring.contact_sheet --prometheus URL --minutes 5 --png FILE

It is for who has no Grafana at hand: the panels are where Grafana has them, with the same queries, and look plainer.
"""

import argparse
import json
import math
import re
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from monitoring.expressions import DASHBOARDS, filled_in
from monitoring.prometheus_api import Prometheus, Series

WIDTH_INCHES, DPI = 18.0, 90
# Of Grafana's grid, whose width is 24 columns; above each dashboard there is room for its title.
ROW_INCHES, TITLE_ROWS = 0.3, 2
POINTS = 150
# Around the axes, in parts of a panel: room for titles, ticks and the legend.
LEFT, BOTTOM, WIDTH, HEIGHT = 0.09, 0.27, 0.88, 0.58
LEGEND_ENTRIES, LEGEND_LETTERS = 8, 34
ORDER = ["overview", "models", "jobs", "edge-and-redis", "workers"]
UNITS = {"percentunit": (100.0, "%"), "bytes": (1 / 1024**2, " MiB"), "s": (1.0, " s"), "d": (1.0, " d")}
# Grafana's names, made lighter.
COLOURS = {"red": "#f4b6b6", "orange": "#fbd9a5", "green": "#cdeac0"}


class Period(NamedTuple):
    start: float
    end: float

    @property
    def step(self) -> float:
        return max(1.0, (self.end - self.start) / POINTS)

    def __str__(self) -> str:
        start, end = (datetime.fromtimestamp(moment, UTC) for moment in self)
        return f"{start:%Y-%m-%d %H:%M} to {end:%H:%M} UTC, in minutes"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090", metavar="URL")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--interval", default="1m", help="for rates: at least four of Prometheus' scrapes")
    parser.add_argument("--png", type=Path, required=True, metavar="FILE")
    arguments = parser.parse_args()
    end = time.time()
    period = Period(end - 60 * arguments.minutes, end)
    draw(Prometheus(arguments.prometheus), period, arguments.interval, arguments.png)
    return 0


def draw(prometheus: Prometheus, period: Period, interval: str, path: Path) -> None:
    dashboards = [json.loads((DASHBOARDS / f"{name}.json").read_text()) for name in ORDER]
    heights = [TITLE_ROWS + _bottom(dashboard["panels"]) for dashboard in dashboards]
    rows = sum(heights)
    figure = Figure(figsize=(WIDTH_INCHES, ROW_INCHES * rows), dpi=DPI)
    top = 0
    for dashboard, height in zip(dashboards, heights, strict=True):
        middle = 1 - (top + TITLE_ROWS / 2) / rows
        figure.text(0.01, middle, dashboard["title"], size=18, weight="bold", va="center")
        figure.text(0.99, middle, f"{period}", size=9, ha="right", va="center")
        for panel in dashboard["panels"]:
            axes = figure.add_axes(_place(panel["gridPos"], top + TITLE_ROWS, rows))
            _draw_panel(axes, panel, prometheus, period, interval)
        top += height
    figure.savefig(path)


def _bottom(panels: Sequence[dict[str, Any]]) -> int:
    return max(int(panel["gridPos"]["y"]) + int(panel["gridPos"]["h"]) for panel in panels)


def _place(grid: dict[str, int], top: int, rows: int) -> tuple[float, float, float, float]:
    """Left, bottom, width and height of the axes, in parts of the figure."""
    width, height = grid["w"] / 24, grid["h"] / rows
    left, bottom = grid["x"] / 24, 1 - (top + grid["y"] + grid["h"]) / rows
    return (left + LEFT * width, bottom + BOTTOM * height, WIDTH * width, HEIGHT * height)


def _draw_panel(axes: Axes, panel: dict[str, Any], prometheus: Prometheus, period: Period, interval: str) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    factor, unit = UNITS.get(defaults["unit"], (1.0, ""))
    found = []
    for target in panel["targets"]:
        series = prometheus.over(filled_in(target["expr"], interval), *period, period.step)
        found += [(legend(target["legendFormat"], each.labels), _times(each, factor)) for each in series]
    axes.set_title(f"{panel['title']}{f' [{unit.strip()}]' if unit else ''}", size=10, loc="left")
    if not found:
        axes.text(0.5, 0.5, "no data", color="red", size=14, ha="center", transform=axes.transAxes)
        axes.set_axis_off()
    elif panel["type"] == "timeseries":
        _draw_graph(axes, found, defaults, factor, period)
    else:
        _draw_values(axes, found, defaults, unit, is_table=panel["type"] == "table")


def legend(template: str, labels: dict[str, str]) -> str:
    """As Grafana fills it in."""
    if not template:
        return " ".join(value[:12] for name, value in sorted(labels.items()) if name != "__name__")
    return re.sub(r"{{(\w+)}}", lambda found: labels.get(found[1], ""), template)


def _times(series: Series, factor: float) -> Series:
    return series._replace(values=[factor * value for value in series.values])


def _draw_graph(
    axes: Axes, found: Sequence[tuple[str, Series]], defaults: dict[str, Any], factor: float, period: Period
) -> None:
    for name, series in found:
        minutes = [(moment - period.start) / 60 for moment in series.times]
        axes.plot(minutes, series.values, label=name[:LEGEND_LETTERS], linewidth=1.2, marker=".", markersize=2)
    highest = max((value for _, series in found for value in series.values if math.isfinite(value)), default=0.0)
    for step in defaults["thresholds"]["steps"][1:]:
        if factor * step["value"] <= 3 * highest:  # a line far away would flatten the others
            axes.axhline(factor * step["value"], color=step["color"], linestyle=":", linewidth=1)
    lowest = min((value for _, series in found for value in series.values if math.isfinite(value)), default=0.0)
    axes.set_ylim(min(0.0, lowest), 1.1 * highest or 1.0)
    axes.set_xlim(0, (period.end - period.start) / 60)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
    handles, names = axes.get_legend_handles_labels()
    if len(names) > LEGEND_ENTRIES:
        names = [*names[: LEGEND_ENTRIES - 1], f"and {len(names) - LEGEND_ENTRIES + 1} more"]
    place = (-0.02, -0.1)
    axes.legend(
        handles[: len(names)], names, fontsize=6.5, ncols=3, frameon=False, loc="upper left", bbox_to_anchor=place
    )


def _draw_values(
    axes: Axes, found: Sequence[tuple[str, Series]], defaults: dict[str, Any], unit: str, *, is_table: bool
) -> None:
    names = defaults.get("mappings", [{"options": {}}])[0]["options"]
    axes.set_axis_off()
    lines = []
    for name, series in found:
        value = series.values[-1]
        shown = names.get(f"{value:g}", {"text": f"{value:.4g}{unit}"})["text"]
        lines.append(f"{name}  {shown}" if name else shown)
    per_line = 1 if is_table or len(lines) < 4 else 4
    text = "\n".join("     ".join(lines[n : n + per_line]) for n in range(0, len(lines), per_line))
    size = 18 if len(lines) == 1 and not is_table else 9
    axes.text(0.0, 0.9, text, size=size, va="top", transform=axes.transAxes, backgroundcolor=_colour(found, defaults))


def _colour(found: Sequence[tuple[str, Series]], defaults: dict[str, Any]) -> str:
    """Of the first value that is not as good as can be, or of the first."""
    steps = [(step["value"], step["color"]) for step in defaults["thresholds"]["steps"]]
    factor = UNITS.get(defaults["unit"], (1.0, ""))[0]
    reached = [
        [colour for value, colour in steps if value is None or series.values[-1] / factor >= value][-1]
        for _, series in found
    ]
    return COLOURS[next((colour for colour in reached if colour != "green"), "green")]


if __name__ == "__main__":
    sys.exit(main())
