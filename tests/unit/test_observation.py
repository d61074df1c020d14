import calendar
import gc
import json
import re
import sys
import threading
import time
import weakref
from typing import Any, cast

import falcon
import msgspec
import numpy as np
import pytest
from builders import manifest, tensor
from falcon.testing import create_environ
from servers import wait_until

from inference_api.observation.figures import NO_ROUTE, QUIET, Figures
from inference_api.observation.observer import BATCH, Observer
from inference_api.observation.request import Observation
from inference_api.observation.sink import Sink
from inference_core.model import Model
from inference_core.predictor import Prediction
from observability import families
from observability.exposition import by_label, collect, totals
from observability.metrics import OTHER, REGISTRY, Memory
from observability.tracing import NO_TRACES

PREDICT = "/v1/models/{model}:predict"
STAGES = ("input", "infer", "output")


class FakeModel:
    def __init__(self, name: str) -> None:
        self.manifest = msgspec.structs.replace(manifest([tensor("FP32", -1, 2)]), name=name)


class Exchange:
    """A request in the middle of its middleware."""

    def __init__(self, observer: Observer, method: str = "GET", route: str | None = PREDICT, **headers: str) -> None:
        self._observer = observer
        fields = {f"HTTP_{name.upper()}": value for name, value in headers.items()}
        self.request = falcon.Request(create_environ(method=method) | fields)
        self.request.uri_template = route
        self.response = falcon.Response()
        observer.process_request(self.request, self.response)

    @property
    def observation(self) -> Observation:
        observation: Observation = self.request.context.observation
        return observation

    @property
    def id(self) -> str:
        return str(self.request.context.request_id)

    def predicts(self, model: str, cache: str = "", **seconds: float) -> None:
        """As the resource does; each stage may take some seconds more than it does."""
        observation = self.observation
        observation.model = cast(Model, FakeModel(model))
        observation.read = time.perf_counter()
        began = observation.read + 1e-6
        observation.prediction = Prediction([np.zeros((4, 2))], began, cache=cache, rows=4, **seconds)
        observation.predicted = time.perf_counter()

    def ends(self, status: int = 200, data: bytes = b"answer") -> None:
        self.response.status = falcon.code_to_http_status(status)
        self.response.data = data
        self._observer.process_response(self.request, self.response, None, True)

    def server_timing(self) -> dict[str, float]:
        """In seconds."""
        text = self.response.get_header("Server-Timing")
        return {part.split(";dur=")[0]: float(part.split(";dur=")[1]) / 1e3 for part in text.split(", ")}


class Out:
    """What is written, and how often; `error` is raised instead."""

    def __init__(self) -> None:
        self.text = b""
        self.writes = 0
        self.error: Exception | None = None

    def write(self, text: bytes, lines: int) -> None:
        if self.error:
            raise self.error
        assert text.count(b"\n") == lines
        self.text += text
        self.writes += 1

    def lines(self) -> list[dict[str, Any]]:
        text = self.text.decode()
        assert not text or text.endswith("\n")
        return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(autouse=True)
def own_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """From zero, and with room for all series of a test, whatever others have counted in this process."""
    monkeypatch.setattr(REGISTRY, "memory", Memory())
    for family in REGISTRY.families.values():
        monkeypatch.setattr(family, "_series", {})


@pytest.fixture
def out() -> Out:
    return Out()


@pytest.fixture
def observer(out: Out) -> Observer:
    return Observer(NO_TRACES, cast(Sink, out))


def request_id(given: str | None) -> str:
    exchange = Exchange(Observer(NO_TRACES), **({} if given is None else {"x_request_id": given}))
    exchange.ends()
    assert exchange.response.get_header("X-Request-ID") == exchange.id
    return exchange.id


@pytest.mark.parametrize("given", ["12345678", "a" * 64, "0af7651916cd43dd-8448eb211c80319c", "ABC-xyz-009"])
def test_a_well_formed_id_is_kept(given: str) -> None:
    """Letters, digits and dashes, 8 to 64 of them."""
    assert request_id(given) == given


@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        "1234567",
        "a" * 65,
        "two words",
        "abcdefgh\r\nSet-Cookie: a=b",
        "abcdefgh\n",
        "<script>alert()",
        "caf\u00e9-caf\u00e9",
        "12345678,12345678",
    ],
)
def test_any_other_id_is_replaced(given: str | None) -> None:
    """What could break a header or a log line never gets there."""
    made = request_id(given)
    assert re.fullmatch(r"[0-9a-f]{32}", made)
    assert made != request_id(given)


