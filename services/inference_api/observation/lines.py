"""The log of requests: one line for each, in the form of all others (observability.logs)."""

from collections.abc import Iterable
from datetime import UTC, datetime

import msgspec

from inference_api.observation.request import Kind, Observation, Times

SERVICE = "api"
# A default is left out if it is this very object.
NONE = 0.0
_ENCODER = msgspec.json.Encoder()


class Line(msgspec.Struct, omit_defaults=True, gc=False):
    timestamp: datetime
    level: str
    logger: str
    event: str
    service: str
    request_id: str
    method: str
    route: str
    status: int
    seconds: float
    bytes: int
    # If the request has brought one, or its trace is kept.
    trace_id: str = ""
    subject: str | None = None
    model: str = ""
    version: str = ""
    rows: int = 0
    queue_seconds: float = NONE
    input_seconds: float = NONE
    infer_seconds: float = NONE
    output_seconds: float = NONE
    cache: str = ""
    cache_seconds: float = NONE


def line(
    observation: Observation, kind: Kind, times: Times, method: str, subject: str | None, rows: int, size: int
) -> Line:
    """What there is to say of a request that ends now; `size` is that of its answer in bytes."""
    total, _, queue, reading, infer, output, cache = times
    trace = observation.known_trace()
    return Line(
        datetime.now(UTC),
        "info",
        "tiercel.request",
        "request",
        SERVICE,
        observation.request_id,
        method,
        kind.route,
        kind.status,
        # PERF: to microseconds; round() takes ten times as long.
        int(total * 1e6) / 1e6,
        size,
        trace.id if trace else "",
        subject,
        kind.model,
        kind.version,
        rows,
        int(queue * 1e6) / 1e6 or NONE,
        int(reading * 1e6) / 1e6 or NONE,
        int(infer * 1e6) / 1e6 or NONE,
        int(output * 1e6) / 1e6 or NONE,
        kind.cache,
        int(cache * 1e6) / 1e6 or NONE,
    )


def encode(lines: Iterable[Line]) -> bytes:
    return _ENCODER.encode_lines(lines)
