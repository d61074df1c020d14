import gzip
import zlib

import falcon
import pytest
from falcon.testing import create_environ

from inference_api.middleware import MIN_COMPRESSED_BYTES, Compression

LARGE = b"x" * MIN_COMPRESSED_BYTES


def answer_to(accept: str | None, data: bytes | None = LARGE) -> falcon.Response:
    """An answer of `data` to a request with this Accept-Encoding, after the middleware."""
    environ = create_environ() | ({} if accept is None else {"HTTP_ACCEPT_ENCODING": accept})
    response = falcon.Response()
    response.data = data
    Compression().process_response(falcon.Request(environ), response, None, True)
    return response


@pytest.mark.parametrize(
    ("accept", "coding"),
    [
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("GZip", "gzip"),
        ("gzip, deflate, br", "gzip"),
        ("deflate;q=0.5", "deflate"),
        ("br, deflate;q=0.001", "deflate"),
        ("*", "gzip"),
        ("*;q=0.1", "gzip"),
        ("gzip;q=0, *", "deflate"),
        ("gzip; q=0.000, deflate;q=1.0", "deflate"),
        ("gzip;q=0", None),
        ("gzip;q=0,deflate;q=0.0,*", None),
        ("*;q=0", None),
        ("identity", None),
        ("br", None),
        ("gzipped", None),
        ("", None),
        (None, None),
        (",;,;q=,", None),
    ],
)
def test_the_coding_is_one_that_the_client_takes(accept: str | None, coding: str | None) -> None:
    """Accept-Encoding decides: weights of 0 refuse, `*` is any that is not named."""
    response = answer_to(accept)
    assert response.get_header("Content-Encoding") == coding
    undo = {"gzip": gzip.decompress, "deflate": zlib.decompress}.get(str(coding), bytes)
    assert undo(response.data) == LARGE
    assert response.get_header("Vary") == "Accept-Encoding"


@pytest.mark.parametrize("data", [None, b"", LARGE[1:]])
def test_small_answers_stay_as_they_are(data: bytes | None) -> None:
    """A byte below the bound nothing is compressed, and nothing varies."""
    response = answer_to("gzip", data)
    assert response.data == data
    assert response.get_header("Content-Encoding") is None
    assert response.get_header("Vary") is None
