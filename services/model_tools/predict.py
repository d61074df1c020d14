"""Answer what `:predict` would answer, without a server: from a package in a folder."""

from typing import Any

import msgspec

from inference_core.images import MEDIA_TYPES, decode_image
from inference_core.instances import ModelIdentity, PredictResponse, best_labels, decode_instances, to_predictions
from inference_core.model import Model, RunOptions

MAX_PIXELS = 1 << 26
TOP_K = 5
# How photos begin, and no JSON does.
PHOTOS = {b"\xff\xd8": "image/jpeg", b"\x89P": "image/png", b"RI": "image/webp"}


def media_type(body: bytes) -> str:
    return PHOTOS.get(body[:2], "application/json")


def predict(model: Model, body: bytes) -> PredictResponse:
    """For a photo its best labels, for `{"instances": [...]}` a prediction each; TiercelError if it is neither."""
    manifest = model.manifest
    if manifest.image and media_type(body) in MEDIA_TYPES:
        feeds = {manifest.image.input: decode_image(body, manifest.image, MAX_PIXELS)}
        [probabilities] = model.run(feeds, [manifest.image.output], RunOptions())
        predictions: list[Any] = best_labels(probabilities[0], manifest.labels, TOP_K)
    else:
        feeds, photos = decode_instances(body, manifest, MAX_PIXELS, lambda: None)
        if photos and manifest.image:
            [rows] = model.run(feeds, [manifest.image.output], RunOptions())
            predictions = [best_labels(row, manifest.labels, TOP_K) for row in rows]
        else:
            predictions = to_predictions(manifest.outputs, model.run(feeds, None, RunOptions()))
    return PredictResponse(predictions, ModelIdentity(manifest.name, manifest.version, model.digest))


def to_text(answer: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(answer), indent=2).decode()
