"""What Gunicorn calls in each worker: `get_app` reads the environment; `app.create_app` takes objects."""

import atexit
import os

from inference_api.app import App, create_app
from inference_core.bootstrap import bootstrap
from inference_core.settings import read_settings
from inference_core.telemetry import configure_logging


def get_app() -> App:
    settings = read_settings(os.environ)
    configure_logging(settings.log_level)
    services = bootstrap(settings)
    atexit.register(services.rollout.stop)
    return create_app(services)
