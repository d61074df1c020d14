from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from recipes import BATCH, labels, network, rows

from inference_core.errors import PackageRefused
from inference_core.manifest import Check
from model_tools.gate import Budget, Candidate, Measure, Verdict, check_export, judge, require, variant
from model_tools.validate import classes, distance, open_model, relative_error, run

ROWS = {"x": rows(100, seed=1)}
MODEL = network().SerializeToString()


def takes(export: float, final: float) -> Measure:
    """Seconds that the two models are said to take, so that no test depends on what a machine does."""
    return lambda sessions, feed, rounds: {"export": export, "final": final}


def answer(feed: dict[str, Any]) -> dict[str, Any]:
    """What a source says that is exported well."""
    return {"p": run(open_model(MODEL), feed, "p", len(feed["x"]))}


def verdict(budget: Budget, final: bytes = MODEL, measure: Measure | None = None, **more: Any) -> Verdict:
    truth = more.get("labels", labels(ROWS["x"]))
    return judge(
        Candidate(variant(MODEL), variant(final), "p"), ROWS, truth, budget, BATCH, [], measure or takes(2.0, 1.0)
    )


def spoilt(share: float) -> bytes:
    """The model with its first layer turned off for `share` of the features: it errs where these speak."""
    model = network()
    [w1] = [tensor for tensor in model.graph.initializer if tensor.name == "w1"]
    array = np.frombuffer(w1.raw_data, np.float32).reshape(8, 8).copy()
    array[: int(8 * share)] = 0
    w1.raw_data = array.tobytes()
    return model.SerializeToString()


def test_a_good_export_passes() -> None:
    """One row at a time and a whole batch at once are both looked at."""
    checks = check_export(open_model(MODEL), answer, ROWS, BATCH, 1e-5)
    assert [check.what for check in checks] == [
        "distance from the source, batch 1",
        "distance from the source, batch 8",
    ]
    assert all(check.holds and check.at_most == 1e-5 for check in checks)


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda p: p + 0.001, id="values that are a little off"),
        pytest.param(lambda p: p[:, ::-1], id="classes in another order"),
        pytest.param(lambda p: p[:, :3], id="another shape"),
        pytest.param(lambda p: np.where(np.arange(len(p))[:, None] == 5, np.nan, p), id="a NaN"),
        pytest.param(lambda p: p[::-1], id="rows in another order"),
    ],
)
def test_a_broken_export_is_refused(spoil: Callable[[Any], Any]) -> None:
    """With the figure and the tolerance."""
    with pytest.raises(
        PackageRefused,
        match=r"^distance from the source, batch 1: expected at most 0\.0001, got (inf|0\.\d+|1e.*); dist",
    ):
        check_export(open_model(MODEL), lambda feed: {"p": spoil(answer(feed)["p"])}, ROWS, BATCH, 1e-4)


def test_an_export_whose_batch_became_constant_is_refused() -> None:
    """What exporters do to a model that looks at its own shape."""
    with pytest.raises(PackageRefused, match=r"^export: fails with 8 rows at once: .*Got: 8 Expected: 1"):
        check_export(open_model(network(batch=1).SerializeToString()), answer, ROWS, BATCH, 1e-4)


