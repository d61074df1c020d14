"""A load generator for HTTP/1.1, in clear text or TLS, with a closed loop and an open one.

Closed: every connection sends its next request once it has its answer. Open: requests are due at times that do not
depend on answers, and latency counts from when they were due. It shares the CPUs with what it measures, so it is lean:
one thread, epoll, requests made beforehand. Every answer is checked all the same.
"""

import gc
import math
import os
import random
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Self

from addresses import Address
from connections import Connections
from exchanges import Exchange
from outcomes import Outcome


class Load:
    """`with Load(...) as load: load.run(seconds)`: the connections stay open from one run to the next."""

    def __init__(self, address: Address, exchanges: Sequence[Exchange], connections: int) -> None:
        self._connections = Connections(address, exchanges, connections)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connections.close()

    def open(self, exchange: Exchange) -> Outcome:
        """Use each connection for an `exchange`, one by one: in an open loop a handshake would make requests late."""
        outcome = Outcome(0.0)
        for connection in self._connections.all:
            self._connections.ask(connection, time.perf_counter(), exchange)
            while connection.exchange:
                deque(self._connections.answered(self._connections.events(), math.inf, outcome), maxlen=0)
        return outcome

    def run(self, seconds: float) -> Outcome:
        """Keep all connections busy for `seconds`, then wait for the answers that are still to come."""
        outcome = Outcome(seconds)
        with _counted(outcome):
            self._closed_loop(time.perf_counter() + seconds, outcome)
        return outcome

    def run_open(self, seconds: float, rate: float, seed: int) -> Outcome:
        """Send `rate` requests a second for `seconds`, then wait for the answers that are still to come."""
        return self.run_at(poisson(seconds, rate, seed), seconds)

    def run_at(self, arrivals: Iterable[float], seconds: float) -> Outcome:
        """The same with requests that are due at `arrivals`, counted from now."""
        outcome = Outcome(seconds)
        with _counted(outcome), _first_on_cpu():
            start = outcome.started = time.perf_counter()
            self._open_loop(deque(start + arrival for arrival in arrivals), outcome)
            # More than was asked for if the server can not keep up.
            outcome.seconds = max(seconds, time.perf_counter() - start)
        return outcome

    def _closed_loop(self, deadline: float, outcome: Outcome) -> None:
        connections = self._connections
        # One by one, as a request keeps its worker busy: among idle ones the kernel wakes the same one each time.
        for connection in connections.all:
            connections.ask(connection, time.perf_counter())
        waiting = len(connections.all)
        while waiting:
            for connection in connections.answered(connections.events(), deadline, outcome):
                now = time.perf_counter()
                if now < deadline:
                    connections.ask(connection, now)
                else:
                    waiting -= 1

    def _open_loop(self, due: deque[float], outcome: Outcome) -> None:
        """Each request has the connection that has been idle for the longest; if there is none, it waits for one."""
        connections = self._connections
        idle = deque(connections.all)
        while due or len(idle) < len(connections.all):
            while due and idle and due[0] <= (now := time.perf_counter()):
                outcome.late.append(now - due[0])
                connections.ask(idle.popleft(), due.popleft())
            events = connections.events_until(due[0]) if due and idle else connections.events()
            idle.extend(connections.answered(events, math.inf, outcome))


def poisson(seconds: float, rate: float, seed: int) -> Iterator[float]:
    """When requests are due: as many clients who know nothing of each other would send them."""
    clock = random.Random(seed)
    moment = clock.expovariate(rate)
    while moment < seconds:
        yield moment
        moment += clock.expovariate(rate)


@contextmanager
def _counted(outcome: Outcome) -> Iterator[None]:
    """PERF: nothing here makes cycles, and a collection in the middle would look like a slow server."""
    gc.collect()
    gc.disable()
    cpu = time.process_time()
    try:
        yield
    finally:
        outcome.cpu_seconds = time.process_time() - cpu
        gc.enable()


@contextmanager
def _first_on_cpu() -> Iterator[None]:
    """Clients have CPUs of their own: where it is allowed, ours does not wait for the servers that it shares with."""
    with suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
