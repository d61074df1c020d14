import io
import time
from typing import Any

import falcon
import pytest
from falcon.testing import create_environ

from inference_api.observation.request import Observation
from inference_api.requests import media_type, read_body, read_json_body, watch, whole_number
from inference_core.bodies import compress
from inference_core.bootstrap import Services
from inference_core.errors import DeadlineExceeded, InvalidInput, PayloadTooLarge, UnsupportedMedia
from inference_core.settings import Settings
from inference_core.watchdog import Watchdog

LIMIT = 100


def request(body: bytes = b"", **environ: Any) -> falcon.Request:
    """A request as a WSGI server passes it on; a value of None takes a key away."""
    changed = create_environ(method="POST", body=body.decode("latin-1")) | {"wsgi.input": io.BytesIO(body)}
    changed |= {"CONTENT_LENGTH": str(len(body))} | environ
    made = falcon.Request({key: value for key, value in changed.items() if value is not None})
    made.context.observation = Observation("an-id", "", "", 0.0, 0.0)
    return made


def services(**settings: Any) -> Services:
    """As much of the services as reading a request takes."""
    parts: dict[str, Any] = {"settings": Settings(max_body_bytes=LIMIT, **settings), "watchdog": Watchdog(1)}
    return Services(repository=None, rollout=None, predictor=None, quotas=None, **parts)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [0, 1, LIMIT])
def test_a_body_within_the_bound_is_read(size: int) -> None:
    """Empty, small and as large as allowed, with a declared length or chunked."""
    assert read_body(request(bytes(size)), LIMIT) == bytes(size)
    assert read_body(request(bytes(size), CONTENT_LENGTH=None, HTTP_TRANSFER_ENCODING="chunked"), LIMIT) == bytes(size)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "GZIP", "identity", "Identity"])
def test_a_body_in_a_coding_is_undone(coding: str) -> None:
    """Names of codings have no case."""
    body = b"body" if coding.lower() == "identity" else compress(b"body", coding.lower())
    assert read_body(request(body, HTTP_CONTENT_ENCODING=coding), LIMIT) == b"body"


def test_without_a_length_there_is_no_body() -> None:
    """RFC 9112, section 6.3: what follows would be another request."""
    assert read_body(request(b"next", CONTENT_LENGTH=None), LIMIT) == b""


@pytest.mark.parametrize(
    "req",
    [
        pytest.param(request(bytes(LIMIT + 1)), id="declared"),
        pytest.param(request(b"", CONTENT_LENGTH="9" * 30), id="declared, and never sent"),
        pytest.param(request(bytes(LIMIT + 1), CONTENT_LENGTH=None, HTTP_TRANSFER_ENCODING="chunked"), id="chunked"),
        pytest.param(request(compress(bytes(LIMIT + 1), "gzip"), HTTP_CONTENT_ENCODING="gzip"), id="inflated"),
    ],
)
def test_a_body_over_the_bound_is_too_large(req: falcon.Request) -> None:
    """One byte more than allowed, however it comes."""
    with pytest.raises(PayloadTooLarge, match=rf"^body: expected at most {LIMIT} bytes, got "):
        read_body(req, LIMIT)


def test_a_body_that_is_cut_is_refused() -> None:
    """Fewer bytes than declared are not a smaller body."""
    with pytest.raises(InvalidInput, match=r"^body: expected 5 bytes as in Content-Length, got 4$"):
        read_body(request(b"body", CONTENT_LENGTH="5"), LIMIT)


@pytest.mark.parametrize("length", ["x", "-1", "1.5", "0x10"])
def test_a_length_that_is_none_is_refused(length: str) -> None:
    """Content-Length is a number; servers see to it, and so do we."""
    with pytest.raises(falcon.HTTPInvalidHeader, match="400"):
        read_body(request(b"body", CONTENT_LENGTH=length), LIMIT)


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (None, ""),
        ("", ""),
        ("application/json", "application/json"),
        ("Application/JSON; charset=utf-8", "application/json"),
        (" image/png ;x=y", "image/png"),
    ],
)
def test_media_types_have_neither_case_nor_parameters(given: str | None, kind: str) -> None:
    """What decides is the type itself."""
    assert media_type(request(CONTENT_TYPE=given)) == kind


