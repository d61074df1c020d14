"""What is asked of a Prometheus to find out whether an alert has something to look at."""

import pytest
from monitoring.expressions import alternatives, filled_in, of_panels, of_rules


@pytest.mark.parametrize(
    ("query", "parts"),
    [
        ("up == 0", ["up == bool 0"]),
        ('up{job!~"api|nginx"} == 0 or redis_up == 0', ['up{job!~"api|nginx"} == bool 0', "redis_up == bool 0"]),
        ('absent(up{job="api"}) or a < b', ['up{job="api"}', "a < bool b"]),
        ("(a > 1 or b > 2) and c >= 3", ["(a > bool 1 or b > bool 2) and c >= bool 3"]),
        ('a{b="x or (y"} > 1 or c != 2', ['a{b="x or (y"} > bool 1', "c != bool 2"]),
        ("a == bool 1", ["a == bool 1"]),
    ],
)
def test_each_part_of_an_alert_is_asked_for_whether_it_fires_or_not(query: str, parts: list[str]) -> None:
    assert alternatives(query) == parts


def test_what_is_recorded_is_asked_for_as_it_is() -> None:
    rules = [
        {"type": "recording", "name": "a:b", "query": "b > 0 or c"},
        {"type": "alerting", "name": "C", "query": "c > 0"},
    ]
    assert list(of_rules(rules)) == [("rule a:b", "b > 0 or c"), ("rule C", "c > bool 0")]


def test_nothing_is_left_of_grafanas_variables() -> None:
    """Prometheus takes them for errors, or for names."""
    assert filled_in('rate(a{model=~"$model"}[$__rate_interval])', "20s") == 'rate(a{model=~".*"}[20s])'
    found = list(of_panels())
    assert len(found) > 80
    assert not [each for each in found if "$" in each.text]
