"""How many requests a client may make in a time, counted in Redis for all workers of all containers.

A window begins with a client's first request. A worker takes a lease of several requests at once, the fewer the less is
left, so that few requests wait for Redis and the last ones are counted one by one. What of a lease was not used within
a second goes back. While Redis is away, each worker lets pass its share.

NOTE: the library `limits` asks its storage for every request, which would cost as much as a small model does.
"""

import math
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import msgspec

from inference_core.errors import QuotaExceeded
from inference_core.policy import Quota
from inference_core.store import Store, StoreAway

MAX_LEASE = 64
# A lease is at most one part in so many of what is left, for each worker.
PARTS = 4
# After so many seconds an unused lease goes back, and who was refused may ask again.
LEASE_SECONDS = 1.0
MAX_CLIENTS = 10_000


class Lease(msgspec.Struct):
    """`tokens` requests that may pass without asking; `remaining` are left for everybody beside them."""

    quota: Quota
    tokens: int
    remaining: int
    # Monotonic seconds: when the window ends, and when the lease was last used or taken.
    ends: float
    used: float
    local: bool = False


class Allowance(msgspec.Struct, frozen=True):
    """What is left of a quota after a request: requests, and seconds until there are more."""

    name: str
    quota: Quota
    remaining: int
    seconds: int


class Quotas:
    """`workers` says how many processes share a quota. A thread, once there is a lease, gives back what nobody uses."""

    def __init__(self, store: Store, workers: Callable[[], int]) -> None:
        self._store = store
        self._count_workers = workers
        self._workers = 1
        self._keeps_house = False
        self._lock = threading.Lock()
        self._leases: OrderedDict[str, Lease] = OrderedDict()

    def take(self, client: str, name: str, quota: Quota) -> Allowance:
        """Count one request of `client` under the quota called `name`; QuotaExceeded if it is one too many."""
        key, now = f"q:{name}:{client}", time.monotonic()
        with self._lock:
            lease = self._leases.get(key)
            if lease is not None and lease.quota != quota:  # it has been changed
                self._return(key, lease)
                lease = None
            if lease is None or now >= lease.ends or self._is_to_ask_again(lease, now):
                lease = self._leases[key] = self._lease(key, quota, lease, now)
                self._leases.move_to_end(key)
                if len(self._leases) > MAX_CLIENTS:
                    self._leases.popitem(last=False)
            allowance = Allowance(name, quota, lease.remaining + max(0, lease.tokens - 1), math.ceil(lease.ends - now))
            if not lease.tokens:
                raise QuotaExceeded(
                    f"quota '{name}': expected at most {quota.requests} requests in {quota.seconds} s, got more",
                    allowance,
                )
            lease.tokens -= 1
            lease.used = now
        return allowance

    def look_after(self) -> None:
        """Once in a while: count the workers, and return what nobody uses."""
        self._workers = max(1, self._count_workers())
        self.give_back(time.monotonic())

    def give_back(self, now: float) -> None:
        """Return what of the leases was not used for LEASE_SECONDS, and forget windows that have ended."""
        with self._lock:
            self._leases = OrderedDict((key, lease) for key, lease in self._leases.items() if now < lease.ends)
            unused = [
                (key, lease)
                for key, lease in self._leases.items()
                if lease.tokens and not lease.local and now - lease.used >= LEASE_SECONDS
            ]
            for key, lease in unused:
                self._return(key, lease)

    def _is_to_ask_again(self, lease: Lease, now: float) -> bool:
        """Whether Redis may know of more than this lease has."""
        if lease.local:
            return not self._store.away
        return not lease.tokens and (lease.remaining > 0 or now - lease.used >= LEASE_SECONDS)

    def _lease(self, key: str, quota: Quota, last: Lease | None, now: float) -> Lease:
        if not self._keeps_house:
            self._keeps_house = True
            threading.Thread(target=_keep_house, args=(weakref.ref(self),), name="quotas", daemon=True).start()
        left = last.remaining if last and now < last.ends else 0
        wanted = max(1, min(MAX_LEASE, left // (PARTS * self._workers)))
        try:
            used, milliseconds = self._store.ask(lambda redis: _count(redis, key, wanted, quota.seconds))
        except StoreAway:
            # At most a worker's share more than the quota, when Redis goes away in the middle of a window.
            return Lease(quota, max(1, quota.requests // self._workers), 0, now + quota.seconds, now, local=True)
        granted = max(0, min(wanted, quota.requests - (used - wanted)))
        if granted < wanted:
            self._uncount(key, wanted - granted)
        return Lease(quota, granted, max(0, quota.requests - used), now + milliseconds / 1000, now)

    def _return(self, key: str, lease: Lease) -> None:
        tokens, lease.tokens = lease.tokens, 0
        lease.remaining += tokens
        self._uncount(key, tokens)

    def _uncount(self, key: str, number: int) -> None:
        try:
            self._store.ask(lambda redis: _uncount(redis, key, number))
        except StoreAway:
            return


def _keep_house(quotas: "weakref.ref[Quotas]") -> None:
    """As long as they are there."""
    while (found := quotas()) is not None:
        found.look_after()
        del found
        time.sleep(LEASE_SECONDS)


def _count(redis: Any, key: str, number: int, seconds: int) -> tuple[int, int]:
    """The requests of the window with these counted, and what is to come of it in milliseconds, in one round trip."""
    pipeline = redis.pipeline(transaction=False)
    pipeline.set(key, 0, px=seconds * 1000, nx=True)
    pipeline.incrby(key, number)
    pipeline.pttl(key)
    _, used, milliseconds = pipeline.execute()
    if milliseconds < 0:  # it ended between the first command and the second, and has begun again without an end
        redis.pexpire(key, seconds * 1000)
        milliseconds = seconds * 1000
    return used, milliseconds


def _uncount(redis: Any, key: str, number: int) -> None:
    """Only in a window that lasts long enough for it: the next one is not to begin below zero."""
    if redis.pttl(key) > LEASE_SECONDS * 1000:
        redis.decrby(key, number)
