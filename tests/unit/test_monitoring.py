"""The files in monitoring/ fit together: what one names, another has."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

MONITORING = Path(__file__).parents[2] / "monitoring"
YAML = sorted([*MONITORING.rglob("*.yml"), *MONITORING.rglob("*.yaml")])
PROMETHEUS = sorted((MONITORING / "prometheus").glob("*.yml"))
DASHBOARDS = sorted((MONITORING / "grafana" / "dashboards").glob("*.json"))


def name(path: Path) -> str:
    return path.relative_to(MONITORING).as_posix()


def read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.suffix == ".json" else yaml.safe_load(path.read_text())


def data_sources() -> list[dict[str, Any]]:
    return read(MONITORING / "grafana/provisioning/datasources/datasources.yml")["datasources"]


def alerts() -> list[dict[str, Any]]:
    groups = [group for path in (MONITORING / "prometheus/rules").glob("*.yml") for group in read(path)["groups"]]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


def anchors(markdown: str) -> set[str]:
    """The headings, as GitHub links to them."""
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", markdown, re.MULTILINE)
    }


def references(node: Any) -> Iterator[dict[str, str]]:
    """Every data source that something in a dashboard refers to."""
    if isinstance(node, dict):
        if "datasource" in node:
            yield node["datasource"]
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from references(child)


def once(values: list[str]) -> bool:
    return len(values) == len(set(values))


def test_the_files_are_found() -> None:
    """The rules below are about something."""
    assert {"prometheus.yml", "native.yml"} == {path.name for path in PROMETHEUS}
    assert DASHBOARDS
    assert alerts()


@pytest.mark.parametrize("path", [*YAML, *DASHBOARDS], ids=name)
def test_every_file_can_be_read(path: Path) -> None:
    """YAML and JSON that a parser understands, with something in it."""
    assert isinstance(read(path), dict)


def test_data_sources_have_a_pinned_uid_each() -> None:
    """Dashboards refer to uids, and one is the default."""
    assert {"prometheus", "jaeger"} <= {source["uid"] for source in data_sources()}
    assert once([source["uid"] for source in data_sources()])
    assert sum(source.get("isDefault", False) for source in data_sources()) == 1


def test_dashboards_have_a_uid_and_a_title_of_their_own() -> None:
    """Grafana would give one a new address at every start, or keep only one of two."""
    dashboards = [read(path) for path in DASHBOARDS]
    assert once([dashboard["uid"] for dashboard in dashboards])
    assert once([dashboard["title"] for dashboard in dashboards])


@pytest.mark.parametrize("path", DASHBOARDS, ids=name)
def test_every_panel_has_a_data_source_that_is_provisioned(path: Path) -> None:
    """No panel and no query in it leaves its data source to chance or names one that is not there."""
    provisioned = {(source["type"], source["uid"]) for source in data_sources()}
    for panel in read(path)["panels"]:
        found = {(reference["type"], reference["uid"]) for reference in references(panel)}
        assert found, panel["title"]
        assert found <= provisioned, panel["title"]
        assert all("datasource" in target for target in panel["targets"]), panel["title"]


@pytest.mark.parametrize("path", DASHBOARDS, ids=name)
def test_panels_have_an_id_each(path: Path) -> None:
    """A link to a panel names its id."""
    assert once([panel["id"] for panel in read(path)["panels"]])


def test_grafana_knows_how_often_prometheus_collects() -> None:
    """Or it takes rates over windows that are too short to hold two samples."""
    intervals = {read(path)["global"]["scrape_interval"] for path in PROMETHEUS}
    told = {source["jsonData"]["timeInterval"] for source in data_sources() if source["type"] == "prometheus"}
    assert told == intervals


@pytest.mark.parametrize("path", PROMETHEUS, ids=name)
def test_jobs_have_a_name_each(path: Path) -> None:
    """Prometheus does not start when two jobs have one name."""
    assert once([job["job_name"] for job in read(path)["scrape_configs"]])


@pytest.mark.parametrize("path", PROMETHEUS, ids=name)
def test_rule_files_exist(path: Path) -> None:
    """A pattern that finds nothing is no error to Prometheus."""
    assert all(list(path.parent.glob(pattern)) for pattern in read(path)["rule_files"])


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_every_alert_has_a_runbook_heading(alert: dict[str, Any]) -> None:
    """Whoever is woken up finds what to do."""
    path, _, anchor = alert["annotations"]["runbook"].partition("#")
    assert anchor in anchors((MONITORING.parent / path).read_text())


def test_links_within_the_runbook_lead_somewhere() -> None:
    """At three in the morning a dead link costs the most."""
    text = (MONITORING / "RUNBOOK.md").read_text()
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= anchors(text)


def test_alerts_go_to_receivers_that_exist() -> None:
    """Alertmanager does not start otherwise."""
    config = read(MONITORING / "alertmanager/alertmanager.yml")
    routes = [config["route"], *config["route"].get("routes", [])]
    assert {route["receiver"] for route in routes} <= {receiver["name"] for receiver in config["receivers"]}


def test_jaeger_uses_only_what_it_defines() -> None:
    """Every component of the pipelines is configured and none in vain, and the one storage has a bound."""
    config = read(MONITORING / "jaeger/config.yaml")
    used = {"extensions": set(config["service"]["extensions"])}
    for pipeline in config["service"]["pipelines"].values():
        for kind, components in pipeline.items():
            used.setdefault(kind, set()).update(components)
    assert {kind: set(config[kind]) for kind in used} == used
    ((store, backend),) = config["extensions"]["jaeger_storage"]["backends"].items()
    assert config["extensions"]["jaeger_query"]["storage"]["traces"] == store
    assert config["exporters"]["jaeger_storage_exporter"]["trace_storage"] == store
    assert backend["memory"]["max_traces"] > 0
