import gzip
import json
import zlib

import pytest
from app_client import Client

UNDO = {"gzip": gzip.decompress, "deflate": zlib.decompress, None: bytes}


@pytest.mark.parametrize(
    ("accept", "coding"),
    [
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("*", "gzip"),
        ("gzip;q=0, *", "deflate"),
        ("gzip;q=0", None),
        ("br", None),
    ],
)
def test_a_large_answer_is_compressed_if_asked_for(accept: str, coding: str | None, client: Client) -> None:
    """The length is that of what is sent, and caches are told what it depends on."""
    plain = client.get("/openapi.json")
    answer = client.get("/openapi.json", Accept_Encoding=accept)
    assert answer.headers.get("Content-Encoding") == coding
    assert answer.headers["Vary"] == plain.headers["Vary"] == "Accept-Encoding"
    assert int(answer.headers["Content-Length"]) == len(answer.content)
    assert UNDO[coding](answer.content) == plain.content
    assert (len(answer.content) < len(plain.content)) == (coding is not None)


def test_a_large_binary_answer_is_compressed_as_a_whole(client: Client) -> None:
    """Inference-Header-Content-Length is that of the body before it was compressed."""
    request = {
        "inputs": [{"name": "n", "shape": [1], "datatype": "INT64", "data": [5000]}],
        "parameters": {"binary_data_output": True},
    }
    answer = client.post("/v2/models/count/infer", request, Accept_Encoding="gzip")
    body = gzip.decompress(answer.content)
    size = int(answer.headers["Inference-Header-Content-Length"])
    assert json.loads(body[:size])["outputs"][0]["parameters"] == {"binary_data_size": 5000}
    assert body[size:] == bytes(i % 251 for i in range(5000))


@pytest.mark.parametrize("path", ["/v2", "/v2/nowhere", "/v1/models/scale"])
def test_a_small_answer_is_not(path: str, client: Client) -> None:
    """Nor does it vary."""
    answer = client.get(path, Accept_Encoding="gzip")
    assert "Content-Encoding" not in answer.headers
    assert "Vary" not in answer.headers


def test_a_large_error_is_compressed_too(client: Client) -> None:
    """Errors are answers."""
    answer = client.get("/v2/" + "x" * 2000, Accept_Encoding="gzip")
    assert answer.status_code == 404
    assert "xxx" in json.loads(gzip.decompress(answer.content))["error"]
