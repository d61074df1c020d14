"""Redis in the road of a prediction, with a real one behind a proxy that breaks what it is told to break."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_proxy import FaultProxy
from redis import Redis
from redis_server import RedisServer
from servers import wait_until
from structlog.testing import capture_logs

from inference_core.store import CONNECTIONS, MAX_FAILURES, Store, StoreAway, open_store
from observability.exposition import collect, render

# Where nothing is late on purpose, nothing shall be by chance: others use these cores.
TIMEOUT, LONG = 0.05, 5.0
FAULTS = {
    "refused": ("refuse",),
    "reset": ("reset",),
    "black hole": ("swallow",),
    "200 ms slow": ("delay", 0.2),
    "cut before the first byte": ("cut", 0),
    "cut in the middle of a reply": ("cut", 3),
    "silent in the middle of a reply": ("hold", 3),
    "still loading its data": ("say", 0, b"-LOADING Redis is loading the dataset in memory\r\n"),
    "no Redis at all": ("say", 0, b"HTTP/1.1 400 Bad Request\r\n\r\n"),
}
# Those in which a question is waited for until the timeout: one is enough.
IN_VAIN = ("black hole", "200 ms slow", "silent in the middle of a reply")


@pytest.fixture(scope="module")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis(shared_redis: RedisServer) -> RedisServer:
    shared_redis.admin.flushall()
    shared_redis.admin.set("key", "value")
    return shared_redis


@pytest.fixture(params=["tcp", "unix"])
def proxy(redis: RedisServer, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FaultProxy]:
    addresses: dict[str, Any] = {
        "tcp": (redis.address, ("127.0.0.1", 0)),
        "unix": (str(redis.socket), str(tmp_path / "proxy.sock")),
    }
    with FaultProxy(*addresses[request.param]) as proxy:
        yield proxy


@pytest.fixture
def opened(redis: RedisServer) -> Iterator[Callable[..., Store]]:
    """Open a store that looks for Redis every few milliseconds once that is away; no thread of it stays behind."""
    stores = []

    def opened(url: str, password: str = "", timeout: float = LONG) -> Store:
        stores.append(open_store(url, password, timeout))
        stores[-1]._probe_seconds = 0.01
        return stores[-1]

    yield opened
    for store in stores:
        store._is_back = lambda: True  # type: ignore[method-assign]
    wait_until(lambda: not any(map(probes, stores)), "nobody looks for Redis")
    for store in stores:
        assert store._client
        store._client.close()


@pytest.fixture
def store(opened: Callable[..., Store], proxy: FaultProxy) -> Store:
    """A store by way of the proxy, which waits as long as it takes."""
    return opened(proxy.url)


@pytest.fixture
def hasty(opened: Callable[..., Store], proxy: FaultProxy) -> Store:
    """One that waits no longer than a request could afford."""
    return opened(proxy.url, timeout=TIMEOUT)


def get(redis: "Redis") -> Any:
    return redis.get("key")


def answers(store: Store) -> bool:
    try:
        return store.ask(get) == b"value"
    except StoreAway:
        return False


def fails(store: Store, commands: Callable[["Redis"], Any] = get) -> None:
    with pytest.raises(StoreAway):
        store.ask(commands)


def probes(store: Store) -> int:
    """How many threads look whether its Redis is back."""
    targets = [getattr(thread, "_target", None) for thread in threading.enumerate() if thread.name == "redis-probe"]
    return sum(getattr(target, "__self__", None) is store for target in targets)


def said(logs: list[Any], store: Store) -> list[str]:
    """What was logged of this Redis, first and foremost the event."""
    return [f"{entry['event']}: {entry}" for entry in logs if entry.get("redis") == store._name]


def test_it_answers(store: Store) -> None:
    """What the commands return is what `ask` returns, and it remembers how long that takes."""
    before = store.seconds
    assert store.ask(get) == b"value"
    assert store.ask(lambda redis: (redis.incr("n"), redis.incr("n"))) == (1, 2)
    assert store.exists
    assert not store.away
    assert store.seconds != before


def test_without_a_url_it_is_always_away_and_looks_for_nothing() -> None:
    """There is no client and no thread, and nobody is called."""
    store = open_store("", "", TIMEOUT)
    for _ in range(2 * MAX_FAILURES):
        fails(store, lambda _: pytest.fail("there is nobody to ask"))
    assert store.away
    assert not store.exists
    assert not probes(store)


def test_it_connects_when_it_is_first_asked(proxy: FaultProxy, opened: Callable[..., Store]) -> None:
    """A worker starts without Redis."""
    store = opened(proxy.url)
    assert proxy.commands == []
    assert store.ask(get) == b"value"


def test_a_new_connection_costs_no_round_trips_of_its_own(store: Store, proxy: FaultProxy) -> None:
    """Each has the whole timeout, and the first question would wait for them all."""
    store.ask(get)
    assert proxy.commands == ["GET"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_an_answer_after_the_timeout_at_the_latest(fault: str, hasty: Store, proxy: FaultProxy) -> None:
    """Whether it comes on a new connection or on one that has worked. The bound is loose: others use these cores."""
    for asked_before in (False, True):
        proxy.set("pass")
        wait_until(lambda: not hasty.away, "Redis is back")
        if asked_before:
            wait_until(lambda: answers(hasty), "it answers")
        proxy.set(*FAULTS[fault])
        began = time.monotonic()
        fails(hasty)
        assert time.monotonic() - began < 2


@pytest.mark.parametrize("fault", FAULTS)
def test_after_a_few_failures_nobody_asks_any_more_until_it_is_back(
    fault: str, hasty: Store, proxy: FaultProxy
) -> None:
    """No command is tried twice, none is sent while it is away, and a thread beside the road finds that it is back."""
    wait_until(lambda: answers(hasty), "it answers")
    proxy.commands.clear()
    proxy.set(*FAULTS[fault])
    asked = []
    for _ in range(10 * MAX_FAILURES):
        fails(hasty, lambda redis: (asked.append(1), redis.get("key")))
    assert len(asked) in ((1,) if fault in IN_VAIN else (1, MAX_FAILURES)), "others use these cores"
    assert proxy.commands.count("GET") <= MAX_FAILURES
    assert hasty.away
    assert probes(hasty) == 1
    proxy.set("pass")
    wait_until(lambda: answers(hasty), "Redis is back")
    wait_until(lambda: not probes(hasty), "nobody looks for it any more")


def test_failures_count_in_a_row_only(store: Store, proxy: FaultProxy) -> None:
    for _ in range(3):
        for _ in range(MAX_FAILURES - 1):
            proxy.set("reset")
            fails(store)
        proxy.set("pass")
        assert store.ask(get) == b"value"
    assert not store.away


def test_on_probation_one_failure_is_enough(store: Store, proxy: FaultProxy) -> None:
    """Once it has answered, it is trusted as before."""
    proxy.set("refuse")
    for _ in range(MAX_FAILURES):
        fails(store)
    for _ in range(3):
        proxy.set("pass")
        wait_until(lambda: not store.away, "Redis is back")
        proxy.set("refuse")
        fails(store)
        assert store.away
    proxy.set("pass")
    wait_until(lambda: not store.away, "Redis is back")
    assert store.ask(get) == b"value"
    proxy.set("refuse")
    fails(store)
    assert not store.away


def test_it_is_said_once_that_it_is_away_and_once_that_it_is_back(store: Store, proxy: FaultProxy) -> None:
    with capture_logs() as logs:
        proxy.set("refuse")
        for _ in range(10):
            fails(store)
        proxy.set("pass")
        wait_until(lambda: not probes(store), "Redis is back")
    assert [line.partition(":")[0] for line in said(logs, store)] == ["redis is away", "redis is back"]


def test_a_reply_that_trickles_is_a_failure(store: Store) -> None:
    """Its pieces come within the timeout, and all of them together do not: the answer counts, the delay too."""
    store._timeout_seconds = 0.0
    with capture_logs() as logs:
        assert answers(store)
        wait_until(lambda: not probes(store), "Redis is back")
    assert [line.partition(":")[0] for line in said(logs, store)] == ["redis is away", "redis is back"]


def test_many_threads_find_together_that_it_is_away(hasty: Store, proxy: FaultProxy) -> None:
    """One thread looks for it, however many have failed."""
    proxy.set("swallow")
    threads = [threading.Thread(target=fails, args=(hasty,)) for _ in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert hasty.away
    assert probes(hasty) == 1


def test_a_redis_that_stops_in_its_tracks_is_away_until_it_goes_on(
    redis: RedisServer, opened: Callable[..., Store]
) -> None:
    """SIGSTOP: the kernel goes on taking connections for it."""
    store = opened(redis.url, timeout=TIMEOUT)
    wait_until(lambda: answers(store), "it answers")
    with redis.stopped():
        fails(store)
        assert store.away
    wait_until(lambda: answers(store), "Redis is back")


def test_a_restart_between_two_questions_is_not_noticed(redis: RedisServer, opened: Callable[..., Store]) -> None:
    """Connections that have ended meanwhile are replaced, and are no failures."""
    store = opened(redis.url)
    for _ in range(2):
        store.ask(lambda client: client.set("key", "value"))
        redis.restart()
        assert store.ask(get) is None
    assert store._failures == 0


def test_more_threads_than_connections_are_no_failure_of_redis(
    redis: RedisServer, opened: Callable[..., Store]
) -> None:
    """Who gets no connection goes on without; the others are not kept from a Redis that is there."""
    with FaultProxy(redis.address) as proxy:
        store = opened(proxy.url, timeout=20)
        proxy.set("hold")
        threads = [
            threading.Thread(target=store.ask, args=(lambda client: client.echo("x"),)) for _ in range(CONNECTIONS)
        ]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(proxy.commands) == CONNECTIONS, "every connection is in use")
        for _ in range(MAX_FAILURES):
            fails(store)
        away = store.away
        proxy.set("pass")
        for thread in threads:
            thread.join(20)
        wait_until(lambda: not probes(store), "nobody looks for Redis")
    assert not away


def test_a_redis_that_is_full_is_not_away(redis: RedisServer, store: Store) -> None:
    """Under `noeviction` it refuses what needs memory, and goes on answering."""
    with redis.configured(maxmemory_policy="noeviction", maxmemory=1):
        refuses(store, lambda client: client.set("other", "x"))


def test_a_redis_that_is_read_only_is_not_away(redis: RedisServer, store: Store) -> None:
    """As it is for some moments after it has lost an election."""
    redis.admin.replicaof("127.0.0.1", "1")
    try:
        refuses(store, lambda client: client.set("other", "x"))
    finally:
        redis.admin.replicaof("NO", "ONE")


def test_what_an_acl_forbids_is_refused(
    redis: RedisServer, proxy: FaultProxy, tmp_path: Path, opened: Callable[..., Store]
) -> None:
    redis.admin.acl_setuser("reader", enabled=True, passwords=["+word"], keys=["key"], commands=["+get", "+ping"])
    try:
        store = opened(proxy.url.replace("://", "://reader@"), "word")
        refuses(store, lambda client: client.set("key", "x"))
        refuses(store, lambda client: client.get("other"))
    finally:
        redis.admin.acl_deluser("reader")


def refuses(store: Store, commands: Callable[["Redis"], Any]) -> None:
    """However often: StoreAway, and it is asked as before."""
    for _ in range(2 * MAX_FAILURES):
        fails(store, commands)
        assert store.ask(get) == b"value"
    for _ in range(2 * MAX_FAILURES):
        fails(store, commands)
    assert not store.away


def test_a_redis_that_refuses_everything_does_not_fill_the_log(redis: RedisServer, store: Store) -> None:
    """A line for each request says nothing that the first did not say."""
    with redis.configured(maxmemory_policy="noeviction", maxmemory=1), capture_logs() as logs:
        for _ in range(50):
            fails(store, lambda client: client.set("other", "x"))
    assert 1 <= len(said(logs, store)) < 10


def test_the_log_does_not_tell_what_is_kept(redis: RedisServer, store: Store) -> None:
    """An answer is its client's: a refused command is named without what it carries."""

    def several(client: Redis) -> Any:
        return client.pipeline(transaction=False).execute_command("SET", b"other", b"secret").execute()

    with redis.configured(maxmemory_policy="noeviction", maxmemory=1), capture_logs() as logs:
        fails(store, several)
    assert said(logs, store)
    assert "secret" not in str(logs)


