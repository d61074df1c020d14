"""The socket that NGINX connects to, held by a process of its own, so that it outlives those that accept from it.

A listening socket is a queue in the kernel. The workers of all API containers accept from this one: whoever is idle
takes the next connection, who is killed is simply no longer among them, who starts joins without anybody being told,
and while there is nobody at all requests wait instead of failing. This is systemd's socket activation
(sd_listen_fds(3)), with a socket that is handed from container to container (SCM_RIGHTS, unix(7)).

    python listener.py hold PATH             binds PATH and hands its socket to whoever asks at PATH.door
    python listener.py use PATH COMMAND...   asks for it and becomes COMMAND, with it as file descriptor 3

Standard library only and one file: what holds the socket must not change, and so restart, when the application does.
"""

import fcntl
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

# What can wait while nobody accepts. The kernel allows net.core.somaxconn, 4096 unless set otherwise.
BACKLOG = 4096
FIRST_FD = 3
WAIT_SECONDS = 30.0
F_SETSIG = 10  # fcntl(2); the standard library has no name for it


def main(arguments: list[str]) -> str | None:
    match arguments:
        case ["hold", path]:
            return hold(path)
        case ["use", path, *command] if command:
            return use(path, command)
    return __doc__


def hold(path: str) -> str | None:
    """Bind `path` and hand the socket out until SIGTERM."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    held, door = _bind(path), _bind(_door(path))
    clients: list[socket.socket] = []
    while True:
        client, _ = door.accept()
        # They stay connected, to notice when this process ends.
        clients = [*filter(_is_there, clients), client]
        with suppress(OSError):  # it has gone again
            socket.send_fds(client, [b"."], [held.fileno()])


def use(path: str, command: list[str]) -> str | None:
    """Become `command`, with the socket held at `path` and one bound to TIERCEL_BIND, as sd_listen_fds(3) says."""
    listeners = [_ask(path), *_bound(os.environ.get("TIERCEL_BIND", ""))]
    for fd, listener in enumerate([_above(listener) for listener in listeners], FIRST_FD):
        os.dup2(listener, fd)
    environ = os.environ | {"LISTEN_FDS": str(len(listeners)), "LISTEN_PID": str(os.getpid())}
    try:
        os.execvpe(command[0], command, environ)  # noqa: S606  # to become it is the purpose
    except OSError as error:
        return f"{command[0]}: {error.strerror}"


def _ask(path: str) -> socket.socket:
    """The socket held at `path`. Should its holder end, this process gets SIGTERM: nobody will connect to it again."""
    with socket.socket(socket.AF_UNIX) as client:
        _connect(client, path)
        _, fds, _, _ = socket.recv_fds(client, 1, 1)
        end = _above(client)
    fcntl.fcntl(end, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(end, F_SETSIG, signal.SIGTERM)
    fcntl.fcntl(end, fcntl.F_SETFL, os.O_ASYNC)
    return socket.socket(fileno=fds[0])


def _connect(client: socket.socket, path: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while client.connect_ex(_door(path)):
        if time.monotonic() > deadline:
            sys.exit(f"{path}: expected a process that holds it (listener.py hold), found none in {WAIT_SECONDS:.0f} s")
        time.sleep(0.02)


def _bound(address: str) -> list[socket.socket]:
    host, _, port = address.rpartition(":")
    if not port.isdecimal():  # empty, or wrong: the settings will say so
        return []
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return [socket.create_server((host.strip("[]"), int(port)), family=family, backlog=BACKLOG)]
    except OSError as error:
        sys.exit(f"TIERCEL_BIND: {address}: {os.strerror(error.errno) if error.errno else error}")


def _above(sock: socket.socket) -> int:
    """A copy of its file descriptor that COMMAND inherits, out of the way of those that it expects."""
    return fcntl.fcntl(sock, fcntl.F_DUPFD, FIRST_FD + 10)


def _door(path: str) -> str:
    return f"{path}.door"


def _bind(path: str) -> socket.socket:
    Path(path).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    Path(path).chmod(0o660)
    listener.listen(BACKLOG)
    return listener


def _is_there(client: socket.socket) -> bool:
    try:
        return client.recv(1, socket.MSG_DONTWAIT) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
