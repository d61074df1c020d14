"""Gunicorn's configuration: `gunicorn -c python:inference_api.gunicorn_conf`. All of it comes from the settings."""

import atexit
import gc
import logging.config
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from gunicorn.glogging import Logger

import inference_api.main  # noqa: F401  # PERF: imported once, before the fork: workers share it and start in no time
from inference_core.bootstrap import prepare
from inference_core.errors import TiercelError
from inference_core.host import fingerprint
from inference_core.settings import SettingsError, check_access, read_settings, variable
from inference_core.thread_plan import granted_cpus, make_plan
from observability.logs import configure_logging, standard_library

WORKER_CLASSES = {
    "meinheld": "inference_api.workers.meinheld.MeinheldWorker",
    "llhttp": "inference_api.workers.llhttp.LlhttpWorker",
    "gthread": "gthread",
}

try:
    _settings = read_settings(os.environ)
    check_access(_settings)
    _plan = make_plan(_settings, granted_cpus())
    if not Path(_settings.models_dir).is_dir():
        raise SettingsError(f"TIERCEL_MODELS_DIR: expected a folder, got {_settings.models_dir!r}")
except SettingsError as error:
    sys.exit(f"tiercel: {error}")

if _settings.auth == "required":
    from access_control.bootstrap import check_issuer  # PERF: the same, where it is needed

    try:
        check_issuer(_settings)
    except SettingsError as error:
        sys.exit(f"tiercel: {error}")

if _settings.trace_endpoint:
    import observability.span_export  # noqa: F401  # PERF: shared as well, where it is needed

wsgi_app = "inference_api.main:get_app()"
proc_name = "tiercel"
bind = _settings.bind
umask = 0o117
backlog = 1024
worker_class = WORKER_CLASSES[_settings.worker_class]
workers = _plan.workers
# gthread only: an inference has the worker for itself all the same, threads wait for slow clients.
threads = 4
worker_connections = 1000
# The heartbeat; a hung inference is ended earlier, by inference_core.watchdog.
timeout = max(30, (_settings.request_timeout_ms + _settings.hang_grace_ms) // 1000 + 10)
graceful_timeout = int(_settings.drain_seconds) + 10
# Longer than NGINX keeps an idle connection to us, so that it is never us who closes one that it is about to use.
keepalive = 75
# Memory: a heartbeat must not wait for a disk.
worker_tmp_dir = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108  # files in it have random names
control_socket_disable = True
# Sessions and threads are made after the fork.
preload_app = False
header_map = "drop"
limit_request_line = 8190
loglevel = _settings.log_level


class JsonLogger(Logger):  # type: ignore[misc]  # Gunicorn has no types
    """Gunicorn's own, whose lines have the form of all others. `logconfig_dict` would have it log requests as well."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        logging.config.dictConfig(standard_library(_settings.log_level, "api"))

    def warning(self, msg: str, *args: Any, **kwargs: Any) -> None:
        """SECURITY: gthread quotes what it does not understand of a request."""
        super().warning(
            re.sub(r"^(Invalid request from \S+: [^:'\"]*).*", r"\1", msg, flags=re.DOTALL), *args, **kwargs
        )


logger_class = JsonLogger


def on_starting(server: Any) -> None:
    configure_logging(_settings.log_level, "api")
    server.log.info("thread plan: %s, worker class %s", _plan, _settings.worker_class)
    if _settings.tuned_for not in ("", host := fingerprint()):
        server.log.warning("tuned for another host: TIERCEL_TUNED_FOR is %s, this is %s", _settings.tuned_for, host)
    for name in ("state_dir", "metrics_dir"):
        if not getattr(_settings, name):
            os.environ[variable(name)] = _private_folder()
    try:
        prepare(read_settings(os.environ))
    except (TiercelError, OSError) as error:
        sys.exit(f"tiercel: {error}")
    # PERF: what exists now stays shared with the workers, as no collection will touch it.
    gc.collect()
    gc.freeze()


def on_reload(server: Any) -> None:
    try:
        prepare(read_settings(os.environ))
    except (TiercelError, OSError) as error:
        server.log.error("new models are not taken up: %s", error)


def _private_folder() -> str:
    """A folder that nobody sweeps, and that ends with this process, not with a worker that inherits the duty."""
    folder, owner = tempfile.mkdtemp(prefix="tiercel-", dir=worker_tmp_dir), os.getpid()

    def remove() -> None:
        if os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder
