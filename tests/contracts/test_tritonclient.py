"""NVIDIA's own client of the Open Inference Protocol, unchanged, against a real server."""

from collections.abc import Iterator

import numpy as np
import pytest
from model_zoo import HALF, STRING, Zoo
from servers import Server
from tritonclient import http as triton
from tritonclient.utils import InferenceServerException

VALUES = np.array([[1, 2, 3], [4, 5, 6]], np.float32)


@pytest.fixture
def served(zoo: Zoo, worker_class: str) -> Iterator[Server]:
    zoo.scale()
    zoo.mixed()
    zoo.copy("half", HALF)
    zoo.copy("text", STRING)
    with Server(zoo.root, worker_class, workers=2) as server:
        yield server


@pytest.fixture
def client(served: Server) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{served.port}", concurrency=2) as client:
        yield client


def tensor(name: str, values: np.ndarray, datatype: str, binary: bool = True) -> triton.InferInput:
    given = triton.InferInput(name, list(values.shape), datatype)
    given.set_data_from_numpy(values, binary_data=binary)
    return given


def test_health_and_metadata(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("scale")
    assert client.is_model_ready("scale", "1")
    assert not client.is_model_ready("scale", "2")
    assert not client.is_model_ready("none")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    metadata = client.get_model_metadata("scale")
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]
    config = client.get_model_config("scale", "1")
    assert config["max_batch_size"] == 4
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [3]}]


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_inference_with_binary_and_json_tensors(
    client: triton.InferenceServerClient, binary_in: bool, binary_out: bool
) -> None:
    outputs = [triton.InferRequestedOutput("y", binary_data=binary_out)]
    result = client.infer("scale", [tensor("x", VALUES, "FP32", binary_in)], outputs=outputs, request_id="mine")
    np.testing.assert_array_equal(result.as_numpy("y"), VALUES * 2)
    assert result.get_response()["id"] == "mine"


def test_inference_with_several_inputs_of_mixed_forms(client: triton.InferenceServerClient) -> None:
    a, b = np.array([7, 8], np.int64), np.array([[1, 2], [3, 4]], np.float32)
    result = client.infer("mixed", [tensor("a", a, "INT64", binary=False), tensor("b", b, "FP32")])
    np.testing.assert_array_equal(result.as_numpy("a_out"), a)
    np.testing.assert_array_equal(result.as_numpy("b_out"), b)


def test_half_precision_and_text_go_as_binary(client: triton.InferenceServerClient) -> None:
    half = np.array([[1.5, -2]], np.float16)
    np.testing.assert_array_equal(client.infer("half", [tensor("x", half, "FP16")]).as_numpy("y"), half)
    text = np.array([["grüße", ""]], np.object_)
    got = client.infer("text", [tensor("x", text, "BYTES")]).as_numpy("y")
    assert [value.decode() for value in got.ravel()] == ["grüße", ""]


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_compressed_requests_and_answers(client: triton.InferenceServerClient, coding: str) -> None:
    result = client.infer(
        "scale",
        [tensor("x", VALUES, "FP32")],
        request_compression_algorithm=coding,
        response_compression_algorithm=coding,
    )
    np.testing.assert_array_equal(result.as_numpy("y"), VALUES * 2)


def test_two_requests_in_flight(client: triton.InferenceServerClient) -> None:
    requests = [client.async_infer("scale", [tensor("x", VALUES * i, "FP32")]) for i in range(10)]
    for i, request in enumerate(requests):
        np.testing.assert_array_equal(request.get_result().as_numpy("y"), VALUES * i * 2)


def test_the_repository(client: triton.InferenceServerClient, zoo: Zoo) -> None:
    zoo.scale(version=2, factor=3)
    index = client.get_model_repository_index()
    states = {(entry["name"], entry["version"]): entry["state"] for entry in index}
    assert states["scale", "1"] == "READY"
    assert states["scale", "2"] == "UNAVAILABLE"
    client.load_model("scale")
    np.testing.assert_array_equal(client.infer("scale", [tensor("x", VALUES, "FP32")]).as_numpy("y"), VALUES * 3)
    client.load_model("scale", config='{"version_policy": {"specific": {"versions": [1]}}}')
    np.testing.assert_array_equal(client.infer("scale", [tensor("x", VALUES, "FP32")]).as_numpy("y"), VALUES * 2)
    client.unload_model("scale")
    assert not client.is_model_ready("scale")


@pytest.mark.parametrize(
    ("model", "name", "values", "datatype", "reason"),
    [
        ("none", "x", VALUES, "FP32", "model 'none'"),
        ("scale", "z", VALUES, "FP32", "input 'z': expected 'x'"),
        ("scale", "x", VALUES.astype(np.int64), "INT64", "expected datatype FP32, got INT64"),
        ("scale", "x", VALUES[:, :2], "FP32", "expected shape [-1, 3], got [2, 2]"),
        ("scale", "x", np.zeros((5, 3), np.float32), "FP32", "expected 1 to 4"),
    ],
)
def test_errors_are_raised_with_the_reason(
    client: triton.InferenceServerClient, model: str, name: str, values: np.ndarray, datatype: str, reason: str
) -> None:
    with pytest.raises(InferenceServerException, match=r".") as caught:
        client.infer(model, [tensor(name, np.ascontiguousarray(values), datatype)])
    assert reason in str(caught.value)
