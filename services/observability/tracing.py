"""Traces, for Jaeger or whoever takes OTLP over HTTP: which request belongs to which, and where its time went.

A trace's id comes with the request (W3C Trace Context), or is made here. Spans are made when a request has ended, of
times that are measured for metrics anyway: so a request that is not kept costs next to nothing, and one that failed or
was slow is kept even if the lot did not fall on it.

NOTE: not by the tracer of OpenTelemetry's SDK, which makes an object for each span that nobody keeps (10 us), and has
to decide before it knows how a request ends. Its queue and its exporter are used (see span_export.py).
"""

import random
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec

if TYPE_CHECKING:
    from observability.span_export import SpanQueue

# W3C Trace Context, section 3.2; of later versions as much as is known, and only they may say more.
TRACEPARENT = re.compile(
    r"(?!ff|00.{54})[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-.{0,200})?"
)
# NGINX has started the trace: the span that it names is nobody's.
BY_THE_EDGE = "tiercel=edge"
SAMPLED = 1
Kind = Literal["INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER"]


class Trace(NamedTuple):
    """Which trace something belongs to; `parent` is the id of the span that caused it, if there is one."""

    id: str
    parent: str
    sampled: bool

    def header(self, span: str) -> str:
        """What to tell those who are asked in turn, by the span of that id."""
        return f"00-{self.id}-{span}-{'01' if self.sampled else '00'}"


def new_span_id() -> str:
    return secrets.token_hex(8)


class Span(msgspec.Struct):
    """A piece of work; times are nanoseconds of the day 1970."""

    name: str
    start: int
    end: int
    attributes: dict[str, Any] = {}
    kind: Kind = "INTERNAL"
    error: str = ""
    id: str = msgspec.field(default_factory=new_span_id)


class Clock:
    """Turns what `time.perf_counter` said into nanoseconds of the day 1970."""

    def __init__(self) -> None:
        self._offset = time.time() - time.perf_counter()

    def __call__(self, counter: float) -> int:
        return int((counter + self._offset) * 1e9)


def read_trace(traceparent: str, state: str = "") -> Trace | None:
    """The trace that a header names; None if it is not well formed."""
    found = TRACEPARENT.fullmatch(traceparent)
    if not found:
        return None
    return Trace(found[1], "" if state == BY_THE_EDGE else found[2], bool(int(found[3], 16) & SAMPLED))


def trace_of(environ: Mapping[str, str], ratio: float) -> Trace:
    """The trace of a request: the one that it names, or a new one."""
    given = environ.get("HTTP_TRACEPARENT")
    if given and (found := read_trace(given, environ.get("HTTP_TRACESTATE", ""))):
        return found
    return Trace(random_id(), "", random.random() < ratio)  # noqa: S311  # a lot, not a secret


def random_id() -> str:
    """32 hexadecimal digits. PERF: not from `secrets`, which asks the kernel: it is to be unique, not unguessable."""
    return f"{random.getrandbits(128):032x}"


class Tracer:
    """Keeps `ratio` of the traces that begin here; of all, what failed or took `slow_seconds`. No queue: none."""

    def __init__(self, ratio: float = 0.0, slow_seconds: float = 0.0, queue: "SpanQueue | None" = None) -> None:
        self.ratio = ratio if queue else 0.0
        self.slow_seconds = slow_seconds
        self._queue = queue

    def wants(self, trace: Trace, seconds: float, *, failed: bool) -> bool:
        """Whether to keep what took so long and ended like this."""
        return self._queue is not None and (trace.sampled or failed or seconds >= self.slow_seconds)

    def record(self, trace: Trace, root: Span, parts: Sequence[Span] = (), link: str = "") -> None:
        """Keep a span and those that are its parts; never waits. `link`: the id of a span that led to it."""
        if self._queue:
            self._queue.put(trace, root, parts, link)

    def flush(self) -> None:
        """Send what waits; for 2 s at most."""
        if self._queue:
            self._queue.flush()


NO_TRACES = Tracer()


def open_tracer(endpoint: str, ratio: float, slow_seconds: float, service: str) -> Tracer:
    """To the OTLP receiver at `endpoint`, such as http://jaeger:4318/v1/traces; without one, nothing is kept.

    Call it after the fork: it has a thread.
    """
    if not endpoint:
        return NO_TRACES
    # PERF: the SDK takes half of a server's start, and is not needed where nobody takes traces.
    from observability.span_export import SpanQueue, exporter_to  # noqa: PLC0415

    return Tracer(ratio, slow_seconds, SpanQueue(exporter_to(endpoint), service))
