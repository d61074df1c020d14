"""`make stack`, as its user sees it: the whole stack, for real, on free ports and in a folder of the test."""

import functools
import http.client
import json
import os
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import xmlrpc.client
from collections.abc import Iterator
from configparser import RawConfigParser
from contextlib import suppress
from pathlib import Path
from typing import Any

import native.stack
import pytest
from native import configuration
from native.configuration import Configuration
from servers import Answer, bearer, fetch_token, free_port, read_all, wait_until
from supervisor.xmlrpc import SupervisorTransport

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "native.stack"]
INSTANCES = (ROOT / "models/breast-cancer/examples/instances.json").read_bytes()
PORTS = ("EDGE_HTTPS_PORT", "EDGE_HTTP_PORT", "EDGE_STATUS_PORT", "PROMETHEUS_PORT")


class Stack:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {name: free_port() for name in PORTS}
        self.environment = {name: str(port) for name, port in self.ports.items()}
        self.environment |= {"STACK_DIR": str(folder), "TIERCEL_BIND": f"127.0.0.1:{free_port()}"}
        self.environment["TIERCEL_METRICS_BIND"] = f"127.0.0.1:{free_port()}"

    def start(self) -> None:
        with (self.folder / "output").open("wb") as output:
            self.process = subprocess.Popen(
                COMMAND, cwd=ROOT, env=os.environ | self.environment, stdout=output, stderr=output
            )
        wait_until(self._is_ready, f"the stack is ready; its output: {self.folder}/output", 30)

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, self.output()
        return "Ctrl-C stops everything." in self.output()

    def stop(self) -> None:
        self.process.terminate()
        try:
            assert self.process.wait(30) == 0, self.output()
        finally:
            self.process.kill()

    def output(self) -> str:
        return (self.folder / "output").read_text()

    def printed(self, command: str) -> list[str]:
        """The words of a command that it has printed."""
        text = self.output().replace("\\\n", "")
        return next(shlex.split(line[line.index(command) :]) for line in text.splitlines() if command in line)

    @property
    def run(self) -> Path:
        return Path(self.printed("supervisorctl")[2]).parent

    def programs(self) -> dict[str, dict[str, Any]]:
        """What Supervisor knows of each."""
        config = RawConfigParser()
        config.read(self.run / "supervisord.conf")
        server = config["unix_http_server"]
        transport = SupervisorTransport(server["username"], server["password"], f"unix://{server['file']}")
        try:
            proxy: Any = xmlrpc.client.ServerProxy("http://supervisor", transport)
            return {process["name"]: process for process in proxy.supervisor.getAllProcessInfo()}
        finally:
            transport.close()

    def http(self) -> http.client.HTTPSConnection:
        context = ssl.create_default_context(cafile=self.folder / "tls/ca.crt")
        return http.client.HTTPSConnection("localhost", self.ports["EDGE_HTTPS_PORT"], timeout=10, context=context)

    @functools.cached_property
    def token(self) -> str:
        """The demo client's, good for longer than these tests take."""
        return fetch_token(self.http(), "demo", (self.folder / "secrets/demo_client_secret").read_text())

    def request(self, method: str, path: str, body: bytes | None = None, token: str | None = None) -> Answer:
        """With `token`; if it is None with the demo client's, and if it is empty with none."""
        token = self.token if token is None else token
        connection = self.http()
        try:
            connection.request(method, path, body, bearer(token) if token else {})
            return Answer(connection.getresponse())
        finally:
            connection.close()

    def predicts(self) -> bool:
        with suppress(OSError, http.client.HTTPException):
            return self.request("POST", "/v1/models/breast-cancer:predict", INSTANCES).status == 200
        return False


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Runs before a test, and must still or again after it."""
    stack = Stack(tmp_path_factory.mktemp("stack"))
    stack.start()
    try:
        yield stack
    finally:
        stack.stop()


def run(*command: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """To its end, which is to come soon."""
    environment = os.environ | variables
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=40, check=False)


def descendants(pid: int) -> list[int]:
    with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [descendant for child in map(int, children) for descendant in (child, *descendants(child))]
    return []


def sockets(pid: int) -> set[str]:
    """The inodes of those that a process has."""
    links = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for path in Path(f"/proc/{pid}/fd").iterdir():
            links.append(str(path.readlink()))  # noqa: PERF401  # those until it ends
    return {link.removeprefix("socket:[").rstrip("]") for link in links}


def test_the_commands_that_it_prints_classify_a_real_photo(stack: Stack) -> None:
    """As a shell of the user's has them, which knows none of the stack's variables; with the certificate checked."""
    [commands] = [part for part in stack.output().split("\n\n") if "curl " in part]
    # Not by `make` itself, which might find that there are new packages to install.
    commands = commands.replace("make -s token", f"{sys.executable} -m native.access_token")
    done = run("sh", "-euc", f"{commands} --silent --show-error --fail-with-body")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["predictions"][0]["label"] in ("tabby cat", "tiger cat", "Egyptian cat")


def test_the_commands_name_no_variable_that_is_as_it_is_by_itself(tmp_path: Path) -> None:
    usual = configuration.read_environment({})
    for changed, variables in ({}, ""), ({"EDGE_HTTPS_PORT": "9443"}, "EDGE_HTTPS_PORT=9443 "):
        stack = Configuration(usual | changed, Path(usual["STACK_DIR"]), tmp_path, "")
        assert f"\n  TOKEN=$({variables}make -s token)\n" in native.stack._welcome(stack)


def test_make_logs_shows_what_all_have_said_of_a_request(stack: Stack) -> None:
    """In order, from the files of the stack; and says so where there is nothing."""
    connection = stack.http()
    headers = {"X-Request-ID": "one-of-many-requests", "Authorization": "Bearer none"}
    connection.request("POST", "/v1/models/breast-cancer:predict", INSTANCES, headers)
    assert Answer(connection.getresponse()).status == 401
    connection.close()

    def logs(request_id: str) -> "subprocess.CompletedProcess[str]":
        return run(sys.executable, "-m", "native.logs", request_id, PATH="", STACK_DIR=str(stack.folder))

    def lines() -> list[dict[str, Any]]:
        return [json.loads(line) for line in logs("one-of-many-requests").stdout.splitlines()]

    wait_until(lambda: {line["service"] for line in lines()} >= {"api", "nginx"}, "both have said something")
    found = lines()
    assert {line["request_id"] for line in found} == {"one-of-many-requests"}
    assert [line["timestamp"] for line in found] == sorted(line["timestamp"] for line in found)
    assert (found[-1]["service"], found[-1]["status"]) == ("nginx", 401)
    assert "access refused" in [line["event"] for line in found]
    [refused] = [line for line in found if line["event"] == "access refused"]
    assert (refused["service"], refused["level"]) == ("api", "warning")
    for request_id, reason in ("another-one", "has a line about it any more"), ("$(id)", "REQUEST: expected 8 to 64"):
        done = logs(request_id)
        assert (done.returncode, done.stdout) == (1, "")
        assert reason in done.stderr


def test_make_token_prints_one_that_works(stack: Stack) -> None:
    variables = {name: stack.environment[name] for name in ("STACK_DIR", "EDGE_HTTPS_PORT")}
    done = run(sys.executable, "-m", "native.access_token", PATH="", **variables)
    assert done.returncode == 0, done.stderr
    assert stack.request("GET", "/v1/models", token=done.stdout.strip()).status == 200
    assert stack.request("GET", "/v1/models", token=done.stdout.strip()[:-1]).status == 401


def test_without_a_stack_there_is_no_token(tmp_path: Path) -> None:
    ended = run(sys.executable, "-m", "native.access_token", PATH="", STACK_DIR=str(tmp_path / "none"))
    assert ended.returncode == 1
    assert ended.stderr.startswith("tiercel: no stack runs; ")
    assert not (tmp_path / "none").exists()


def test_nothing_but_health_is_for_who_has_no_token(stack: Stack) -> None:
    for path in ("/v2", "/v1/models", "/v2/models/breast-cancer"):
        answer = stack.request("GET", path, token="")
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"] == 'Bearer realm="tiercel"'
    assert stack.request("GET", "/v2/health/ready", token="").status == 200
    with socket.create_connection(("127.0.0.1", int(stack.environment["TIERCEL_BIND"].split(":")[1])), 10) as inside:
        inside.sendall(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert read_all(inside).startswith(b"HTTP/1.1 401 "), "not on the API's own door either"


def test_the_issuer_is_named_as_clients_reach_it(stack: Stack) -> None:
    described = stack.request("GET", "/.well-known/oauth-authorization-server", token="").json()
    assert described["issuer"] == f"https://localhost:{stack.ports['EDGE_HTTPS_PORT']}"


def test_a_job_is_worked_on(stack: Stack) -> None:
    job = stack.request("POST", "/v1/jobs", INSTANCES.replace(b"{", b'{"model": "breast-cancer", ', 1)).json()["id"]
    wait_until(lambda: stack.request("GET", f"/v1/jobs/{job}").json()["status"] == "succeeded", "the job ends")
    assert b'"prediction"' in stack.request("GET", f"/v1/jobs/{job}/results").body


def test_clear_text_is_told_where_to_go(stack: Stack) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", stack.ports["EDGE_HTTP_PORT"], timeout=10)
    connection.request("GET", "/v2", headers={"Host": "localhost"})
    answer = Answer(connection.getresponse())
    connection.close()
    assert answer.status == 308
    assert answer.headers["Location"] == f"https://localhost:{stack.ports['EDGE_HTTPS_PORT']}/v2"


def test_each_program_has_a_log(stack: Stack) -> None:
    """That of NGINX has a line for each request."""
    assert {path.stem for path in (stack.folder / "logs").iterdir()} == {*stack.programs(), "supervisord"}
    stack.request("GET", "/v2/models/nobody-has-this-name")
    wait_until(
        lambda: '"path":"/v2/models/nobody-has-this-name"' in (stack.folder / "logs/nginx.log").read_text(),
        "the request is in the log",
    )


def test_nobody_else_can_reach_it(stack: Stack) -> None:
    """All ports are those of the loopback address, and the folders are the user's own."""
    inodes = {inode for pid in descendants(stack.process.pid) for inode in sockets(pid)}
    listening = [
        line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()
    ]
    addresses = {fields[1] for fields in listening if fields[3] == "0A" and fields[9] in inodes}
    assert len(addresses) >= 4
    assert {address.split(":")[0] for address in addresses} == {"0100007F"}
    assert stack.run.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(not shutil.which("prometheus"), reason="there is no Prometheus")
