"""What Gunicorn calls in each worker: `get_app` reads the environment; `app.create_app` takes objects."""

import atexit
import os
from pathlib import Path

from inference_api.app import App, create_app
from inference_api.metrics import tell_what_runs
from inference_api.observation.observer import open_observer
from inference_core.bootstrap import bootstrap
from inference_core.settings import read_settings
from observability.logs import configure_logging
from observability.metrics import REGISTRY
from observability.tracing import open_tracer


def get_app() -> App:
    settings = read_settings(os.environ)
    if settings.metrics_dir:
        REGISTRY.attach(Path(settings.metrics_dir))
    tell_what_runs(settings)
    tracer = open_tracer(settings.trace_endpoint, settings.trace_ratio, settings.trace_slow_ms / 1000, "tiercel-api")
    observer = open_observer(tracer, log_lines=settings.log_level in ("debug", "info"))
    atexit.register(tracer.flush)
    atexit.register(observer.flush)
    configure_logging(settings.log_level, "api")
    services = bootstrap(settings)
    atexit.register(services.rollout.stop)
    if settings.auth == "off":
        return create_app(services, observer=observer)
    # PERF: cryptography takes a quarter of a server's start, and is not needed without tokens.
    from access_control.bootstrap import open_access  # noqa: PLC0415
    from inference_api import oauth2  # noqa: PLC0415

    access = open_access(settings)
    issuer = oauth2.routes(access.built_in, services.quotas) if access.built_in else []
    return create_app(services, access.verifier, issuer, observer)
