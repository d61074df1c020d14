"""Every route's answer, checked by the client of these tests against /openapi.json."""

import json
from importlib.metadata import version
from typing import Any

import numpy as np
import pytest
from app_client import Client

X = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}
SCALE = {
    "name": "scale",
    "versions": ["1"],
    "platform": "onnxruntime_onnx",
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}],
}
CONFIG = {
    "name": "scale",
    "platform": "onnxruntime_onnx",
    "backend": "onnxruntime",
    "max_batch_size": 4,
    "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [3]}],
    "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [3]}],
}
GETS = [
    "/v2",
    "/v2/health/live",
    "/v2/health/ready",
    "/v2/models/scale",
    "/v2/models/scale/versions/1",
    "/v2/models/scale/ready",
    "/v2/models/scale/versions/1/ready",
    "/v2/models/scale/config",
    "/v2/models/scale/versions/1/config",
    "/v2/models/stats",
    "/v2/models/scale/stats",
    "/v2/models/scale/versions/1/stats",
    "/v1/models",
    "/v1/models/scale",
    "/openapi.json",
]


def digest(client: Client, model: str) -> str:
    return client.services.repository.get(model).digest


def test_every_get_of_the_document_is_tested(client: Client) -> None:
    """The list of this file is that of the document, but for jobs and metrics, which have tests of their own."""
    gets = {path for path, item in client.document["paths"].items() if "get" in item}
    templates = {path for path in gets if not path.startswith(("/v1/jobs", "/metrics"))}
    assert {path.replace("scale", "{model}").replace("versions/1", "versions/{version}") for path in GETS} == templates


@pytest.mark.parametrize("path", GETS)
def test_get_and_head_answer_alike(path: str, client: Client) -> None:
    """GET answers as documented, a slash at the end changes nothing, and HEAD is GET without the body."""
    answer = client.get(path)
    assert answer.status_code == 200
    assert client.documented(path)["get"]
    assert client.get(f"{path}/").json == answer.json
    head = client.request("HEAD", path)
    assert head.status_code == 200
    assert head.content == b""
    assert head.headers["Content-Length"] == answer.headers["Content-Length"] == str(len(answer.content))
    assert head.headers["Content-Type"] == answer.headers["Content-Type"] == "application/json"


def test_the_server_says_what_it_is(client: Client) -> None:
    """Name, version and the extensions that it really has."""
    assert client.get("/v2").json == {
        "name": "tiercel",
        "version": version("tiercel"),
        "extensions": [
            "binary_tensor_data",
            "model_configuration",
            "model_repository",
            "model_repository(unload_dependents)",
            "statistics",
        ],
    }


def test_the_server_is_live_and_ready(client: Client) -> None:
    """Both questions have an answer with a body."""
    assert client.get("/v2/health/live").json == {"live": True}
    assert client.get("/v2/health/ready").json == {"ready": True, "reasons": {}}


@pytest.mark.parametrize("path", ["/v2/models/scale", "/v2/models/scale/versions/1"])
def test_a_model_says_what_it_takes(path: str, client: Client) -> None:
    """Metadata with the batch dimension, configuration without, ready."""
    assert client.get(path).json == SCALE | {"properties": {"digest": digest(client, "scale"), "licence": "Apache-2.0"}}
    assert client.get(f"{path}/config").json == CONFIG
    assert client.get(f"{path}/ready").json == {"name": "scale", "ready": True}


def test_a_model_without_rows_has_all_its_dimensions(client: Client) -> None:
    """Without a batch dimension the configuration leaves none out; BYTES are Triton's strings."""
    config = client.get("/v2/models/count/config").json
    assert config["max_batch_size"] == 0
    assert config["input"] == [{"name": "n", "data_type": "TYPE_INT64", "dims": [1]}]
    assert client.get("/v2/models/text/config").json["input"][0]["data_type"] == "TYPE_STRING"


def test_the_easy_door_lists_what_is_served(client: Client) -> None:
    """All models, by name; each with what goes in and what comes out."""
    models = client.get("/v1/models").json["models"]
    names = ["colour", "count", "endless", "gather", "half", "mixed", "named", "scale", "text"]
    assert [model["name"] for model in models] == names
    assert models[-2] == {
        "name": "scale",
        "version": "1",
        "state": "READY",
        "description": "scale, for tests",
        "digest": digest(client, "scale"),
    }
    colour = client.get("/v1/models/colour").json
    assert colour["media_types"] == ["image/jpeg", "image/png", "image/webp"]
    assert colour["labels"] == 3
    named = client.get("/v1/models/named").json
    assert named["inputs"] == [
        {"name": "x", "datatype": "FP32", "shape": [-1, 3], "features": ["width", "height", "depth"]}
    ]
    assert (named["media_types"], named["labels"], named["max_batch_size"]) == ([], 0, 4)


@pytest.mark.parametrize(
    "path", ["/v2/models/scale/infer", "/v2/models/scale/versions/1/infer", "/v2/models/scale/infer/"]
)
def test_an_inference(path: str, client: Client) -> None:
    """Tensors in, tensors out, the id comes back."""
    assert client.post(path, {"id": "i", "inputs": [X]}).json == {
        "model_name": "scale",
        "model_version": "1",
        "id": "i",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 3], "data": [2, 4, 6]}],
    }


