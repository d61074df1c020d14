"""What dashboards are made of: kinds of panels, and queries that come again and again."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

OBJECTIVES = json.loads((Path(__file__).parents[1] / "objectives.json").read_text())
PROMETHEUS = {"type": "prometheus", "uid": "prometheus"}
JAEGER = {"type": "jaeger", "uid": "jaeger"}
RATE = "$__rate_interval"
PREDICTIONS = 'route=~".*(:predict|/infer)"'

Json = dict[str, Any]


@dataclass(frozen=True)
class Panel:
    """`queries`: legend to expression. `steps`: from which value on it has which colour; of a graph, a line there."""

    kind: str
    title: str
    description: str
    unit: str
    queries: dict[str, str]
    steps: Sequence[tuple[float | None, str]] = ((None, "green"),)
    names: dict[str, str] = field(default_factory=dict)  # of values that are states
    stacked: bool = False
    links: Sequence[Json] = ()


def stat(title: str, description: str, unit: str, query: str, legend: str = "", **more: Any) -> Panel:
    return Panel("stat", title, description, unit, {legend: query}, **more)


def graph(title: str, description: str, unit: str, queries: dict[str, str], **more: Any) -> Panel:
    return Panel("timeseries", title, description, unit, queries, **more)


def table(title: str, description: str, unit: str, query: str) -> Panel:
    return Panel("table", title, description, unit, {"": query})


def quantile(share: float, family: str, by: str = "", where: str = "") -> str:
    labels = ", ".join(filter(None, ["le", by]))
    return f"histogram_quantile({share}, sum by ({labels}) (rate({family}_bucket{{{where}}}[{RATE}])))"


def mean(family: str, where: str = "") -> str:
    return f"sum(rate({family}_sum{{{where}}}[{RATE}])) / sum(rate({family}_count{{{where}}}[{RATE}]))"


def rate(counter: str, by: str, where: str = "") -> str:
    return f"sum by ({by}) (rate({counter}{{{where}}}[{RATE}]))"


def traces(title: str, **wanted: str) -> Json:
    """Jaeger's search for such requests of the same time, in Grafana's Explore."""
    query = {"refId": "A", "datasource": JAEGER, "queryType": "search", "service": "tiercel-api", "limit": 20, **wanted}
    time = {"from": "${__from}", "to": "${__to}"}
    panes = json.dumps({"traces": {"datasource": JAEGER["uid"], "queries": [query], "range": time}})
    url = f"/explore?schemaVersion=1&orgId=1&panes={quote(panes, safe='${}')}"
    return {"title": title, "url": url, "targetBlank": True}


SLOW = traces("Traces of slow requests", minDuration=f"{OBJECTIVES['latency_seconds'] * 1000:g}ms")
FAILED = traces("Traces of failed requests", tags="error=true")

# From what is left of an error budget to what to think of it.
BUDGET = ((None, "red"), (0, "orange"), (0.25, "green"))
GOOD_IF_ZERO = ((None, "green"), (1, "red"))
GOOD_IF_ONE = ((None, "red"), (1, "green"))
