"""What a canonical log line costs a request: microseconds, with its write to a pipe that somebody reads.

Side by side with structlog as one would set it up by hand, and with a line of Python's own logging.
"""

import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec
import structlog

from observability.logs import configure_logging

ROUNDS, LINES = 40, 1000
# 22 keys with those that every line has.
FIELDS = {
    "request_id": "0af7651916cd43dd8448eb211c80319c",
    "trace_id": "0af7651916cd43dd8448eb211c80319c",
    "subject": "demo",
    "method": "POST",
    "route": "/v1/models/{model}:predict",
    "status": 200,
    "model": "breast-cancer",
    "version": "1",
    "outcome": "ok",
    "seconds": 0.001234,
    "queue_seconds": 0.0001,
    "input_seconds": 0.0001,
    "infer_seconds": 0.0005,
    "output_seconds": 0.0001,
    "cache": "miss",
    "rows": 1,
    "bytes": 512,
}


def usual_logger() -> Any:
    def encode(line: Any, **_: Any) -> bytes:
        return msgspec.json.encode(line)

    return structlog.wrap_logger(
        structlog.BytesLogger(sys.stdout.buffer),
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(serializer=encode),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
    ).bind()


def main() -> None:
    report = os.fdopen(os.dup(1), "w")
    reading, writing = os.pipe()
    reader = multiprocessing.get_context("fork").Process(target=read, args=(reading, writing), daemon=True)
    reader.start()
    os.dup2(writing, 1)
    configure_logging("info", "api")
    ours, usual, standard = structlog.get_logger("tiercel.request"), usual_logger(), logging.getLogger("gunicorn.error")
    bound = ours.bind()
    ways: dict[str, Callable[[], None]] = {
        "ours": lambda: ours.info("request", **FIELDS),
        "ours, bound once": lambda: bound.info("request", **FIELDS),
        "structlog as usual, bound once": lambda: usual.info("request", **FIELDS),
        "the standard library's, two words": lambda: standard.info("Booting %s", "worker"),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):  # taking turns
        for name, write in ways.items():
            found[name].append(measure(write))
    for name, times in found.items():
        times.sort()
        report.write(f"{name:35} best {times[0]:5.2f} us, median {times[ROUNDS // 2]:5.2f} us\n")


def measure(write: Callable[[], None]) -> float:
    began = time.perf_counter()
    for _ in range(LINES):
        write()
    return (time.perf_counter() - began) / LINES * 1e6


def read(reading: int, writing: int) -> None:
    os.close(writing)
    while os.read(reading, 1 << 16):
        pass


if __name__ == "__main__":
    main()
