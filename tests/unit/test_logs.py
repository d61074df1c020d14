"""Log lines: one form for all of them, and nothing in them that is nobody's business."""

import io
import json
import logging
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from observability.logs import MAX_EXCEPTION_CHARACTERS, SECRETS, Formatter, configure_logging, masked

ROOT = Path(__file__).parents[2]
HEAD = ["timestamp", "level", "logger", "event", "service"]
TOKEN = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl"  # noqa: S105  # nobody's
Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def speak(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Lines]]:
    """`said = speak()`, and `said()` are the lines since. What is set for the process is as it was afterwards."""
    root, before = logging.getLogger(), structlog.get_config()
    handlers, root_level = root.handlers[:], root.level
    for module, name in ((sys, "excepthook"), (sys, "unraisablehook"), (threading, "excepthook")):
        monkeypatch.setattr(module, name, getattr(module, name))
    monkeypatch.setattr(logging, "raiseExceptions", logging.raiseExceptions)

    def start(level: str = "info") -> Lines:
        output = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output))
        configure_logging(level, "api")
        return lambda: [json.loads(line) for line in output.getvalue().splitlines()]

    yield start
    logging.captureWarnings(capture=False)
    root.handlers[:] = handlers
    root.setLevel(root_level)
    structlog.configure(**before)


def test_a_line_begins_with_what_all_have_in_common(speak: Callable[..., Lines]) -> None:
    said = speak()
    structlog.get_logger("tiercel.request").info("request", status=200, model="m", seconds=0.5, rows=None)
    structlog.get_logger().warning("other")
    logging.getLogger("rq.worker").warning("a %s", "word", extra={"job": "1"})
    request, other, rq = said()
    assert [list(line)[:5] for line in (request, other, rq)] == [HEAD] * 3
    for line in (request, other, rq):
        assert line["service"] == "api"
        assert line["timestamp"].endswith("Z")
        assert abs(datetime.fromisoformat(line["timestamp"]) - datetime.now(UTC)) < timedelta(minutes=1)
    assert [request[key] for key in HEAD[1:4]] == ["info", "tiercel.request", "request"]
    assert {key: request[key] for key in list(request)[5:]} == {
        "status": 200,
        "model": "m",
        "seconds": 0.5,
        "rows": None,
    }
    assert [other[key] for key in HEAD[1:4]] == ["warning", "tiercel", "other"]
    assert [rq[key] for key in HEAD[1:4]] == ["warning", "rq.worker", "a word"]
    assert list(rq)[5:] == ["job"]


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_only_what_is_severe_enough_is_written(speak: Callable[..., Lines], level: str) -> None:
    """By either way, at each level."""
    said = speak(level)
    for log in (structlog.get_logger(), logging.getLogger("a")):
        for name in ("debug", "info", "warning", "error", "critical"):
            getattr(log, name)("event")
    levels = ["debug", "info", "warning", "error", "critical"]
    assert [line["level"] for line in said()] == levels[levels.index(level) :] * 2


def test_an_exception_is_one_line(speak: Callable[..., Lines]) -> None:
    said = speak()
    log = structlog.get_logger()
    try:
        raise ValueError("of\nseveral lines")
    except ValueError as error:
        caught = error
        log.exception("a")
        logging.getLogger("b").exception("b")
    log.error("c", exc_info=caught)
    log.error("d", exc_info=(type(caught), caught, caught.__traceback__))
    lines = said()
    assert [line["level"] for line in lines] == ["error"] * 4
    for line in lines:
        assert line["exception"].startswith("Traceback (most recent call last):")
        assert line["exception"].endswith("ValueError: of\nseveral lines")
        assert "exc_info" not in line


def test_the_end_of_a_long_exception_is_kept(speak: Callable[..., Lines]) -> None:
    said = speak()
    structlog.get_logger().error("a", exc_info=ValueError("b" * MAX_EXCEPTION_CHARACTERS + "the end"))
    [line] = said()
    assert len(line["exception"]) == MAX_EXCEPTION_CHARACTERS
    assert line["exception"].endswith("the end")


def test_warnings_are_lines(speak: Callable[..., Lines]) -> None:
    said = speak()
    with warnings.catch_warnings():  # as a process has them, and not as tests do
        warnings.simplefilter("always")
        logging.captureWarnings(capture=False)
        logging.captureWarnings(capture=True)
        warnings.warn("beware", stacklevel=1)
        logging.captureWarnings(capture=False)
    [line] = said()
    assert (line["logger"], line["level"]) == ("py.warnings", "warning")
    assert "beware" in line["event"]


@pytest.mark.parametrize("value", [float("nan"), 1 << 70, b"\xff", {1: {2: 3}}, object(), "\udcff", datetime.now(UTC)])
def test_every_value_can_be_written(speak: Callable[..., Lines], value: object) -> None:
    said = speak()
    structlog.get_logger().info("a", value=value)
    logging.getLogger("b").info("%s", value, extra={"value": value})
    assert len(said()) == 2


