"""Rules and dashboards before a real Prometheus, whose figures are made up (tests/figures.py)."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import figures
import pytest
from monitoring import expressions
from monitoring.expressions import Expression
from monitoring.prometheus_api import Prometheus
from prometheus_server import prometheus
from servers import wait_until


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("prometheus")
    with figures.served() as port, prometheus(folder, port, list(figures.BY_JOB)) as api:
        yield api


def test_every_expression_has_data(api: Prometheus) -> None:
    """No panel is empty, and no alert asks for what is not there, if services say all that they should."""
    every = expressions.every(api)
    assert len(every) > 100

    def none_is_empty() -> bool:
        empty[:] = expressions.without_data(api, every)
        return not empty

    empty: list[Expression] = []
    try:
        wait_until(none_is_empty, "every expression has data", 20)
    except AssertionError:
        raise AssertionError("\n".join(f"{each.where}: {each.text}" for each in empty)) from None


def test_an_expression_without_data_is_listed(api: Prometheus) -> None:
    """A name that nobody exposes, and a share of nothing."""
    empty = [Expression("here", "tiercel_nothing"), Expression("there", "0 * up / 0")]
    assert expressions.without_data(api, [Expression("all is well", "up"), *empty]) == empty


def test_an_expression_that_is_wrong_is_named(api: Prometheus) -> None:
    with pytest.raises(ValueError, match=r"here: sum by: .*parse error"):
        expressions.without_data(api, [Expression("here", "sum by")])


def test_what_was_is_told_over_time(api: Prometheus) -> None:
    """For the picture of all dashboards: a series for each job, with a moment and a value at each step."""
    now = time.time()
    found = api.over("up", now - 5, now, 1)
    assert {series.labels["job"] for series in found} == set(figures.BY_JOB)
    for series in found:
        assert len(series.times) == len(series.values)
        assert set(series.values) == {1}
        assert now - 5 <= series.times[0] <= series.times[-1] <= now + 1
    assert api.over("0 * up / 0", now - 5, now, 1) == []


@pytest.mark.parametrize("families", figures.BY_JOB.values(), ids=figures.BY_JOB)
def test_the_made_up_figures_are_such_as_prometheus_reads(families: figures.Families, tmp_path: Path) -> None:
    exposed = figures.exposition(families, 10)
    done = subprocess.run(["promtool", "check", "metrics"], input=exposed, capture_output=True, text=True, check=False)
    assert "error" not in done.stderr
