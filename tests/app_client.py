"""The real application in the process of the tests, and a client that checks what it answers."""

import json
import re
from pathlib import Path
from typing import Any

from falcon.testing import Result, TestClient
from jsonschema import Draft202012Validator

from inference_api.app import create_app
from inference_core.bootstrap import Services, bootstrap, prepare
from inference_core.settings import Settings

MODELS = Path(__file__).parents[1] / "models"


class Client:
    """The real application in this process; what it answers is checked against its own OpenAPI document."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self._http = TestClient(create_app(services))
        self.document: dict[str, Any] = self._http.simulate_get("/openapi.json").json

    def get(self, path: str, **headers: str) -> Result:
        return self.request("GET", path, None, headers)

    def post(self, path: str, body: Any = b"", **headers: str) -> Result:
        """`body` as JSON, unless it is bytes; headers are given with underscores."""
        return self.request("POST", path, body if isinstance(body, bytes) else json.dumps(body).encode(), headers)

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Result:
        path, _, query = path.partition("?")
        fields = {name.replace("_", "-"): value for name, value in (headers or {}).items()}
        answer = self._http.simulate_request(method, path, query_string=query, body=body, headers=fields)
        self._check(method, path, answer)
        return answer

    def refused(self, status: int, answer: Result) -> str:
        """What the body of an error says, once it is sure that it is one, with this status."""
        assert answer.status_code == status, answer.text
        assert "Traceback" not in answer.text
        if "error" in answer.json:
            assert answer.json.keys() == {"error"}
            return str(answer.json["error"])
        assert answer.json["status"] == status
        assert answer.json["request_id"] == answer.headers["X-Request-ID"]
        return str(answer.json["detail"])

    def documented(self, path: str) -> dict[str, Any]:
        """What the document says of `path`, by method; empty if it knows no such path."""
        for template, item in self.document["paths"].items():
            if re.fullmatch(re.sub(r"{\w+}", "[^/:]+", template), path.rstrip("/")):
                return dict(item)
        return {}

    def _check(self, method: str, path: str, answer: Result) -> None:
        """An answer to a known route is one of those documented for it: status, media type and schema."""
        assert answer.headers["X-Request-ID"]
        documented = self.documented(path).get(method.lower())
        if not documented:
            return
        assert str(answer.status_code) in documented["responses"], f"{answer.status_code} is not documented for {path}"
        content = documented["responses"][str(answer.status_code)]["content"]
        assert answer.headers["Content-Type"] in content
        schema = content[answer.headers["Content-Type"]].get("schema")
        if schema and "Content-Encoding" not in answer.headers:
            Draft202012Validator(schema | {"components": self.document["components"]}).validate(answer.json)


def start(models: Path, state: Path, **settings: Any) -> Services:
    """What Gunicorn's configuration and a worker do between them."""
    chosen = Settings(models_dir=str(models), state_dir=str(state), **settings)
    prepare(chosen)
    return bootstrap(chosen)
