"""The files in monitoring/ fit together: what one names, another has."""

import json
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from figures import BY_JOB
from monitoring.dashboards.__main__ import files

import observability.families  # noqa: F401
from observability.metrics import REGISTRY

MONITORING = Path(__file__).parents[2] / "monitoring"
COMPOSE = yaml.safe_load((MONITORING.parent / "compose.yaml").read_text())
# Fluentd and listener have no figures, setup and tiercel do not stay.
SILENT = {"fluentd", "listener", "setup", "tiercel"}
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
    groups = [
        group for path in sorted((MONITORING / "prometheus/rules").glob("*.yml")) for group in read(path)["groups"]
    ]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


def anchors(markdown: str) -> set[str]:
    """The headings, as GitHub links to them."""
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", markdown, re.MULTILINE)
    }


def test_what_is_made_up_is_what_there_is() -> None:
    """The figures that rules and dashboards are tried with have the names and labels of the real ones."""
    made_up = {
        name: {label.partition("=")[0] for label in series.split(",") if label}
        for job in ("api", "worker")
        for name, [series, *_] in BY_JOB[job].items()
    }
    assert made_up == {name: set(REGISTRY.families[name].labels) for name in made_up}
    assert REGISTRY.families.keys() == made_up.keys()


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
    assert {"prometheus", "jaeger", "alertmanager"} <= {source["uid"] for source in data_sources()}
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


def test_dashboards_are_those_of_their_modules() -> None:
    """`make dashboards` has been run: nobody edits the files by hand, or forgets to write them."""
    assert files() == {path.name: path.read_text() for path in DASHBOARDS}


@pytest.mark.parametrize("path", DASHBOARDS, ids=name)
def test_every_panel_says_what_it_shows(path: Path) -> None:
    """In words, and with a unit for its numbers."""
    for panel in read(path)["panels"]:
        assert len(panel["description"]) > 20, panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]


@pytest.mark.parametrize("path", DASHBOARDS, ids=name)
def test_panels_do_not_cover_each_other(path: Path) -> None:
    """Each has a place of its own in the grid."""
    taken: set[tuple[int, int]] = set()
    for panel in read(path)["panels"]:
        grid = panel["gridPos"]
        cells = set(product(range(grid["x"], grid["x"] + grid["w"]), range(grid["y"], grid["y"] + grid["h"])))
        assert grid["x"] + grid["w"] <= 24, panel["title"]
        assert not cells & taken, panel["title"]
        taken |= cells


def test_links_to_traces_lead_to_a_data_source() -> None:
    """They name Jaeger by its uid, in JSON within a URL."""
    urls = [link["url"] for path in DASHBOARDS for panel in read(path)["panels"] for link in links(panel)]
    assert urls
    for url in urls:
        query = parse_qs(urlsplit(url).query)
        (pane,) = json.loads(query["panes"][0]).values()
        assert pane["datasource"] in {source["uid"] for source in data_sources() if source["type"] == "jaeger"}
        assert (pane["range"]["from"], pane["range"]["to"]) == ("${__from}", "${__to}")


def links(panel: dict[str, Any]) -> list[dict[str, Any]]:
    return panel["fieldConfig"]["defaults"]["links"]


def test_grafana_starts_with_a_dashboard_that_exists() -> None:
    """It shows an empty page otherwise."""
    home = COMPOSE["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert Path(home).name in {path.name for path in DASHBOARDS}


def test_every_alert_has_a_runbook_heading_and_every_heading_an_alert() -> None:
    """Whoever is woken up finds what to do, and nobody reads about what is no longer there."""
    text = (MONITORING / "RUNBOOK.md").read_text()
    chapter = text.partition("\n## Alerts\n")[2].partition("\n## ")[0]
    assert re.findall(r"^### (.+)$", chapter, re.MULTILINE) == list(dict.fromkeys(alert["alert"] for alert in alerts()))
    for alert in alerts():
        assert alert["annotations"]["runbook"] == f"monitoring/RUNBOOK.md#{alert['alert'].lower()}"


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_every_alert_says_whom_it_wakes_and_what_it_is_about(alert: dict[str, Any]) -> None:
    """Alertmanager sends it by the first, a person reads the second."""
    assert alert["labels"]["severity"] in ("page", "ticket")
    assert alert["annotations"]["summary"]


def test_links_within_the_runbook_lead_somewhere() -> None:
    """At three in the morning a dead link costs the most."""
    text = (MONITORING / "RUNBOOK.md").read_text()
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= anchors(text)


def test_prometheus_asks_every_service() -> None:
    """By a network that both are on."""
    asked = set()
    for job in read(MONITORING / "prometheus/prometheus.yml")["scrape_configs"]:
        found = [target for config in job.get("static_configs", []) for target in config["targets"]]
        found += [name for config in job.get("dns_sd_configs", []) for name in config["names"]]
        found += [rule["replacement"] for rule in job.get("relabel_configs", []) if "replacement" in rule]
        asked |= {target.partition(":")[0] for target in found}
    assert asked | SILENT == set(COMPOSE["services"])
    ours = set(COMPOSE["services"]["prometheus"]["networks"])
    for name in asked:
        assert ours & set(COMPOSE["services"][name]["networks"]), name


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


def test_fluentds_sections_end_and_have_an_id_each() -> None:
    """There is no Fluentd here that would say so; its ids are what its figures are called."""
    text = (MONITORING / "fluentd/fluent.conf").read_text()
    lines = [line.strip() for line in text.splitlines() if not line.strip().startswith("#")]
    open_sections: list[str] = []
    for line in lines:
        if line.startswith("</"):
            assert open_sections.pop() == line[2:-1]
        elif line.startswith("<"):
            open_sections.append(line[1:-1].split()[0])
    assert open_sections == []
    ids = [line.removeprefix("@id ") for line in lines if line.startswith("@id ")]
    assert once(ids)
    assert {"containers", "masked", "files"} <= set(ids)


def test_fluentd_masks_before_it_parses() -> None:
    """And buffers on disk, within bounds."""
    text = (MONITORING / "fluentd/fluent.conf").read_text()
    ids = re.findall(r"^ *@id (.+)$", text, re.MULTILINE)
    assert ids.index("ours") < ids.index("masked") < ids.index("json") < ids.index("files")
    [buffer] = re.findall(r"^    <buffer service,time>\n(.*?)^    </buffer>", text, re.MULTILINE | re.DOTALL)
    assert "@type file\n" in buffer
    assert "total_limit_size 256m\n" in buffer
    assert "overflow_action drop_oldest_chunk\n" in buffer
