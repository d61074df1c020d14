"""A server for a trial, as `make serve` starts it, but on its own."""

import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO

from inference_core.shared_state import SharedState
from tuning.configuration import Configuration
from tuning.load import HOST, LoadError

COMMAND = [sys.executable, "-m", "gunicorn", "-c", "python:inference_api.gunicorn_conf"]
READY_SECONDS = 30.0
READY_POLL_SECONDS = 0.02
STOP_SECONDS = 20.0
LOG_BYTES = 1000
# Whatever else is set: nobody else takes part, and every answer is computed.
ALONE = {
    "TIERCEL_AUTH": "off",
    "TIERCEL_METRICS_DIR": "",
    "TIERCEL_CACHE_URL": "",
    "TIERCEL_CACHE_LOCAL_BYTES": "0",
    "TIERCEL_QUOTA_REQUESTS": "0",
    "TIERCEL_QUEUE_URL": "",
    "TIERCEL_JOBS_DIR": "",
    "TIERCEL_TRACE_ENDPOINT": "",
    "TIERCEL_TUNED_FOR": "",
    "TIERCEL_DRAIN_SECONDS": "0",
}


@contextmanager
def serve(configuration: Configuration, environ: Mapping[str, str]) -> Iterator[int]:
    """The port of a server whose workers are all ready; LoadError with the end of its log if they do not become so."""
    with closing(socket.create_server((HOST, 0))) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="tiercel-") as folder, tempfile.TemporaryFile() as log:
        places = {"TIERCEL_BIND": f"{HOST}:{port}", "TIERCEL_STATE_DIR": folder}
        variables = {**environ, **ALONE, **configuration.variables(), **places}
        with subprocess.Popen(COMMAND, env=variables, stdout=log, stderr=log) as server:
            try:
                if not _become_ready(server, SharedState(Path(folder)), configuration.workers):
                    raise LoadError(f"expected a server that is ready, got one that says: {_end(log)}")
                yield port
            finally:
                server.send_signal(signal.SIGINT)  # at once: nobody waits for an answer any more
                try:
                    server.wait(STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    server.kill()


def _become_ready(server: subprocess.Popen[bytes], state: SharedState, workers: int) -> bool:
    """NOTE: not by asking for its health, which any worker may answer while others are still loading."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        loaded = [progress for progress in state.progress() if progress.generation]
        if len(loaded) == workers:
            return not any(progress.failures for progress in loaded)
        time.sleep(READY_POLL_SECONDS)
    return False


def _end(log: IO[bytes]) -> str:
    log.seek(0)
    return log.read()[-LOG_BYTES:].decode(errors="replace").strip()