def test_what_is_bound_to_a_logger_is_in_its_lines(speak: Callable[..., Lines]) -> None:
    said = speak()
    structlog.get_logger().bind(job="1", row=1).info("a", row=2)
    assert {key: said()[0][key] for key in ("job", "row")} == {"job": "1", "row": 2}


def test_tests_can_capture_lines(speak: Callable[..., Lines]) -> None:
    said = speak()
    with capture_logs() as logs:
        structlog.get_logger().warning("a", b=1)
    assert logs == [{"event": "a", "b": 1, "log_level": "warning"}]
    assert said() == []


def test_a_line_that_cannot_be_written_fails_nobody() -> None:
    """Neither one of structlog's nor one of the standard library's, and nobody hears of it."""
    script = """
import logging, structlog
from observability.logs import configure_logging
configure_logging("info", "api")
structlog.get_logger().info("a")
logging.getLogger().info("b")
import os
os._exit(0)
"""
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([sys.executable, "-c", script], stdout=full, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    "text",
    [
        f"Bearer {TOKEN}",
        f"bearer opaque-{TOKEN[:8]}X",
        "Authorization: Basic c2hvcDpTRUNSRVQ=",
        "AUTHORIZATION BEARER CANARY",
        f"{TOKEN} is bad",
        f"'{TOKEN}'",
        "client_secret=CANARY&grant_type=client_credentials",
        '{"password": "CANARY"}',
        "{'access_token': 'CANARY'}",
        "api_key=CANARY",
        "X-Api-Key: CANARY",
        "Cookie: session=CANARY",
        "redis://queue:CANARY@redis:6379/0",
        "GET /v1/models?a=CANARY&b=c HTTP/1.1",
        "whsec_Q0FOQVJZ",
    ],
)
def test_secrets_are_masked(text: str) -> None:
    shown = masked(f"before {text} after")
    assert not any(
        secret in shown for secret in (TOKEN, TOKEN[-12:], "CANARY", "c2hvcDpTRUNSRVQ", "Q0FOQVJZ", "opaque")
    )
    assert shown.startswith("before ")
    assert shown.endswith(" after")
    assert "***" in shown


@pytest.mark.parametrize(
    "text",
    [
        "Worker exiting (pid: 1)",
        "access refused",
        "the token has expired",
        "bearers of news, basically",
        "expected shape [-1, 30], got [1, 29]",
        'File "/app/services/access_control/tokens.py", line 7, in verify',
        "why? because",
        "redis://redis:6379/0",
        "TIERCEL_AUTH_TOKEN_SECONDS",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert masked(text) == text


def test_what_is_masked_in_json_is_still_json() -> None:
    """As Fluentd does it, before it parses a line."""
    line = json.dumps(
        {"a": f'he said "password=CANARY", {TOKEN}', "client_secret": "CANARY", "url": "/a?b", "n": {"token": "CANARY"}}
    )
    assert json.loads(masked(line)) == {
        "a": 'he said "password=***", ***',
        "client_secret": "***",
        "url": "/a?***",
        "n": {"token": "***"},
    }


def test_fluentd_masks_the_same() -> None:
    assert f"gsub(/{SECRETS.pattern}/i, '\\1***')}}\n" in (ROOT / "monitoring/fluentd/fluent.conf").read_text()


def test_secrets_in_exceptions_and_of_others_are_masked(speak: Callable[..., Lines]) -> None:
    said = speak()
    structlog.get_logger().error("a", exc_info=ValueError(f"Bearer {TOKEN}"))
    logging.getLogger("gunicorn.error").warning("Invalid HTTP Header: %r", "AUTHORIZATION BEARER CANARY")
    try:
        raise ValueError(f"bad: {TOKEN}")
    except ValueError:
        logging.getLogger("gunicorn.error").exception("failed")
    assert TOKEN not in json.dumps(said())
    assert "CANARY" not in json.dumps(said())
    assert len(said()) == 3


DIES = """
import logging, sys, threading
from observability.logs import configure_logging
configure_logging("info", "worker")

class Unraisable:
    def __del__(self):
        raise ValueError("in a finaliser")

def fail():
    raise ValueError("in a thread")

threading.Thread(target=fail).start()
threading.Thread(target=sys.exit).start()
Unraisable()
logging.getLogger("asyncio").error("last")
raise ValueError("at the end")
"""


def test_what_nobody_catches_is_a_line_as_well() -> None:
    done = subprocess.run([sys.executable, "-c", DIES], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == ""
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 4
    uncaught = [line for line in lines if line["event"] == "uncaught"]
    assert {line["exception"].splitlines()[-1] for line in uncaught} == {
        f"ValueError: {where}" for where in ("in a finaliser", "in a thread", "at the end")
    }
    assert {line["service"] for line in lines} == {"worker"}


def test_gunicorns_and_rqs_formatter_has_the_same_form() -> None:
    record = logging.LogRecord("rq.worker", logging.CRITICAL, "", 0, "a\n", (), None)
    assert list(json.loads(Formatter("worker").format(record))) == HEAD
