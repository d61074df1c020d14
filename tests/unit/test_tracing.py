import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from app_client import start
from falcon.testing import TestClient
from model_zoo import Zoo
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, StatusCode
from servers import wait_until

from inference_api.app import create_app
from inference_api.observation.observer import Observer
from inference_api.observation.request import Observation
from observability import tracing
from observability.families import SPANS
from observability.span_export import MAX_WAITING, SpanQueue
from observability.tracing import (
    LOT_SECONDS,
    NO_TRACES,
    Clock,
    Span,
    Trace,
    Tracer,
    new_span_id,
    new_trace,
    open_tracer,
    random_id,
    read_trace,
)

ID, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GOOD = f"00-{ID}-{PARENT}-01"


@pytest.mark.parametrize(
    ("given", "sampled"),
    [
        (GOOD, True),
        (f"00-{ID}-{PARENT}-00", False),
        (f"00-{ID}-{PARENT}-03", True),
        (f"00-{ID}-{PARENT}-fe", False),
        (f"01-{ID}-{PARENT}-01", True),
        (f"fe-{ID}-{PARENT}-01", True),
        (f"cc-{ID}-{PARENT}-01-what-the-future-will-be-like", True),
        (f"cc-{ID}-{PARENT}-01-", True),
        (f"00-{'0' * 31}1-{'0' * 15}1-01", True),
    ],
)
def test_a_trace_is_continued(given: str, sampled: bool) -> None:
    """W3C Trace Context: also of a version to come, as far as it is known."""
    trace = read_trace(given)
    assert trace
    assert (trace.id, trace.parent, trace.sampled) == (given[3:35], given[36:52], sampled)


@pytest.mark.parametrize(
    "given",
    [
        "",
        "00",
        ID,
        GOOD[:-1],
        f"{GOOD}0",
        f"{GOOD}.",
        f"{GOOD}-",
        f"{GOOD}-what-the-future-will-be-like",
        f"cc{GOOD[2:]}.what-the-future-will-not-be-like",
        f"cc{GOOD[2:]}-{'x' * 201}",
        f"cc{GOOD[2:]}-a\nb",
        f"ff{GOOD[2:]}",
        f"FE{GOOD[2:]}",
        f"0{GOOD}",
        f" {GOOD}",
        f"{GOOD} ",
        f"{GOOD}\n",
        f"{GOOD},{GOOD}",
        GOOD.upper(),
        f"00-{ID.upper()}-{PARENT}-01",
        f"00-{ID}-{PARENT.upper()}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{ID}-{'0' * 16}-01",
        f"00-{ID[1:]}-{PARENT}-01",
        f"00-{ID}0-{PARENT}-01",
        f"00-{ID}-{PARENT}-1",
        f"00-{ID}-{PARENT}-0g",
        f"00-{ID[:-1]}g-{PARENT}-01",
        f"00_{ID}_{PARENT}_01",
        f"00-{ID[:-1]}\u0661-{PARENT}-01",
    ],
)
def test_what_names_no_trace_begins_one(given: str) -> None:
    """The specification's invalid ones, and what could break a header or a log line."""
    assert read_trace(given) is None
    observation = Observation("request-one", given, "", 0.0, 0.0)
    assert observation.known_trace() is None
    trace = observation.keep_trace()
    assert observation.known_trace() == trace
    assert re.fullmatch(r"[0-9a-f]{32}", trace.id)
    assert trace.id != ID
    assert (trace.parent, trace.sampled) == ("", True)


@pytest.mark.parametrize(
    ("state", "parent"),
    [
        ("tiercel=edge", ""),
        ("", PARENT),
        ("tiercel=other", PARENT),
        ("vendor=1,tiercel=edge", PARENT),
        ("congo=t61rcWkgMzE", PARENT),
    ],
)
def test_a_trace_of_the_edge_has_no_parent(state: str, parent: str) -> None:
    """NGINX has made it, and has no span: what it names would be missing from every trace."""
    assert read_trace(GOOD, state) == Trace(ID, parent, sampled=True)


