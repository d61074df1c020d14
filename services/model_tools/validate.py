"""Compare models: run them over the same rows and say how far apart their answers are."""

from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from inference_core.errors import PackageRefused
from inference_core.manifest import Package
from inference_core.model import RunOptions, load_model
from inference_core.runtimes.onnx import session_options
from model_tools.artifact import Feed, rows_of, slice_rows

Array = NDArray[Any]


class Session(Protocol):
    """What ONNX Runtime's sessions and `Served` have in common."""

    def run(self, outputs: list[str] | None, feed: Feed) -> list[Array]: ...


class Served:
    """A package of whatever runtime, asked as the server would ask it."""

    def __init__(self, package: Package) -> None:
        self._model = load_model(package, intra_op_threads=1)

    def run(self, outputs: list[str] | None, feed: Feed) -> list[Array]:
        return self._model.run(feed, outputs, RunOptions())


def open_model(model: bytes, threads: int = 1) -> ort.InferenceSession:
    """A session as the server has it, from bytes alone: a model with external data is refused here as there."""
    return ort.InferenceSession(model, session_options(threads), providers=["CPUExecutionProvider"])


def run(session: Session, rows: Feed, output: str, batch: int) -> Array:
    """The named output for all `rows`, computed `batch` rows at a time."""
    return run_all(session, rows, [output], batch)[output]


def run_all(session: Session, rows: Feed, outputs: list[str], batch: int) -> dict[str, Array]:
    pieces = [session.run(outputs, slice_rows(rows, start, start + batch)) for start in range(0, rows_of(rows), batch)]
    for name, array in zip(outputs, pieces[0], strict=True):
        if array.shape[:1] != (min(batch, rows_of(rows)),):
            raise PackageRefused(f"output '{name}': expected a row for each row that goes in, got {list(array.shape)}")
    return {name: np.concatenate(arrays) for name, arrays in zip(outputs, zip(*pieces, strict=True), strict=True)}


def distance(expected: Array, got: Array) -> float:
    """The largest difference between two arrays, relative where the expected value is beyond 1 and absolute below.

    Infinity if they differ in shape, in where they are not finite, or at all where they hold no FP numbers.
    """
    if expected.shape != got.shape:
        return float("inf")
    if not np.issubdtype(got.dtype, np.floating):
        return 0.0 if np.array_equal(expected, got) else float("inf")
    finite = np.isfinite(expected)
    if not np.array_equal(expected[~finite], got[~finite], equal_nan=True) or not np.isfinite(got[finite]).all():
        return float("inf")
    difference = np.abs(expected[finite] - got[finite]) / np.maximum(1, np.abs(expected[finite]))
    return float(difference.max(initial=0))


def classes(output: Array) -> Array:
    """The class of each row: where its scores along axis 1 are highest, or what the output says if it is no FP."""
    if not np.issubdtype(output.dtype, np.floating):
        return output
    if output.ndim < 2 or output.shape[1] < 2:
        raise PackageRefused(f"output: expected class ids, or scores of 2 classes and more, got {list(output.shape)}")
    return np.asarray(output.argmax(axis=1))


def agreement(one: Array, other: Array) -> float:
    """In how many of 100 rows both give the same class."""
    return 100 * float(np.mean(classes(one) == classes(other)))


def accuracy(output: Array, labels: Array) -> float:
    """In how many of 100 rows the class is the label."""
    return 100 * float(np.mean(classes(output) == labels))


def relative_error(expected: Array, got: Array) -> float:
    """The root mean square of the difference, as a share of the standard deviation of what was expected."""
    difference = float(np.sqrt(np.mean(np.square(expected - got))))
    spread = float(np.std(expected))
    return difference / spread if spread else (0.0 if difference == 0 else float("inf"))


def in_one_line(error: Exception) -> str:
    """The beginning of what a library says, which may be pages."""
    return " ".join(str(error).split())[:300]


def check(holds: bool, claim: str) -> None:
    """Stop the build with the claim that does not hold. Not `assert`, which `python -O` would skip."""
    if not holds:
        raise SystemExit(f"refused: {claim}")
