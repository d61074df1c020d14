"""The socket that outlives those who accept from it, with real processes."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from servers import free_port, wait_until

from inference_api import listener

# Accepts from file descriptor 3 as a server would, answers with its argument, and leaves on SIGTERM.
ACCEPTS = """
import os, socket, sys
assert os.environ["LISTEN_PID"] == str(os.getpid())
servers = [socket.socket(fileno=3 + n) for n in range(int(os.environ["LISTEN_FDS"]))]
print("accepting", flush=True)
while True:
    client, _ = servers[int(sys.argv[2]) if len(sys.argv) > 2 else 0].accept()
    client.sendall(sys.argv[1].encode())
    client.close()
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: object, **variables: str) -> "subprocess.Popen[str]":
        command = [sys.executable, listener.__file__, *map(str, arguments)]
        process = subprocess.Popen(
            command, env=os.environ | variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "api.sock"


def hold(start: Start, path: Path) -> "subprocess.Popen[str]":
    holder = start("hold", path)
    wait_until(Path(f"{path}.door").is_socket, "it holds the socket")
    return holder


def accept(start: Start, path: Path, name: str, *place: int, **variables: str) -> "subprocess.Popen[str]":
    process = start("use", path, sys.executable, "-c", ACCEPTS, name, *place, **variables)
    assert process.stdout
    assert process.stdout.readline() == "accepting\n"
    return process


def connect(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(10)
    client.connect(str(path))
    return client


def ask(path: Path) -> str:
    with connect(path) as client:
        return client.recv(100).decode()


def test_a_connection_waits_while_nobody_accepts(start: Start, path: Path) -> None:
    hold(start, path)
    with connect(path) as early:
        accept(start, path, "first")
        assert early.recv(100) == b"first"


def test_connections_wait_from_one_process_to_the_next(start: Start, path: Path) -> None:
    hold(start, path)
    first = accept(start, path, "first")
    assert ask(path) == "first"
    first.kill()
    first.wait()
    with connect(path) as waiting:
        accept(start, path, "second")
        assert waiting.recv(100) == b"second"


def test_all_who_use_it_accept_from_the_same_queue(start: Start, path: Path) -> None:
    hold(start, path)
    accept(start, path, "first")
    accept(start, path, "second")
    answered = set()
    wait_until(lambda: answered.add(ask(path)) or answered == {"first", "second"}, "both have answered")


def test_who_uses_it_is_told_when_its_holder_ends(start: Start, path: Path) -> None:
    """Nobody will connect to what it has any more: it must come back for another."""
    holder = hold(start, path)
    user = accept(start, path, "first")
    holder.kill()
    assert user.wait(10) == -signal.SIGTERM


def test_a_new_holder_takes_the_place_of_one_that_was_killed(start: Start, path: Path) -> None:
    hold(start, path).kill()
    Path(f"{path}.door").unlink()
    hold(start, path)
    accept(start, path, "again")
    assert ask(path) == "again"


def test_a_holder_ends_at_sigterm(start: Start, path: Path) -> None:
    holder = hold(start, path)
    holder.terminate()
    assert holder.wait(10) == 0


def test_those_who_have_gone_are_forgotten(start: Start, path: Path) -> None:
    """Or each start of an API container would cost the holder a file descriptor for ever."""
    holder = hold(start, path)
    descriptors = Path(f"/proc/{holder.pid}/fd")
    for _ in range(5):
        process = accept(start, path, "one")
        process.kill()
        process.wait()
    assert len(list(descriptors.iterdir())) <= 3 + 2 + 2


def test_others_than_owner_and_group_cannot_connect(start: Start, path: Path) -> None:
    hold(start, path)
    assert [Path(name).stat().st_mode & 0o777 for name in (path, f"{path}.door")] == [0o660] * 2


def test_a_tcp_socket_of_its_own_comes_second(start: Start, path: Path) -> None:
    """For health checks of this one process, which the shared socket could not tell from others."""
    hold(start, path)
    port = free_port()
    accept(start, path, "tcp", 1, TIERCEL_BIND=f"127.0.0.1:{port}")
    with socket.create_connection(("127.0.0.1", port), 10) as client:
        assert client.recv(100) == b"tcp"


def test_without_a_holder_it_says_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "WAIT_SECONDS", 0.1)
    with pytest.raises(SystemExit, match="expected a process that holds it"):
        listener.use(str(path), ["true"])


def test_a_command_that_is_not_there_is_named(start: Start, path: Path) -> None:
    hold(start, path)
    process = start("use", path, "no-such-command", TIERCEL_BIND="")
    assert "no-such-command: No such file" in process.communicate(timeout=10)[1]
    assert process.returncode == 1


def test_an_address_that_is_taken_is_named(start: Start, path: Path) -> None:
    hold(start, path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        process = start("use", path, "true", TIERCEL_BIND=address)
        assert f"TIERCEL_BIND: {address}: Address already in use" in process.communicate(timeout=10)[1]
    assert process.returncode == 1


@pytest.mark.parametrize("arguments", [(), ("hold",), ("use", "/path"), ("drop", "/path")])
def test_other_arguments_get_the_usage(start: Start, arguments: tuple[str, ...]) -> None:
    process = start(*arguments)
    assert "listener.py hold PATH" in process.communicate(timeout=10)[1]
    assert process.returncode == 1
