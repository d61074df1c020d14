"""What is refused, with which status, and in which form: {"error": ...} under /v2, problem details elsewhere."""

import json
from typing import Any

import pytest
from app_client import Client

from inference_core.bodies import compress

X = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}
INFER = "/v2/models/scale/infer"
PREDICT = "/v1/models/scale:predict"
GOOD = {INFER: {"inputs": [X]}, PREDICT: {"instances": [[1, 2, 3]]}}
BOTH = pytest.mark.parametrize("path", [INFER, PREDICT])
MAX_BYTES = 1 << 20


@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        ("/v2/nowhere", "application/json"),
        ("/v2/models", "application/json"),
        ("/v2/models/scale/versions/1/nowhere", "application/json"),
        ("/v2x", "application/problem+json"),
        ("/v1/nowhere", "application/problem+json"),
        ("/", "application/problem+json"),
        ("/metrics/..", "application/problem+json"),
        ("/v1/models/a%2Fb:predict", "application/problem+json"),
        ("/%00", "application/problem+json"),
        ("/%ff", "application/problem+json"),
        ("/" + "x" * 5000, "application/problem+json"),
    ],
)
def test_an_unknown_route_is_not_found(path: str, media_type: str, client: Client) -> None:
    """404 in the form of the path's family, with a way on."""
    answer = client.get(path)
    assert "/openapi.json lists them all" in client.refused(404, answer)
    assert answer.headers["Content-Type"] == media_type


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/v2", {"GET", "HEAD", "OPTIONS"}),
        ("DELETE", "/v2/models/scale", {"GET", "HEAD", "OPTIONS"}),
        ("GET", INFER, {"POST", "OPTIONS"}),
        ("HEAD", INFER, {"POST", "OPTIONS"}),
        ("PUT", PREDICT, {"POST", "OPTIONS"}),
        ("PATCH", "/v1/models", {"GET", "HEAD", "OPTIONS"}),
        ("GET", "/v2/repository/index", {"POST", "OPTIONS"}),
    ],
)
def test_a_wrong_method_is_told_the_right_ones(method: str, path: str, allowed: set[str], client: Client) -> None:
    """405 with Allow."""
    answer = client.request(method, path)
    assert answer.status_code == 405
    assert set(answer.headers["Allow"].split(", ")) == allowed
    if method != "HEAD":
        assert method in client.refused(405, answer)


@pytest.mark.parametrize("path", ["/v2", INFER, PREDICT])
def test_options_lists_the_methods(path: str, client: Client) -> None:
    """OPTIONS is answered everywhere."""
    answer = client.request("OPTIONS", path)
    assert answer.status_code == 200
    assert answer.headers["Allow"] == ("GET, HEAD" if path == "/v2" else "POST")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v2/models/{}"),
        ("GET", "/v2/models/{}/ready"),
        ("GET", "/v2/models/{}/config"),
        ("POST", "/v2/models/{}/infer"),
        ("GET", "/v1/models/{}"),
        ("POST", "/v1/models/{}:predict"),
    ],
)
@pytest.mark.parametrize("model", ["other", "%2e%2e", "SCALE", "sc%C3%A4le", "%FF", "x" * 1000, "-"])
def test_an_unknown_model_is_not_found(method: str, path: str, model: str, client: Client) -> None:
    """404, and which models there are."""
    assert "expected one of ['colour', 'count'," in client.refused(404, client.request(method, path.format(model)))


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v2/models/scale/versions/{}"),
        ("GET", "/v2/models/scale/versions/{}/ready"),
        ("GET", "/v2/models/scale/versions/{}/config"),
        ("POST", "/v2/models/scale/versions/{}/infer"),
        ("POST", "/v1/models/scale/versions/{}:predict"),
    ],
)
@pytest.mark.parametrize("version", ["2", "0", "01", "v1", "latest", "-1", "9" * 100])
def test_an_unknown_version_is_not_found(method: str, path: str, version: str, client: Client) -> None:
    """404, and which version is loaded."""
    assert "expected version 1, which is loaded" in client.refused(404, client.request(method, path.format(version)))