def test_a_request_is_one_line(observer: Observer, out: Out) -> None:
    """Whose, what, how it ended and how long it took; what there is nothing to say of is not there."""
    trace = "0af7651916cd43dd8448eb211c80319c"
    exchange = Exchange(
        observer, "POST", PREDICT, x_request_id="request-one", traceparent=f"00-{trace}-b7ad6b7169203331-01"
    )
    exchange.ends(404, b"12345")
    observer.flush()
    [line] = out.lines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line.pop("timestamp"))
    assert line.pop("seconds") >= 0
    assert line == {
        "level": "info",
        "logger": "tiercel.request",
        "service": "api",
        "event": "request",
        "request_id": "request-one",
        "trace_id": trace,
        "method": "POST",
        "route": PREDICT,
        "status": 404,
        "bytes": 5,
    }


def test_the_line_of_a_prediction(observer: Observer, out: Out) -> None:
    """Its model, its rows, its stages, and how the cache took part."""
    exchange = Exchange(observer, "POST", x_request_start=f"t={time.time() - 6:.3f}")
    exchange.predicts("line", "fwd=miss; stored", input_seconds=0.25, infer_seconds=0.5, cache_seconds=0.125)
    exchange.ends()
    observer.flush()
    [line] = out.lines()
    assert (line["model"], line["version"], line["rows"]) == ("line", "7", 4)
    assert (line["cache"], line["cache_seconds"], line["infer_seconds"]) == ("fwd=miss; stored", 0.125, 0.5)
    assert line["input_seconds"] >= 0.25
    assert line["queue_seconds"] >= 5
    assert line["seconds"] >= line["queue_seconds"]


def test_the_time_of_a_line_is_that_of_the_end(observer: Observer, out: Out) -> None:
    """Not of the arrival, and not with the time in NGINX's queue added to it."""
    before = time.time()
    Exchange(observer, x_request_start="t=1").ends()
    after = time.time()
    observer.flush()
    at = time.strptime(out.lines()[0]["timestamp"][:19], "%Y-%m-%dT%H:%M:%S")
    assert int(before) <= calendar.timegm(at) <= after


@pytest.mark.parametrize("path", QUIET)
def test_who_asks_whether_all_is_well_is_not_worth_a_line(path: str, observer: Observer, out: Out) -> None:
    """Unless it is not; and a request that was refused on such a path is the client's affair."""
    for status in (200, 404, 499):
        Exchange(observer, route=path).ends(status)
    observer.flush()
    assert out.lines() == []
    for status in (500, 503):
        Exchange(observer, route=path).ends(status)
    observer.flush()
    assert [line["status"] for line in out.lines()] == [500, 503]


def test_what_a_client_has_made_up_breaks_no_line(observer: Observer, out: Out) -> None:
    """A method, which may be anything, and what is not one."""
    for method in ('A"B', "A\\B", "A\nB"):
        Exchange(observer, method, None).ends(400)
    observer.flush()
    assert [(line["method"], line["route"]) for line in out.lines()] == [
        (method, NO_ROUTE) for method in ('A"B', "A\\B", "A\nB")
    ]


def test_a_batch_is_written_when_it_is_full(observer: Observer, out: Out) -> None:
    """Not one request earlier; in one piece, as other processes write there too; and once."""
    for _ in range(BATCH - 1):
        Exchange(observer).ends()
    assert (out.lines(), out.writes) == ([], 0)
    last = Exchange(observer)
    last.ends()
    assert (len(out.lines()), out.writes) == (BATCH, 1)
    assert out.lines()[-1]["request_id"] == last.id
    observer.flush()
    assert (len(out.lines()), out.writes) == (BATCH, 1)


def test_nothing_waits_for_a_batch_for_ever(observer: Observer, out: Out) -> None:
    """Once it is started, a few requests are written too."""
    observer.start()
    Exchange(observer).ends()
    wait_until(out.lines, "its line is written")


def test_a_request_that_is_given_up_is_written_at_once(observer: Observer, out: Out) -> None:
    """With those that wait, as its process is about to end."""
    first, given_up = Exchange(observer), Exchange(observer, "POST")
    first.ends()
    assert out.lines() == []
    observer.abandon(given_up.request, 504)
    assert [(line["request_id"], line["status"]) for line in out.lines()] == [(first.id, 200), (given_up.id, 504)]


def test_without_a_place_for_lines_there_are_none() -> None:
    """What is counted is counted all the same."""
    observer, before = Observer(NO_TRACES), _requests(PREDICT)
    for _ in range(BATCH):
        Exchange(observer).ends()
    assert _requests(PREDICT) - before == BATCH


