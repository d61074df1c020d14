"""`make token`: an access token of the demo client, printed, from the stack that runs, here or in Compose.

NOTE: a token.py would take the place of Python's own in programs of this folder.
"""

import base64
import http.client
import json
import os
import ssl
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from native import certificates

COMPOSE = "docker compose exec -T"


class TokenError(Exception):
    pass


def main() -> str | None:
    try:
        print(fetch(_find(Path(os.environ.get("STACK_DIR", ".stack")))))
    except (TokenError, OSError, http.client.HTTPException) as error:
        return f"tiercel: {error}"
    return None


class Found(NamedTuple):
    """Where the edge of a stack is, what its certificate is to be checked with, and the demo client's secret."""

    address: str
    ca: str
    secret: str


def _find(folder: Path) -> Found:
    if (folder / "lock").exists() and certificates.is_running(folder):
        ca, secret = folder / "tls/ca.crt", folder / "secrets/demo_client_secret"
        return Found(f"127.0.0.1:{os.environ.get('EDGE_HTTPS_PORT', '8443')}", ca.read_text(), secret.read_text())
    if not certificates.is_running_in_compose():
        raise TokenError("no stack runs; `make stack` or `docker compose up` starts one")
    return Found(
        # NOTE: not from EDGE_HTTPS_PORT, which may be set in .env.
        _output("docker compose port nginx 8443").strip().replace("0.0.0.0", "127.0.0.1"),
        _output(f"{COMPOSE} nginx cat /etc/tiercel/tls/ca.crt"),
        _output(f"{COMPOSE} api cat /var/lib/tiercel/secrets/demo_client_secret"),
    )


def fetch(found: Found) -> str:
    context = ssl.create_default_context(cadata=found.ca)
    context.check_hostname = False  # the certificate may be one of your own, for a name of your own
    connection = http.client.HTTPSConnection(found.address, timeout=10, context=context)
    basic = base64.b64encode(f"demo:{found.secret.strip()}".encode()).decode()
    fields = {"Authorization": f"Basic {basic}", "Content-Type": "application/x-www-form-urlencoded"}
    connection.request("POST", "/oauth2/token", "grant_type=client_credentials", fields)
    answer = json.loads(connection.getresponse().read())
    connection.close()
    if "access_token" not in answer:
        raise TokenError(f"no token: {answer}")
    token: str = answer["access_token"]
    return token


def _output(command: str) -> str:
    done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise TokenError(done.stderr.strip())
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
