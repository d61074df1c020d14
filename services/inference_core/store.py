"""Redis in the road of a prediction: quick, or not at all.

Nothing there is worth a wait. A command has tens of milliseconds and is never tried again; after one that was waited
for in vain, or a few quick failures in a row, nobody asks any more, until a thread beside the road has found that Redis
is back. Who uses it goes on without.
"""

import random
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import structlog
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import MaxConnectionsError, RedisError, ResponseError
from redis.retry import Retry

from observability.families import REDIS_AVAILABLE, REDIS_ERRORS

T = TypeVar("T")

TIMEOUT_SECONDS = 0.05
MAX_FAILURES = 3
PROBE_SECONDS = 1.0
CONNECTIONS = 8
# What a round trip is taken to last until there is a measurement, and once there is none that is recent.
ASSUMED_SECONDS, STALE_SECONDS = 100e-6, 1.0
SILENT_SECONDS = 60.0
# Of the newest round trip in the running average.
WEIGHT = 0.05

log = structlog.get_logger()


class StoreAway(Exception):
    """It did not answer, or is not asked for the time being."""


class Store:
    """`ask` runs commands on the client. `seconds` is what a round trip takes, on average."""

    def __init__(self, client: "Redis | None", name: str, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self._client = client
        self._name = name
        self._timeout_seconds = timeout_seconds
        self._probe_seconds = PROBE_SECONDS
        self._failures = 0
        self._lock = threading.Lock()
        self._silent_until = 0.0
        self._answered_at = 0.0
        self.away = client is None
        if client is not None:
            REDIS_AVAILABLE.of(name).set(1)
            REDIS_ERRORS.of(name)  # none so far
        self.seconds = ASSUMED_SECONDS

    @property
    def exists(self) -> bool:
        """Whether there is one at all."""
        return self._client is not None

    def ask(self, commands: Callable[["Redis"], T]) -> T:
        """What `commands` returns, or StoreAway, after the timeout at the latest."""
        if self.away or self._client is None:
            raise StoreAway(self._name)
        began = time.perf_counter()
        try:
            answer = commands(self._client)
        except MaxConnectionsError as error:  # all of ours are busy: nothing is wrong with Redis
            raise StoreAway(self._name) from error
        except ResponseError as error:  # it is there and will not: full, read-only, not permitted
            self._refused(error)
            raise StoreAway(self._name) from error
        except RedisError as error:  # refused, cut, silent, still loading its data, or no Redis at all
            self._failed(error, time.perf_counter() - began)
            raise StoreAway(self._name) from error
        took = time.perf_counter() - began
        if took <= self._timeout_seconds:
            self._failures = 0
        else:  # each of its pieces came in time, and together they did not
            self._failed("slow", took)
        # One that takes long does not decide.
        self.seconds += WEIGHT * (min(took, 10 * self.seconds) - self.seconds)
        self._answered_at = time.monotonic()
        return answer

    def is_stale(self) -> bool:
        """Whether nobody has asked for so long that `seconds` says nothing any more."""
        return time.monotonic() - self._answered_at > STALE_SECONDS

    def _refused(self, error: Exception) -> None:
        REDIS_ERRORS.of(self._name).add()
        # SECURITY: its kind only, as the text may repeat what was to be stored. Once in a while, as it may go on.
        now = time.monotonic()
        if now >= self._silent_until:
            self._silent_until = now + SILENT_SECONDS
            log.warning("redis refuses commands", redis=self._name, reason=type(error).__name__)

    def _failed(self, reason: object, seconds: float) -> None:
        REDIS_ERRORS.of(self._name).add()
        with self._lock:
            # Another that is waited for in vain would hold up this worker, and who waits for it, for as long again.
            self._failures += MAX_FAILURES if seconds >= self._timeout_seconds else 1
            if self.away or self._failures < MAX_FAILURES:
                return
            self.away = True
        REDIS_AVAILABLE.of(self._name).set(0)
        log.warning("redis is away", redis=self._name, reason=str(reason))
        threading.Thread(target=self._wait_for_return, name="redis-probe", daemon=True).start()

    def _wait_for_return(self) -> None:
        while not self._is_back():
            time.sleep(self._probe_seconds * random.uniform(0.8, 1.2))  # noqa: S311  # not all workers at once
        # On probation: if it fails at once, that once is enough.
        self._failures = MAX_FAILURES - 1
        self.away = False
        REDIS_AVAILABLE.of(self._name).set(1)
        log.info("redis is back", redis=self._name)

    def _is_back(self) -> bool:
        try:
            return bool(self._client and self._client.ping())
        except Exception:  # whatever it is, this thread must go on looking
            return False


def open_store(url: str, password: str, timeout_seconds: float) -> Store:
    """The Redis at `url`; with an empty one, a store that is always away. It connects when it is first asked."""
    if not url:
        return Store(None, "none")
    options: dict[str, Any] = {"password": password} if password else {}
    client = Redis.from_url(
        url,
        socket_timeout=timeout_seconds,
        socket_connect_timeout=timeout_seconds,
        # Its own default tries ten times over several seconds (redis-py #4082).
        retry=Retry(NoBackoff(), 0),
        max_connections=CONNECTIONS,
        driver_info=None,
        protocol=2,
        **options,
    )
    return Store(client, url.rpartition("@")[2], timeout_seconds)