@BOTH
@pytest.mark.parametrize("media_type", ["text/plain", "application/xml", "multipart/form-data; boundary=x"])
def test_another_media_type_is_refused(path: str, media_type: str, client: Client) -> None:
    """415 that names the type; without Accept-Encoding, by which RFC 9110 tells it from an unknown coding."""
    answer = client.post(path, GOOD[path], Content_Type=media_type)
    assert media_type.split(";", maxsplit=1)[0] in client.refused(415, answer)
    assert "Accept-Encoding" not in answer.headers


@BOTH
@pytest.mark.parametrize("coding", ["br", "zstd", "compress", "gzip, gzip", "gzip,deflate", "x"])
def test_an_unknown_coding_is_refused(path: str, coding: str, client: Client) -> None:
    """415 with the codings that are known."""
    answer = client.post(path, GOOD[path], Content_Encoding=coding)
    assert f"got '{coding}'" in client.refused(415, answer)
    assert answer.headers["Accept-Encoding"] == "gzip, deflate"


@BOTH
@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_compressed_request_is_answered(path: str, coding: str, client: Client) -> None:
    """Either coding, and as large as allowed once it is undone; a byte more is 413."""
    body = json.dumps(GOOD[path]).encode()
    for size in (len(body), MAX_BYTES):
        answer = client.post(path, compress(body.ljust(size), coding), Content_Encoding=coding)
        assert answer.status_code == 200
    answer = client.post(path, compress(body.ljust(MAX_BYTES + 1), coding), Content_Encoding=coding)
    assert "once its" in client.refused(413, answer)


@BOTH
def test_a_damaged_compressed_request_is_refused(path: str, client: Client) -> None:
    """What is not what its header says is 400."""
    assert "expected gzip data" in client.refused(400, client.post(path, GOOD[path], Content_Encoding="gzip"))


@pytest.mark.parametrize("path", [INFER, PREDICT, "/v2/repository/index"])
def test_a_body_is_bounded(path: str, client: Client) -> None:
    """As many bytes as allowed are read, one more is 413."""
    body = json.dumps(GOOD.get(path, {})).encode()
    assert client.post(path, body.ljust(MAX_BYTES)).status_code == 200
    assert (
        client.refused(413, client.post(path, body.ljust(MAX_BYTES + 1)))
        == f"body: expected at most {MAX_BYTES} bytes, got {MAX_BYTES + 1}"
    )


@pytest.mark.parametrize("size", ["", "-1", "x", "1e1", "+5", "\u00b2", "1" * 19, "1" * 5000])
def test_a_json_size_that_is_none_is_refused(size: str, client: Client) -> None:
    """Inference-Header-Content-Length is a number too."""
    answer = client.post(INFER, GOOD[INFER], Inference_Header_Content_Length=size)
    assert "Inference-Header-Content-Length: expected a whole number" in client.refused(400, answer)


@pytest.mark.parametrize("offset", [-1, 1, 10**12])
def test_a_json_size_that_is_wrong_is_refused(offset: int, client: Client) -> None:
    """Too few bytes are no JSON, more than there are cannot be."""
    size = len(json.dumps(GOOD[INFER]).encode()) + offset
    client.refused(400, client.post(INFER, GOOD[INFER], Inference_Header_Content_Length=str(size)))


@BOTH
@pytest.mark.parametrize("given", ["0", "-1", "", "1.5", "soon", "1e3", "9" * 5000])
def test_a_timeout_that_is_none_is_refused(path: str, given: str, client: Client) -> None:
    """X-Request-Timeout-Ms is a number from 1."""
    answer = client.post(path, GOOD[path], X_Request_Timeout_Ms=given)
    assert "X-Request-Timeout-Ms: expected a whole number from 1" in client.refused(400, answer)


