"""The frontier as an SVG: what was served how late, and what was chosen."""

import math
from collections.abc import Sequence
from html import escape

from tuning.configuration import Configuration
from tuning.load import Level
from tuning.trial import Trial

WIDTH, HEIGHT, MARGIN = 720, 420, 64
STYLE = "text{font:12px system-ui,sans-serif;fill:#444}"
LOOK, TRIAL, CHOSEN = "#bbb", "#4878a8", "#c0392b"


def plot(trials: Sequence[Trial], chosen: Configuration, goal_ms: float) -> str:
    """Rates upwards from 0, latencies to the right on a scale of powers of ten."""
    looks = [(trial.configuration, look) for trial in trials for look in trial.looks]
    measured = [(trial.configuration, trial.measured) for trial in trials if trial.measured]
    scale = _Scale([level for _, level in looks + measured], goal_ms)
    marks = [
        *scale.ticks(),
        _line([scale.at(level) for level in frontier([level for _, level in looks + measured])]),
        f'<path d="M{scale.x(goal_ms):.1f} {MARGIN}V{HEIGHT - MARGIN}" stroke="{CHOSEN}" stroke-dasharray="4"/>',
        _text(scale.x(goal_ms) + 4, MARGIN - 4, f"goal {goal_ms:g} ms"),
        *(_mark(scale, *point, radius=2, colour=LOOK) for point in looks),
        *(_mark(scale, *point, radius=5, colour=CHOSEN if point[0] == chosen else TRIAL) for point in measured),
        _text(MARGIN, 20, "requests per second, by p99 in ms; small: on the way there"),
        _text(MARGIN, 36, f"chosen, in red: {chosen}"),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img">'
        f'<style>{STYLE}</style><rect width="100%" height="100%" fill="#fff"/>{"".join(marks)}</svg>\n'
    )


def frontier(levels: Sequence[Level]) -> list[Level]:
    """Those that no other one beats in both rate and latency, the soonest first."""
    best: list[Level] = []
    for level in sorted(levels, key=lambda level: (level.p99_ms, -level.rate)):
        if not best or level.rate > best[-1].rate:
            best.append(level)
    return best


class _Scale:
    def __init__(self, levels: Sequence[Level], goal_ms: float) -> None:
        latencies = [goal_ms, *(level.p99_ms for level in levels)]
        self._low, self._high = math.floor(math.log10(min(latencies))), math.ceil(math.log10(max(latencies)))
        self._most = max(level.rate for level in levels) * 1.1 or 1

    def x(self, p99_ms: float) -> float:
        share = (math.log10(p99_ms) - self._low) / max(1, self._high - self._low)
        return MARGIN + (WIDTH - 2 * MARGIN) * share

    def y(self, rate: float) -> float:
        return HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * rate / self._most

    def at(self, level: Level) -> tuple[float, float]:
        return self.x(level.p99_ms), self.y(level.rate)

    def ticks(self) -> list[str]:
        frame = f'<path d="M{MARGIN} {MARGIN}V{HEIGHT - MARGIN}H{WIDTH - MARGIN}" fill="none" stroke="#888"/>'
        across = [10.0**power for power in range(self._low, self._high + 1)]
        up = [self._most * share / 4 for share in range(5)]
        return [
            frame,
            *(_text(self.x(value) - 6, HEIGHT - MARGIN + 18, f"{value:g}") for value in across),
            *(_text(8, self.y(value) + 4, f"{value:,.0f}") for value in up),
        ]


def _mark(scale: _Scale, configuration: Configuration, level: Level, radius: int, colour: str) -> str:
    x, y = scale.at(level)
    words = f"{configuration}: {level.rate:,.0f}/s, p99 {level.p99_ms:.3g} ms with {level.connections} connections"
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{colour}"><title>{escape(words)}</title></circle>'


def _line(points: Sequence[tuple[float, float]]) -> str:
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return f'<path d="M{path}" fill="none" stroke="{TRIAL}" stroke-opacity=".5"/>'


def _text(x: float, y: float, words: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}">{escape(words)}</text>'
