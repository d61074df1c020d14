"""Which panels, rules and alerts have nothing to show:  python -m monitoring.expressions --prometheus URL

Every expression is asked of a Prometheus whose stack is under load, and those that return nothing are listed. The
status is 1 if there are any. Of an alert what it compares is asked for, as it fires only when something is wrong.
"""

import argparse
import json
import re
import sys
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from monitoring.prometheus_api import Prometheus

DASHBOARDS = Path(__file__).parent / "grafana/dashboards"
# As Grafana would fill them in: all models, and four times the interval of scrapes.
VARIABLES = {"$__rate_interval": "1m", "$model": ".*"}
COMPARISON = re.compile(r" (==|!=|>=|<=|>|<) (?!bool )")
ABSENT = re.compile(r"\babsent\((.*)\)$")


class Expression(NamedTuple):
    where: str
    text: str


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090", metavar="URL")
    prometheus = Prometheus(parser.parse_args().prometheus)
    expressions = every(prometheus)
    empty = without_data(prometheus, expressions)
    print("\n".join(f"{each.where}: {each.text}" for each in empty))
    print(f"{len(empty)} of {len(expressions)} expressions have no data", file=sys.stderr)
    return 1 if empty else 0


def every(prometheus: Prometheus) -> list[Expression]:
    return [*of_panels(), *of_rules(prometheus.rules())]


def without_data(prometheus: Prometheus, expressions: list[Expression]) -> list[Expression]:
    return [each for each in expressions if not _has_data(prometheus, each)]


def _has_data(prometheus: Prometheus, expression: Expression) -> bool:
    try:
        return bool(prometheus.now(expression.text))
    except urllib.error.HTTPError as error:
        raise ValueError(f"{expression.where}: {expression.text}: {error.read().decode()}") from None


def of_panels() -> Iterator[Expression]:
    for path in sorted(DASHBOARDS.glob("*.json")):
        content = json.loads(path.read_text())
        for panel in content["panels"]:
            for target in panel["targets"]:
                yield Expression(f"{content['title']}, {panel['title']}", filled_in(target["expr"]))


def filled_in(expression: str, interval: str = VARIABLES["$__rate_interval"]) -> str:
    for name, value in (VARIABLES | {"$__rate_interval": interval}).items():
        expression = expression.replace(name, value)
    return expression


def of_rules(rules: list[dict[str, Any]]) -> Iterator[Expression]:
    """`rules`: with queries as Prometheus prints them, all on one line and with spaces around operators."""
    for rule in rules:
        parts = alternatives(rule["query"]) if rule["type"] == "alerting" else [rule["query"]]
        yield from (Expression(f"rule {rule['name']}", part) for part in parts)


def alternatives(query: str) -> list[str]:
    """The parts of an alert that `or` joins, as each must have data. They return whether, not what, is so."""
    parts, depth, start = [], 0, 0
    for found in re.finditer(r'"(?:[^"\\]|\\.)*"|[({[]|[)}\]]| or ', query):
        depth += (found[0] in "({[") - (found[0] in ")}]")
        if found[0] == " or " and not depth:
            parts.append(query[start : found.start()])
            start = found.end()
    parts.append(query[start:])
    return [COMPARISON.sub(r" \1 bool ", ABSENT.sub(r"\1", part)) for part in parts]


if __name__ == "__main__":
    sys.exit(main())