def test_prometheus_has_the_rules(stack: Stack) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", stack.ports["PROMETHEUS_PORT"], timeout=10)
    connection.request("GET", "/api/v1/rules")
    groups = Answer(connection.getresponse()).json()["data"]["groups"]
    connection.close()
    assert groups


@pytest.mark.parametrize("name", ["nginx", "api", "listener", "worker", "redis-cache", "redis-queue"])
def test_a_program_that_is_killed_comes_back(stack: Stack, name: str) -> None:
    """And what it did for others is done again."""
    before = stack.programs()
    old = [before[name]["pid"], *descendants(before[name]["pid"])]
    os.kill(old[0], signal.SIGKILL)
    # Nobody will connect again to the socket that the API had from the old one.
    renewed = ["listener", "api"] if name == "listener" else [name]

    def is_back() -> bool:
        now = stack.programs()
        is_new = all(now[name]["pid"] not in (0, before[name]["pid"]) for name in renewed)
        is_old = any(Path(f"/proc/{pid}").exists() for pid in old)
        runs = all(program["statename"] in ("STARTING", "RUNNING") for program in now.values())
        return is_new and runs and not is_old

    wait_until(is_back, f"{name} runs again")
    wait_until(stack.predicts, "predictions are made")
    assert stack.process.poll() is None


