"""The easy door: what is served, and `:predict` for JSON instances and for photos."""

from typing import Any

import falcon
import msgspec

from inference_api import jobs
from inference_api.openapi import TIMED_ERRORS, Operation
from inference_api.requests import (
    UNSPECIFIED,
    count,
    media_type,
    predict,
    read_body,
    read_json_body,
    watch,
    whole_number,
)
from inference_api.v2 import Resource, send
from inference_core import instances
from inference_core.cache import Question
from inference_core.errors import UnsupportedMedia
from inference_core.images import MEDIA_TYPES, decode_image
from inference_core.instances import ModelIdentity, PredictRequest, PredictResponse
from inference_core.manifest import ImageInput, Manifest, TensorSpec
from inference_core.model import Model
from inference_core.tensors import Tensor
from inference_core.watchdog import InFlight

DEFAULT_TOP_K = 5
# How JPEG, PNG and WEBP files begin, and no JSON does.
PHOTOS = (b"\xff\xd8", b"\x89PNG", b"RIFF")


class ModelSummary(msgspec.Struct):
    name: str
    version: str
    state: str
    description: str
    digest: str


class ModelList(msgspec.Struct):
    models: list[ModelSummary]


class ModelDescription(msgspec.Struct):
    name: str
    version: str
    state: str
    description: str
    digest: str
    licence: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int
    # Media types that :predict takes besides JSON; none unless the model takes photos.
    media_types: tuple[str, ...]
    labels: int
    metrics: dict[str, Any]


class ModelListResource(Resource):
    """The models that are served."""

    operation = Operation(response=ModelList)

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        send(resp, ModelList([_summary(model) for model in self._services.repository.loaded()]))

    on_head = on_get


class ModelResource(Resource):
    """A model: what goes in, what comes out, what was measured."""

    operation = Operation(response=ModelDescription, errors=(404, 503))

    def on_get(self, req: falcon.Request, resp: falcon.Response, model: str) -> None:
        send(resp, _description(self._services.repository.get(model)))

    on_head = on_get


class PredictResource(Resource):
    """Predict from JSON instances, or from a photo."""

    operation = Operation(
        request=PredictRequest,
        request_required=True,
        response=PredictResponse,
        binary=MEDIA_TYPES,
        parameters=("top_k", "X-Request-Timeout-Ms", "Cache-Control", "Prefer", "Idempotency-Key"),
        errors=(*TIMED_ERRORS, 409, 422),
        also_accepts=jobs.JobDescription,
    )

    def on_post(self, req: falcon.Request, resp: falcon.Response, model: str, version: str | None = None) -> None:
        served = self._services.repository.get(model, version)
        is_async = "HTTP_PREFER" in req.env and jobs.prefers_async(req, self._services)
        if not is_async:  # else it counts as a job
            count(req, resp, self._services, served)
        image = _image_input(req, served.manifest)
        top_k = _top_k(req, served.manifest)
        body = read_body(req, self._services.settings.max_body_bytes) if image else read_json_body(req, self._services)
        if not image:
            _check_no_photo(body, served.manifest)
        if is_async:
            resp.set_header("Preference-Applied", "respond-async")
            jobs.accept_prediction(req, resp, self._services, model, version, top_k, body, photo=image is not None)
            return
        with watch(req, self._services) as in_flight:
            if image:
                question, photos = self._photo(body, served, image), True
            else:
                question, photos = self._instances(body, served, in_flight)
            arrays = predict(req, resp, self._services, question, in_flight)
        predictions = (
            _labels(arrays[0], served.manifest, top_k)
            if photos
            else instances.to_predictions(served.manifest.outputs, arrays)
        )
        if image:
            [predictions] = predictions
        identity = ModelIdentity(served.manifest.name, served.manifest.version, served.digest)
        send(resp, PredictResponse(predictions, identity))

    def _photo(self, body: bytes, served: Model, image: ImageInput) -> Question:
        max_pixels = self._services.settings.max_image_pixels
        return Question(served, lambda: {image.input: decode_image(body, image, max_pixels)}, [image.output], body)

    def _instances(self, body: bytes, served: Model, in_flight: InFlight) -> tuple[Question, bool]:
        """What is asked, and whether about photos."""
        manifest, max_pixels = served.manifest, self._services.settings.max_image_pixels
        feeds, photos = instances.decode_instances(body, manifest, max_pixels, in_flight.check)
        outputs = [manifest.image.output] if photos and manifest.image else None
        return Question(served, lambda: feeds, outputs), photos


def _labels(probabilities: Tensor, manifest: Manifest, top_k: int) -> list[Any]:
    """For each photo, its best labels."""
    return [instances.best_labels(row, manifest.labels, top_k) for row in probabilities]


def _image_input(req: falcon.Request, manifest: Manifest) -> ImageInput | None:
    """How to read the body if it is a photo; UnsupportedMedia if it is something that `manifest` does not take."""
    kind = media_type(req)
    if kind == "application/json" or kind in UNSPECIFIED:
        return None
    if manifest.image is None or kind not in MEDIA_TYPES:
        raise _unsupported(manifest, kind)
    return manifest.image


def _check_no_photo(body: bytes, manifest: Manifest) -> None:
    """A photo that is sent without its media type, as curl does unless told, is no malformed JSON."""
    if body.startswith(PHOTOS):
        raise _unsupported(manifest, "what looks like a photo without saying so")


def _unsupported(manifest: Manifest, got: str) -> UnsupportedMedia:
    expected = " or ".join(("application/json", *(MEDIA_TYPES if manifest.image else ())))
    return UnsupportedMedia(f"Content-Type: model {manifest.name} expects {expected}, got {got}")


def _top_k(req: falcon.Request, manifest: Manifest) -> int:
    given, most = req.get_param("top_k"), len(manifest.labels)
    return min(DEFAULT_TOP_K, most) if given is None else whole_number("top_k", given, 1, most)


def _summary(model: Model) -> ModelSummary:
    manifest = model.manifest
    return ModelSummary(manifest.name, manifest.version, "READY", manifest.description, model.digest)


def _description(model: Model) -> ModelDescription:
    manifest = model.manifest
    return ModelDescription(
        name=manifest.name,
        version=manifest.version,
        state="READY",
        description=manifest.description,
        digest=model.digest,
        licence=manifest.licence,
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        max_batch_size=manifest.max_batch_size,
        media_types=MEDIA_TYPES if manifest.image else (),
        labels=len(manifest.labels),
        metrics=manifest.metrics,
    )
