"""A steady stream of requests beside which a test does something violent: `with Load(server, path, body) as load:`."""

import http.client
import json
import select
import threading
import time
from collections import Counter
from types import TracebackType
from typing import Any, Self

from servers import Server


class Load:
    """`rate` requests a second over `clients` kept-alive connections, each sent at its own fixed time.

    `outcomes` counts statuses and names of exceptions. No request is tried a second time; but one is not sent on a
    connection that has been closed meanwhile, as no client does.
    """

    def __init__(
        self,
        server: Server,
        path: str,
        body: Any,
        rate: float = 100,
        clients: int = 4,
        keep_alive: bool = True,
        headers: dict[str, str] | None = None,
    ) -> None:
        self._server = server
        self._path = path
        self._body = json.dumps(body).encode()
        self._headers = (headers or {}) | ({} if keep_alive else {"Connection": "close"})
        self._interval = clients / rate
        self._threads = [threading.Thread(target=self._send, args=(i / rate,)) for i in range(clients)]
        self._stop = threading.Event()
        self.outcomes: Counter[Any] = Counter()
        self.bodies: set[bytes] = set()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @property
    def sent(self) -> int:
        return sum(self.outcomes.values())

    @property
    def failed(self) -> dict[Any, int]:
        return {outcome: count for outcome, count in self.outcomes.items() if outcome != 200}

    def _send(self, start: float) -> None:
        connection = self._server.http()
        due = time.monotonic() + start
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            due += self._interval
            if _was_closed(connection):
                connection.close()
            try:
                connection.request("POST", self._path, self._body, self._headers)
                answer = connection.getresponse()
                self.bodies.add(answer.read())
                self.outcomes[answer.status] += 1
            except (OSError, http.client.HTTPException) as error:
                self.outcomes[type(error).__name__] += 1
                connection.close()
        connection.close()


def _was_closed(connection: http.client.HTTPConnection) -> bool:
    """Nothing is to be read from an idle connection but its end."""
    return connection.sock is not None and bool(select.select([connection.sock], [], [], 0)[0])
