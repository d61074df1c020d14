"""One HTML page about the variants of a model: what they cost, what they keep, how they came about."""

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

import msgspec

from inference_core.manifest import Manifest
from model_tools.gate import budget_of, number
from model_tools.layers import Layer

WIDTH, HEIGHT, MARGIN = 420, 260, 48
BAR_WIDTH, BAR_HEIGHT = 6, 28
# Of the figures of a gate, those that say how good a model is: the first that every variant has is drawn.
QUALITIES = ("accuracy", "agreement with the export", "relative error")
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 }
td, th { padding: .2rem .8rem; text-align: left; border-bottom: 1px solid #ddd }
td.number { text-align: right; font-variant-numeric: tabular-nums } svg { max-width: 100%; margin-right: 1rem }
svg text { font: 12px system-ui, sans-serif; fill: #444 }
.bar { background: #4878a8; display: inline-block; height: .8em }
"""


class Point(NamedTuple):
    name: str
    x: float
    y: float


def report(variants: Sequence[Manifest]) -> str:
    """The page; ValueError if none of the variants has passed a gate, or there is no quality that all have."""
    gated = [manifest for manifest in variants if manifest.gate]
    if not gated:
        raise ValueError("report: expected packages that `tiercel build` made, which have a gate, got none")
    quality = _common_quality(gated)
    latency = _points(gated, lambda manifest: figure(manifest, "latency of one row"), quality)
    size = _points(gated, lambda manifest: manifest.model.size_bytes / 1000, quality)
    parts = [
        f"<h1>{escape(', '.join(dict.fromkeys(manifest.name for manifest in gated)))}</h1>",
        _scatter("latency of one row, ms", quality, latency),
        _scatter("size, kB", quality, size),
        *(_section(manifest) for manifest in gated),
    ]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Tiercel: variants of a model</title>'
        f"<style>{STYLE}</style>{''.join(parts)}</html>\n"
    )


def figure(manifest: Manifest, what: str) -> float:
    """The figure of that name in the gate; KeyError if there is none."""
    return {check.what: check.figure for check in (manifest.gate.checks if manifest.gate else ())}[what]


def _common_quality(variants: Sequence[Manifest]) -> str:
    for what in QUALITIES:
        if all(manifest.gate and what in {check.what for check in manifest.gate.checks} for manifest in variants):
            return what
    raise ValueError(f"report: expected packages that all have a figure for one of {', '.join(QUALITIES)}")


def _points(variants: Sequence[Manifest], x: Callable[[Manifest], float], quality: str) -> list[Point]:
    return [Point(_name(manifest), x(manifest), figure(manifest, quality)) for manifest in variants]


def _name(manifest: Manifest) -> str:
    return f"{manifest.name}/{manifest.version}"


def _scatter(across: str, up: str, points: list[Point]) -> str:
    """An SVG: from 0 to the right, from a little below the worst to a little above the best upwards."""
    most = max(point.x for point in points) * 1.25 or 1
    low, high = min(point.y for point in points), max(point.y for point in points)
    room = max(high - low, 1e-9) * 0.25
    low, high = low - room, high + room
    marks = []
    for point in points:
        x = MARGIN + (WIDTH - 2 * MARGIN) * point.x / most
        y = HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * (point.y - low) / (high - low)
        label = f"{point.name}: {number(point.x)}, {number(point.y)}"
        marks.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="#4878a8"><title>{escape(label)}</title></circle>')
        marks.append(f'<text x="{x + 8:.1f}" y="{y + 4:.1f}">{escape(point.name)}</text>')
    frame = f'<path d="M{MARGIN} {MARGIN}V{HEIGHT - MARGIN}H{WIDTH - MARGIN}" fill="none" stroke="#888"/>'
    texts = (
        f'<text x="{MARGIN}" y="{MARGIN - 12}">{escape(up)}, {number(low)} to {number(high)}</text>'
        f'<text x="{MARGIN}" y="{HEIGHT - 16}">{escape(across)}, 0 to {number(most)}</text>'
    )
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img">{frame}{texts}{"".join(marks)}</svg>'


def _section(manifest: Manifest) -> str:
    checks = manifest.gate.checks if manifest.gate else ()
    figures = [(check.what, f"{number(check.figure)} {check.unit}", budget_of(check)) for check in checks]
    steps = [(step.name, f"{step.model.size_bytes:,} bytes", "") for step in manifest.lineage]
    harm = {node: value for step in manifest.lineage for node, value in step.options.get("harm", {}).items()}
    where = f"{manifest.gate.rows} held-out rows, {manifest.gate.processor}" if manifest.gate else ""
    return (
        f"<h2>{escape(_name(manifest))}</h2><p>{escape(manifest.description)} {escape(where)}.</p>"
        f"{_table('figure', figures)}{_table('step', steps)}{_bars(harm)}{_layers(manifest)}"
    )


def _table(head: str, rows: list[tuple[str, str, str]]) -> str:
    cells = "".join(
        f'<tr><td>{escape(name)}</td><td class="number">{escape(value)}</td><td>{escape(note)}</td></tr>'
        for name, value, note in rows
    )
    return f"<table><tr><th>{head}</th><th></th><th></th></tr>{cells}</table>"


def _bars(harm: dict[str, float]) -> str:
    """How far the output moves when one layer alone is in INT8; nothing where nobody had to search."""
    if not harm:
        return ""
    most = max(harm.values()) or 1
    rows = "".join(
        f'<tr><td>{escape(node)}</td><td class="number">{number(value)}</td>'
        f'<td><span class="bar" style="width: {12 * value / most:.2f}rem"></span></td></tr>'
        for node, value in sorted(harm.items(), key=lambda item: item[1], reverse=True)
    )
    return f"<table><tr><th>error from this layer alone in INT8</th><th></th><th></th></tr>{rows}</table>"


def _layers(manifest: Manifest) -> str:
    """What the last step that has looked found of each layer, the one that has moved most first."""
    found = [step.options["layers"] for step in manifest.lineage if "layers" in step.options]
    layers = msgspec.convert(found[-1], dict[str, Layer]) if found else {}
    if not layers:
        return ""
    rows = "".join(
        f'<tr><td>{escape(node)}</td><td class="number">{number(layer.error)}</td>'
        f'<td class="number">{_cut_off(layer)}</td><td>{_histogram(layer)}</td></tr>'
        for node, layer in sorted(layers.items(), key=lambda item: item[1].error, reverse=True)
    )
    return (
        "<table><tr><th>output of a layer, INT8 beside FP32</th><th>error</th><th>cut off</th>"
        f"<th>calibration, over the range of INT8</th></tr>{rows}</table>"
    )


def _cut_off(layer: Layer) -> str:
    return f"{100 * layer.cut_off:.2f} %" if layer.counts else ""


def _histogram(layer: Layer) -> str:
    """Bars as high as the logarithm of how many there were; what is cut off is red."""
    if not layer.counts:
        return "stays FP32"
    most = math.log1p(max(layer.counts)) or 1
    bars = []
    for at, count in enumerate(layer.counts):
        height = BAR_HEIGHT * math.log1p(count) / most
        colour = "#b03030" if at in (0, len(layer.counts) - 1) else "#4878a8"
        bars.append(
            f'<rect x="{at * BAR_WIDTH}" y="{BAR_HEIGHT - height:.1f}" width="{BAR_WIDTH - 1}" '
            f'height="{height:.1f}" fill="{colour}"/>'
        )
    width = len(layer.counts) * BAR_WIDTH
    title = f"{number(layer.low)} to {number(layer.high)}"
    return (
        f'<svg viewBox="0 0 {width} {BAR_HEIGHT}" width="{width}" role="img"><title>{escape(title)}</title>'
        f"{''.join(bars)}</svg>"
    )
