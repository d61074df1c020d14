"""Compare models: run them over the same rows and say how far apart their answers are."""

from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray


def open_model(model: bytes, threads: int = 1) -> ort.InferenceSession:
    """A session from bytes alone: a model that points at external data is refused here as it is by the server."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run(session: ort.InferenceSession, rows: NDArray[Any], output: str, batch: int) -> NDArray[Any]:
    """The named output for all `rows`, computed `batch` rows at a time."""
    name = session.get_inputs()[0].name
    pieces = (rows[start : start + batch] for start in range(0, len(rows), batch))
    return np.concatenate([session.run([output], {name: piece})[0] for piece in pieces])


def largest_difference(one: NDArray[Any], other: NDArray[Any]) -> float:
    return float(np.abs(one - other).max())


def top1_agreement(one: NDArray[Any], other: NDArray[Any]) -> float:
    """The share of rows, 0..1, in which both rank the same class first."""
    return float(np.mean(one.argmax(axis=1) == other.argmax(axis=1)))


def check(holds: bool, claim: str) -> None:
    """Stop the build with the claim that does not hold. Not `assert`, which `python -O` would skip."""
    if not holds:
        raise SystemExit(f"refused: {claim}")
