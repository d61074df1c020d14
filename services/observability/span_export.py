"""Spans on their way out: a bounded queue, a thread that sends them in batches, and a count of what became of them."""

import os
import socket
import threading
from collections.abc import Sequence

import requests  # noqa: F401  # PERF: or else the exporter would when it is made, in every worker
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from observability.families import SPANS
from observability.tracing import Span, Trace

# Spans that wait; what is beyond is dropped.
MAX_WAITING, MAX_BATCH = 2048, 512
DELAY_SECONDS, TIMEOUT_SECONDS, FLUSH_SECONDS = 1.0, 2.0, 2.0


class SpanQueue:
    def __init__(self, exporter: SpanExporter, service: str) -> None:
        self._counting = _Counting(exporter)
        # Of twice the size, so that it never drops one: it would not say how many.
        self._processor = BatchSpanProcessor(
            self._counting,
            max_queue_size=2 * MAX_WAITING,
            max_export_batch_size=MAX_BATCH,
            schedule_delay_millis=DELAY_SECONDS * 1000,
        )
        instance = f"{socket.gethostname()}-{os.getpid()}"
        self._resource = Resource({"service.name": service, "service.instance.id": instance})

    def put(self, trace: Trace, root: Span, parts: Sequence[Span], link: str) -> None:
        if not self._counting.take_place(1 + len(parts)):
            SPANS.of("dropped").add(1 + len(parts))
            return
        self._processor.on_end(self._readable(trace, root, trace.parent, link))
        for part in parts:
            self._processor.on_end(self._readable(trace, part, root.id))

    def flush(self) -> None:
        """Wait until the thread has sent what waits: `force_flush` of the SDK knows no timeout (its issue 4568)."""
        self._counting.wait_until_sent(FLUSH_SECONDS)

    def _readable(self, trace: Trace, span: Span, parent: str, link: str = "") -> ReadableSpan:
        return ReadableSpan(
            span.name,
            context=_context(trace, span.id, is_remote=False),
            parent=_context(trace, parent, is_remote=True) if parent else None,
            resource=self._resource,
            attributes={name: value for name, value in span.attributes.items() if value not in (None, "")},
            links=[Link(_context(trace, link, is_remote=True))] if link else (),
            kind=SpanKind[span.kind],
            status=Status(StatusCode.ERROR, span.error) if span.error else Status(StatusCode.UNSET),
            start_time=span.start,
            end_time=span.end,
        )


class _Counting(SpanExporter):
    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._lock = threading.Condition()
        self._waiting = 0

    def take_place(self, number: int) -> bool:
        with self._lock:
            has_room = self._waiting + number <= MAX_WAITING
            self._waiting += number * has_room
            return has_room

    def wait_until_sent(self, seconds: float) -> None:
        with self._lock:
            self._lock.wait_for(lambda: not self._waiting, seconds)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
            return result
        finally:
            with self._lock:
                self._waiting -= len(spans)
                self._lock.notify_all()
            SPANS.of("exported" if result is SpanExportResult.SUCCESS else "dropped").add(len(spans))

    def shutdown(self) -> None:
        self._exporter.shutdown()


def exporter_to(endpoint: str) -> SpanExporter:
    return OTLPSpanExporter(endpoint=endpoint, timeout=TIMEOUT_SECONDS)


def _context(trace: Trace, span_id: str, *, is_remote: bool) -> SpanContext:
    return SpanContext(int(trace.id, 16), int(span_id, 16), is_remote, TraceFlags(TraceFlags.SAMPLED))
