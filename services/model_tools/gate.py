"""The gate: a model is published only if every figure is within its budget."""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import msgspec

from inference_core.errors import PackageRefused
from inference_core.manifest import Check, Gate
from model_tools.artifact import Feed, rows_of, slice_rows
from model_tools.benchmark import median_latencies, processor
from model_tools.validate import (
    Array,
    Session,
    accuracy,
    agreement,
    distance,
    in_one_line,
    open_model,
    relative_error,
    run,
    run_all,
)

# The framework itself, often slower by far, is asked about so many of the held-out rows.
REFERENCE_ROWS = 64
LATENCY_ROUNDS = 300

Percent = Annotated[float, msgspec.Meta(ge=0, le=100)]
Share = Annotated[float, msgspec.Meta(ge=0)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
Measure = Callable[[dict[str, Session], Feed, int], dict[str, float]]


class Budget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The `[gate]` of a recipe: what is not said is not asked, but for `tolerance`, and `min_speedup` of INT8."""

    # Between the exported model and its source: see `validate.distance`.
    tolerance: Share = 1e-4
    # Percentage points of the export's accuracy on the held-out labels.
    max_accuracy_loss: Percent | None = None
    # Percent of the held-out labels.
    min_accuracy: Percent | None = None
    # Percent of the held-out rows in which the answer is the export's.
    min_agreement: Percent | None = None
    # For numbers rather than classes: see `validate.relative_error`.
    max_relative_error: Share | None = None
    max_size_bytes: Annotated[int, msgspec.Meta(ge=1)] | None = None
    # How many times as fast as the export: one row, one thread, on this machine. 1 for what was quantised.
    min_speedup: Positive | None = None
    max_latency_ms: Positive | None = None

    @property
    def has_quality(self) -> bool:
        return any(bound is not None for bound in (self.max_accuracy_loss, self.min_agreement, self.max_relative_error))


class Variant(NamedTuple):
    session: Session
    size_bytes: int


class Reference(NamedTuple):
    """What packages are held to: what the source says to `rows` as clients send them, and the source in ONNX."""

    answer: Callable[[Feed], dict[str, Array]]
    export: Variant
    rows: Feed
    labels: Array | None


class Candidate(NamedTuple):
    """`export` is the source in ONNX, `final` what is to be published of it; `output` is the one that is judged."""

    export: Variant
    final: Variant
    output: str


class Verdict(NamedTuple):
    gate: Gate
    metrics: dict[str, Any]


def variant(model: bytes) -> Variant:
    """Of a model in ONNX."""
    return Variant(open_model(model), len(model))


def check_export(
    session: Session, answer: Callable[[Feed], dict[str, Array]], rows: Feed, batch: int, tolerance: float
) -> list[Check]:
    """How far the exported model is from its source, one row at a time and `batch` rows at a time."""
    some = slice_rows(rows, 0, max(REFERENCE_ROWS, batch))
    expected = answer(some)
    checks = []
    for size in (1, batch):
        try:
            got = run_all(session, some, list(expected), size)
        except PackageRefused:
            raise
        except Exception as error:  # whatever the runtime trips over; nearly always a dimension that became constant
            raise PackageRefused(f"export: fails with {size} rows at once: {in_one_line(error)}") from None
        figure = max(distance(expected[name], got[name]) for name in expected)
        checks.append(Check(f"distance from the source, batch {size}", figure, at_most=tolerance))
    return require(checks)


def judge(
    candidate: Candidate,
    rows: Feed,
    labels: Array | None,
    budget: Budget,
    batch: int,
    before: list[Check],
    measure: Measure = median_latencies,
) -> Verdict:
    """The gate's verdict on what the passes made; PackageRefused with each figure that is not within its budget."""
    sessions = {"export": candidate.export.session, "final": candidate.final.session}
    export, final = (run(session, rows, candidate.output, batch) for session in sessions.values())
    seconds = measure(sessions, slice_rows(rows, 0, 1), LATENCY_ROUNDS)
    checks = require(
        [
            *before,
            *_quality(export, final, labels, budget),
            Check("size", candidate.final.size_bytes, "bytes", at_most=budget.max_size_bytes),
            Check("speed-up over the export", seconds["export"] / seconds["final"], at_least=budget.min_speedup),
            Check("latency of one row", 1000 * seconds["final"], "ms", at_most=budget.max_latency_ms),
        ]
    )
    metrics = {
        "size_bytes": {"export": candidate.export.size_bytes, "package": candidate.final.size_bytes},
        "latency_ms": {name: 1000 * value for name, value in seconds.items()} | {"threads": 1, "batch": 1},
    }
    return Verdict(Gate(tuple(checks), rows_of(rows), processor()), metrics)


def require(checks: list[Check]) -> list[Check]:
    """The checks, if all of them hold; else PackageRefused with the figure and the budget of those that do not."""
    missed = [describe(check) for check in checks if not check.holds]
    if missed:
        raise PackageRefused("; ".join(missed))
    return checks


def describe(check: Check) -> str:
    figure = f"{number(check.figure)} {check.unit}".rstrip()
    return f"{check.what}: expected {budget_of(check)}, got {figure}"


def budget_of(check: Check) -> str:
    """In words, and empty where there is none."""
    if check.at_most is not None:
        return f"at most {number(check.at_most)}"
    return "" if check.at_least is None else f"at least {number(check.at_least)}"


def number(value: float) -> str:
    """Bytes to the last one, and measurements as far as they mean something."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _quality(export: Array, final: Array, labels: Array | None, budget: Budget) -> list[Check]:
    checks = []
    if budget.max_relative_error is not None:
        checks.append(Check("relative error", relative_error(export, final), at_most=budget.max_relative_error))
    if budget.min_agreement is not None:
        checks.append(Check("agreement with the export", agreement(export, final), "%", at_least=budget.min_agreement))
    if budget.max_accuracy_loss is None and budget.min_accuracy is None:
        return checks
    if labels is None:
        raise PackageRefused("held_out: expected labels, because the gate has a budget for accuracy, got none")
    was, now = accuracy(export, labels), accuracy(final, labels)
    checks.append(Check("accuracy", now, "%", at_least=budget.min_accuracy))
    checks.append(Check("accuracy loss", was - now, "points", at_most=budget.max_accuracy_loss))
    return checks
