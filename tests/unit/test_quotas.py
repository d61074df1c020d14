"""Quotas over several workers, each a `Quotas` of its own, with a real Redis."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from redis import Redis
from servers import wait_until

from inference_api.serve import _redis
from inference_core import quotas as module
from inference_core.errors import QuotaExceeded
from inference_core.policy import Quota
from inference_core.quotas import LEASE_SECONDS, MAX_CLIENTS, MAX_LEASE, Allowance, Quotas
from inference_core.store import Store, open_store

HUNDRED = Quota(100, 60)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        """Whoever keeps house sleeps for ever: a test does it in its stead."""
        threading.Event().wait()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Time of the workers, which stands still unless a test moves it; Redis has its own."""
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    with _redis(tmp_path / "redis.sock"):
        wait_until((tmp_path / "redis.sock").is_socket, "Redis has started")
        yield f"unix://{tmp_path}/redis.sock"


@pytest.fixture
def redis(url: str) -> Iterator["Redis"]:
    with Redis.from_url(url) as client:
        yield client


@pytest.fixture
def workers(url: str) -> Iterator[Callable[[int], list[Quotas]]]:
    """Some workers that know of each other."""
    with ExitStack() as open_clients:

        def make(count: int) -> list[Quotas]:
            made = []
            for _ in range(count):
                store = open_store(url, "", 1.0)
                assert store._client
                open_clients.callback(store._client.close)
                made.append(Quotas(store, lambda: count))
                made[-1]._workers = count
            return made

        yield make


def taken(workers: list[Quotas], requests: int, quota: Quota = HUNDRED, client: str = "me") -> int:
    """How many of `requests`, sent to the workers in turn, pass."""
    passed = 0
    for i in range(requests):
        with suppress(QuotaExceeded):
            workers[i % len(workers)].take(client, "default", quota)
            passed += 1
    return passed


@pytest.mark.parametrize("count", [1, 2, 4, 7])
def test_all_workers_together_let_pass_what_the_quota_says(workers: Callable[[int], list[Quotas]], count: int) -> None:
    """At the maximum all pass, and one more does not."""
    made = workers(count)
    assert taken(made, 400) == 100
    assert taken(made, 10) == 0


def test_each_client_and_each_quota_is_counted_for_itself(workers: Callable[[int], list[Quotas]]) -> None:
    [worker] = workers(1)
    assert taken([worker], 101, client="one") == 100
    assert taken([worker], 101, client="two") == 100
    worker.take("one", "a model's own", HUNDRED)


def test_what_is_left_is_told(workers: Callable[[int], list[Quotas]], clock: Clock) -> None:
    [worker] = workers(1)
    left = [worker.take("me", "default", HUNDRED) for _ in range(100)]
    assert [allowance.remaining for allowance in left] == list(range(99, -1, -1))
    assert {allowance.seconds for allowance in left} <= {59, 60}
    with pytest.raises(
        QuotaExceeded, match="quota 'default': expected at most 100 requests in 60 s, got more"
    ) as refused:
        worker.take("me", "default", HUNDRED)
    assert refused.value.allowance == Allowance("default", HUNDRED, 0, left[-1].seconds)


def test_a_large_quota_asks_redis_seldom(workers: Callable[[int], list[Quotas]], redis: "Redis") -> None:
    made = workers(4)
    before = redis.info("commandstats").get("cmdstat_incrby", {"calls": 0})["calls"]
    assert taken(made, 4000, Quota(100_000)) == 4000
    asked = redis.info("commandstats")["cmdstat_incrby"]["calls"] - before
    assert asked <= 4 * (4000 / 4 / MAX_LEASE + 2)


def test_a_refusal_does_not_ask_redis_each_time(
    workers: Callable[[int], list[Quotas]], redis: "Redis", clock: Clock
) -> None:
    """Or who is over its quota would cost more than who is not."""
    [worker] = workers(1)
    taken([worker], 100)
    before = redis.info("commandstats")["cmdstat_incrby"]["calls"]
    assert taken([worker], 1000) == 0
    assert redis.info("commandstats")["cmdstat_incrby"]["calls"] - before <= 1


def test_a_lease_that_nobody_uses_goes_back(workers: Callable[[int], list[Quotas]], clock: Clock) -> None:
    """A client whose requests go to one worker gets all of its quota, whatever others had taken for it."""
    idle, busy = workers(2)
    passed = taken([idle], 2) + taken([busy], 200)
    assert passed < 100, "the other has some"
    clock.now += LEASE_SECONDS
    idle.give_back(clock.now)
    passed += taken([busy], 200)
    assert passed == 100


def test_a_refusal_leaves_no_trace_in_the_count(
    workers: Callable[[int], list[Quotas]], redis: "Redis", clock: Clock
) -> None:
    """What others give back later is for requests, not for refusals to have used up."""
    [worker] = workers(1)
    taken([worker], 100)
    for _ in range(5):
        clock.now += LEASE_SECONDS
        assert taken([worker], 1) == 0
    assert redis.get("q:default:me") == b"100"


def test_a_new_window_begins_with_a_request_after_the_last_one(
    workers: Callable[[int], list[Quotas]], redis: "Redis", clock: Clock
) -> None:
    [worker] = workers(1)
    assert taken([worker], 101) == 100
    redis.delete("q:default:me")  # as it does when the time has come
    clock.now += 60
    assert taken([worker], 101) == 100
    assert 59_000 <= redis.pttl("q:default:me") <= 60_000


def test_a_count_without_an_end_gets_one(workers: Callable[[int], list[Quotas]], redis: "Redis") -> None:
    """As INCRBY leaves it when the window ended just before."""
    redis.set("q:default:me", 3)
    [worker] = workers(1)
    assert worker.take("me", "default", HUNDRED).remaining == 96
    assert 59_000 <= redis.pttl("q:default:me") <= 60_000


def test_without_redis_each_worker_lets_pass_its_share(clock: Clock) -> None:
    made = [Quotas(Store(None, "none"), lambda: 4) for _ in range(4)]
    for worker in made:
        worker._workers = 4
    assert taken(made, 400) == 100
    clock.now += 60
    assert taken(made, 400) == 100


def test_a_share_is_never_nothing() -> None:
    worker = Quotas(Store(None, "none"), lambda: 8)
    worker._workers = 8
    assert taken([worker], 10, Quota(3)) == 1


def test_redis_is_asked_again_once_it_is_back(
    url: str, workers: Callable[[int], list[Quotas]], redis: "Redis", clock: Clock
) -> None:
    """The share of a long window is not used up first."""
    [worker] = workers(1)
    worker._store.away = True
    worker.take("me", "default", HUNDRED)
    assert redis.get("q:default:me") is None
    worker._store.away = False
    worker.take("me", "default", HUNDRED)
    assert redis.get("q:default:me") == b"1"


def test_a_quota_that_is_changed_holds_at_once(workers: Callable[[int], list[Quotas]]) -> None:
    [worker] = workers(1)
    assert taken([worker], 50) == 50
    assert taken([worker], 50, Quota(60)) == 10


def test_the_clients_that_are_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_CLIENTS == 10_000
    monkeypatch.setattr(module, "MAX_CLIENTS", 3)
    worker = Quotas(Store(None, "none"), lambda: 1)
    for i in range(4):
        worker.take(f"client-{i}", "default", HUNDRED)
    assert list(worker._leases) == [f"q:default:client-{i}" for i in (1, 2, 3)]