def test_a_new_certificate_is_taken_up_while_it_runs(stack: Stack) -> None:
    address = ("127.0.0.1", stack.ports["EDGE_HTTPS_PORT"])
    before = ssl.get_server_certificate(address)
    assert run(sys.executable, "-m", "native.certificates", PATH="", STACK_DIR=str(stack.folder)).returncode == 0
    wait_until(lambda: ssl.get_server_certificate(address) != before, "NGINX presents the new certificate")
    assert stack.predicts(), "for who trusts the same CA"


def test_a_second_stack_in_its_folder_is_refused(stack: Stack, tmp_path: Path) -> None:
    ended = run(*COMMAND, **Stack(tmp_path).environment | {"STACK_DIR": str(stack.folder)})
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"tiercel: STACK_DIR: {stack.folder}: a stack runs here")


def test_a_folder_that_can_not_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ended = run(*COMMAND, **Stack(tmp_path).environment | {"STACK_DIR": str(tmp_path / "file")})
    assert ended.returncode == 1
    assert f"Not a directory: '{tmp_path}/file/" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_it_leaves_nothing_behind_but_its_folder(tmp_path: Path) -> None:
    """However often it is told to stop, or if it loses its supervisor; and what it has made is kept by the next."""
    stack = Stack(tmp_path)
    stack.start()
    started, made, folder = descendants(stack.process.pid), secrets(tmp_path), stack.run
    assert len(started) > 8
    stack.process.send_signal(signal.SIGINT)
    stack.process.send_signal(signal.SIGINT)
    stack.stop()
    assert not [pid for pid in started if Path(f"/proc/{pid}").exists()]
    assert not folder.exists()

    stack.start()
    assert secrets(tmp_path) == made
    started, folder = descendants(stack.process.pid), stack.run
    os.kill(int((folder / "supervisord.pid").read_text()), signal.SIGKILL)
    assert stack.process.wait(30) == 1
    assert "tiercel: the supervisor has ended" in stack.output()
    assert not [pid for pid in started if Path(f"/proc/{pid}").exists()]
    assert not folder.exists()


