"""OpenAPI 3.1, generated from the routes that the application serves and the types that it decodes and encodes."""

import importlib.metadata
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import falcon
import msgspec

from inference_api.error_handlers import OipError, Problem

REF = "#/components/schemas/{name}"
# Every route can meet these: a wrong request, an error of ours.
COMMON_ERRORS = (400, 500)
# Of a prediction.
TIMED_ERRORS = (404, 413, 415, 429, 503, 504)

PARAMETERS: dict[str, dict[str, Any]] = {
    "model": {"in": "path", "required": True, "schema": {"type": "string"}, "example": "efficientnet-lite0"},
    "version": {
        "in": "path",
        "required": True,
        "schema": {"type": "string", "pattern": "^[1-9][0-9]*$"},
        "example": "1",
    },
    "top_k": {
        "in": "query",
        "description": "How many labels of a photo to return.",
        "schema": {"type": "integer", "minimum": 1, "default": 5},
    },
    "X-Request-Timeout-Ms": {
        "in": "header",
        "description": "Answer within this many milliseconds, or 504. Capped by the server's own limit.",
        "schema": {"type": "integer", "minimum": 1},
    },
    "Cache-Control": {
        "in": "header",
        "description": "no-cache: compute anew; no-store: and do not keep the answer. See Cache-Status of the answer.",
        "schema": {"type": "string"},
        "example": "no-cache",
    },
    "Inference-Header-Content-Length": {
        "in": "header",
        "description": "Binary tensor extension: how many bytes of the body are JSON; raw tensors follow them.",
        "schema": {"type": "integer", "minimum": 0},
    },
}


class Operation(msgspec.Struct, frozen=True):
    """What a resource says of its one operation: `request` and `response` are the types on the wire."""

    response: Any
    request: Any = None
    request_required: bool = False
    # Media types of bodies that are taken besides JSON.
    binary: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    errors: tuple[int, ...] = ()
    # 503 with the same body as 200, as a health check answers.
    unready: bool = False


def describe(routes: list[tuple[str, Any]]) -> dict[str, Any]:
    """The OpenAPI document of `routes`, pairs of a path template and a resource with an `operation`."""
    types = [OipError, Problem]
    for _, resource in routes:
        types += [kind for kind in (resource.operation.request, resource.operation.response) if kind is not None]
    schemas, components = msgspec.json.schema_components(types, ref_template=REF)
    by_type = dict(zip(map(str, types), schemas, strict=True))
    for component in components.values():
        if "description" in component:  # a docstring, with the line breaks of its source
            component["description"] = " ".join(component["description"].split())
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Tiercel",
            "version": importlib.metadata.version("tiercel"),
            "description": "Predictions over HTTP: the Open Inference Protocol under /v2, the easy door under /v1.",
        },
        "paths": {path: _path_item(path, resource, by_type) for path, resource in routes},
        "components": {"schemas": components},
    }


def _path_item(path: str, resource: Any, schemas: Mapping[str, Any]) -> dict[str, Any]:
    operation: Operation = resource.operation
    method = "post" if hasattr(resource, "on_post") else "get"
    names = (*re.findall(r"{(\w+)}", path), *operation.parameters)
    item: dict[str, Any] = {
        "summary": resource.__doc__.split("\n")[0],
        "operationId": method + re.sub(r"\W+", "_", path),
        "parameters": [{"name": name, **PARAMETERS[name]} for name in names],
        "responses": _responses(path, operation, schemas),
    }
    if method == "post":
        json = {"schema": schemas[str(operation.request)]}
        content = {"application/json": json} | {media: {} for media in operation.binary}
        item["requestBody"] = {"required": operation.request_required, "content": content}
    return {method: item}


def _responses(path: str, operation: Operation, schemas: Mapping[str, Any]) -> dict[str, Any]:
    error, media = (OipError, "application/json") if path.startswith("/v2") else (Problem, "application/problem+json")
    success: dict[str, Any] = {"application/json": {"schema": schemas.get(str(operation.response), {})}}
    if "application/octet-stream" in operation.binary:
        success["application/octet-stream"] = {}
    responses = {"200": {"description": "OK", "content": success}}
    for status in sorted({*COMMON_ERRORS, *operation.errors}):
        body = {"schema": schemas[str(error)]}
        responses[str(status)] = {"description": HTTPStatus(status).phrase, "content": {media: body}}
    if operation.unready:
        responses["503"] = {"description": HTTPStatus(503).phrase, "content": success}
    return responses


class OpenApiResource:
    """This document."""

    operation = Operation(response=None)

    def __init__(self, routes: list[tuple[str, Any]]) -> None:
        self._document = msgspec.json.encode(describe([*routes, ("/openapi.json", self)]))

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.data = self._document
        resp.content_type = falcon.MEDIA_JSON

    on_head = on_get
