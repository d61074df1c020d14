import json
from typing import Any

import pytest
from app_client import Client, start
from model_zoo import Zoo, edit_manifest


def served(client: Client) -> dict[str, str]:
    return {model["name"]: model["version"] for model in client.get("/v1/models").json["models"]}


def post(client: Client, action: str, parameters: Any = None, model: str = "scale") -> Any:
    body = b"" if parameters is None else {"parameters": parameters}
    return client.post(f"/v2/repository/models/{model}/{action}", body)


def only(version: object) -> str:
    """The ModelConfig with which tritonclient's users choose a version."""
    return json.dumps({"version_policy": {"specific": {"versions": [version]}}})


@pytest.fixture
def two_versions(zoo: Zoo, request: pytest.FixtureRequest) -> Client:
    """An application whose "scale" has two versions: 2, which it serves, doubles; 1 trebles."""
    zoo.scale(version=1, factor=3)
    zoo.scale(version=2, factor=2)
    client: Client = request.getfixturevalue("own_client")
    return client


@pytest.mark.parametrize("parameters", [{"version": "1"}, {"config": only(1)}])
def test_a_version_is_loaded_as_asked(parameters: dict[str, str], two_versions: Client) -> None:
    """By our parameter or by tritonclient's; the answer is empty, and the model another."""
    assert served(two_versions) == {"scale": "2"}
    answer = post(two_versions, "load", parameters)
    assert (answer.status_code, answer.json) == (200, {})
    assert served(two_versions) == {"scale": "1"}
    assert two_versions.post("/v1/models/scale:predict", {"instances": [[1, 2, 3]]}).json["predictions"] == [[3, 6, 9]]
    assert post(two_versions, "load").status_code == 200
    assert served(two_versions) == {"scale": "2"}


@pytest.mark.parametrize("parameters", [None, {}, {"unload_dependents": True}, {"unload_dependents": False}])
def test_a_model_is_unloaded(parameters: Any, two_versions: Client) -> None:
    """It is not there, but could be: 503, and the server is ready without it."""
    assert post(two_versions, "unload", parameters).json == {}
    assert served(two_versions) == {}
    assert two_versions.get("/v2/health/ready").json == {"ready": True, "reasons": {}}
    for path in ("/v2/models/scale", "/v2/models/scale/ready", "/v1/models/scale"):
        answer = two_versions.get(path)
        assert two_versions.refused(503, answer) == "model 'scale': is not loaded"
        assert answer.headers["Retry-After"] == "1"
    assert two_versions.post("/v2/repository/index", {"ready": True}).json == []
    index = two_versions.post("/v2/repository/index").json
    assert [(entry["version"], entry["state"], entry["reason"]) for entry in index] == [
        ("1", "UNAVAILABLE", "unloaded"),
        ("2", "UNAVAILABLE", "unloaded"),
    ]


@pytest.mark.parametrize(
    ("parameters", "status", "said"),
    [
        ({"version": "3"}, 404, "expected one of the versions ['1', '2'], got 3"),
        ({"version": 1}, 400, "expected str | null, got int"),
        ({"version": "latest"}, 400, "expected str matching regex"),
        ({"version": "../1"}, 400, "expected str matching regex"),
        ({"config": only(3)}, 404, "expected one of the versions ['1', '2'], got 3"),
        ({"config": only(-1)}, 404, "got -1"),
        ({"config": only("1")}, 501, "expected nothing but a version_policy"),
        ({"config": only(7).replace("7", "7" * 5000)}, 501, "expected nothing but a version_policy"),
        (
            {"config": json.dumps({"version_policy": {"latest": {"num_versions": 1}}})},
            501,
            "expected nothing but a version_policy",
        ),
        (
            {"config": json.dumps({"version_policy": {"specific": {"versions": [1, 2]}}})},
            501,
            "expected nothing but a version_policy",
        ),
        ({"config": json.dumps({"max_batch_size": 8})}, 501, "expected nothing but a version_policy"),
        ({"config": "{}"}, 501, "expected nothing but a version_policy"),
        ({"config": "[" * 100_000}, 501, "expected nothing but a version_policy"),
        ({"config": '{"version_policy":' * 100_000}, 501, "expected nothing but a version_policy"),
        ({"config": {}}, 400, "expected str | null, got object"),
        ({"file:1/model.onnx": "AAAA"}, 400, "unknown field file:1/model.onnx"),
        ({"unload_dependents": 1}, 400, "expected bool, got int"),
        ([], 400, "expected object, got array"),
    ],
)
def test_what_cannot_be_loaded_is_refused(parameters: Any, status: int, said: str, two_versions: Client) -> None:
    """Nothing changes. Models are never taken from the network."""
    assert said in two_versions.refused(status, post(two_versions, "load", parameters))
    assert served(two_versions) == {"scale": "2"}


@pytest.mark.parametrize("action", ["load", "unload"])
@pytest.mark.parametrize("model", ["other", "%2e%2e", "scale%2F1", "SCALE"])
def test_a_model_that_is_not_there_is_not_found(action: str, model: str, two_versions: Client) -> None:
    """404, and which there are; a slash makes it another route."""
    assert two_versions.refused(404, post(two_versions, action, model=model))
    assert served(two_versions) == {"scale": "2"}


@pytest.mark.parametrize("body", [b"[]", b"null", b'{"parameters":null}', b"{", b'"x"', b"\xff"])
@pytest.mark.parametrize("path", ["index", "models/scale/load", "models/scale/unload"])
def test_a_request_that_is_none_is_refused(path: str, body: bytes, client: Client) -> None:
    """400, and nothing changes."""
    if path == "index" and b"parameters" in body:
        body = b'{"ready":"yes"}'
    client.refused(400, client.post(f"/v2/repository/{path}", body))
    assert served(client)["scale"] == "1"


def test_a_bad_version_is_refused_and_listed(zoo: Zoo, two_versions: Client) -> None:
    """400 with the reason, which the index keeps; what is served goes on."""
    zoo.garbage("scale", 3)
    said = two_versions.refused(400, post(two_versions, "load"))
    assert said.startswith("model 'scale' version 3: model.onnx: ONNX Runtime refuses it")
    entry = two_versions.post("/v2/repository/index").json[-1]
    assert (entry["version"], entry["state"]) == ("3", "UNAVAILABLE")
    assert entry["reason"] in said
    assert two_versions.get("/v2/models/scale/ready").status_code == 200


def test_a_server_that_lacks_a_model_is_not_ready(zoo: Zoo, tmp_path: Any) -> None:
    """503 with the reason per model; what could be loaded is served all the same."""
    edit_manifest(zoo.scale(), model={"sha256": "0" * 64, "size_bytes": 1})
    zoo.named()
    services = start(zoo.root, tmp_path / "state")
    client = Client(services)
    answer = client.get("/v2/health/ready")
    assert answer.status_code == 503
    assert answer.json["ready"] is False
    assert list(answer.json["reasons"]) == ["scale"]
    assert "expected 1 bytes as in the manifest" in answer.json["reasons"]["scale"]
    assert client.request("HEAD", "/v2/health/ready").status_code == 503
    assert client.get("/v2/health/live").status_code == 200
    assert client.get("/v2/models/scale/ready").status_code == 503
    assert client.post("/v1/models/named:predict", {"instances": [[1, 2, 3]]}).status_code == 200
    services.rollout.stop()
