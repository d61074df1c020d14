"""What the stack's programs are told: the variables that they read, and the files that are made for them."""

import os
import secrets
import shutil
import socket
from collections.abc import Mapping
from configparser import RawConfigParser
from pathlib import Path
from string import Template
from typing import NamedTuple

from native import programs

from inference_core.settings import read_settings
from inference_core.thread_plan import granted_cpus, make_plan

DEFAULTS = {
    "STACK_DIR": ".stack",
    "EDGE_HTTPS_PORT": "8443",
    "EDGE_HTTP_PORT": "8080",
    "EDGE_STATUS_PORT": "8081",
    "PROMETHEUS_PORT": "9090",
    "TIERCEL_BIND": "127.0.0.1:8000",
    "TIERCEL_METRICS_BIND": "127.0.0.1:8082",
    # NGINX has stopped before the API is told to: nobody is left who has yet to notice.
    "TIERCEL_DRAIN_SECONDS": "0",
}
PORTS = [name for name in DEFAULTS if name.endswith("_PORT")]
SUPERVISOR = Path("native/supervisord.conf")
PROMETHEUS = Path("monitoring/prometheus/native.yml")


class ConfigurationError(Exception):
    pass


class Configuration(NamedTuple):
    """`folder` outlives the stack, `run` does not. The password is Supervisor's."""

    environment: Mapping[str, str]
    folder: Path
    run: Path
    password: str

    @property
    def has_prometheus(self) -> bool:
        return _has_prometheus(self.environment)


def read_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` and the defaults."""
    return DEFAULTS | dict(environ) | {"PATH": programs.search_path(environ.get("PATH", ""))}


def check(environment: Mapping[str, str]) -> None:
    """SettingsError or ConfigurationError names the variable that does not fit, or whose port is taken."""
    settings = read_settings(environment)
    make_plan(settings, granted_cpus())
    _check_free("TIERCEL_BIND", settings.bind, "127.0.0.1:8001")
    if settings.metrics_bind:
        _check_free("TIERCEL_METRICS_BIND", settings.metrics_bind, "127.0.0.1:9082")
    for name in PORTS:
        text = environment[name]
        if not text.isdecimal() or not 1 <= int(text) < 1 << 16:
            raise ConfigurationError(f"{name}: expected a port, got {text!r}")
        if name != "PROMETHEUS_PORT" or _has_prometheus(environment):
            _check_free(name, f"127.0.0.1:{text}", str(int(DEFAULTS[name]) + 1000))


def _check_free(variable: str, address: str, another: str) -> None:
    host, _, port = address.rpartition(":")
    if host == "unix":
        return
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host.strip("[]"), int(port)), family=family).close()
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise ConfigurationError(f"{variable}: {address}: {reason}; another is {variable}={another}") from None


def _has_prometheus(environment: Mapping[str, str]) -> bool:
    return shutil.which("prometheus", path=environment["PATH"]) is not None


def configure(environment: Mapping[str, str], run: Path) -> Configuration:
    """Make the files that Supervisor and Prometheus read."""
    folder = Path(environment["STACK_DIR"])
    places = _places(environment, folder.resolve(), run)
    configuration = Configuration({**environment, **places}, folder, run, secrets.token_hex())
    _write_supervisord_conf(configuration)
    _write_prometheus_yml(configuration)
    return configuration


def _places(environment: Mapping[str, str], folder: Path, run: Path) -> dict[str, str]:
    """Where the programs find each other and their files. SECURITY: NGINX listens on loopback, whatever was set."""
    port = environment["EDGE_HTTPS_PORT"]
    return {
        "EDGE_RUN_DIR": f"{folder}/nginx",
        "EDGE_TLS_DIR": f"{folder}/tls",
        "EDGE_API_SOCKET": f"{run}/api.sock",
        "EDGE_HTTPS_LISTEN": f"127.0.0.1:{port}",
        "EDGE_HTTP_LISTEN": f"127.0.0.1:{environment['EDGE_HTTP_PORT']}",
        "EDGE_STATUS_LISTEN": f"127.0.0.1:{environment['EDGE_STATUS_PORT']}",
        "TIERCEL_AUTH": "required",
        "TIERCEL_AUTH_DIR": f"{folder}/secrets",
        "TIERCEL_AUTH_ISSUER": environment.get("TIERCEL_AUTH_ISSUER", f"https://localhost:{port}"),
        "TIERCEL_JOBS_DIR": f"{folder}/jobs",
        "TIERCEL_STATE_DIR": f"{run}/state",
        "TIERCEL_CACHE_URL": f"unix://{run}/redis-cache.sock",
        "TIERCEL_QUEUE_URL": f"unix://{run}/redis-queue.sock",
    }


def _write_supervisord_conf(configuration: Configuration) -> None:
    config = RawConfigParser(delimiters=("=",))
    config.read_string(_filled_in(SUPERVISOR.read_text(), configuration))
    every = dict(config["program:*"])
    config.remove_section("program:*")
    if not configuration.has_prometheus:
        config.remove_section("program:prometheus")
    if os.geteuid():
        config.remove_option("supervisord", "user")
    for section in filter(lambda name: name.startswith("program:"), config.sections()):
        config[section] = every | dict(config[section])
        config[section]["command"] = f"{every['command']} {config[section]['command']}"
    with (configuration.run / "supervisord.conf").open("w") as file:
        config.write(file)


def _filled_in(text: str, configuration: Configuration) -> str:
    folder = str(configuration.folder.resolve()).replace("%", "%%")
    port = configuration.environment["PROMETHEUS_PORT"]
    password = configuration.password
    return Template(text).substitute(RUN=configuration.run, DIR=folder, PROMETHEUS_PORT=port, PASSWORD=password)


def _write_prometheus_yml(configuration: Configuration) -> None:
    text = PROMETHEUS.read_text().replace("[rules/", f"[{PROMETHEUS.parent.resolve()}/rules/")
    text = text.replace("127.0.0.1:9090", f"127.0.0.1:{configuration.environment['PROMETHEUS_PORT']}")
    text = text.replace("127.0.0.1:8081", f"127.0.0.1:{configuration.environment['EDGE_STATUS_PORT']}")
    bind = configuration.environment["TIERCEL_BIND"]
    if not bind.startswith("unix:"):  # which Prometheus can not ask; it says so of the address that is left
        text = text.replace("127.0.0.1:8000", bind)
    text = text.replace("127.0.0.1:8082", configuration.environment["TIERCEL_METRICS_BIND"] or "127.0.0.1:8082")
    (configuration.folder / "prometheus.yml").write_text(text)
