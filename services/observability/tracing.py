"""Traces, for Jaeger or whoever takes OTLP over HTTP: which request belongs to which, and where its time went.

A trace's id comes with the request (W3C Trace Context), or is made here. Spans are made when a request has ended, of
times that are measured for metrics anyway: so a request that is not kept costs next to nothing, and one that failed or
was slow is kept even if the lot did not fall on it.

NOTE: not by the tracer of OpenTelemetry's SDK, which makes an object for each span that nobody keeps (10 us), and has
to decide before it knows how a request ends. Its queue and its exporter are used (see span_export.py).
"""

import os
import random
import re
import secrets
import time
from collections.abc import Sequence
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
# From one trace that the lot fell on to the next.
LOT_SECONDS = 0.1
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


def new_trace() -> Trace:
    return Trace(random_id(), "", sampled=False)


_ids: list[str] = []
os.register_at_fork(after_in_child=_ids.clear)


def random_id() -> str:
    """32 hexadecimal digits, which are to be unique, not unguessable.

    PERF: not from `secrets`, which asks the kernel, and made by the dozen: that takes a tenth of the time of one each.
    """
    try:
        return _ids.pop()
    except IndexError:
        _ids.extend([f"{random.getrandbits(128):032x}" for _ in range(64)])
        return f"{random.getrandbits(128):032x}"


class Tracer:
    """Keeps `ratio` of the traces that begin here, but at most 10 a second; of all, what failed or took `slow_seconds`.

    No queue: none.
    """

    def __init__(self, ratio: float = 0.0, slow_seconds: float = 0.0, queue: "SpanQueue | None" = None) -> None:
        self.ratio = ratio if queue else 0.0
        self.slow_seconds = slow_seconds
        self.queue = queue
        self._next_lot = 0.0

    def wants(self, trace: Trace | None, seconds: float, *, failed: bool) -> bool:
        """Whether to keep what took so long and ended like this; for what has no trace yet, a lot is drawn."""
        if self.queue is None:
            return False
        if failed or seconds >= self.slow_seconds:
            return True
        if trace and trace.parent:  # the others keep theirs
            return trace.sampled
        drawn = trace.sampled if trace else random.random() < self.ratio  # noqa: S311  # a lot, not a secret
        # PERF: spans take a hundred times as long as a request that is not kept.
        if not drawn or (now := time.monotonic()) < self._next_lot:
            return False
        self._next_lot = now + LOT_SECONDS
        return True

    def record(self, trace: Trace, root: Span, parts: Sequence[Span] = (), link: str = "") -> None:
        """Keep a span and those that are its parts; never waits. `link`: the id of a span that led to it."""
        if self.queue:
            self.queue.put(trace, root, parts, link)

    def flush(self) -> None:
        """Send what waits; for 2 s at most."""
        if self.queue:
            self.queue.flush()


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
