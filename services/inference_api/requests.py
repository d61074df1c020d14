"""What the routes read from a request besides JSON: its body within the bounds, its media type and its deadline."""

import functools
import os
import re
import time
from contextlib import suppress

import falcon

from inference_api.admission import age
from inference_api.authorisation import subject
from inference_api.error_handlers import RETRY_AFTER_SECONDS, error_body, rate_limit
from inference_core import bodies
from inference_core.bootstrap import Services
from inference_core.cache import Question
from inference_core.errors import DeadlineExceeded, InvalidInput, QuotaExceeded, UnsupportedMedia
from inference_core.model import Model
from inference_core.policy import Quota
from inference_core.predictor import AS_USUAL, Caching
from inference_core.tensors import Tensor
from inference_core.watchdog import InFlight
from observability.families import QUOTAS, SHED

# What clients send when nobody told them what to say: tritonclient nothing, curl its default.
UNSPECIFIED = ("", "application/octet-stream", "application/x-www-form-urlencoded")
# As many digits as any bound needs, and few enough for int() to take them.
DIGITS = re.compile(r"[0-9]{1,18}")


def read_body(req: falcon.Request, limit: int) -> bytes:
    """The whole body with its content coding undone; PayloadTooLarge if it is over `limit` bytes either way."""
    length = req.content_length
    if length is not None and length > limit:
        raise bodies.too_large(limit, length)
    if length is None and "HTTP_TRANSFER_ENCODING" not in req.env:
        return b""
    body: bytes = req.env["wsgi.input"].read(limit + 1 if length is None else length)
    if len(body) > limit:
        raise bodies.too_large(limit, "more")
    if length is not None and len(body) < length:
        raise InvalidInput(f"body: expected {length} bytes as in Content-Length, got {len(body)}")
    coding = req.env.get("HTTP_CONTENT_ENCODING", "identity").lower()
    return body if coding == "identity" else bodies.decompress(body, coding, limit)


def read_json_body(req: falcon.Request, services: Services) -> bytes:
    """A body that is to be parsed as JSON: of a fitting media type, and not nested too deep."""
    kind = media_type(req)
    if kind != "application/json" and kind not in UNSPECIFIED:
        raise UnsupportedMedia(f"Content-Type: expected application/json, got {kind}")
    body = read_body(req, services.settings.max_body_bytes)
    bodies.check_nesting(body, services.settings.max_json_depth)
    return body


def media_type(req: falcon.Request) -> str:
    kind: str = req.env.get("CONTENT_TYPE", "")
    return kind if kind == "application/json" else kind.partition(";")[0].strip().lower()


def whole_number(what: str, given: str, least: int, most: int | None = None) -> int:
    """The number that the text `given` says; InvalidInput unless it has digits only and is within the bounds."""
    if DIGITS.fullmatch(given) and least <= int(given) and (most is None or int(given) <= most):
        return int(given)
    bounds = f"from {least}" if most is None else f"from {least} to {most}"
    raise InvalidInput(f"{what}: expected a whole number {bounds}, got {given!r}")


def watch(req: falcon.Request, services: Services) -> InFlight:
    """The context in which this request is answered by its deadline: `X-Request-Timeout-Ms`, or the server's own limit.

    The client's counts from when NGINX had the request; ours does not, as requests wait while containers are replaced.
    Read the body before: a client that sends slowly is no hanging inference.
    """
    req.context.observation.read = time.perf_counter()
    remaining = services.settings.request_timeout_ms / 1000
    given = req.env.get("HTTP_X_REQUEST_TIMEOUT_MS")
    if given is not None:
        remaining = min(remaining, whole_number("X-Request-Timeout-Ms", given, 1) / 1000 - age(req.env))
        if remaining <= 0:
            SHED.of("deadline").add()
            raise DeadlineExceeded("request: its deadline passed before its turn came")
    deadline = time.monotonic() + remaining
    return services.watchdog.watch(deadline, functools.partial(_answer_in_its_stead, req))


def count(req: falcon.Request, resp: falcon.Response, services: Services, model: Model) -> None:
    """Count this request under its client's quota, before anything is done for it; QuotaExceeded if it is over."""
    req.context.observation.model = model
    quota, name = services.settings.quota, "default"
    if model.policy.quota is not None:
        quota, name = model.policy.quota, model.manifest.name
    _take(req, resp, services, name, quota)


def count_job(req: falcon.Request, resp: falcon.Response, services: Services) -> None:
    """Count a job that is about to be made, as `count`; what it asks for is not counted as predictions."""
    _take(req, resp, services, "jobs", services.settings.job_quota)


def _take(req: falcon.Request, resp: falcon.Response, services: Services, name: str, quota: Quota | None) -> None:
    if quota is not None:
        client = subject(req.env) or client_address(req.env)
        try:
            allowance = services.quotas.take(client, name, quota)
        except QuotaExceeded:
            QUOTAS.of(name, "refused").add()
            raise
        QUOTAS.of(name, "allowed").add()
        resp.set_headers(rate_limit(allowance))


def client_address(env: dict[str, str]) -> str:
    """The address that NGINX saw (it overwrites the field); of IPv6 the network, which a client has whole."""
    address = env.get("HTTP_X_REAL_IP") or env.get("REMOTE_ADDR", "")
    return ":".join(address.split(":")[:4]) if ":" in address else address


def predict(
    req: falcon.Request, resp: falcon.Response, services: Services, question: Question, in_flight: InFlight
) -> list[Tensor]:
    """The answer, and in `Cache-Status` (RFC 9211) how the cache took part, if the model is worth one."""
    directives = req.env.get("HTTP_CACHE_CONTROL")
    caching = _caching(directives) if directives else AS_USUAL
    prediction = services.predictor.predict(question, in_flight, caching)
    observation = req.context.observation
    observation.prediction, observation.predicted = prediction, time.perf_counter()
    if prediction.cache:
        resp.set_header("Cache-Status", f"tiercel; {prediction.cache}")
    return prediction.answer


def _caching(directives: str) -> Caching:
    """RFC 9111, section 5.2.1, as far as it is for a cache of this kind."""
    names = {directive.partition("=")[0].strip().lower() for directive in directives.split(",")}
    return Caching(read=not names & {"no-cache", "no-store"}, write="no-store" not in names)


def _answer_in_its_stead(req: falcon.Request, hung: bool) -> None:
    """Write a whole answer on the connection of a request whose worker is about to end."""
    status, phrase, detail = 504, "Gateway Timeout", "the inference did not end by its deadline"
    if not hung:
        status, phrase, detail = 503, "Service Unavailable", "the worker is replaced, as another inference in it hangs"
    body, media = error_body(req.path, status, detail, req.context.request_id)
    head = (
        f"HTTP/1.1 {status} {phrase}\r\nContent-Type: {media}\r\nContent-Length: {len(body)}\r\n"
        f"X-Request-ID: {req.context.request_id}\r\nRetry-After: {RETRY_AFTER_SECONDS}\r\nConnection: close\r\n\r\n"
    )
    with suppress(OSError):  # the client has gone: nobody is left to tell
        os.write(_connection(req.env), head.encode() + body)
    req.context.observer.abandon(req, status)


def _connection(env: dict[str, object]) -> int:
    """The file descriptor of the client's connection, whichever worker class it belongs to."""
    if "gunicorn.socket" in env:
        return env["gunicorn.socket"].fileno()  # type: ignore[attr-defined, no-any-return]  # WSGI knows no such key
    return env["meinheld.client"].get_fd()  # type: ignore[attr-defined, no-any-return]  # the same
