"""The easy door: `{"instances": [...]}` in, `{"predictions": [...]}` out, as in TensorFlow Serving and KServe V1.

An instance is one row: the value of a model's single input, or an object with one value per input name. A model
whose input names its features also takes an object of those; a model of photos also `{"b64": "<file in base64>"}`.
"""

import base64
import re
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from inference_core import tensors
from inference_core.bodies import decode_json
from inference_core.errors import InvalidInput
from inference_core.images import decode_image
from inference_core.manifest import ImageInput, Manifest, TensorSpec
from inference_core.schema import check_rows
from inference_core.tensors import Tensor

OBJECTS = re.compile(rb"\[\s*\{")


class PredictRequest(msgspec.Struct):
    instances: msgspec.Raw


class EncodedFile(msgspec.Struct, forbid_unknown_fields=True):
    b64: str


class Label(msgspec.Struct):
    """One class of a classifier and how sure it is of it, 0..1."""

    label: str
    class_id: int
    score: float


class ModelIdentity(msgspec.Struct):
    name: str
    version: str
    digest: str


class PredictResponse(msgspec.Struct):
    """One prediction per instance; for a photo as the body, the labels of that photo."""

    predictions: list[Any]
    model: ModelIdentity


def decode_instances(
    body: bytes, manifest: Manifest, max_pixels: int, check_deadline: Callable[[], None]
) -> tuple[dict[str, Tensor], bool]:
    """The rows in `body` as one array per input of the model, and whether they were photos."""
    if not manifest.max_batch_size:
        raise InvalidInput(f"model {manifest.name} takes no rows: use /v2/models/{manifest.name}/infer")
    instances = decode_json(body, PredictRequest).instances
    photos = manifest.image is not None and OBJECTS.match(instances) is not None
    if photos and manifest.image:
        files = decode_json(instances, list[EncodedFile])
        check_rows(manifest, len(files))
        return {manifest.image.input: _decode_files(files, manifest.image, max_pixels, check_deadline)}, True
    columns = _columns(instances, manifest.inputs)
    feeds = {spec.name: tensors.from_rows(spec, column) for spec, column in zip(manifest.inputs, columns, strict=True)}
    for array in feeds.values():
        check_rows(manifest, len(array))
    return feeds, False


def to_predictions(outputs: tuple[TensorSpec, ...], arrays: list[Tensor]) -> list[Any]:
    """One prediction per row: the value of the single output, or an object with one value per output name."""
    columns = [array.tolist() for array in arrays]
    if len(outputs) == 1:
        return columns[0]  # type: ignore[no-any-return]  # numpy types tolist() as object
    names = [spec.name for spec in outputs]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def best_labels(probabilities: Tensor, labels: tuple[str, ...], top_k: int) -> list[Label]:
    """The `top_k` most probable of the classes whose `probabilities` (shape `[classes]`) are given, best first."""
    best = np.argsort(-probabilities, kind="stable")[:top_k]
    scores = probabilities[best].tolist()
    return [Label(labels[i], i, score) for i, score in zip(best.tolist(), scores, strict=True)]


def _columns(instances: msgspec.Raw, inputs: tuple[TensorSpec, ...]) -> list[bytes | msgspec.Raw]:
    """The JSON array of each input's values, row by row."""
    if not OBJECTS.match(instances):
        if len(inputs) > 1:
            names = ", ".join(spec.name for spec in inputs)
            raise InvalidInput(f"instances: expected objects with the inputs {names}, got something else")
        return [instances]
    rows = decode_json(instances, list[dict[str, msgspec.Raw]])
    features = inputs[0].features
    if len(inputs) == 1 and features and inputs[0].name not in rows[0]:
        return [_array(_array(values) for values in _fields(rows, features))]
    by_row = _fields(rows, tuple(spec.name for spec in inputs))
    return [_array(column) for column in zip(*by_row, strict=True)]


def _fields(rows: list[dict[str, msgspec.Raw]], names: tuple[str, ...]) -> list[list[msgspec.Raw]]:
    """The values called `names` of each row, which must have these and no others."""
    expected = set(names)
    for i, row in enumerate(rows):
        if row.keys() != expected:
            faults = (("no", expected - row.keys()), ("also", row.keys() - expected))
            got = " and ".join(f"{what} {_some(found)}" for what, found in faults if found)
            raise InvalidInput(f"instances[{i}]: expected the {len(names)} names that the model lists, got {got}")
    return [[row[name] for name in names] for row in rows]


def _some(names: set[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in sorted(names)[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _array(values: Any) -> bytes:
    return b"[" + b",".join(bytes(value) for value in values) + b"]"


def _decode_files(
    files: list[EncodedFile], spec: ImageInput, max_pixels: int, check_deadline: Callable[[], None]
) -> Tensor:
    photos = []
    for file in files:
        # SECURITY: a few bytes can hold a photo that takes long, and a request many of them; who is still busy well
        # after the deadline is taken to hang.
        check_deadline()
        photos.append(decode_image(_from_base64(file.b64), spec, max_pixels))
    return np.concatenate(photos)


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise InvalidInput(f"instances: expected base64 in 'b64', got something else ({error})") from None
