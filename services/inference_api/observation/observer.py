"""The middleware that sees each request begin and end.

That a request was answered is counted at once, so that no kill loses it. PERF: its line and its timings follow with
those of a few others, a tenth of a second later at most. Python that runs once a request takes three times as long as
in a loop, and numpy and msgspec take a batch in the time of a few.
"""

import re
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress

import falcon
import structlog

from inference_api import admission
from inference_api.authorisation import subject
from inference_api.observation import lines, spans
from inference_api.observation.figures import Figures
from inference_api.observation.request import SERVER_ERROR, Observation, Times
from inference_api.observation.sink import Sink
from observability import families
from observability.tracing import Clock, Tracer, random_id

REQUEST_ID = re.compile(r"[A-Za-z0-9-]{8,64}")
# Requests whose line and timings wait for each other, and for how long.
BATCH, DELAY_SECONDS = 64, 0.1
# PERF: to write a float takes a microsecond of a small prediction.
UP_TO_1_MS = [f"{microseconds / 1e3:.3f}" for microseconds in range(1000)]

log = structlog.get_logger("tiercel.request")


class Observer:
    """The first middleware, so that its time is the whole. Lines go to `out`, if there is one."""

    def __init__(self, tracer: Tracer, out: Sink | None = None, figures: Figures | None = None) -> None:
        self._tracer = tracer
        self._out = out
        self._figures = figures or Figures()
        self._in_flight: set[Observation] = set()
        self._waiting: list[tuple[int, int, Times, lines.Line | None]] = []
        self._lock = threading.Lock()

    def start(self) -> None:
        threading.Thread(target=self._flush_for_ever, name="observer", daemon=True).start()

    def process_request(self, req: falcon.Request, resp: falcon.Response) -> None:
        environ, context = req.env, req.context
        request_id = context.request_id = request_id_of(environ)
        context.observer = self
        observation = context.observation = Observation(
            request_id,
            environ.get("HTTP_TRACEPARENT", ""),
            environ.get("HTTP_TRACESTATE", ""),
            admission.age(environ) if "HTTP_X_REQUEST_START" in environ else 0.0,
            time.perf_counter(),
        )
        self._in_flight.add(observation)

    def process_response(self, req: falcon.Request, resp: falcon.Response, resource: object, succeeded: bool) -> None:
        observation: Observation = req.context.observation
        times = self._end(observation, req, resp.status, len(resp.data or b""))
        resp.set_header("X-Request-ID", observation.request_id)
        resp.set_header("Server-Timing", _server_timing(times))

    def abandon(self, req: falcon.Request, status: int) -> None:
        """The request is answered in its stead, and its process ends."""
        self._end(req.context.observation, req, status, 0)
        self.flush()

    def flush(self) -> None:
        """Count and log what waits."""
        families.IN_FLIGHT.of().set(len(self._in_flight))
        with self._lock:
            waiting = self._waiting[:]  # others may come meanwhile
            del self._waiting[: len(waiting)]
            if not waiting:
                return
            table_rows, rows, times, said = zip(*waiting, strict=True)
            self._figures.measured(table_rows, rows, times)
            if self._out and (worth := [line for line in said if line]):
                self._out.write(lines.encode(worth), len(worth))

    def _end(self, observation: Observation, req: falcon.Request, status: object, size: int) -> Times:
        ended, method, whose, prediction = time.perf_counter(), req.method, subject(req.env), observation.prediction
        times = observation.times(ended)
        kind = self._figures.answered(observation, method, req.uri_template, status)
        self._in_flight.discard(observation)
        tracer, failed = self._tracer, kind.status >= SERVER_ERROR
        if tracer.queue and (
            observation.keeps_trace or tracer.wants(observation.known_trace(), times[0], failed=failed)
        ):
            trace, at = observation.keep_trace(), Clock()
            root = spans.root(observation, kind, method, whose, ended, at)
            tracer.record(trace, root, spans.parts(observation, ended, at))
        rows = prediction.rows if prediction else 0
        line = None
        if self._out and not kind.quiet:
            line = lines.line(observation, kind, times, method, whose, rows, size)
        self._waiting.append((kind.row, rows, times, line))
        if len(self._waiting) >= BATCH:
            self.try_to_flush()
        return times

    def _flush_for_ever(self) -> None:
        while True:
            time.sleep(DELAY_SECONDS)
            self.try_to_flush()

    def try_to_flush(self) -> None:
        """The same for who can do without."""
        try:
            self.flush()
        except Exception:  # such as nobody to read what is written: requests, and the thread, must go on
            with suppress(OSError):  # nor this
                log.exception("requests cannot be logged")


def open_observer(tracer: Tracer, *, log_lines: bool) -> Observer:
    """With a thread: call it after the fork."""
    observer = Observer(tracer, Sink(sys.stdout.buffer) if log_lines else None)
    observer.start()
    return observer


def request_id_of(environ: Mapping[str, str]) -> str:
    """The one that it came with, or a new one."""
    given = environ.get("HTTP_X_REQUEST_ID")
    # SECURITY: it ends up in headers and logs.
    return random_id() if given is None or not REQUEST_ID.fullmatch(given) else given


def _server_timing(times: Times) -> str:
    """https://www.w3.org/TR/server-timing/"""
    total, _, queue, reading, infer, output, cache = times
    text = f"total;dur={_ms(total)}"
    if reading:
        text = f"input;dur={_ms(reading)}, infer;dur={_ms(infer)}, output;dur={_ms(output)}, {text}"
    if queue or cache:
        text = f"queue;dur={_ms(queue)}, cache;dur={_ms(cache)}, {text}"
    return text


def _ms(seconds: float) -> str:
    microseconds = int(seconds * 1e6)
    return UP_TO_1_MS[microseconds] if 0 <= microseconds < 1000 else f"{seconds * 1e3:.3f}"
