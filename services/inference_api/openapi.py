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
    # The media type of a body that is a form.
    form: str = ""
    # The type of bodies of 400 and 401, where it is another one than that of all errors.
    refusal: Any = None
    # 503 with the same body as 200, as a health check answers.
    unready: bool = False


def describe(routes: Sequence[Route], *, needs_tokens: bool) -> dict[str, Any]:
    """The OpenAPI document of `routes`, whose resources have an `operation`."""
    types = [OipError, Problem]
    for _, resource, _ in routes:
        operation: Operation = resource.operation
        types += [kind for kind in (operation.request, operation.response, operation.refusal) if kind is not None]
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
    scopes = {route.scope: "" for route in routes if route.scope}
    flow = {"tokenUrl": TOKEN_PATH, "scopes": scopes}
    return {"securitySchemes": {SECURITY: {"type": "oauth2", "flows": {"clientCredentials": flow}}}}


def _path_item(route: Route, schemas: Mapping[str, Any], *, needs_tokens: bool) -> dict[str, Any]:
    path, resource, scope = route
    operation: Operation = resource.operation
    method = "post" if hasattr(resource, "on_post") else "get"
    names = (*re.findall(r"{(\w+)}", path), *operation.parameters)
    item: dict[str, Any] = {
        "summary": resource.__doc__.split("\n")[0],
        "operationId": method + re.sub(r"\W+", "_", path),
        "parameters": [{"name": name, **PARAMETERS[name]} for name in names],
        "responses": _responses(path, operation, schemas, ACCESS_ERRORS if needs_tokens and scope else ()),
    }
    if needs_tokens:
        item["security"] = [{SECURITY: [scope]}] if scope else []
    if operation.form:
        item["requestBody"] = {"required": True, "content": {operation.form: {}}}
    elif method == "post":
        json = {"schema": schemas[str(operation.request)]}
        content = {"application/json": json} | {media: {} for media in operation.binary}
        item["requestBody"] = {"required": operation.request_required, "content": content}
    return {method: item}


def _responses(
    path: str, operation: Operation, schemas: Mapping[str, Any], access_errors: tuple[int, ...]
) -> dict[str, Any]:
    error, media = (OipError, "application/json") if path.startswith("/v2") else (Problem, "application/problem+json")
    success: dict[str, Any] = {"application/json": {"schema": schemas.get(str(operation.response), {})}}
    if "application/octet-stream" in operation.binary:
        success["application/octet-stream"] = {}
    responses = {"200": {"description": "OK", "content": success}}
    for status in sorted({*COMMON_ERRORS, *access_errors, *operation.errors}):
        content = {media: {"schema": schemas[str(error)]}}
        if operation.refusal and status in (HTTPStatus.BAD_REQUEST, HTTPStatus.UNAUTHORIZED):
            content["application/json"] = {"schema": schemas[str(operation.refusal)]}
        responses[str(status)] = {"description": HTTPStatus(status).phrase, "content": content}
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
