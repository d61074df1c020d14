"""What happens to every request: it gets an id, which its answer returns; a large answer is compressed if asked for."""

import random
import re

import falcon

from inference_core import bodies

REQUEST_ID = re.compile(r"[A-Za-z0-9-]{8,64}")
# PERF: below this a compressed answer is hardly smaller, and costs more time than it saves.
MIN_COMPRESSED_BYTES = 1024


class RequestId:
    """Keeps the caller's `X-Request-ID` if well formed (SECURITY: it ends up in headers and logs), else makes one."""

    def process_request(self, req: falcon.Request, resp: falcon.Response) -> None:
        given = req.env.get("HTTP_X_REQUEST_ID")
        # PERF: not from `secrets`, which asks the kernel: an id is to be unique, not unguessable.
        request_id = given if given and REQUEST_ID.fullmatch(given) else f"{random.getrandbits(128):032x}"
        req.context.request_id = request_id
        resp.set_header("X-Request-ID", request_id)


class Compression:
    """Content codings of RFC 9110, section 12.5.3."""

    def process_response(self, req: falcon.Request, resp: falcon.Response, resource: object, succeeded: bool) -> None:
        if resp.data is None or len(resp.data) < MIN_COMPRESSED_BYTES:
            return
        resp.append_header("Vary", "Accept-Encoding")
        coding = _best_coding(req.env.get("HTTP_ACCEPT_ENCODING", ""))
        if coding:
            resp.data = bodies.compress(resp.data, coding)
            resp.set_header("Content-Encoding", coding)


def _best_coding(accept: str) -> str | None:
    weights = {}
    for item in accept.lower().split(","):
        coding, _, weight = item.partition(";")
        weights[coding.strip()] = 0.0 if re.fullmatch(r"\s*q\s*=\s*0(\.0*)?\s*", weight) else 1.0
    for coding in bodies.CODINGS:
        if weights.get(coding, weights.get("*", 0.0)):
            return coding
    return None