def secrets(folder: Path) -> dict[Path, bytes]:
    files = [path for name in ("ca", "tls", "secrets") for path in (folder / name).rglob("*") if path.is_file()]
    return {path: path.read_bytes() for path in files}


def test_a_program_that_can_not_start_stops_it_with_the_reason(tmp_path: Path) -> None:
    ended = run(*COMMAND, **Stack(tmp_path).environment, TIERCEL_MODELS_DIR=str(tmp_path / "none"))
    assert ended.returncode == 1
    assert f"tiercel: api can not be started; {tmp_path}/logs/api.log ends with:" in ended.stderr
    assert "tiercel: TIERCEL_MODELS_DIR: expected a folder" in ended.stderr


@pytest.mark.parametrize("name", [*PORTS, "TIERCEL_BIND", "TIERCEL_METRICS_BIND"])
def test_a_port_that_is_taken_is_named_at_once(tmp_path: Path, name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        value = f"127.0.0.1:{port}" if name.startswith("TIERCEL_") else str(port)
        ended = run(*COMMAND, **Stack(tmp_path).environment | {name: value})
    if name == "PROMETHEUS_PORT" and not shutil.which("prometheus"):
        pytest.skip("there is no Prometheus")
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"tiercel: {name}: 127.0.0.1:{port}: Address already in use; another is {name}=")


@pytest.mark.parametrize(
    ("name", "value"), [("EDGE_HTTPS_PORT", "https"), ("EDGE_HTTP_PORT", "0"), ("TIERCEL_WORKERS", "many")]
)
def test_a_variable_that_does_not_fit_is_named(tmp_path: Path, name: str, value: str) -> None:
    ended = run(*COMMAND, **Stack(tmp_path).environment | {name: value})
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"tiercel: {name}: expected ")
    assert value in ended.stderr


def test_a_program_that_is_missing_is_named_with_the_way_to_get_it(tmp_path: Path) -> None:
    """As a user who can not install it sees it."""
    nowhere = "import sys; from native import programs, stack; programs.ELSEWHERE = (); sys.exit(stack.main())"
    ended = run(sys.executable, "-c", nowhere, PATH=str(tmp_path), STACK_DIR=str(tmp_path / "stack"))
    assert ended.returncode == 1
    assert ended.stderr.startswith("tiercel: expected nginx and redis-server, found none here.")
    assert "  sudo apt-get install -y --no-install-recommends nginx redis-server " in ended.stderr
    assert not (tmp_path / "stack").exists()


def test_services_of_installed_packages_stay_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A word of the machine's owner about that is in force again afterwards."""
    monkeypatch.syspath_prepend(str(ROOT))
    from native import programs  # noqa: PLC0415  # it is no package of the project's

    disabled: list[tuple[str, ...]] = []
    monkeypatch.setattr(programs, "_run", lambda *command: disabled.append(command))
    policy = tmp_path / "policy-rc.d"
    for word in (None, "#!/bin/sh\nexit 0\n"):
        if word:
            policy.write_text(word)
        with programs._services_stay_down(["nginx"], policy):
            assert subprocess.run([policy], check=False).returncode == 101
        assert (policy.read_text() if policy.exists() else None) == word
    assert disabled == [("update-rc.d", "nginx", "disable")] * 2


def test_certificates_are_renewed_in_compose_if_that_is_what_runs(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    docker = tmp_path / "docker"
    docker.write_text(f'#!/bin/sh\necho "$@" >> {calls}\necho id\n')
    docker.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    ended = run(sys.executable, "-m", "native.certificates", PATH=path, STACK_DIR=str(tmp_path / "none"))
    assert ended.returncode == 0, ended.stderr
    _, renew, reload = calls.read_text().splitlines()
    assert renew.startswith("compose run --rm setup ")
    assert renew.endswith(" --renew-certificate")
    assert reload == "compose exec nginx sh /etc/tiercel/nginx/start.sh reload"


def test_without_a_stack_there_is_no_certificate_to_renew(tmp_path: Path) -> None:
    ended = run(sys.executable, "-m", "native.certificates", PATH="", STACK_DIR=str(tmp_path / "none"))
    assert ended.returncode == 1
    assert ended.stderr.startswith("tiercel: there is no certificate yet")
    assert not (tmp_path / "none").exists()
