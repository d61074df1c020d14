"""What happens to every answer besides being observed (observation/): a large one is compressed if asked for."""

import re

import falcon

from inference_core import bodies

# PERF: below this a compressed answer is hardly smaller, and costs more time than it saves.
MIN_COMPRESSED_BYTES = 1024


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
