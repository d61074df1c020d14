"""Asks a Prometheus: https://prometheus.io/docs/prometheus/latest/querying/api/"""

import json
import math
import urllib.parse
import urllib.request
from typing import Any, NamedTuple

TIMEOUT_SECONDS = 30


class Series(NamedTuple):
    labels: dict[str, str]
    times: list[float]
    values: list[float]


class Prometheus:
    """`url`: as its page has it, http://127.0.0.1:9090 for instance."""

    def __init__(self, url: str) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"expected the URL of a Prometheus, got {url!r}")
        self._url = url.rstrip("/")

    def get(self, path: str, **parameters: Any) -> Any:
        """HTTPError has Prometheus' reason in its body."""
        url = f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310  # http or https, as above
            return json.load(answer)["data"]

    def now(self, expression: str) -> list[Series]:
        """What has a value now; what is not a number is none."""
        found = self.get("query", query=expression)["result"]
        return _with_values([_series(each | {"values": [each["value"]]}) for each in found])

    def over(self, expression: str, start: float, end: float, step: float) -> list[Series]:
        """What has a value at one of the times at least."""
        found = self.get("query_range", query=expression, start=start, end=end, step=step)["result"]
        return _with_values([_series(each) for each in found])

    def rules(self) -> list[dict[str, Any]]:
        """All that it has loaded, as it understands them."""
        return [rule for group in self.get("rules")["groups"] for rule in group["rules"]]


def _series(found: dict[str, Any]) -> Series:
    times, values = zip(*found["values"], strict=True)
    return Series(found["metric"], list(times), [float(value) for value in values])


def _with_values(series: list[Series]) -> list[Series]:
    return [each for each in series if not all(math.isnan(value) for value in each.values)]
