"""A proxy between a client and its Redis, which does to them what networks and servers do on a bad day."""

import re
import select
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Self

# The path of a unix socket, or host and port.
Address = str | tuple[str, int]
COMMAND = re.compile(rb"\*\d+\r\n\$\d+\r\n(\w+)\r\n")
RESET_WHEN_CLOSED = struct.pack("ii", 1, 0)


class FaultProxy:
    """Every mode holds for connections that exist as well, from the next bytes on:

    "pass"; "refuse": nobody listens; "reset": whoever connects is cut off; "flap": reset and pass by turns of `value`
    seconds; "swallow": nothing is ever answered; "delay": replies come `value` seconds late; "cut": `value` bytes of a
    reply and then the end; "hold": `value` bytes of a reply, and the others only once the mode is another; "say": each
    command is answered with `text`.
    """

    def __init__(self, upstream: Address, address: Address = ("127.0.0.1", 0)) -> None:
        self.commands: list[str] = []
        self._upstream, self._address = upstream, address
        self._mode: tuple[str, float, bytes] = ("refuse", 0, b"")
        self._changed = threading.Condition()
        self._clients: set[socket.socket] = set()
        self._threads = ThreadPoolExecutor(64)
        self._listener = self._bind()
        self.url = f"unix://{address}" if isinstance(address, str) else f"redis://127.0.0.1:{self._address[1]}"

    def __enter__(self) -> Self:
        self.set("pass")
        return self

    def __exit__(self, *_: object) -> None:
        self.set("refuse")
        self._listener.close()
        self._threads.shutdown()

    def set(self, mode: str, value: float = 0, text: bytes = b"") -> None:
        with self._changed:
            before, self._mode = self._mode[0], (mode, value, text)
            self._changed.notify_all()
            for client in self._clients if mode in ("refuse", "reset") else ():
                with suppress(OSError):  # its other end is closed already
                    client.shutdown(socket.SHUT_RD)  # its thread reads an end
        if before == "refuse" != mode:
            self._listener.listen()
            self._accepting = self._threads.submit(self._accept, self._listener)
        elif mode == "refuse" != before:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._accepting.result(20)  # no connection is left in its hands
            self._listener.close()
            self._listener = self._bind()  # the address stays ours

    def _bind(self) -> socket.socket:
        listener = _socket(self._address)
        if isinstance(self._address, str):
            Path(self._address).unlink(missing_ok=True)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(self._address)
        self._address = listener.getsockname()
        return listener

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):  # until it is shut down
            while True:
                self._threads.submit(self._serve, listener.accept()[0])

    def _serve(self, client: socket.socket) -> None:
        with client, _socket(self._upstream) as server:
            with self._changed:
                self._clients.add(client)
            with suppress(OSError):
                server.connect(self._upstream)
                while not self._resets() and self._forward(client, server, select.select([client, server], [], [])[0]):
                    pass
            with self._changed:
                self._clients.remove(client)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_WHEN_CLOSED if self._resets() else bytes(8))

    def _resets(self) -> bool:
        name, value, _ = self._mode
        return name in ("refuse", "reset") or (name == "flap" and int(time.monotonic() / value) % 2 == 1)

    def _forward(self, client: socket.socket, server: socket.socket, ready: list[socket.socket]) -> bool:
        """Pass the next bytes on as the mode says; whether the connection goes on."""
        data, mode = ready[0].recv(1 << 16), self._mode
        name, value, text = mode
        if ready[0] is client:
            self.commands += (commands := [command.decode() for command in COMMAND.findall(data)])
            client.sendall(text * len(commands))
            server.sendall(b"" if name in ("say", "swallow") else data)
        elif name not in ("say", "swallow"):
            now = int(value) if name in ("cut", "hold") else 0 if name == "delay" else len(data)
            client.sendall(data[:now])
            with self._changed:
                self._changed.wait_for(lambda: self._mode is not mode, {"hold": None, "delay": value}.get(name, 0))
            client.sendall(b"" if name == "cut" else data[now:])
        return bool(data) and name != "cut" and not self._resets()


def _socket(address: Address) -> socket.socket:
    return socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
