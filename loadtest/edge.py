"""NGINX in front of a server, as it ships: started by nginx/start.sh, with TLS, limits and an access log."""

import ssl
import subprocess
import sys
from pathlib import Path

from addresses import HOST, Address, free_port

ROOT = Path(__file__).resolve().parents[1]
NGINX = ROOT / "nginx"
# The load comes from one client address, whose limits are in force and out of reach.
REQUESTS_PER_SECOND, CONNECTIONS = 100_000, 1000


class Edge:
    """How to start it, in a folder of its own, before whoever accepts at `api_socket`; `nginx`: its configuration."""

    def __init__(self, folder: Path, api_socket: Path, nginx: Path) -> None:
        port = free_port()
        tls = _make_certificate(folder)
        self.address = Address(port, ssl.create_default_context(cafile=str(tls / "ca.crt")))
        self.command = ["sh", str(nginx / "start.sh")]
        self.environ = {
            "EDGE_RUN_DIR": str(folder / "nginx"),
            "EDGE_TLS_DIR": str(tls),
            "EDGE_API_SOCKET": str(api_socket),
            "EDGE_HTTPS_LISTEN": f"{HOST}:{port}",
            "EDGE_HTTP_LISTEN": f"{HOST}:{free_port()}",
            "EDGE_STATUS_LISTEN": f"{HOST}:{free_port()}",
            "EDGE_HTTPS_PORT": str(port),
            "EDGE_REQUESTS_PER_SECOND": str(REQUESTS_PER_SECOND),
            "EDGE_CONNECTIONS": str(CONNECTIONS),
        }


def _make_certificate(folder: Path) -> Path:
    """The folder with `server.crt`, `server.key` and `ca.crt`, as a first start makes them."""
    folders = [argument for name in ("ca", "tls", "secrets") for argument in (f"--{name}", str(folder / name))]
    command = [sys.executable, str(ROOT / "docker/first_start.py"), *folders]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder / "tls"