def test_a_request_is_answered_though_its_line_cannot_be_written(
    observer: Observer, out: Out, capsys: pytest.CaptureFixture[str]
) -> None:
    """A full disk is no reason to fail: numbers are counted, and lines go on once there is room."""
    before = totals(collect(None).numbers, families.REQUEST_SECONDS, route="/full")
    out.error = OSError(28, "No space left on device")
    for _ in range(BATCH):
        Exchange(observer, route="/full").ends()
    after = totals(collect(None).numbers, families.REQUEST_SECONDS, route="/full")
    assert sum(after[:-1]) - sum(before[:-1]) == BATCH
    out.error = None
    Exchange(observer).ends()
    observer.flush()
    assert len(out.lines()) == 1
    capsys.readouterr()


def test_that_a_request_was_answered_is_counted_at_once(observer: Observer) -> None:
    """Before its batch is full: no kill loses it."""
    before = _requests("/at-once")
    Exchange(observer, route="/at-once").ends()
    assert _requests("/at-once") - before == 1


def test_a_request_is_in_flight_until_it_ends(observer: Observer) -> None:
    """However it ends."""

    def in_flight() -> float:
        observer.flush()
        return families.IN_FLIGHT.of().get()

    first, second = Exchange(observer), Exchange(observer)
    assert in_flight() == 2
    first.ends(500)
    assert in_flight() == 1
    observer.abandon(second.request, 503)
    assert in_flight() == 0


def test_methods_that_a_client_has_made_up_are_one(observer: Observer) -> None:
    """No label is made of them, and nothing remembers them."""
    before = by_label(collect(None).numbers, families.REQUESTS, "method", route="/made-up")
    remembered = len(observer._figures._kinds)
    for number in range(100):
        Exchange(observer, f"MADE-UP-{number}", "/made-up").ends(405)
    Exchange(observer, "DELETE", "/made-up").ends(405)
    after = by_label(collect(None).numbers, families.REQUESTS, "method", route="/made-up")
    assert after.keys() == {OTHER, "DELETE"}
    assert after[OTHER] - before.get(OTHER, 0) == 100
    assert len(observer._figures._kinds) == remembered + 2


def test_paths_without_a_route_are_one(observer: Observer) -> None:
    """All of them are one series, whatever they are."""
    before = by_label(collect(None).numbers, families.REQUESTS, "status", route=NO_ROUTE, method="PATCH")
    for status in (404, 400):
        Exchange(observer, "PATCH", None).ends(status)
    after = by_label(collect(None).numbers, families.REQUESTS, "status", route=NO_ROUTE, method="PATCH")
    assert {status: after[status] - before.get(status, 0) for status in ("404", "400")} == {"404": 1, "400": 1}


def test_timings_of_what_predicts_nothing(observer: Observer) -> None:
    """The whole, and nothing else."""
    exchange = Exchange(observer)
    exchange.ends()
    assert exchange.server_timing().keys() == {"total"}
    assert exchange.server_timing()["total"] >= 0


@pytest.mark.parametrize("cache", ["", "hit", "fwd=miss; stored"])
@pytest.mark.parametrize("queued", [False, True])
def test_timings_add_up(cache: str, queued: bool, observer: Observer) -> None:
    """None is negative, and together they are at most the whole."""
    exchange = Exchange(observer, **({"x_request_start": f"t={time.time() - 3:.3f}"} if queued else {}))
    exchange.predicts("timings", cache)
    exchange.ends()
    timing = exchange.server_timing()
    total = timing.pop("total")
    assert set(timing) == {*STAGES, *(("queue", "cache") if queued else ())}
    assert all(seconds >= 0 for seconds in timing.values())
    # Each is rounded to a microsecond.
    assert sum(timing.values()) <= total + 1e-6 * (len(timing) + 1)
    assert (timing.get("queue", 0) >= 2) is queued


@pytest.mark.parametrize("stamp", ["t=9999999999", "t=-5", "t=nan", "t=1e9", "5", ""])
def test_a_stamp_that_cannot_be_makes_nothing_negative(stamp: str, observer: Observer, out: Out) -> None:
    """Of the future, or no number: it has not waited."""
    exchange = Exchange(observer, x_request_start=stamp)
    exchange.predicts("stamps")
    exchange.ends()
    observer.flush()
    timing = exchange.server_timing()
    assert timing.keys() == {"total", *STAGES}
    assert min(timing.values()) >= 0
    assert "queue_seconds" not in out.lines()[0]


