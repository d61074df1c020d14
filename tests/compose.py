"""A Compose project of its own, driven as an operator drives it: with the `docker` command."""

import functools
import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

from servers import Answer, bearer, fetch_token, free_port, wait_until

ROOT = Path(__file__).resolve().parents[1]
CLK_TCK = os.sysconf("SC_CLK_TCK")


def fetch(url: str, body: Any = None, **headers: str) -> Any:
    """The JSON that one of them answers."""
    data = None if body is None else json.dumps(body).encode()
    fields = {"Content-Type": "application/json"} | headers
    request = urllib.request.Request(url, data, fields)  # noqa: S310  # the URL is ours
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310  # the same
        text = answer.read()
    return json.loads(text) if text else None


class Stack:
    """`compose("ps")` is `docker compose ps` in this project, whose ports are free ones."""

    def __init__(self, folder: Path) -> None:
        self.ca = folder / "ca.crt"
        self.port, self.clear_port = free_port(), free_port()
        self._environ = (
            os.environ
            | {
                "COMPOSE_PROJECT_NAME": f"tiercel-e2e-{self.port}",
                "EDGE_HTTPS_PORT": str(self.port),
                "EDGE_HTTP_PORT": str(self.clear_port),
                "EDGE_REQUESTS_PER_SECOND": "2000",
                "STACK_DIR": str(folder / "none"),
            }
            | {f"{name}_PORT": str(free_port()) for name in ("GRAFANA", "PROMETHEUS", "ALERTMANAGER", "JAEGER")}
        )

    def compose(self, *arguments: str, check: bool = True) -> str:
        return self._run("docker", "compose", *arguments, check=check)

    def python(self, *arguments: str, check: bool = True) -> str:
        """What a program prints that finds this stack as those of `make` do."""
        return self._run(sys.executable, *arguments, check=check)

    def _run(self, *command: str, check: bool = True) -> str:
        done = subprocess.run(command, cwd=ROOT, env=self._environ, capture_output=True, text=True, check=False)
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)}: {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def docker(self, *arguments: str, stdin: str = "") -> str:
        return subprocess.run(["docker", *arguments], input=stdin, capture_output=True, text=True, check=True).stdout

    def url(self, service: str) -> str:
        """Of prometheus, alertmanager, grafana or jaeger, as operators reach it."""
        return f"http://127.0.0.1:{self._environ[f'{service.upper()}_PORT']}"

    @property
    def project(self) -> str:
        return self._environ["COMPOSE_PROJECT_NAME"]

    def up(self, *arguments: str) -> None:
        self.compose("up", "-d", "--wait", *arguments)

    def fetch_ca(self) -> None:
        self.compose("cp", "nginx:/etc/tiercel/tls/ca.crt", str(self.ca))

    def containers(self, service: str = "") -> list[dict[str, Any]]:
        """What `docker inspect` says of each container, of one service or of all."""
        ids = self.compose("ps", "--all", "--quiet", *([service] if service else [])).split()
        return list(json.loads(self.docker("inspect", *ids))) if ids else []

    def ids(self, service: str = "") -> set[str]:
        return {container["Id"] for container in self.containers(service)}

    def processes(self, container: str) -> list[int]:
        """The process ids on this machine of all that runs in the container; the first is its init."""
        lines = self.docker("top", container, "-eo", "pid").splitlines()[1:]
        return [int(line) for line in lines]

    def kill_init(self, container: str) -> None:
        """As the kernel would for want of memory; `docker kill` would count as wanted."""
        os.kill(self.docker_pid(container), signal.SIGKILL)

    def docker_pid(self, container: str) -> int:
        return int(self.docker("inspect", "--format", "{{.State.Pid}}", container))

    def cpu_seconds(self, container: str) -> float:
        total = 0
        for pid in self.processes(container):
            fields = stat(pid)
            total += int(fields[11]) + int(fields[12])
        return total / CLK_TCK

    def workers(self, container: str) -> list[int]:
        """Gunicorn's workers: the children of the child of the container's init."""
        parents = {pid: int(stat(pid)[1]) for pid in self.processes(container)}
        init = self.docker_pid(container)
        return [pid for pid, parent in parents.items() if parents.get(parent) == init]

    def wait_healthy(self, service: str) -> None:
        def healthy() -> bool:
            states = [container["State"] for container in self.containers(service)]
            return bool(states) and all(state.get("Health", {}).get("Status") == "healthy" for state in states)

        wait_until(healthy, f"{service} is healthy", 60)

    def http(self, alpn: str = "http/1.1") -> http.client.HTTPSConnection:
        """Trusts the development CA only, and checks the name."""
        context = ssl.create_default_context(cafile=str(self.ca))
        context.set_alpn_protocols([alpn])
        return http.client.HTTPSConnection("localhost", self.port, timeout=30, context=context)

    @property
    def secret(self) -> str:
        """The demo client's."""
        return self.compose("exec", "-T", "api", "cat", "/var/lib/tiercel/secrets/demo_client_secret").strip()

    @functools.cached_property
    def token(self) -> str:
        """The demo client's, good for longer than these tests take."""
        return fetch_token(self.http(), "demo", self.secret)

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        token: str | None = None,
    ) -> Answer:
        """With `token`; if it is None with the demo client's, and if it is empty with none."""
        token = self.token if token is None else token
        connection = self.http()
        try:
            connection.request(method, path, body, (headers or {}) | (bearer(token) if token else {}))
            return Answer(connection.getresponse())
        finally:
            connection.close()


def stat(pid: int) -> list[str]:
    """The fields of proc_pid_stat(5) from the third on: state, parent, ..."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