def test_a_verdict_has_every_figure() -> None:
    budget = Budget(max_accuracy_loss=1, min_agreement=99, max_size_bytes=10_000, min_speedup=1.5, max_latency_ms=1500)
    gate, metrics = verdict(budget)
    assert gate.checks == (
        Check("agreement with the export", 100.0, "%", at_least=99),
        Check("accuracy", 100.0, "%"),
        Check("accuracy loss", 0.0, "points", at_most=1),
        Check("size", len(MODEL), "bytes", at_most=10_000),
        Check("speed-up over the export", 2.0, at_least=1.5),
        Check("latency of one row", 1000.0, "ms", at_most=1500),
    )
    assert gate.rows == 100
    assert metrics["size_bytes"] == {"export": len(MODEL), "package": len(MODEL)}
    assert metrics["latency_ms"] == {"export": 2000, "final": 1000, "threads": 1, "batch": 1}


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        (Budget(max_accuracy_loss=1), r"accuracy loss: expected at most 1, got \d+ points"),
        (Budget(min_accuracy=99), r"accuracy: expected at least 99, got \d+ %"),
        (Budget(min_agreement=99), r"agreement with the export: expected at least 99, got \d+ %"),
        (Budget(max_relative_error=0.01), r"relative error: expected at most 0\.01, got [01]\.\d+"),
    ],
)
def test_a_model_that_lost_too_much_is_refused(budget: Budget, said: str) -> None:
    with pytest.raises(PackageRefused, match=f"^{said}$"):
        verdict(budget, spoilt(0.5))


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        (Budget(min_speedup=1.0), "speed-up over the export: expected at least 1, got 0.5"),
        (Budget(max_latency_ms=1999), "latency of one row: expected at most 1,999, got 2,000 ms"),
        (Budget(max_size_bytes=len(MODEL) - 1), f"size: expected at most {len(MODEL) - 1}, got {len(MODEL)} bytes"),
    ],
)
def test_a_model_that_is_slow_or_large_is_refused(budget: Budget, said: str) -> None:
    with pytest.raises(PackageRefused) as refused:
        verdict(budget, measure=takes(1.0, 2.0))
    assert str(refused.value) == said


@pytest.mark.parametrize(
    "budget", [Budget(min_speedup=0.5), Budget(max_latency_ms=2000), Budget(max_size_bytes=len(MODEL))]
)
def test_a_budget_may_be_used_up(budget: Budget) -> None:
    verdict(budget, measure=takes(1.0, 2.0))


def test_everything_that_is_missed_is_said_at_once() -> None:
    with pytest.raises(PackageRefused, match=r"^agreement .*; accuracy: .*; accuracy loss: .*; speed-up "):
        verdict(
            Budget(min_agreement=99, min_accuracy=99, max_accuracy_loss=1, min_speedup=1),
            spoilt(0.5),
            takes(1.0, 2.0),
        )


def test_accuracy_takes_labels() -> None:
    with pytest.raises(PackageRefused, match=r"^held_out: expected labels, because .*, got none$"):
        verdict(Budget(min_accuracy=1), labels=None)


def test_no_number_is_within_no_budget() -> None:
    for check in (Check("x", float("nan"), at_most=1), Check("x", float("nan"), at_least=1)):
        with pytest.raises(PackageRefused, match="got nan"):
            require([check])


@pytest.mark.parametrize(
    ("expected", "got", "apart"),
    [
        ([0.5], [0.75], 0.25),
        ([100.0], [101.0], 0.01),
        ([1.0, np.nan, np.inf], [1.0, np.nan, np.inf], 0.0),
        ([1.0, np.inf], [1.0, -np.inf], np.inf),
        ([1.0], [np.nan], np.inf),
        ([np.nan], [1.0], np.inf),
        ([1.0], [np.inf], np.inf),
        ([[1.0]], [1.0], np.inf),
        ([], [], 0.0),
    ],
)
def test_distance(expected: list[float], got: list[float], apart: float) -> None:
    """Absolute below 1 and relative beyond; what differs in kind is infinitely far apart."""
    assert distance(np.array(expected, float), np.array(got, float)) == pytest.approx(apart)


def test_what_is_no_number_is_the_same_or_is_not() -> None:
    assert distance(np.array(["a", "b"]), np.array(["a", "b"], object)) == 0
    assert distance(np.array([1, 2]), np.array([1, 3])) == np.inf


def test_classes_are_the_best_scores_or_the_ids() -> None:
    assert classes(np.array([[0.1, 0.9], [0.8, 0.2]])).tolist() == [1, 0]
    assert classes(np.array([1, 0])).tolist() == [1, 0]
    with pytest.raises(
        PackageRefused, match=r"^output: expected class ids, or scores of 2 classes and more, got \[2, 1\]$"
    ):
        classes(np.array([[0.1], [0.8]]))


@pytest.mark.parametrize(("got", "error"), [([0.0, 2.0], 0.0), ([1.0, 3.0], 1.0)])
def test_relative_error_is_a_share_of_the_spread(got: list[float], error: float) -> None:
    assert relative_error(np.array([0.0, 2.0]), np.array(got)) == error
    assert relative_error(np.ones(2), np.array(got)) == np.inf
    assert relative_error(np.ones(2), np.ones(2)) == 0
