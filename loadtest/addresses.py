"""Where a server listens on this machine, and how clients connect to it."""

import http.client
import socket
import ssl
from contextlib import closing, suppress
from dataclasses import dataclass

HOST = "127.0.0.1"
CONNECT_SECONDS = 10.0


@dataclass(frozen=True)
class Address:
    """A port of the loopback address; `tls` knows whom to trust, and checks that at each connect."""

    port: int
    tls: ssl.SSLContext | None = None

    def connect(self) -> socket.socket:
        """A connection that is ready for requests, and does not block from now on."""
        sock = socket.create_connection((HOST, self.port), CONNECT_SECONDS)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.tls:
            sock = self.tls.wrap_socket(sock, server_hostname="localhost")
        sock.setblocking(False)
        return sock

    def is_ready(self) -> bool:
        with suppress(OSError, http.client.HTTPException), closing(self._http()) as connection:
            connection.request("GET", "/v2/health/ready")
            return connection.getresponse().status == http.HTTPStatus.OK
        return False

    def _http(self) -> http.client.HTTPConnection:
        if self.tls:
            return http.client.HTTPSConnection("localhost", self.port, timeout=1, context=self.tls)
        return http.client.HTTPConnection(HOST, self.port, timeout=1)


def free_port() -> int:
    with socket.create_server((HOST, 0)) as server:
        port: int = server.getsockname()[1]
        return port