@pytest.mark.parametrize(("headers", "parameters"), [({"X_Request_Timeout_Ms": "50"}, {}), ({}, {"timeout": 50_000})])
def test_an_endless_inference_is_ended(headers: dict[str, str], parameters: dict[str, int], client: Client) -> None:
    """504 at the client's own deadline, whichever way it is given; the next request is served."""
    endless = {"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}], "parameters": parameters}
    answer = client.post("/v2/models/endless/infer", endless, **headers)
    assert client.refused(504, answer) == "model endless: stopped at the deadline"
    assert client.post(INFER, GOOD[INFER]).status_code == 200


def test_a_deadline_that_has_passed_is_kept(client: Client) -> None:
    """A microsecond is over before anything runs."""
    answer = client.post(INFER, GOOD[INFER] | {"parameters": {"timeout": 1}})
    assert "deadline passed" in client.refused(504, answer)


@pytest.mark.parametrize("parameter", ["classification", "sequence_id", "shared_memory_region"])
def test_an_extension_that_is_not_offered_is_501(parameter: str, client: Client) -> None:
    """It is named."""
    answer = client.post(INFER, GOOD[INFER] | {"parameters": {parameter: 1}})
    assert f"'{parameter}'" in client.refused(501, answer)


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        (INFER, {"inputs": [X | {"data": [1, 2]}]}, "input 'x': expected 3 elements for [1, 3], got 2"),
        (INFER, {"inputs": [X | {"shape": [5, 3]}]}, "rows: expected 1 to 4 for model scale, got 5"),
        (PREDICT, {"instances": [[1, 2, 3]] * 5}, "rows: expected 1 to 4 for model scale, got 5"),
        (PREDICT, {"instances": [[1, 2]]}, "input 'x': expected shape [-1, 3], got [1, 2]"),
        ("/v1/models/gather:predict", {"instances": [3]}, "model gather: refuses these values"),
        ("/v1/models/count:predict", {"instances": [[1]]}, "model count takes no rows: use /v2/models/count/infer"),
        ("/v1/models/half:predict", {"instances": [[1, 2]]}, "input 'x': expected FP16 as binary data"),
        ("/v1/models/mixed:predict", {"instances": [[1]]}, "instances: expected objects with the inputs a, b"),
    ],
)
def test_input_that_does_not_fit_is_explained(path: str, body: Any, said: str, client: Client) -> None:
    """400 with what was concerned, expected and got."""
    assert client.refused(400, client.post(path, body)).startswith(said)


def test_a_failure_of_the_runtime_tells_nothing_of_it(client: Client) -> None:
    """500 with the id under which the reason is logged, and nothing of our insides."""
    given = {"name": "n", "shape": [1], "datatype": "INT64", "data": [1 << 60]}
    answer = client.post("/v2/models/count/infer", {"inputs": [given]})
    request_id = answer.headers["X-Request-ID"]
    assert client.refused(500, answer) == f"the inference failed, as logged under request id {request_id}"


def test_an_error_of_ours_tells_nothing_either(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """500 with the id, whatever happens where nobody expected it."""

    def fail(*args: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(client.services.repository.__class__, "get", fail)
    for path in (INFER, PREDICT):
        answer = client.post(path, GOOD[path])
        assert (
            client.refused(500, answer)
            == f"an error of the server, logged under request id {answer.headers['X-Request-ID']}"
        )
        assert "secret" not in answer.text


@pytest.mark.parametrize("path", ["/v2", "/v1/nowhere", "/v2/nowhere"])
@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("well-formed-1", True),
        ("short", False),
        ("x" * 65, False),
        ("two words here", False),
        ("abcdefgh<script>", False),
        ("abcdefgh;x=\u00e9", False),
    ],
)
def test_the_request_id_is_kept_if_well_formed(path: str, given: str, kept: bool, client: Client) -> None:
    """It comes back on answers and errors alike; what is not well formed is replaced."""
    answer = client.get(path, X_Request_ID=given)
    assert (answer.headers["X-Request-ID"] == given) == kept
    assert answer.headers["X-Request-ID"].replace("-", "").isalnum()