@pytest.mark.parametrize(
    "given", [None, "application/json", "application/octet-stream", "application/x-www-form-urlencoded"]
)
def test_json_may_be_called_what_clients_call_it(given: str | None) -> None:
    """tritonclient says nothing, curl says its default."""
    assert read_json_body(request(b"{}", CONTENT_TYPE=given), services()) == b"{}"


@pytest.mark.parametrize("given", ["text/plain", "application/xml", "multipart/form-data", "image/png", "json"])
def test_other_media_types_are_refused(given: str) -> None:
    """The type is named."""
    with pytest.raises(UnsupportedMedia, match=rf"^Content-Type: expected application/json, got {given}$"):
        read_json_body(request(b"{}", CONTENT_TYPE=given), services())


def test_json_is_bounded_in_depth() -> None:
    """As deep as the setting says, and no deeper."""
    assert read_json_body(request(b"[[1]]"), services(max_json_depth=2))
    with pytest.raises(InvalidInput, match=r"nested at most 2 deep"):
        read_json_body(request(b"[[[1]]]"), services(max_json_depth=2))


@pytest.mark.parametrize(("given", "number"), [("1", 1), ("007", 7), ("10", 10), ("0" * 17 + "1", 1)])
def test_whole_numbers(given: str, number: int) -> None:
    """Digits, within bounds that are included."""
    assert whole_number("n", given, 1, 10) == number


@pytest.mark.parametrize(
    "given",
    [
        "",
        "0",
        "11",
        "-1",
        "+1",
        " 1",
        "1 ",
        "1.0",
        "1e0",
        "0x1",
        "1_0",
        "\u0661",
        "\u00b2",
        "1\n",
        "0" * 18 + "1",
        "1" * 5000,
    ],
)
def test_what_is_no_whole_number_is_refused(given: str) -> None:
    """Anything else, and anything out of bounds, whatever int() would make of it."""
    with pytest.raises(InvalidInput, match=r"^n: expected a whole number from 1 to 10, got "):
        whole_number("n", given, 1, 10)


@pytest.mark.parametrize(
    ("given", "milliseconds"),
    [(None, 5000), ("1", 1), ("4999", 4999), ("5000", 5000), ("5001", 5000), ("9" * 18, 5000)],
)
def test_the_deadline_is_the_clients_up_to_the_servers(
    given: str | None, milliseconds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """X-Request-Timeout-Ms can only shorten what the server allows."""
    monkeypatch.setattr("time.monotonic", lambda: 100.0)
    call = watch(request(HTTP_X_REQUEST_TIMEOUT_MS=given), services())
    assert call.deadline == pytest.approx(100 + milliseconds / 1000)


@pytest.mark.parametrize("given", ["0", "-1", "", "1.5", "soon", "1" * 19])
def test_a_deadline_that_is_none_is_refused(given: str) -> None:
    """The header is named."""
    with pytest.raises(InvalidInput, match=r"^X-Request-Timeout-Ms: expected a whole number from 1, got "):
        watch(request(HTTP_X_REQUEST_TIMEOUT_MS=given), services())


@pytest.mark.parametrize(("waited", "given", "in_time"), [(60, None, True), (0, "1000", True), (60, "1000", False)])
def test_the_clients_deadline_counts_from_when_nginx_had_the_request(
    waited: float, given: str | None, in_time: bool
) -> None:
    """Ours does not: requests wait while API containers are replaced."""
    req = request(HTTP_X_REQUEST_START=f"t={time.time() - waited:.3f}", HTTP_X_REQUEST_TIMEOUT_MS=given)
    if in_time:
        assert watch(req, services()).remaining() > 0.5
    else:
        with pytest.raises(DeadlineExceeded, match="before its turn came"):
            watch(req, services())
