"""What a process says of itself: JSON on standard output, one object per line, whoever says it.

Each line begins with timestamp, level, logger, event and service, and goes on with what it is about. The timestamp is
first and has one form everywhere, so that `sort` puts lines of several services in order.
"""

import json
import logging.config
import re
import sys
import threading
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from types import TracebackType
from typing import Any

import msgspec
import structlog
from pythonjsonlogger.msgspec import MsgspecFormatter

# Of a traceback the end, which says most. An engine that keeps logs cuts lines at 16 KiB.
MAX_EXCEPTION_CHARACTERS = 6000
# SECURITY: what others say, and what exceptions quote, may hold what somebody sent. The name before it, group 1, stays.
# The same is in fluent.conf, for Ruby.
SECRETS = re.compile(
    r"(\b(?:bearer|basic) "
    r"|\b[\w-]*(?:authorization|token|secret|password|api[_-]?key|cookie)[\"'\\]*\s*[=:]\s*[\"'\\]*"
    r"(?!bearer |basic |[\"'\\]))[^\s\"',;&\\\x7d]+"
    r"|(?<=:\/\/)[^\s\/@\"]+(?=@)"  # of a URL
    r"|(?<=\?)[^\s\"'\\]+"  # its query
    r"|\beyJ[\w-]+\.[\w.-]+"  # a JSON Web Token
    r"|\bwhsec_[\w+\/=-]+",
    re.IGNORECASE,
)

_encode = msgspec.json.Encoder(enc_hook=str).encode


def configure_logging(level: str, service: str) -> None:
    """From now on everything that this process says is lines of `service`, of this level or above."""
    structlog.configure(
        processors=[partial(_render, service)],
        wrapper_class=_logger_class(level),
        logger_factory=structlog.BytesLoggerFactory(sys.stdout.buffer),
        cache_logger_on_first_use=True,
    )
    logging.config.dictConfig(standard_library(level, service))
    # A line that cannot be written is lost; standard error would hear of it in another form.
    logging.raiseExceptions = False
    logging.captureWarnings(True)  # positional only
    sys.excepthook = _uncaught
    threading.excepthook = lambda args: _uncaught(args.exc_type, args.exc_value, args.exc_traceback)
    sys.unraisablehook = lambda args: _uncaught(args.exc_type, args.exc_value, args.exc_traceback)


def standard_library(level: str, service: str) -> dict[str, Any]:
    """The same for Python's own logging: for Gunicorn, RQ, Redis, warnings and whoever else uses it."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": Formatter, "service": service}},
        "handlers": {
            "lines": {"class": "logging.StreamHandler", "stream": "ext://sys.stdout", "formatter": "json"},
        },
        "root": {"level": level.upper(), "handlers": ["lines"]},
        # Without the handlers that Gunicorn gives it.
        "loggers": {"gunicorn.error": {"level": level.upper(), "handlers": [], "propagate": True}},
    }


class Formatter(MsgspecFormatter):
    def __init__(self, service: str) -> None:
        super().__init__(
            ["levelname", "name", "message"], timestamp=True, rename_fields={"exc_info": "exception"}, json_default=str
        )
        self._service = service

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        head = {
            "timestamp": log_data.pop("timestamp"),
            "level": log_data.pop("levelname").lower(),
            "logger": log_data.pop("name"),
            "event": masked(log_data.pop("message").rstrip()),
            "service": self._service,
        }
        if "exception" in log_data:
            log_data["exception"] = _shortened(log_data["exception"])
        return head | log_data

    def jsonify_log_record(self, log_data: dict[str, Any]) -> str:
        return _line(log_data).decode()


def masked(text: str) -> str:
    return SECRETS.sub(r"\1***", text)


def _logger_class(level: str) -> type[structlog.BoundLoggerBase]:
    """PERF: structlog's own loggers hand the fields of a line on from call to call, and copy them each time: a third of
    the time that a line takes, which is on the road of every prediction.
    """
    least = logging.getLevelNamesMapping()[level.upper()]
    methods = {
        name: _writes(name) if logging.getLevelNamesMapping()[name.upper()] >= least else _ignores
        for name in ("debug", "info", "warning", "error", "critical")
    }
    return type("Logger", (structlog.BoundLoggerBase,), methods | {"exception": _writes("error", exc_info=True)})


def _writes(level: str, **usual: Any) -> Callable[..., None]:
    def write(self: Any, event: str, **fields: Any) -> None:
        if self._context or usual:
            fields = usual | self._context | fields
        fields["event"] = event
        line: Any = fields
        try:
            for process in self._processors:
                line = process(self._logger, level, line)
            self._logger.msg(line)
        except (structlog.DropEvent, OSError):  # nobody reads it: that is no fault of a request
            pass

    return write


def _ignores(self: Any, event: str, **fields: Any) -> None:
    pass


def _render(service: str, logger: Any, level: str, fields: Any) -> bytes:
    """The last processor, and the only one."""
    line = {
        "timestamp": datetime.now(UTC),
        "level": level,
        "logger": logger.name or "tiercel",
        "event": fields.pop("event"),
        "service": service,
    }
    if "exc_info" in fields:
        line["exception"] = _exception(fields.pop("exc_info"))
    line.update(fields)
    return _line(line)


def _line(line: dict[str, Any]) -> bytes:
    try:
        return _encode(line)
    except (UnicodeEncodeError, ValueError, TypeError):  # half a surrogate, as in names of files; a key that is no text
        return json.dumps(line, default=str, skipkeys=True).encode()


def _exception(error: Any) -> str:
    """`error` is what Python's own logging takes as `exc_info`."""
    if not isinstance(error, BaseException):
        error = error[1] if isinstance(error, tuple) else sys.exc_info()[1]
    return _shortened("".join(traceback.format_exception(error)))


def _shortened(text: str) -> str:
    return masked(text).rstrip()[-MAX_EXCEPTION_CHARACTERS:]


def _uncaught(kind: type[BaseException], error: BaseException | None, at: TracebackType | None) -> None:
    if not issubclass(kind, SystemExit):
        structlog.get_logger().critical("uncaught", exc_info=(kind, error, at))