@pytest.fixture
def locked(redis: RedisServer) -> Iterator[RedisServer]:
    """A Redis that wants a password."""
    redis.admin.config_set("requirepass", "s3cret")
    yield redis
    redis.admin.config_set("requirepass", "")


def test_it_says_the_password(locked: RedisServer, proxy: FaultProxy, opened: Callable[..., Store]) -> None:
    for url in (proxy.url, proxy.url.replace("://", "://default@")):
        assert opened(url, "s3cret").ask(get) == b"value"


@pytest.mark.parametrize("given", ["wrong", ""])
def test_a_wrong_password_is_as_good_as_no_redis(given: str, locked: RedisServer, opened: Callable[..., Store]) -> None:
    """Until it is right."""
    with capture_logs() as logs:
        store = opened(f"redis://127.0.0.1:{locked.port}", given)
        for _ in range(MAX_FAILURES):
            fails(store)
        assert store.away
        locked.admin.config_set("requirepass", given)
        wait_until(lambda: not store.away, "the password is right")
        assert store.ask(get) == b"value"
    assert [line.partition(":")[0] for line in said(logs, store)] == ["redis is away", "redis is back"]


def test_a_password_in_the_url_is_not_in_the_log(locked: RedisServer, opened: Callable[..., Store]) -> None:
    store = opened(f"redis://default:s3cret@127.0.0.1:{locked.port}/0", timeout=TIMEOUT)
    wait_until(lambda: answers(store), "it answers")
    with capture_logs() as logs:
        with locked.stopped():
            fails(store)
        wait_until(lambda: not probes(store), "Redis is back")
    assert said(logs, store)
    assert "s3cret" not in str(logs)


