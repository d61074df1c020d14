"""The one table from what can go wrong to what the client sees.

`/v2` answers `{"error": "..."}`, as clients of the Open Inference Protocol read that key; everything else answers
RFC 9457 problem details. No answer carries a traceback.
"""

import http

import falcon
import msgspec
import structlog

from inference_api.authorisation import challenge
from inference_core import errors
from inference_core.quotas import Allowance
from observability.families import AUTH_REFUSALS

RETRY_AFTER_SECONDS = "1"

STATUS: dict[type[errors.TiercelError], int] = {
    errors.InvalidInput: 400,
    errors.PayloadTooLarge: 413,
    errors.UnsupportedMedia: 415,
    errors.UnsupportedCoding: 415,
    errors.UnsupportedFeature: 501,
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.Mismatch: 422,
    errors.TooManyJobs: 429,
    errors.QuotaExceeded: 429,
    errors.Unavailable: 503,
    errors.DeadlineExceeded: 504,
    errors.InferenceFailed: 500,
    errors.PackageRefused: 400,
}

# Of tokens that are not good, in metrics; any other reason is a kind of malformed.
REASONS = {
    "": "missing",
    "it has expired": "expired",
    "it is not valid yet": "not_yet_valid",
    "its signature is wrong": "signature",
    "it is for another audience": "audience",
    "it is from another issuer": "issuer",
    "its key is not one of the issuer's": "unknown_key",
    "its client has been revoked": "revoked",
}

log = structlog.get_logger()


class OipError(msgspec.Struct):
    """Open Inference Protocol, "Inference Response JSON Error Object"."""

    error: str


class Problem(msgspec.Struct):
    """RFC 9457 problem details; `type` is about:blank, so `title` is the status's own phrase."""

    title: str
    status: int
    detail: str
    request_id: str
    type: str = "about:blank"


def add_error_handlers(app: falcon.App[falcon.Request, falcon.Response]) -> None:
    app.add_error_handler(Exception, _unexpected)
    app.add_error_handler(falcon.HTTPError, _refused_by_falcon)
    app.add_error_handler(errors.TiercelError, _refused)


def error_body(path: str, status: int, detail: str, request_id: str) -> tuple[bytes, str]:
    """The body of an error and its media type, in the form that clients of `path` expect."""
    if path == "/v2" or path.startswith("/v2/"):
        return msgspec.json.encode(OipError(detail)), "application/json"
    problem = Problem(http.HTTPStatus(status).phrase, status, detail, request_id)
    return msgspec.json.encode(problem), "application/problem+json"


def _refused(req: falcon.Request, resp: falcon.Response, error: errors.TiercelError, params: object) -> None:
    status, detail = STATUS[type(error)], str(error)
    if status == 500:  # what the runtime says of itself is for us to read
        log.error("inference failed", request_id=req.context.request_id, path=req.path, reason=detail)
        detail = f"the inference failed, as logged under request id {req.context.request_id}"
    if isinstance(error, errors.UnsupportedCoding):  # RFC 9110, section 12.5.3: and for no other reason
        resp.set_header("Accept-Encoding", "gzip, deflate")
    _answer(req, resp, status, detail)
    if isinstance(error, errors.Unauthenticated | errors.Forbidden):
        resp.set_header("WWW-Authenticate", challenge(error))
        _log_refusal(req, error)
    if isinstance(error, errors.QuotaExceeded):
        resp.set_header("Retry-After", str(error.allowance.seconds))
        resp.set_headers(rate_limit(error.allowance))


def _log_refusal(req: falcon.Request, error: errors.Unauthenticated | errors.Forbidden) -> None:
    if isinstance(error, errors.Forbidden):
        AUTH_REFUSALS.of("scope").add()
    else:
        AUTH_REFUSALS.of(REASONS.get(error.reason, "malformed")).add()
    subject = error.subject if isinstance(error, errors.Forbidden) else None
    log.warning(
        "access refused",
        request_id=req.context.request_id,
        method=req.method,
        path=req.path,
        subject=subject,
        reason=str(error),
    )


def rate_limit(allowance: Allowance) -> dict[str, str]:
    """draft-ietf-httpapi-ratelimit-headers-11: the quota, and what is left of it."""
    quota = allowance.quota
    return {
        "RateLimit-Policy": f'"{allowance.name}";q={quota.requests};w={quota.seconds}',
        "RateLimit": f'"{allowance.name}";r={allowance.remaining};t={allowance.seconds}',
    }


def _refused_by_falcon(req: falcon.Request, resp: falcon.Response, error: falcon.HTTPError, params: object) -> None:
    status = falcon.http_status_to_code(error.status)
    detail = error.description or ""
    if status == 404:
        detail = f"no such route: {req.path}; /openapi.json lists them all"
    if status == 405:
        detail = f"method {req.method}: not for {req.path}; see the header Allow"
    if error.headers:
        resp.set_headers(error.headers)
    _answer(req, resp, status, detail or error.title or "")


def _unexpected(req: falcon.Request, resp: falcon.Response, error: Exception, params: object) -> None:
    log.error("request failed", request_id=req.context.request_id, path=req.path, exc_info=error)
    _answer(req, resp, 500, f"an error of the server, logged under request id {req.context.request_id}")


def _answer(req: falcon.Request, resp: falcon.Response, status: int, detail: str) -> None:
    resp.status = falcon.code_to_http_status(status)
    resp.data, resp.content_type = error_body(req.path, status, detail, req.context.request_id)
    if status in (409, 429, 503):
        resp.set_header("Retry-After", RETRY_AFTER_SECONDS)
