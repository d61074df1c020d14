import json
import re
from typing import Any, cast

import msgspec
import pytest
from openapi_spec_validator import validate

from inference_api.app import routes
from inference_api.openapi import OpenApiResource, describe
from inference_core.bootstrap import Services

TABLE = [*routes(cast(Services, None)), ("/openapi.json", OpenApiResource([]))]
# As clients get it.
DOCUMENT = json.loads(msgspec.json.encode(describe(TABLE)))
OPERATIONS = [
    (path, method, operation) for path, item in DOCUMENT["paths"].items() for method, operation in item.items()
]


def test_the_document_is_valid() -> None:
    """It is OpenAPI 3.1 by its own schema, references and all."""
    validate(DOCUMENT)


def test_every_route_and_method_is_documented_and_none_besides() -> None:
    """HEAD comes with every GET, and OPTIONS with everything; neither needs words."""
    served = {
        (path, method)
        for path, resource in TABLE
        for method in ("get", "post", "put", "delete", "patch")
        if hasattr(resource, f"on_{method}")
    }
    assert {(path, method) for path, method, _ in OPERATIONS} == served
    assert len(DOCUMENT["paths"]) == len(TABLE)


@pytest.mark.parametrize(("path", "resource"), TABLE, ids=[path for path, _ in TABLE])
def test_head_is_answered_where_get_is(path: str, resource: Any) -> None:
    """Load balancers ask with HEAD."""
    assert hasattr(resource, "on_get") == hasattr(resource, "on_head")


@pytest.mark.parametrize(("path", "method", "operation"), OPERATIONS)
def test_an_operation_is_complete(path: str, method: str, operation: dict[str, Any]) -> None:
    """It has a sentence, its path's parameters, a body if it takes one, and errors in the form of its family."""
    assert operation["summary"].endswith(".")
    names = [parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "path"]
    assert names == re.findall(r"{(\w+)}", path)
    assert ("requestBody" in operation) == (method == "post")
    error = "application/json" if path.startswith("/v2") else "application/problem+json"
    failures = {status: response for status, response in operation["responses"].items() if status != "200"}
    assert {"400", "500"} <= failures.keys()
    if names:
        assert {"404", "503"} <= failures.keys()
    assert all(list(response["content"]) == [error] for response in failures.values())


def test_operations_have_names_of_their_own() -> None:
    """Generators of clients make functions of them."""
    names = [operation["operationId"] for _, _, operation in OPERATIONS]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z]\w*", name) for name in names)
