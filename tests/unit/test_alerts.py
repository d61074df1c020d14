"""Rules do what they say: promtool plays the cases in alerts/, and their numbers are those of the objectives."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

MONITORING = Path(__file__).parents[2] / "monitoring"
RULES = MONITORING / "prometheus/rules"
CASES = sorted((Path(__file__).parent / "alerts").glob("*.yml"))
OBJECTIVES = json.loads((MONITORING / "objectives.json").read_text())
# The SRE workbook's: windows in hours, long and short, and the share of the budget that the long one may cost.
PAGES = {(1, 5 / 60): 0.02, (6, 0.5): 0.05}
TICKETS = {(24, 2): 0.1, (72, 6): 0.1}


def rules(path: Path) -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


ALERTS = {(rule["alert"], rule["labels"]["severity"]): rule for rule in rules(RULES / "alerts.yml")}
RECORDS = {
    (rule["record"], rule.get("labels", {}).get("slo")): rule["expr"] for rule in rules(RULES / "objectives.yml")
}


def checks() -> list[dict[str, Any]]:
    groups = [group for path in CASES for group in yaml.safe_load(path.read_text())["tests"]]
    return [check for group in groups for check in group.get("alert_rule_test", [])]


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_cases(path: Path) -> None:
    """What is expected to fire fires, with what it says, and nothing else does."""
    done = subprocess.run(["promtool", "test", "rules", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("config", ["prometheus.yml", "native.yml"])
def test_prometheus_reads_its_configuration(config: str) -> None:
    """And the rules that it names."""
    command = ["promtool", "check", "config", MONITORING / "prometheus" / config]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("alert", "severity"), ALERTS)
def test_every_alert_has_a_case_in_which_it_fires(alert: str, severity: str) -> None:
    """With this severity: an alert that can not fire is worse than none."""
    fired = [
        each["exp_labels"]["severity"]
        for check in checks()
        if check["alertname"] == alert
        for each in check.get("exp_alerts", [])
    ]
    assert severity in fired


@pytest.mark.parametrize("alert", sorted({alert for alert, _ in ALERTS}))
def test_every_alert_has_a_case_in_which_it_does_not(alert: str) -> None:
    """Nobody reads one that always fires."""
    assert any(check["alertname"] == alert and "exp_alerts" not in check for check in checks())


def test_budgets_are_what_the_objectives_leave() -> None:
    for slo, objective in (("availability", "availability"), ("latency", "latency_share")):
        budget = round(1 - OBJECTIVES[objective], 9)
        assert RECORDS["slo:budget:ratio", slo] == f"vector({budget:g})"


def test_slow_is_what_takes_longer_than_the_objective() -> None:
    """As the label of a bucket has it, which is a float."""
    found = re.findall(r'le="([^"]+)"', RECORDS["slo:bad:rate1m", "latency"])
    assert found == [str(float(OBJECTIVES["latency_seconds"]))]


def test_what_is_left_is_counted_over_the_window() -> None:
    """For which Prometheus keeps its figures, with and without Docker."""
    days = OBJECTIVES["window_days"]
    assert re.findall(r"\[(\w+)\]", RECORDS["slo:budget_left:ratio", None]) == [f"{days}d"] * 2
    for path in ("compose.yaml", "native/supervisord.conf"):
        kept = re.findall(r"storage\.tsdb\.retention\.time[= ](\d+)d", (MONITORING.parent / path).read_text())
        assert len(kept) == 1
        assert int(kept[0]) > days


@pytest.mark.parametrize("alert", ["AvailabilityBudgetBurns", "LatencyBudgetBurns"])
@pytest.mark.parametrize(("severity", "windows"), [("page", PAGES), ("ticket", TICKETS)])
def test_budgets_burn_too_fast_when_a_window_costs_a_share_of_them(
    alert: str, severity: str, windows: dict[tuple[float, float], float]
) -> None:
    """A burn rate of 1 uses the budget of the whole window, so a share of it within some hours is a multiple."""
    expected = []
    for (long, short), share in windows.items():
        burn = share * 24 * OBJECTIVES["window_days"] / long
        expected += [(duration(long), f"{burn:g}"), (duration(short), f"{burn:g}")]
    expression = ALERTS[alert, severity]["expr"]
    assert re.findall(r"slo:burn_rate:(\w+)(?:{[^}]*})? > ([\d.]+)", expression) == expected


def duration(hours: float) -> str:
    if hours < 1:
        return f"{60 * hours:g}m"
    return f"{hours:g}h" if hours < 24 else f"{hours / 24:g}d"


def test_what_failed_is_added_up_as_often_as_it_is_recorded() -> None:
    """`sum_over_time` counts samples: each stands for the seconds until the next."""
    group = yaml.safe_load((RULES / "objectives.yml").read_text())["groups"][0]
    assert RECORDS["slo:bad:count6h", None] == f"sum_over_time(slo:bad:rate1m[6h]) * {group['interval'].rstrip('s')}"
