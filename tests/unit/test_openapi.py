import json
import re
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from openapi_spec_validator import validate

from access_control.issuer import BuiltInIssuer
from inference_api import oauth2
from inference_api.app import routes
from inference_api.authorisation import PUBLIC, Route
from inference_api.openapi import OpenApiResource, describe
from inference_core.bootstrap import Services
from inference_core.quotas import Quotas

OPEN = [*routes(cast(Services, None)), Route("/openapi.json", OpenApiResource([]), PUBLIC)]
ISSUER = oauth2.routes(cast(BuiltInIssuer, SimpleNamespace(name="https://issuer.example")), cast(Quotas, None))
TABLES = {"no tokens": OPEN, "an outside issuer": OPEN, "the built-in issuer": [*OPEN, *ISSUER]}
# As clients get them.
DOCUMENTS = {
    what: json.loads(msgspec.json.encode(describe(table, needs_tokens=what != "no tokens")))
    for what, table in TABLES.items()
}
OPERATIONS = [
    pytest.param(path, method, operation, id=f"{what}: {path}")
    for what, document in DOCUMENTS.items()
    for path, item in document["paths"].items()
    for method, operation in item.items()
]
# Any model's scope is documented as the scope.
SCOPES = {route.path: route.scope.removesuffix(":*") for route in TABLES["the built-in issuer"]}


@pytest.mark.parametrize("what", DOCUMENTS)
def test_the_document_is_valid(what: str) -> None:
    """It is OpenAPI 3.1 by its own schema, references and all."""
    validate(DOCUMENTS[what])


@pytest.mark.parametrize("what", DOCUMENTS)
def test_every_route_and_method_is_documented_and_none_besides(what: str) -> None:
    """HEAD comes with every GET, and OPTIONS with everything; neither needs words."""
    served = {
        (route.path, method)
        for route in TABLES[what]
        for method in ("get", "post", "put", "delete", "patch")
        if hasattr(route.resource, f"on_{method}")
    }
    documented = {(path, method) for path, item in DOCUMENTS[what]["paths"].items() for method in item}
    assert documented == served
    assert {path for path, _ in documented} == {route.path for route in TABLES[what]}


@pytest.mark.parametrize("route", TABLES["the built-in issuer"], ids=lambda route: route.path)
def test_head_is_answered_where_get_is(route: Route) -> None:
    """Load balancers ask with HEAD."""
    assert hasattr(route.resource, "on_get") == hasattr(route.resource, "on_head")


@pytest.mark.parametrize(("path", "method", "operation"), OPERATIONS)
def test_an_operation_is_complete(path: str, method: str, operation: dict[str, Any]) -> None:
    """It has a sentence, its path's parameters, a body if it takes one, and errors in the form of its family."""
    assert operation["summary"].endswith(".")
    names = [parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "path"]
    assert names == re.findall(r"{(\w+)}", path)
    assert ("requestBody" in operation) == (method == "post")
    error = "application/json" if path.startswith("/v2") else "application/problem+json"
    failures = {status: response for status, response in operation["responses"].items() if status[0] != "2"}
    assert {"400", "500"} <= failures.keys()
    if names:
        assert "404" in failures
    if "model" in names:
        assert "503" in failures
    forms = {status: set(response["content"]) for status, response in failures.items()}
    if path == "/oauth2/token":  # whose clients read RFC 6749's form
        for status in ("400", "401"):
            assert failures[status]["content"]["application/json"]["schema"]["$ref"].endswith("/TokenError")
            forms[status].remove("application/json")
    assert all(form == {error} for form in forms.values())


@pytest.mark.parametrize("what", DOCUMENTS)
def test_operations_have_names_of_their_own(what: str) -> None:
    """Generators of clients make functions of them."""
    names = [operation["operationId"] for item in DOCUMENTS[what]["paths"].values() for operation in item.values()]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z]\w*", name) for name in names)


@pytest.mark.parametrize("what", DOCUMENTS)
def test_every_scope_is_documented_where_tokens_are_needed(what: str) -> None:
    """And the refusals of who has none; of a route for everybody it is said that it needs nothing."""
    schemes = DOCUMENTS[what]["components"].get("securitySchemes", {})
    assert len(schemes) == (what != "no tokens")
    for path, item in DOCUMENTS[what]["paths"].items():
        for operation in item.values():
            needed = [{scheme: [SCOPES[path]]} for scheme in schemes] if SCOPES[path] else []
            assert operation.get("security", []) == needed
            assert {"401", "403", "503"} <= operation["responses"].keys() or not needed


def test_where_tokens_come_from_is_documented_if_it_is_here() -> None:
    [scheme] = DOCUMENTS["the built-in issuer"]["components"]["securitySchemes"].values()
    flow = scheme["flows"]["clientCredentials"]
    assert flow["tokenUrl"] == "/oauth2/token"
    assert set(flow["scopes"]) == set(SCOPES.values()) - {PUBLIC}
    [scheme] = DOCUMENTS["an outside issuer"]["components"]["securitySchemes"].values()
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")


def test_jobs_are_described_as_they_are() -> None:
    """What is taken, in which forms, and where it then is; the results are lines and not one value of JSON."""
    paths = DOCUMENTS["no tokens"]["paths"]
    submit = paths["/v1/jobs"]["post"]
    assert set(submit["requestBody"]["content"]) == {"application/json", "application/x-ndjson", "application/zip"}
    assert "202" in submit["responses"]
    assert "200" not in submit["responses"]
    assert {"409", "413", "415", "422", "429", "503"} <= submit["responses"].keys()
    results = paths["/v1/jobs/{job}/results"]["get"]["responses"]["200"]["content"]
    assert set(results) == {"application/x-ndjson"}
    for path, method in (("/v1/jobs", "post"), ("/v1/models/{model}:predict", "post")):
        names = {parameter["name"] for parameter in paths[path][method]["parameters"]}
        assert "Idempotency-Key" in names
    assert {"200", "202"} <= paths["/v1/models/{model}:predict"]["post"]["responses"].keys()
