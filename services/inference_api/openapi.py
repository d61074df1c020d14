"""OpenAPI 3.1, generated from the routes that the application serves and the types that it decodes and encodes."""

import importlib.metadata
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import falcon
import msgspec

from inference_api.authorisation import PUBLIC, Route
from inference_api.error_handlers import OipError, Problem

REF = "#/components/schemas/{name}"
# Every route can meet these: a wrong request, an error of ours.
COMMON_ERRORS = (400, 500)
# Of a prediction.
TIMED_ERRORS = (404, 413, 415, 429, 503, 504)
# Where access tokens are required: none or a bad one, one for something else, or nobody can tell yet.
ACCESS_ERRORS = (401, 403, 503)
TOKEN_PATH = "/oauth2/token"  # noqa: S105  # a path
SECURITY = "access_token"

PARAMETERS: dict[str, dict[str, Any]] = {
    "model": {"in": "path", "required": True, "schema": {"type": "string"}, "example": "efficientnet-lite0"},
    "version": {
        "in": "path",
        "required": True,
        "schema": {"type": "string", "pattern": "^[1-9][0-9]*$"},
        "example": "1",
    },
    # In the query, where the body cannot say it.
    "?model": {"name": "model", "in": "query", "schema": {"type": "string"}, "example": "efficientnet-lite0"},
    "?version": {"name": "version", "in": "query", "schema": {"type": "string", "pattern": "^[1-9][0-9]*$"}},
    "job": {"in": "path", "required": True, "schema": {"type": "string"}},
    "webhook": {
        "in": "query",
        "description": "An https URL that is told when the job has ended; of a host that the operator allows.",
        "schema": {"type": "string", "format": "uri"},
    },
    "before": {"in": "query", "description": "The id of a job: list older ones.", "schema": {"type": "string"}},
    "limit": {
        "in": "query",
        "description": "How many to list.",
        "schema": {"type": "integer", "minimum": 1, "maximum": 100, "default": 20},
    },
    "Idempotency-Key": {
        "in": "header",
        "description": "The same key and request again are the same job, and no second one.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 255},
    },
    "Prefer": {
        "in": "header",
        "description": "respond-async: make a job of it, and answer 202 with its place (RFC 7240).",
        "schema": {"type": "string"},
        "example": "respond-async",
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
    """What a resource says of what it does: `request` and `response` are the types on the wire.

    A resource has one `operation`, or `operations` by their methods.
    """

    response: Any
    request: Any = None
    request_required: bool = False
    # Media types of bodies that are taken besides JSON.
    binary: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    errors: tuple[int, ...] = ()
    # The media type of a body that is a form.
    form: str = ""
    # The type of bodies of 400 and 401, where it is another one than that of all errors.
    refusal: Any = None
    # 503 with the same body as 200, as a health check answers.
    unready: bool = False
    # Of success: its status, and its media type where that is not JSON.
    status: int = 200
    media: str = "application/json"
    # The type of a body of 202, where what was asked for can be done later.
    also_accepts: Any = None
    # Where the docstring of the resource does not say it.
    summary: str = ""


def describe(routes: Sequence[Route], *, needs_tokens: bool) -> dict[str, Any]:
    """The OpenAPI document of `routes`, whose resources have an `operation`."""
    types = [OipError, Problem]
    for route in routes:
        for operation in _operations(route.resource).values():
            kinds = (operation.request, operation.response, operation.refusal, operation.also_accepts)
            types += [kind for kind in kinds if kind is not None]
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
        "paths": {route.path: _path_item(route, by_type, needs_tokens=needs_tokens) for route in routes},
        "components": {"schemas": components} | (_security_schemes(routes) if needs_tokens else {}),
    }


def _security_schemes(routes: Sequence[Route]) -> dict[str, Any]:
    """Access tokens; and how to get one, where that is up to us."""
    if TOKEN_PATH not in (route.path for route in routes):
        return {"securitySchemes": {SECURITY: {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}}}
    scopes = {route.scope.removesuffix(":*"): "" for route in routes if route.scope}
    flow = {"tokenUrl": TOKEN_PATH, "scopes": scopes}
    return {"securitySchemes": {SECURITY: {"type": "oauth2", "flows": {"clientCredentials": flow}}}}


def _operations(resource: Any) -> dict[str, Operation]:
    """What a resource does, by method."""
    if hasattr(resource, "operations"):
        return dict(resource.operations)
    return {"post" if hasattr(resource, "on_post") else "get": resource.operation}


def _path_item(route: Route, schemas: Mapping[str, Any], *, needs_tokens: bool) -> dict[str, Any]:
    return {
        method: _described(method, operation, route, schemas, needs_tokens=needs_tokens)
        for method, operation in _operations(route.resource).items()
    }


def _described(
    method: str, operation: Operation, route: Route, schemas: Mapping[str, Any], *, needs_tokens: bool
) -> dict[str, Any]:
    path, resource, scope = route
    names = (*re.findall(r"{(\w+)}", path), *operation.parameters)
    item: dict[str, Any] = {
        "summary": operation.summary or resource.__doc__.split("\n")[0],
        "operationId": method + re.sub(r"\W+", "_", path),
        "parameters": [{"name": name} | PARAMETERS[name] for name in names],
        "responses": _responses(path, operation, schemas, ACCESS_ERRORS if needs_tokens and scope else ()),
    }
    if needs_tokens:
        item["security"] = [{SECURITY: [scope.removesuffix(":*")]}] if scope else []
    if operation.form:
        item["requestBody"] = {"required": True, "content": {operation.form: {}}}
    elif method == "post":
        json = {"schema": schemas[str(operation.request)]}
        content = {"application/json": json} | {media: {} for media in operation.binary}
        item["requestBody"] = {"required": operation.request_required, "content": content}
    return item


def _responses(
    path: str, operation: Operation, schemas: Mapping[str, Any], access_errors: tuple[int, ...]
) -> dict[str, Any]:
    error, media = (OipError, "application/json") if path.startswith("/v2") else (Problem, "application/problem+json")
    success: dict[str, Any] = {operation.media: {"schema": schemas.get(str(operation.response), {})}}
    if "application/octet-stream" in operation.binary:
        success["application/octet-stream"] = {}
    responses = {str(operation.status): {"description": HTTPStatus(operation.status).phrase, "content": success}}
    for status in sorted({*COMMON_ERRORS, *access_errors, *operation.errors}):
        content = {media: {"schema": schemas[str(error)]}}
        if operation.refusal and status in (HTTPStatus.BAD_REQUEST, HTTPStatus.UNAUTHORIZED):
            content["application/json"] = {"schema": schemas[str(operation.refusal)]}
        responses[str(status)] = {"description": HTTPStatus(status).phrase, "content": content}
    if operation.also_accepts:
        accepted = {"application/json": {"schema": schemas[str(operation.also_accepts)]}}
        responses["202"] = {"description": HTTPStatus(202).phrase, "content": accepted}
    if operation.unready:
        responses["503"] = {"description": HTTPStatus(503).phrase, "content": success}
    return responses


class OpenApiResource:
    """This document."""

    operation = Operation(response=None)

    def __init__(self, routes: Sequence[Route], *, needs_tokens: bool = False) -> None:
        described = [*routes, Route("/openapi.json", self, PUBLIC)]
        self._document = msgspec.json.encode(describe(described, needs_tokens=needs_tokens))

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.data = self._document
        resp.content_type = falcon.MEDIA_JSON

    on_head = on_get