@pytest.mark.parametrize("ratio", [0, 1])
def test_all_or_none_of_the_traces_that_begin_here(ratio: float, queue: SpanQueue) -> None:
    """The ratio decides on those; of a trace that has begun elsewhere, whoever began it."""
    tracer = Tracer(ratio, 1.0, queue)
    assert tracer.wants(None, 0, failed=False) is bool(ratio)
    assert tracer.wants(Trace(ID, PARENT, sampled=True), 0, failed=False)
    assert not tracer.wants(Trace(ID, PARENT, sampled=False), 0, failed=False)


@pytest.mark.parametrize("drawn", [None, Trace(ID, "", sampled=True)])
def test_the_lot_falls_on_ten_a_second_at_most(
    drawn: Trace | None, queue: SpanQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it is drawn here or by NGINX. What others keep too, what failed and what was slow is not held back."""
    now = [1000.0]
    monkeypatch.setattr(tracing, "time", SimpleNamespace(monotonic=lambda: now[0]))
    tracer = Tracer(1.0, 1.0, queue)

    def wanted() -> bool:
        return tracer.wants(drawn, 0, failed=False)

    assert [wanted(), wanted()] == [True, False]
    assert tracer.wants(Trace(ID, PARENT, sampled=True), 0, failed=False)
    assert tracer.wants(drawn, 0, failed=True)
    assert tracer.wants(drawn, 1, failed=False)
    now[0] += 0.999 * LOT_SECONDS
    assert not wanted()
    now[0] += 0.002 * LOT_SECONDS
    assert [wanted(), wanted()] == [True, False]


def test_ids_are_made_anew() -> None:
    """Each is a trace of its own, of well-formed ids; more than are made at once."""
    traces = [new_trace() for _ in range(200)]
    assert len({trace.id for trace in traces}) == 200
    assert all(read_trace(trace.header(new_span_id())) for trace in traces)


def test_no_other_process_has_the_same_ids() -> None:
    """Also none that was forked while there were ids in store."""
    random_id()
    reading, writing = os.pipe()
    if not (child := os.fork()):
        os.write(writing, random_id().encode())
        os._exit(0)
    os.waitpid(child, 0)
    others = os.read(reading, 32).decode()
    os.close(reading)
    os.close(writing)
    assert others not in {random_id() for _ in range(200)}


@pytest.mark.parametrize("sampled", [True, False])
def test_others_are_told_of_the_trace(sampled: bool) -> None:
    """What goes out is what would be understood here."""
    assert read_trace(Trace(ID, "", sampled).header(PARENT)) == Trace(ID, PARENT, sampled)


def test_a_clock_tells_the_day() -> None:
    """Seconds of a counter that begins anywhere become nanoseconds of the day 1970, in the same steps."""
    clock = Clock()
    assert clock(2.5) - clock(1.0) == pytest.approx(1.5e9, abs=1000)


class FakeExporter(SpanExporter):
    """Keeps what it gets; `answer` may be an error, and nothing comes back while it `hangs`."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []
        self.answer: SpanExportResult | Exception = SpanExportResult.SUCCESS
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.called = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.called.set()
        assert self.goes_on.wait(60)
        if isinstance(self.answer, Exception):
            raise self.answer
        self.spans += spans
        return self.answer


@pytest.fixture
def exporter() -> Iterator[FakeExporter]:
    exporter = FakeExporter()
    yield exporter
    exporter.goes_on.set()


@pytest.fixture
def queue(exporter: FakeExporter) -> Iterator[SpanQueue]:
    queue = SpanQueue(exporter, "tiercel-test")
    yield queue
    exporter.goes_on.set()
    queue._processor.shutdown()


class Spans:
    """How many have been counted since this was made."""

    def __init__(self) -> None:
        self._before = [SPANS.of(outcome).get() for outcome in ("exported", "dropped")]

    def __call__(self) -> tuple[float, float]:
        """Exported, dropped."""
        exported, dropped = (
            SPANS.of(outcome).get() - before
            for outcome, before in zip(("exported", "dropped"), self._before, strict=True)
        )
        return exported, dropped


@pytest.fixture
def counted() -> Spans:
    return Spans()


def span(name: str = "work", **more: Any) -> Span:
    return Span(name, 1000, 2000, **more)


def test_nothing_is_kept_where_nobody_takes_traces() -> None:
    """Whatever the ratio: no queue, no thread, no trouble."""
    for tracer in (NO_TRACES, open_tracer("", 1.0, 0.0, "tiercel-test"), Tracer(1.0, 0.0)):
        assert tracer.ratio == 0
        assert not tracer.wants(Trace(ID, "", sampled=True), 1e9, failed=True)
        tracer.record(Trace(ID, "", sampled=True), span())
        tracer.flush()


@pytest.mark.parametrize(
    ("sampled", "seconds", "failed", "wanted"),
    [
        (False, 0.999, False, False),
        (True, 0, False, True),
        (False, 0, True, True),
        (False, 1, False, True),
        (True, 2, True, True),
    ],
)
def test_what_is_worth_keeping(sampled: bool, seconds: float, failed: bool, wanted: bool, queue: SpanQueue) -> None:
    """What was drawn, what has failed, and what was slow, at the bound too."""
    assert Tracer(0.0, 1.0, queue).wants(Trace(ID, "", sampled), seconds, failed=failed) is wanted


def test_spans_are_what_they_were_told_to_be(queue: SpanQueue, exporter: FakeExporter, counted: Spans) -> None:
    """Ids, parents, link, kind, times, attributes without those that say nothing, status, and whose they are."""
    root = span("POST /v2", kind="SERVER", error="status 500", attributes={"a": 1, "b": "", "c": None, "d": 0})
    parts = [span("queue"), span("inference", attributes={"tiercel.rows": 4})]
    link = new_span_id()
    tracer = Tracer(1.0, 0.0, queue)
    tracer.record(Trace(ID, PARENT, sampled=True), root, parts, link)
    tracer.flush()
    found = {each.name: each for each in exporter.spans}
    assert found.keys() == {"POST /v2", "queue", "inference"}
    assert {f"{each.context.trace_id:032x}" for each in exporter.spans if each.context} == {ID}
    first = found["POST /v2"]
    assert first.context
    assert first.parent
    assert (f"{first.context.span_id:016x}", f"{first.parent.span_id:016x}") == (root.id, PARENT)
    assert (first.kind, first.start_time, first.end_time) == (SpanKind.SERVER, 1000, 2000)
    assert (first.status.status_code, first.status.description) == (StatusCode.ERROR, "status 500")
    assert dict(first.attributes or {}) == {"a": 1, "d": 0}
    assert [f"{each.context.span_id:016x}" for each in first.links] == [link]
    assert {f"{each.parent.span_id:016x}" for name, each in found.items() if name != "POST /v2" and each.parent} == {
        root.id
    }
    assert found["inference"].kind is SpanKind.INTERNAL
    assert found["inference"].status.status_code is StatusCode.UNSET
    assert dict(found["inference"].attributes or {}) == {"tiercel.rows": 4}
    assert not found["inference"].links
    assert first.resource.attributes["service.name"] == "tiercel-test"
    assert len({each.context.span_id for each in exporter.spans if each.context}) == 3
    wait_until(lambda: counted() == (3, 0), "they are counted")


def test_a_root_has_no_parent(queue: SpanQueue, exporter: FakeExporter) -> None:
    """Of a trace that begins here, or at the edge."""
    queue.put(Trace(ID, "", sampled=False), span(), (), "")
    queue.flush()
    [root] = exporter.spans
    assert root.parent is None
    assert not root.links


def test_as_many_wait_as_may(queue: SpanQueue, exporter: FakeExporter, counted: Spans) -> None:
    """MAX_WAITING are kept while nothing goes out; one more is dropped and counted, and there is room again after."""
    trace = Trace(ID, "", sampled=True)
    exporter.goes_on.clear()
    for _ in range(MAX_WAITING):
        queue.put(trace, span(), (), "")
    assert counted() == (0, 0)
    queue.put(trace, span(), (), "")
    assert counted() == (0, 1)
    exporter.goes_on.set()
    queue.flush()
    wait_until(lambda: counted() == (MAX_WAITING, 1), "all have gone out")
    assert len(exporter.spans) == MAX_WAITING
    queue.put(trace, span(), (), "")
    queue.flush()
    wait_until(lambda: counted() == (MAX_WAITING + 1, 1), "there is room again")


def test_a_request_is_kept_whole_or_not_at_all(queue: SpanQueue, exporter: FakeExporter, counted: Spans) -> None:
    """Where there is room for its root and not for its parts, all are dropped, and counted."""
    trace = Trace(ID, "", sampled=True)
    exporter.goes_on.clear()
    for _ in range(MAX_WAITING - 2):
        queue.put(trace, span(), (), "")
    queue.put(trace, span(), [span(), span()], "")
    assert counted() == (0, 3)
    queue.put(trace, span(), [span()], "")
    assert counted() == (0, 3)


@pytest.mark.parametrize("answer", [SpanExportResult.FAILURE, OSError("nobody is there")])
def test_what_nobody_takes_is_counted(
    answer: SpanExportResult | Exception, queue: SpanQueue, exporter: FakeExporter, counted: Spans
) -> None:
    """An exporter that fails costs its spans and nothing else: the next go out."""
    trace = Trace(ID, "", sampled=True)
    exporter.answer = answer
    queue.put(trace, span(), [span()], "")
    queue.flush()
    wait_until(lambda: counted() == (0, 2), "they are counted")
    exporter.answer = SpanExportResult.SUCCESS
    queue.put(trace, span(), (), "")
    queue.flush()
    wait_until(lambda: counted() == (1, 2), "the next goes out")


def test_nobody_waits_for_an_exporter_that_hangs(queue: SpanQueue, exporter: FakeExporter, counted: Spans) -> None:
    """Not who records, which drops what is too much; and not who ends, whose flush gives up."""
    tracer, trace = Tracer(1.0, 0.0, queue), Trace(ID, "", sampled=True)
    exporter.goes_on.clear()
    tracer.record(trace, span())
    assert exporter.called.wait(20)
    for _ in range(2 * MAX_WAITING):
        tracer.record(trace, span())
    assert counted() == (0, MAX_WAITING + 1)
    tracer.flush()
    assert counted() == (0, MAX_WAITING + 1)
    assert exporter.spans == []


def test_threads_that_record_at_once_lose_none(queue: SpanQueue, counted: Spans) -> None:
    """All are exported or counted as dropped."""

    def work() -> None:
        for _ in range(1000):
            queue.put(Trace(ID, "", sampled=True), span(), [span()], "")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_until(lambda: sum(counted()) == 8000, "all are accounted for")


class Receiver:
    """Takes OTLP over HTTP, as Jaeger does; `spans` are those that came."""

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert (self.path, self.headers["Content-Type"]) == ("/v1/traces", "application/x-protobuf")
                receiver.requests.append(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}/v1/traces"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def spans(self) -> list[Any]:
        return [
            each
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for each in scope.spans
        ]

    @property
    def services(self) -> set[str]:
        return {
            attribute.value.string_value
            for request in self.requests
            for resource in request.resource_spans
            for attribute in resource.resource.attributes
            if attribute.key == "service.name"
        }


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


def attributes(span: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


@pytest.fixture
def traced(zoo: Zoo, tmp_path: Path, receiver: Receiver) -> Iterator[tuple[TestClient, Tracer]]:
    """The real application, of whose requests only those are kept that say so, or fail."""
    zoo.scale()
    services = start(zoo.root, tmp_path / "state")
    tracer = open_tracer(receiver.endpoint, 0.0, 1e9, "tiercel-api")
    yield TestClient(create_app(services, observer=Observer(tracer))), tracer
    services.rollout.stop()
    assert tracer.queue
    tracer.queue._processor.shutdown()


def test_a_request_is_traced_to_whoever_takes_otlp(
    traced: tuple[TestClient, Tracer], receiver: Receiver, counted: Spans
) -> None:
    """Its stages within it, one after the other, in the trace that the client has begun."""
    client, tracer = traced
    body = {"instances": [[1, 2, 3], [4, 5, 6]]}
    client.simulate_post("/v1/models/scale:predict", json=body)
    answer = client.simulate_post(
        "/v1/models/scale:predict", json=body, headers={"traceparent": GOOD, "X-Request-ID": "request-one"}
    )
    assert answer.status_code == 200
    tracer.flush()
    wait_until(lambda: counted() == (4, 0), "they have gone out")
    found = {each.name: each for each in receiver.spans}
    root = found.pop("POST /v1/models/{model}:predict")
    assert found.keys() == {"preprocess", "inference", "postprocess"}
    assert (root.trace_id.hex(), root.parent_span_id.hex()) == (ID, PARENT)
    assert attributes(root) == {
        "http.request.method": "POST",
        "http.route": "/v1/models/{model}:predict",
        "http.response.status_code": 200,
        "tiercel.request_id": "request-one",
        "tiercel.model": "scale",
        "tiercel.version": "1",
    }
    assert attributes(found["inference"]) == {"tiercel.rows": 2}
    assert {each.trace_id for each in found.values()} == {root.trace_id}
    assert {each.parent_span_id for each in found.values()} == {root.span_id}
    order = [found[name] for name in ("preprocess", "inference", "postprocess")]
    moments = [moment for each in order for moment in (each.start_time_unix_nano, each.end_time_unix_nano)]
    assert moments == sorted(moments)
    # The parts are of one clock, and within the whole.
    assert root.start_time_unix_nano <= moments[0]
    assert moments[-1] <= root.end_time_unix_nano
    assert root.status.code == StatusCode.UNSET.value
    assert receiver.services == {"tiercel-api"}


class Keeping:
    """What keeps the trace of every request, as the submission of a job does."""

    def process_resource(self, req: Any, *_: Any) -> None:
        req.context.observation.keep_trace()


def test_who_says_so_has_every_trace_kept(
    traced: tuple[TestClient, Tracer], receiver: Receiver, counted: Spans
) -> None:
    """More of them than the lot may fall on."""
    client, tracer = traced
    client.app.add_middleware(Keeping())
    for _ in range(5):
        assert client.simulate_get("/v1/models").status_code == 200
    tracer.flush()
    wait_until(lambda: counted() == (5, 0), "they have gone out")
    assert len({each.trace_id for each in receiver.spans}) == 5


def test_a_request_that_fails_is_kept_though_nobody_asked(
    traced: tuple[TestClient, Tracer], receiver: Receiver, counted: Spans
) -> None:
    """An error of the server is; one of the client is not."""
    client, tracer = traced
    late = {"X-Request-Timeout-Ms": "1", "X-Request-Start": "t=1"}
    for headers, status in (({"X-Request-Timeout-Ms": "none"}, 400), (late, 504)):
        answer = client.simulate_post("/v1/models/scale:predict", json={"instances": [[1, 2, 3]]}, headers=headers)
        assert answer.status_code == status
    tracer.flush()
    wait_until(lambda: sum(counted()) > 0, "they have gone out")
    [root] = [each for each in receiver.spans if not each.parent_span_id]
    assert attributes(root)["http.response.status_code"] == 504
    assert root.status.code == StatusCode.ERROR.value
    assert root.status.message == "status 504"


def test_what_waits_is_sent_at_the_end(receiver: Receiver) -> None:
    """As a process does that ends: also what was recorded a moment before."""
    program = f"""
import atexit
from observability.tracing import Span, Trace, open_tracer
tracer = open_tracer({receiver.endpoint!r}, 1.0, 0.0, "tiercel-test")
atexit.register(tracer.flush)
for number in range(600):
    tracer.record(Trace({ID!r}, "", True), Span(f"work {{number}}", 1, 2))
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=60)
    assert {each.name for each in receiver.spans} == {f"work {number}" for number in range(600)}


def test_a_process_ends_though_nobody_takes_its_spans() -> None:
    """It says nothing of them that would fill a log, and it does not wait for ever."""
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as silent:  # which accepts, in the kernel
        program = f"""
import atexit
from observability.tracing import Span, Trace, open_tracer
tracer = open_tracer("http://127.0.0.1:{silent.server_port}/v1/traces", 1.0, 0.0, "tiercel-test")
atexit.register(tracer.flush)
for number in range(5000):
    tracer.record(Trace({ID!r}, "", True), Span("work", 1, 2))
"""
        done = subprocess.run([sys.executable, "-c", program], check=True, timeout=60, capture_output=True, text=True)
    assert len(done.stderr.splitlines()) < 50
