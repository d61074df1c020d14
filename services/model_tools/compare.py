"""What differs between two descriptions, and between the answers of two packages."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from inference_core.errors import PackageRefused
from inference_core.manifest import Package
from model_tools.artifact import Feed
from model_tools.validate import Served, agreement, distance, run_all

MAX_CHARS = 60


class Difference(NamedTuple):
    key: str
    one: str
    other: str


def differences(one: Any, other: Any, key: str = "") -> Iterator[Difference]:
    """Key by key, where both have objects or as many of them; what one of them has not is "-"."""
    if _are_objects(one) and _are_objects(other) and len(one) == len(other):
        for index, pair in enumerate(zip(one, other, strict=True)):
            yield from differences(*pair, f"{key}[{index}]")
    elif isinstance(one, dict) and isinstance(other, dict):
        for name in sorted(one.keys() | other.keys()):
            yield from differences(one.get(name, "-"), other.get(name, "-"), f"{key}.{name}".lstrip("."))
    elif one != other:
        yield Difference(key, _shortened(one), _shortened(other))


def compare_answers(one: Package, other: Package, rows: Feed) -> dict[str, str]:
    """How far apart the outputs are that both have; PackageRefused if these rows are not for both."""
    outputs = [spec.name for spec in one.manifest.outputs if spec in other.manifest.outputs]
    if not outputs or one.manifest.inputs != other.manifest.inputs:
        raise PackageRefused("rows: expected packages with the same inputs and an output that both have")
    batch = max(1, min(one.manifest.max_batch_size, other.manifest.max_batch_size))
    answers, others = (run_all(Served(package), rows, outputs, batch) for package in (one, other))
    found = {}
    for name in outputs:
        found[f"distance of {name}"] = f"{distance(answers[name], others[name]):.3g}"
        if answers[name].ndim == 2 and answers[name].shape[1] > 1 and np.issubdtype(answers[name].dtype, np.floating):
            found[f"agreement of {name}"] = f"{agreement(answers[name], others[name]):.2f} %"
    return found


def _are_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(element, dict) for element in value)


def _shortened(value: Any) -> str:
    text = f"{value:,.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= MAX_CHARS else f"{text[: MAX_CHARS - 3]}..."
