"""Open Inference Protocol V2: health, metadata, inference, and Triton's extension for model configuration.

Sources: the protocol's specification (kserve/open-inference-protocol) and Triton's extension documents.
"""

import importlib.metadata
from typing import Any

import falcon
import msgspec

from inference_api.openapi import TIMED_ERRORS, Operation
from inference_api.requests import count, predict, read_body, read_json_body, watch, whole_number
from inference_core import bodies, schema
from inference_core.bootstrap import Services
from inference_core.cache import Question
from inference_core.manifest import Manifest, TensorSpec

EXTENSIONS = (
    "binary_tensor_data",
    "model_configuration",
    "model_repository",
    "model_repository(unload_dependents)",
    "statistics",
)
# By runtime, in the protocol's form: project and format.
PLATFORMS = {"onnx": "onnxruntime_onnx", "torchscript": "pytorch_torchscript", "litert": "litert_tflite"}
JSON_SIZE = "Inference-Header-Content-Length"
BINARY = "application/octet-stream"
MODEL_ERRORS = (404, 503)


class ServerMetadata(msgspec.Struct):
    name: str
    version: str
    extensions: tuple[str, ...]


class Live(msgspec.Struct):
    live: bool


class Ready(msgspec.Struct):
    """`reasons` says per model why this server is not ready."""

    ready: bool
    reasons: dict[str, str] = {}


class ModelReady(msgspec.Struct):
    name: str
    ready: bool


class TensorMetadata(msgspec.Struct):
    name: str
    datatype: str
    shape: tuple[int, ...]


class ModelMetadata(msgspec.Struct):
    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    properties: dict[str, str]


class TensorConfig(msgspec.Struct):
    """Triton's ModelInput and ModelOutput: `dims` leave out the batch dimension."""

    name: str
    data_type: str
    dims: tuple[int, ...]


class ModelConfig(msgspec.Struct):
    name: str
    platform: str
    backend: str
    max_batch_size: int
    input: list[TensorConfig]
    output: list[TensorConfig]


class Resource:
    operation: Operation

    def __init__(self, services: Services) -> None:
        self._services = services


class ServerMetadataResource(Resource):
    """What this server is and which extensions it offers."""

    operation = Operation(response=ServerMetadata)

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        send(resp, ServerMetadata("tiercel", importlib.metadata.version("tiercel"), EXTENSIONS))

    on_head = on_get


class LiveResource(Resource):
    """Whether the server runs."""

    operation = Operation(response=Live)

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        send(resp, Live(True))

    on_head = on_get


class ReadyResource(Resource):
    """Whether everything that should be served is loaded and warm."""

    operation = Operation(response=Ready, unready=True)

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        reasons = self._services.rollout.unready()
        resp.status = falcon.HTTP_503 if reasons else falcon.HTTP_200
        send(resp, Ready(not reasons, reasons))

    on_head = on_get


class ModelReadyResource(Resource):
    """Whether a model can answer."""

    operation = Operation(response=ModelReady, errors=MODEL_ERRORS)

    def on_get(self, req: falcon.Request, resp: falcon.Response, model: str, version: str | None = None) -> None:
        self._services.repository.get(model, version)
        send(resp, ModelReady(model, True))

    on_head = on_get


class ModelMetadataResource(Resource):
    """The inputs and outputs of a model."""

    operation = Operation(response=ModelMetadata, errors=MODEL_ERRORS)

    def on_get(self, req: falcon.Request, resp: falcon.Response, model: str, version: str | None = None) -> None:
        served = self._services.repository.get(model, version)
        manifest = served.manifest
        inputs, outputs = ([TensorMetadata(t.name, t.datatype, t.shape) for t in specs] for specs in tensors(manifest))
        properties = {"digest": served.digest, "licence": manifest.licence}
        platform = PLATFORMS[manifest.runtime]
        send(resp, ModelMetadata(manifest.name, (manifest.version,), platform, inputs, outputs, properties))

    on_head = on_get


class ModelConfigResource(Resource):
    """A model's configuration, as Triton's clients read it."""

    operation = Operation(response=ModelConfig, errors=MODEL_ERRORS)

    def on_get(self, req: falcon.Request, resp: falcon.Response, model: str, version: str | None = None) -> None:
        manifest = self._services.repository.get(model, version).manifest
        batch = 1 if manifest.max_batch_size else 0
        inputs, outputs = (
            [TensorConfig(t.name, config_type(t.datatype), t.shape[batch:]) for t in specs]
            for specs in tensors(manifest)
        )
        platform = PLATFORMS[manifest.runtime]
        backend = platform.partition("_")[0]
        send(resp, ModelConfig(manifest.name, platform, backend, manifest.max_batch_size, inputs, outputs))

    on_head = on_get


class InferResource(Resource):
    """Run one inference."""

    operation = Operation(
        request=schema.InferRequest,
        request_required=True,
        response=schema.InferResponse,
        binary=(BINARY,),
        parameters=(JSON_SIZE, "X-Request-Timeout-Ms", "Cache-Control"),
        errors=(*TIMED_ERRORS, 501),
    )

    def on_post(self, req: falcon.Request, resp: falcon.Response, model: str, version: str | None = None) -> None:
        served = self._services.repository.get(model, version)
        count(req, resp, self._services, served)
        body, json_size = self._body(req)
        with watch(req, self._services) as in_flight:
            call = schema.decode_request(body, json_size, served.manifest)
            if call.timeout:
                in_flight.shorten(call.timeout)
            wanted = [spec.name for spec, _ in call.outputs]
            question = Question(served, lambda: call.feeds, wanted)
            arrays = predict(req, resp, self._services, question, in_flight)
        resp.data, answer_json_size = schema.encode_response(call, served.manifest, arrays)
        if answer_json_size is not None:  # else JSON, as Falcon takes it to be
            resp.content_type = BINARY
            resp.set_header(JSON_SIZE, str(answer_json_size))

    def _body(self, req: falcon.Request) -> tuple[bytes, int | None]:
        """The body and the size of its JSON part, in which nesting is bounded."""
        size = req.env.get("HTTP_INFERENCE_HEADER_CONTENT_LENGTH")
        if size is None:
            return read_json_body(req, self._services), None
        json_size = whole_number(JSON_SIZE, size, 0)
        body = read_body(req, self._services.settings.max_body_bytes)
        bodies.check_nesting(body[:json_size], self._services.settings.max_json_depth)
        return body, json_size


def send(resp: falcon.Response, value: Any) -> None:
    resp.data = msgspec.json.encode(value)
    resp.content_type = falcon.MEDIA_JSON


def tensors(manifest: Manifest) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    return manifest.inputs, manifest.outputs


def config_type(datatype: str) -> str:
    return "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"