def test_a_late_reply_is_never_taken_for_another_one(
    redis: RedisServer, proxy: FaultProxy, opened: Callable[..., Store]
) -> None:
    """A thousand times a reply comes in part before the timeout, and the rest when the next question has been asked.

    The connection must be given up with the question; what it had, another would get (CVE-2023-28858).
    """
    dice = random.Random(random.getrandbits(32))  # noqa: S311  # what is cut where is no secret
    names = [f"key-{i}" for i in range(16)]
    redis.admin.mset({name: name * dice.randint(1, 20) for name in names})
    values = redis.admin.mget(names)
    client = opened(proxy.url, timeout=0.003)._client
    answered = 0
    for _ in range(1000):
        store = Store(client, "fresh: it counts no failures of earlier ones")
        first, second = dice.sample(range(16), 2)
        proxy.set(dice.choice(["hold", "hold", "hold", "cut"]), dice.randint(0, 60))
        several = slice(first, first + dice.choice([1, 1, 2]))
        assert _ask(store, names[several]) in (None, values[several])
        proxy.set("pass")
        answer = _ask(store, [names[second]])
        assert answer in (None, [values[second]])
        answered += answer is not None
    assert answered > 250, "many of the second questions are answered"


def _ask(store: Store, names: list[str]) -> list[Any] | None:
    """The values of `names`, in one round trip; None if they did not come in time."""
    try:
        return store.ask(lambda client: _pipeline(client, names) if len(names) > 1 else [client.get(names[0])])
    except StoreAway:
        return None


def _pipeline(client: Redis, names: list[str]) -> list[Any]:
    pipeline = client.pipeline(transaction=False)
    for name in names:
        pipeline.get(name)
    answers: list[Any] = pipeline.execute()
    return answers


def test_a_redis_that_has_not_failed_has_failed_no_time() -> None:
    """Seen before the first error, or that would not be seen as one more."""
    Store(Redis(), "never-asked")
    assert render(collect(None).numbers).count('tiercel_redis_errors_total{redis="never-asked"} 0') == 1
