"""What a batch worker has counted, over HTTP for Prometheus: `GET /metrics` and nothing else."""

import os
import platform
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version

from inference_core.settings import SettingsError
from observability import families
from observability.exposition import MEDIA_TYPE, collect, put, render, resident_bytes

# Who sends nothing is not waited for any longer.
TIMEOUT_SECONDS = 5.0
# In place of a class of Gunicorn's.
WORKER_CLASS = "batch"


class Handler(BaseHTTPRequestHandler):
    timeout = TIMEOUT_SECONDS

    def do_GET(self) -> None:  # http.server calls it so
        if self.path != "/metrics":
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        body = exposition().encode()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", MEDIA_TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002  # http.server calls it so
        """Nobody needs to know who asks."""


def exposition() -> str:
    began = time.perf_counter()
    families.PROCESS_CPU_SECONDS.of().set(time.process_time())
    numbers = collect(None).numbers
    put(numbers, families.WORKERS, 1)
    put(numbers, families.WORKER_BYTES, resident_bytes(os.getpid()), "0")
    put(numbers, families.SCRAPE_SECONDS, time.perf_counter() - began)
    return render(numbers)


def serve_metrics(bind: str) -> ThreadingHTTPServer:
    """In threads, until the process ends."""
    families.begin_at_zero()
    families.WORKER_STARTS.of().add()
    what = (version("tiercel"), platform.python_version(), version("onnxruntime"), WORKER_CLASS)
    families.BUILD_INFO.of(*what).set(1)
    host, _, port = bind.rpartition(":")
    try:
        server = ThreadingHTTPServer((host.strip("[]"), int(port)), Handler)
    except OSError as error:
        raise SettingsError(f"TIERCEL_METRICS_BIND: {bind}: {error.strerror}") from None
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server