def binary(request: dict[str, Any], data: bytes = b"") -> tuple[bytes, dict[str, str]]:
    head = json.dumps(request).encode()
    return head + data, {"Inference_Header_Content_Length": str(len(head))}


def test_a_binary_inference(client: Client) -> None:
    """Raw tensors in and out, JSON beside them."""
    given = {"name": "x", "shape": [1, 3], "datatype": "FP32", "parameters": {"binary_data_size": 12}}
    body, headers = binary(
        {"inputs": [given], "parameters": {"binary_data_output": True}}, np.array([1, 2, 3], "<f4").tobytes()
    )
    answer = client.post("/v2/models/scale/infer", body, **headers)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "application/octet-stream"
    size = int(answer.headers["Inference-Header-Content-Length"])
    [output] = json.loads(answer.content[:size])["outputs"]
    assert output == {"name": "y", "datatype": "FP32", "shape": [1, 3], "parameters": {"binary_data_size": 12}}
    assert np.frombuffer(answer.content[size:], "<f4").tolist() == [2, 4, 6]


def test_json_with_its_size_is_json(client: Client) -> None:
    """The C++ client always sends the header."""
    body, headers = binary({"inputs": [X], "id": ""})
    answer = client.post("/v2/models/scale/infer", body, **headers)
    assert answer.json["outputs"][0]["data"] == [2, 4, 6]
    assert answer.json["id"] == ""
    assert "Inference-Header-Content-Length" not in answer.headers


def test_a_raw_inference(client: Client) -> None:
    """A JSON size of 0: the body is the tensor."""
    answer = client.post(
        "/v2/models/scale/infer", np.array([1, 2, 3], "<f4").tobytes(), Inference_Header_Content_Length="0"
    )
    size = int(answer.headers["Inference-Header-Content-Length"])
    assert np.frombuffer(answer.content[size:], "<f4").tolist() == [2, 4, 6]
    assert "id" not in json.loads(answer.content[:size])


def test_half_floats_and_text_go_through(client: Client) -> None:
    """FP16 in binary both ways; BYTES in JSON both ways."""
    halves = np.array([[1.5, -2]], "<f2").tobytes()
    given = {"name": "x", "shape": [1, 2], "datatype": "FP16", "parameters": {"binary_data_size": 4}}
    body, headers = binary({"inputs": [given], "parameters": {"binary_data_output": True}}, halves)
    assert client.post("/v2/models/half/infer", body, **headers).content.endswith(halves)
    body, headers = binary({"inputs": [given]}, halves)
    assert "FP16 has no form in JSON" in client.refused(400, client.post("/v2/models/half/infer", body, **headers))
    text = {"name": "x", "shape": [1, 2], "datatype": "BYTES", "data": ["\N{SNOWMAN}", ""]}
    assert client.post("/v2/models/text/infer", {"inputs": [text]}).json["outputs"][0]["data"] == ["\N{SNOWMAN}", ""]


@pytest.mark.parametrize(
    ("path", "instances", "predictions"),
    [
        ("/v1/models/scale:predict", [[1, 2, 3], [4, 5, 6]], [[2, 4, 6], [8, 10, 12]]),
        ("/v1/models/scale/versions/1:predict", [[1, 2, 3]], [[2, 4, 6]]),
        ("/v1/models/named:predict", [{"depth": 3, "width": 1, "height": 2}], [{"total": 6, "positive": True}]),
        ("/v1/models/named:predict", [[-1, -2, -3]], [{"total": -6, "positive": False}]),
        ("/v1/models/mixed:predict", [{"a": 1, "b": [2, 3]}], [{"a_out": 1, "b_out": [2, 3]}]),
        ("/v1/models/text:predict", [["a", "b"]], [["a", "b"]]),
        ("/v1/models/gather:predict", [0, 2], [1, 3]),
    ],
)
def test_a_prediction(path: str, instances: Any, predictions: Any, client: Client) -> None:
    """Rows in, one prediction per row out, and who made it."""
    model = path.split("/")[3].split(":", maxsplit=1)[0]
    assert client.post(path, {"instances": instances}).json == {
        "predictions": predictions,
        "model": {"name": model, "version": "1", "digest": digest(client, model)},
    }


def test_what_is_no_number_is_null(client: Client) -> None:
    """NaN, which only binary data can bring, leaves as null."""
    given = {"name": "x", "shape": [1, 3], "datatype": "FP32", "parameters": {"binary_data_size": 12}}
    body, headers = binary({"inputs": [given]}, np.array([np.nan, np.inf, 1], "<f4").tobytes())
    answer = client.post("/v2/models/scale/infer", body, **headers)
    assert answer.json["outputs"][0]["data"] == [None, None, 2]


@pytest.mark.parametrize("body", [b"", b"{}", b'{"ready": false}'])
def test_the_index_lists_all(body: bytes, client: Client) -> None:
    """Every version on disk; clients send no body, or an empty object."""
    index = client.post("/v2/repository/index", body).json
    assert len(index) == 9
    assert index[0] == {"name": "colour", "version": "1", "state": "READY", "reason": ""}
