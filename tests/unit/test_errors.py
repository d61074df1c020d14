import http
import importlib
import json
from pathlib import Path

import pytest

from inference_api.error_handlers import STATUS, error_body
from inference_core import errors

SERVICES = Path(__file__).parents[2] / "services"


def family(kind: type[errors.TiercelError]) -> set[type[errors.TiercelError]]:
    return {kind}.union(*(family(child) for child in kind.__subclasses__()))


def test_every_error_has_a_status() -> None:
    """The table from the error tree to HTTP is total, and has nothing else in it: only the core adds to it."""
    for path in (SERVICES / "access_control").glob("*.py"):
        importlib.import_module(f"access_control.{path.stem}")
    assert STATUS.keys() == family(errors.TiercelError) - {errors.TiercelError}


def test_every_status_is_one() -> None:
    """Each is a client's or a server's error of HTTP."""
    assert all(400 <= http.HTTPStatus(status) < 600 for status in STATUS.values())


def test_the_tree_is_drawn_as_it_is() -> None:
    """The docstring of the module names every error, deeper ones further in."""
    drawn = [line for line in (errors.__doc__ or "").splitlines() if "──" in line]
    names = {line.split("── ")[1].split()[0]: line.index("── ") for line in drawn}
    assert names.keys() == {kind.__name__ for kind in STATUS}
    for kind in STATUS:
        assert names[kind.__name__] == 4 * (len(kind.__mro__) - len(errors.TiercelError.__mro__)) - 3


@pytest.mark.parametrize("path", ["/v2", "/v2/", "/v2/models/m/infer", "/v2/nowhere"])
def test_errors_of_the_protocol_have_its_form(path: str) -> None:
    """Clients of the Open Inference Protocol read the key `error`."""
    body, media_type = error_body(path, 400, 'say "why"', "id")
    assert json.loads(body) == {"error": 'say "why"'}
    assert media_type == "application/json"


@pytest.mark.parametrize("path", ["/", "/v1/models", "/v20", "/v2x/models", "/openapi.json", ""])
def test_all_other_errors_are_problem_details(path: str) -> None:
    """RFC 9457, with the request id for the operator."""
    body, media_type = error_body(path, 404, "why", "id")
    assert json.loads(body) == {
        "type": "about:blank",
        "title": "Not Found",
        "status": 404,
        "detail": "why",
        "request_id": "id",
    }
    assert media_type == "application/problem+json"
