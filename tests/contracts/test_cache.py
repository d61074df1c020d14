"""The cache of several workers with one Redis, which is lost in every way under load: no prediction is."""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from fault_proxy import FaultProxy
from load import Load
from model_zoo import Zoo
from redis_server import RedisServer
from servers import Answer, Server, wait_until

PREDICT, SLOW = "/v1/models/scale:predict", "/v1/models/slow:predict"
BODIES = [{"instances": [[1, 2, 3]]}, {"instances": [[4, 5, 6], [7, 8, 9]]}]
HIT = "tiercel; hit"


class Stage:
    """A server of two workers that remember nothing themselves, and a Redis behind a proxy."""

    def __init__(self, server: Server, redis: RedisServer, proxy: FaultProxy) -> None:
        self.server, self.redis, self.proxy = server, redis, proxy

    def hits(self, count: int = 8) -> bool:
        """Whether every one of so many questions, whichever worker takes it, is answered from the cache."""
        return all(self.server.post(PREDICT, BODIES[i % 2]).headers["Cache-Status"] == HIT for i in range(count))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    zoo = Zoo(tmp_path_factory.mktemp("cache") / "models")
    for path in (zoo.scale(), zoo.slow()):
        (path.parent / "model.toml").write_text('cache = "on"\n')
    return zoo.root


@pytest.fixture(scope="module")
def shared_stage(repository: Path, worker_class: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with (
        RedisServer(tmp_path_factory.mktemp("redis")) as redis,
        FaultProxy(redis.address) as proxy,
        Server(repository, worker_class, workers=2, cache_url=proxy.url, cache_local_bytes=0) as server,
    ):
        wait_until(lambda: len(server.workers()) == 2, "both workers have started")
        yield Stage(server, redis, proxy)


@pytest.fixture
def stage(shared_stage: Stage) -> Iterator[Stage]:
    """With all that it needs, and an empty cache. Nothing that happens to Redis ends a worker."""
    server, before = shared_stage.server, set(shared_stage.server.workers())
    shared_stage.redis.admin.flushall()
    wait_until(shared_stage.hits, "the cache is in use")
    yield shared_stage
    assert set(server.workers()) == before, server.log()[-3000:]


@contextmanager
def mode(stage: Stage, *mode: Any) -> Iterator[None]:
    stage.proxy.set(*mode)
    yield
    stage.proxy.set("pass")


@contextmanager
def killed(stage: Stage) -> Iterator[None]:
    """With SIGKILL and all that it knew; another takes its place, and once more."""
    stage.redis.restart()
    stage.redis.kill()
    yield
    stage.redis.start()


@contextmanager
def flushed(stage: Stage) -> Iterator[None]:
    """Time and again."""
    over = threading.Event()
    thread = threading.Thread(
        target=lambda: [stage.redis.admin.flushall() for _ in iter(lambda: over.wait(0.02), True)]
    )
    thread.start()
    yield
    over.set()
    thread.join(20)


FAULTS: dict[str, Callable[[Stage], AbstractContextManager[None]]] = {
    "refused": lambda stage: mode(stage, "refuse"),
    "black hole": lambda stage: stage.redis.stopped(),
    "200 ms slow": lambda stage: mode(stage, "delay", 0.2),
    "flapping": lambda stage: mode(stage, "flap", 0.5),
    "cut in the middle of replies": lambda stage: mode(stage, "cut", 9),
    "loading": lambda stage: mode(stage, "say", 0, b"-LOADING Redis is loading the dataset in memory\r\n"),
    "full": lambda stage: stage.redis.configured(maxmemory_policy="noeviction", maxmemory=1),
    "killed": killed,
    "flushed": flushed,
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_no_prediction_is_lost_with_redis_and_hits_come_back(
    fault: Callable[[Stage], AbstractContextManager[None]], stage: Stage
) -> None:
    """Each is answered, and right: from before the fault until after it."""
    expected = [stage.server.post(PREDICT, body, Cache_Control="no-store").body for body in BODIES]
    with ExitStack() as stack:
        loads = [stack.enter_context(Load(stage.server, PREDICT, body, rate=50, clients=2)) for body in BODIES]
        _more(loads, 10)
        with fault(stage):
            _more(loads, 60)
        wait_until(stage.hits, "hits come back")
        _more(loads, 10)
    assert [load.failed for load in loads] == [{}, {}]
    assert [load.bodies for load in loads] == [{body} for body in expected]


def _more(loads: list[Load], count: int) -> None:
    before = [load.sent for load in loads]
    wait_until(
        lambda: all(load.sent >= sent + count for load, sent in zip(loads, before, strict=True)), "more requests"
    )


def test_of_a_hundred_who_ask_the_same_at_once_one_is_computed_for(
    repository: Path, worker_class: str, tmp_path: Path
) -> None:
    """Over all workers of two servers with one Redis, which has as long as it needs: others use these cores.

    For the same reason the model is quicker than its warm-up: who computes has many times what it usually takes.
    """
    with RedisServer(tmp_path) as redis, ExitStack() as stack:
        settings = {"workers": 2, "cache_url": redis.url, "redis_timeout_ms": 5000}
        servers = [stack.enter_context(Server(repository, worker_class, **settings)) for _ in range(2)]
        wait_until(lambda: all(len(server.workers()) == 2 for server in servers), "all workers have started")
        for first in range(1, 5):
            said = _ask_all_at_once(servers, 100, first)
            assert said["tiercel; fwd=miss; stored"] == 1, said
            assert said.keys() <= {HIT, "tiercel; fwd=miss; stored", "tiercel; fwd=miss; collapsed"}


def _ask_all_at_once(servers: list[Server], count: int, first: int) -> "Counter[str]":
    """What the answers say of the cache. All of them are right."""
    with ExitStack() as stack:
        clients = [stack.enter_context(closing(servers[i % len(servers)].http())) for i in range(count)]
        for client in clients:
            client.request("POST", SLOW, json.dumps({"instances": [[first, 2, 3]]}))
        answers = [Answer(client.getresponse()) for client in clients]
    assert Counter(answer.status for answer in answers) == {200: count}
    assert len({answer.body for answer in answers}) == 1
    assert answers[0].json()["predictions"] == [[2 * first, 4, 6]]
    return Counter(answer.headers["Cache-Status"] for answer in answers)