def test_cpu_time_is_that_of_who_was_busy() -> None:
    """By how long each took, without what it waited for; of what predicts nothing it is no model's."""
    clock = iter([10.0, 16.0, 17.0])
    observer = Observer(NO_TRACES, figures=Figures(lambda: next(clock)))
    for model, took, queued in (("quick", 1, 0), ("slow", 2, 100), ("", 3, 100)):
        exchange = Exchange(observer, x_request_start=f"t={time.time() - queued:.3f}" if queued else "")
        if model:
            exchange.predicts(model)
        exchange.observation.began -= took
        exchange.ends()
    observer.flush()
    assert _cpu_of("quick", "slow") == pytest.approx([1, 2], rel=0.01)
    assert totals(collect(None).numbers, families.PROCESS_CPU_SECONDS) == [6]
    exchange = Exchange(observer)
    exchange.predicts("quick", "hit", cache_seconds=100)
    exchange.observation.began -= 101
    exchange.ends()
    observer.flush()
    assert _cpu_of("quick", "slow") == pytest.approx([2, 2], rel=0.01)


@pytest.mark.parametrize(
    ("cache", "outcome"),
    [
        ("", None),
        ("hit", "hit"),
        ("fwd=miss; collapsed", "coalesced"),
        ("fwd=miss; stored", "miss"),
        ("fwd=miss", "unkept"),
        ("fwd=request; stored", "refreshed"),
        ("fwd=request", "unkept"),
        ("fwd=bypass", "bypass"),
    ],
)
def test_a_prediction_is_counted_stage_by_stage(cache: str, outcome: str | None, observer: Observer) -> None:
    """Each stage once; an inference only where there was one, and the cache only where it took part."""
    model = f"counted-{cache}"
    computed = outcome not in ("hit", "coalesced")
    exchange = Exchange(observer)
    exchange.predicts(model, cache, infer_seconds=0.5 if computed else 0.0, cache_seconds=0.03 if cache else 0.0)
    exchange.ends()
    observer.flush()
    numbers = collect(None).numbers

    def times(family: Any) -> tuple[float, float]:
        *counts, seconds = totals(numbers, family, model=model)
        return sum(counts), seconds

    assert totals(numbers, families.ROWS, model=model) == [4]
    assert times(families.INPUT_SECONDS)[0] == times(families.OUTPUT_SECONDS)[0] == 1
    assert times(families.INFER_SECONDS) == ((1, 0.5) if computed else (0, 0))
    assert times(families.CACHE_SECONDS) == ((1, 0.03) if cache else (0, 0))
    outcomes = by_label(numbers, families.CACHE_REQUESTS, "outcome", model=model)
    assert outcomes == ({outcome: 1} if outcome else {})
    assert times(families.REQUEST_SECONDS)[0] == 1


def test_the_answer_does_not_wait_for_its_batch(observer: Observer) -> None:
    """Nothing that is large is kept until its line is written."""
    exchange = Exchange(observer)
    exchange.predicts("let-go")
    assert exchange.observation.prediction
    answer = weakref.ref(exchange.observation.prediction.answer[0])
    exchange.ends()
    assert answer() is not None
    del exchange
    gc.collect()
    assert answer() is None


def test_kinds_that_are_new_to_several_threads_at_once_are_one(observer: Observer) -> None:
    """Each is a row of the table, and nobody else's."""
    threads, rounds = 8, 40
    start = threading.Barrier(threads)

    def work(number: int) -> None:
        for at in range(rounds):
            start.wait()
            Exchange(observer, route=f"/new-{at}-{number % 2}").ends()

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        sys.setswitchinterval(before)
    observer.flush()
    kinds = observer._figures._kinds.values()
    assert len({kind.row for kind in kinds}) == len(kinds) == 2 * rounds
    for kind in kinds:
        *counts, _ = totals(collect(None).numbers, families.REQUEST_SECONDS, route=kind.route)
        assert sum(counts) == threads / 2


def test_what_comes_while_others_are_written_waits_for_the_next(observer: Observer, out: Out) -> None:
    """Of several threads, no request is lost and none is written twice."""
    threads, each = 8, 200
    start = threading.Barrier(threads)

    def work() -> None:
        start.wait()
        for _ in range(each):
            Exchange(observer, route="/many").ends()

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        observer.flush()
    observer.flush()
    assert len({line["request_id"] for line in out.lines()}) == len(out.lines()) == threads * each
    *counts, _ = totals(collect(None).numbers, families.REQUEST_SECONDS, route="/many")
    assert sum(counts) == _requests("/many") == threads * each


def _requests(route: str) -> float:
    return totals(collect(None).numbers, families.REQUESTS, route=route)[0]


def _cpu_of(*models: str) -> list[float]:
    numbers = collect(None).numbers
    return [totals(numbers, families.CPU_SECONDS, model=model)[0] for model in models]
