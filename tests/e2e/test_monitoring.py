"""What watches the stack, while it works: Prometheus, Alertmanager and Grafana, each for real or its stand-in."""

import base64
import itertools
from typing import Any

import pytest
from compose import ROOT, Stack, fetch
from monitoring import expressions
from monitoring.prometheus_api import Prometheus
from servers import bearer, wait_until

MODELS = ROOT / "models"
ROWS = MODELS / "breast-cancer/examples/instances.json"
PHOTO = MODELS / "efficientnet-lite0/examples/chelsea.jpg"


@pytest.fixture(scope="module")
def prometheus(stack: Stack) -> Prometheus:
    return Prometheus(stack.url("prometheus"))


def test_every_target_answers(prometheus: Prometheus) -> None:
    def all_are_up() -> bool:
        targets = prometheus.get("targets")["activeTargets"]
        down[:] = [
            f"{each['labels']}: {each['health']} {each['lastError']}" for each in targets if each["health"] != "up"
        ]
        return bool(targets) and not down

    down: list[str] = []
    try:
        wait_until(all_are_up, "all targets are up", 60)
    except AssertionError:
        raise AssertionError("\n".join(down)) from None
    for job in ("api", "worker"):  # which are found by name, a little later than the others
        wait_until(lambda job=job: prometheus.now(f'up{{job="{job}"}} == 1'), f"{job} is asked", 60)


def test_every_replica_is_asked(stack: Stack, two_containers: None, prometheus: Prometheus) -> None:
    """They are found by their name."""
    wait_until(lambda: len(prometheus.now('up{job="api"} == 1')) == 2, "both are asked", 60)


def test_rules_can_be_evaluated(prometheus: Prometheus) -> None:
    wait_until(lambda: all(rule["health"] != "unknown" for rule in prometheus.rules()), "all have been", 150)
    assert not [rule for rule in prometheus.rules() if rule["health"] != "ok"]


def test_every_expression_has_data(stack: Stack, prometheus: Prometheus) -> None:
    """No panel is empty and no alert asks for what is not there, while clients do all that clients do."""
    every = expressions.every(prometheus)
    turn = itertools.count()

    def none_is_empty() -> bool:
        visit(stack, next(turn))
        empty[:] = expressions.without_data(prometheus, every)
        return not empty

    empty = every
    try:
        # Rules over days are evaluated every two minutes.
        wait_until(none_is_empty, "every expression has data", 180)
    except AssertionError:
        raise AssertionError("\n".join(f"{each.where}: {each.text}" for each in empty)) from None


def visit(stack: Stack, turn: int) -> None:
    """Predictions of every kind, a job, and what is refused; Prometheus sees them go on for some of its looks."""
    predict = "/v1/models/breast-cancer:predict"
    connection = stack.http()
    for path, body, kind in (
        (predict, ROWS.read_bytes(), "application/json"),
        ("/v1/models/efficientnet-lite0:predict", PHOTO.read_bytes(), "image/jpeg"),
        (f"/v1/models/efficientnet-lite0:predict?top_k={1 + turn % 5}", PHOTO.read_bytes(), "image/jpeg"),
        (predict, b"{}", "application/json"),
        ("/v1/jobs?model=breast-cancer", b"[" + b"0.5," * 29 + b"0.5]\n[1]\n", "application/x-ndjson"),
    ):
        connection.request("POST", path, body, {"Content-Type": kind} | bearer(stack.token))
        connection.getresponse().read()
    connection.request("GET", "/v1/models")
    connection.getresponse().read()
    connection.close()


def test_what_is_down_silences_what_follows(stack: Stack) -> None:
    """And a page the ticket for the same thing."""
    alerts = {
        "cause": {"alertname": "TargetDown", "job": "example", "instance": "a", "severity": "page"},
        "consequence": {"alertname": "SpansDropped", "job": "example", "severity": "ticket"},
        "other": {"alertname": "JobsWait", "job": "another", "severity": "ticket"},
        "page": {"alertname": "DiskFull", "job": "node", "instance": "a", "severity": "page"},
        "ticket": {"alertname": "DiskFull", "job": "node", "instance": "a", "severity": "ticket"},
    }
    url = f"{stack.url('alertmanager')}/api/v2/alerts"
    fetch(url, [{"labels": labels | {"example": name}} for name, labels in alerts.items()])

    def silenced() -> set[str]:
        found = [alert for alert in fetch(url) if "example" in alert["labels"]]
        return {alert["labels"]["example"] for alert in found if alert["status"]["inhibitedBy"]}

    wait_until(lambda: silenced() == {"consequence", "ticket"}, "two of them are silenced", 30)


def test_alertmanager_finds_its_configuration_right(stack: Stack) -> None:
    """By its own word, with every receiver that can be filled in."""
    said = stack.compose("exec", "-T", "alertmanager", "amtool", "check-config", "/etc/alertmanager/alertmanager.yml")
    assert "3 receivers" in said


def test_grafana_has_dashboards_and_data(stack: Stack) -> None:
    password = stack.compose("exec", "-T", "grafana", "cat", "/var/lib/tiercel/grafana/admin_password").strip()
    basic = base64.b64encode(f"admin:{password}".encode()).decode()

    def ask(path: str) -> Any:
        return fetch(f"{stack.url('grafana')}{path}", Authorization=f"Basic {basic}")

    titles = {found["title"] for found in ask("/api/search?type=dash-db")}
    assert titles == {"Overview", "Models", "Jobs", "Edge and Redis", "Workers"}
    assert ask("/api/datasources/proxy/uid/prometheus/api/v1/query?query=up")["data"]["result"]
