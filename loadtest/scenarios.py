"""What is asked of every system, and what it must answer."""

import dataclasses
import functools
import io
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from exchanges import Exchange
from PIL import Image

from inference_core.images import decode_image
from inference_core.instances import best_labels
from inference_core.manifest import read_package
from inference_core.model import Model, RunOptions, load_model
from inference_core.tensors import Tensor

MODELS = Path(__file__).resolve().parents[1] / "models"
MAX_MODEL_BYTES = 1 << 30
MAX_PIXELS = 16_000_000
TOP_K = 5
THUMBNAIL_PIXELS = 256
# Servers may differ in how they round and print a score, not in what they mean.
TOLERANCE = 1e-4
JPEG_START = b"\xff\xd8"
# A segment of a JPEG file that means nothing: its marker, the length of what follows, a number.
COMMENT = b"\xff\xfe\x00\x12%016d"


@dataclass(frozen=True)
class Scenario:
    """A closed loop, unless `rate` says how many requests a second an open one has, or `share` which part of capacity.

    Capacity is what the warm-up, which is a closed loop always, has just found.
    """

    name: str
    title: str
    connections: int
    exchanges: Sequence[Exchange]
    warm_up_seconds: float = 0.5
    rate: float = 0.0
    share: float = 0.0

    def rate_of(self, capacity: float) -> float:
        """Requests per second of the open loop, 0 for a closed one."""
        return self.rate or self.share * capacity

    @property
    def load(self) -> str:
        if self.rate:
            return f"open loop, {self.rate:,.0f} requests per second"
        return f"open loop, {self.share:.0%} of capacity" if self.share else "closed loop"


def tabular() -> Scenario:
    """One row of 30 features, in the JSON of the Open Inference Protocol."""
    return Scenario("tabular", "breast-cancer, one row as OIP JSON", 16, row_exchanges([example_row()]))


def example_row() -> list[float]:
    row: list[float] = json.loads((MODELS / "breast-cancer/examples/instances.json").read_bytes())["instances"][0]
    return row


def row_exchanges(rows: Iterable[list[float]]) -> list[Exchange]:
    """Each of the `rows` as a request to breast-cancer."""
    model = open_model("breast-cancer")
    return [
        _row_exchange(row, *model.run({"features": np.array([row], np.float32)}, None, RunOptions())) for row in rows
    ]


def _row_exchange(row: list[float], classes: Tensor, probabilities: Tensor) -> Exchange:
    features = {"name": "features", "shape": [1, len(row)], "datatype": "FP32", "data": row}
    request = _post("/v2/models/breast-cancer/infer", "application/json", json.dumps({"inputs": [features]}).encode())
    expected = {"class_id": classes.ravel().tolist(), "probabilities": probabilities.ravel().tolist()}
    return Exchange(request, functools.partial(_fault, functools.partial(_is_inference, expected)))


def image() -> Scenario:
    """The example photos in turn, each as the body of a request."""
    exchanges = [photo_exchange(photo, labels) for photo, labels in photos()]
    return Scenario("image", f"efficientnet-lite0, {len(exchanges)} JPEG files in turn", 8, exchanges)


def image_unique() -> Scenario:
    """The same photos, of which none is ever the same: for a cache, all are new."""
    exchanges = Unique(photo_exchange(_with_comment(photo), labels) for photo, labels in photos())
    return Scenario("image-unique", "the same, but each time with another comment", 8, exchanges)


class Unique(list[Exchange]):
    """In turn, without end, and each time with another number in the comment: other bytes, the same pixels."""

    _numbers = itertools.count(1)

    def __iter__(self) -> Iterator[Exchange]:
        for exchange in itertools.cycle([*super().__iter__()]):
            request = exchange.request.replace(COMMENT % 0, COMMENT % next(self._numbers), 1)
            yield dataclasses.replace(exchange, request=request)


def photo_exchange(photo: bytes, labels: list[dict[str, Any]]) -> Exchange:
    request = _post("/v1/models/efficientnet-lite0:predict", "image/jpeg", photo)
    return Exchange(request, functools.partial(_fault, functools.partial(is_labels, labels)))


def _with_comment(photo: bytes) -> bytes:
    return photo[: len(JPEG_START)] + COMMENT % 0 + photo[len(JPEG_START) :]


def tabular_alone() -> Scenario:
    return dataclasses.replace(tabular(), name="tabular-1", connections=1)


def tabular_open() -> Scenario:
    return dataclasses.replace(tabular(), name="tabular-open", rate=1000)


def image_open() -> Scenario:
    return dataclasses.replace(image(), name="image-open", warm_up_seconds=1.0, share=0.5)


SCENARIOS: dict[str, Callable[[], Scenario]] = {
    "tabular": tabular,
    "image": image,
    "image-unique": image_unique,
    "tabular-1": tabular_alone,
    "tabular-open": tabular_open,
    "image-open": image_open,
}


def photos() -> list[tuple[bytes, list[dict[str, Any]]]]:
    """The example photos and the labels expected of each, best first."""
    model = open_model("efficientnet-lite0")
    found = []
    for path in sorted((MODELS / "efficientnet-lite0/examples").glob("*.jpg")):
        photo = path.read_bytes()
        labels = classify(model, photo)
        published = model.manifest.metrics["examples"][path.name]["int8"]["label"]
        if labels[0]["label"] != published:
            raise ValueError(f"{path.name}: expected {published} as in the manifest, got {labels[0]['label']}")
        found.append((photo, labels))
    return found


def thumbnail(photo: bytes) -> bytes:
    made = io.BytesIO()
    with Image.open(io.BytesIO(photo)) as opened:
        opened.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
        opened.save(made, "JPEG", quality=85)
    return made.getvalue()


def open_model(name: str) -> Model:
    return load_model(read_package(MODELS / name / "1", MAX_MODEL_BYTES), intra_op_threads=1)


def classify(model: Model, photo: bytes) -> list[dict[str, Any]]:
    """The five most probable labels of a JPEG file, best first, in process."""
    spec = model.manifest.image
    if spec is None:
        raise ValueError(f"{model.manifest.name}: expected a model of photos")
    [probabilities] = model.run({spec.input: decode_image(photo, spec, MAX_PIXELS)}, [spec.output], RunOptions())
    labels: list[dict[str, Any]] = msgspec.to_builtins(best_labels(probabilities[0], model.manifest.labels, TOP_K))
    return labels


def is_labels(expected: list[dict[str, Any]], got: Any) -> bool:
    """Whether `got["predictions"]` are the `expected` labels."""
    predictions = got["predictions"]
    return len(predictions) == len(expected) and all(
        a["label"] == b["label"]
        and a["class_id"] == b["class_id"]
        and math.isclose(a["score"], b["score"], abs_tol=TOLERANCE)
        for a, b in zip(expected, predictions, strict=True)
    )


def _is_inference(expected: dict[str, list[float]], got: Any) -> bool:
    outputs = {output["name"]: output["data"] for output in got["outputs"]}
    return outputs.keys() == expected.keys() and all(
        len(outputs[name]) == len(values) and np.allclose(outputs[name], values, rtol=0, atol=TOLERANCE)
        for name, values in expected.items()
    )


def _fault(fits: Callable[[Any], bool], body: bytes) -> str | None:
    try:
        right = fits(json.loads(body))
    except (ValueError, TypeError, KeyError) as error:
        return f"expected the model's prediction, got {body[:400]!r} ({type(error).__name__}: {error})"
    return None if right else f"expected another prediction, got {body[:400]!r}"


def _post(path: str, media_type: str, body: bytes) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {media_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
