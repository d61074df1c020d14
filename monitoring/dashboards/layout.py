"""From rows of panels to what Grafana reads."""

from collections.abc import Sequence

from monitoring.dashboards.panels import PROMETHEUS, Json, Panel

WIDTH = 24  # of Grafana's grid
HEIGHTS = {"stat": 4, "timeseries": 8, "table": 7}


def dashboard(uid: str, title: str, rows: Sequence[Sequence[Panel]], variables: Sequence[Json] = ()) -> Json:
    others = {"type": "dashboards", "title": "Dashboards", "tags": ["tiercel"], "keepTime": True}
    return {
        "uid": uid,
        "title": title,
        "tags": ["tiercel"],
        "schemaVersion": 41,
        "editable": False,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "utc",
        "links": [others],
        "templating": {"list": list(variables)},
        "panels": list(_laid_out(rows)),
    }


def _laid_out(rows: Sequence[Sequence[Panel]]) -> list[Json]:
    panels: list[Json] = []
    top = 0
    for row in rows:
        height = max(HEIGHTS[panel.kind] for panel in row)
        edges = [WIDTH * n // len(row) for n in range(len(row) + 1)]
        for panel, left, right in zip(row, edges, edges[1:], strict=False):
            place = {"x": left, "y": top, "w": right - left, "h": height}
            panels.append({"id": len(panels) + 1, "gridPos": place, **_panel(panel)})
        top += height
    return panels


def _panel(panel: Panel) -> Json:
    defaults: Json = {
        "unit": panel.unit,
        "thresholds": {
            "mode": "absolute",
            "steps": [{"value": value, "color": colour} for value, colour in panel.steps],
        },
        "links": list(panel.links),
    }
    if panel.names:
        options = {value: {"text": text} for value, text in panel.names.items()}
        defaults["mappings"] = [{"type": "value", "options": options}]
    if panel.kind == "timeseries":
        defaults |= {"min": 0, "custom": _lines(panel)}
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": PROMETHEUS,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": _options(panel),
        "targets": [
            {
                "refId": chr(ord("A") + n),
                "datasource": PROMETHEUS,
                "expr": expression,
                "legendFormat": legend,
                **({"instant": True, "format": "table"} if panel.kind == "table" else {}),
            }
            for n, (legend, expression) in enumerate(panel.queries.items())
        ],
    }


def _lines(panel: Panel) -> Json:
    custom: Json = {"fillOpacity": 30 if panel.stacked else 0, "showPoints": "never"}
    if panel.stacked:
        custom["stacking"] = {"mode": "normal"}
    if len(panel.steps) > 1:
        custom["thresholdsStyle"] = {"mode": "line"}
    return custom


def _options(panel: Panel) -> Json:
    if panel.kind == "stat":
        return {"colorMode": "background", "graphMode": "none", "reduceOptions": {"calcs": ["lastNotNull"]}}
    if panel.kind == "table":
        return {"showHeader": True}
    return {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
