"""`make stack`: the Compose stack from installed programs, for a machine without Docker; needs no root.

supervisord.conf lists the programs. This prepares what they need, has Supervisor start them, waits until a request
through NGINX is answered, and stops everything, in order, when it is told to or when one of them cannot run.
"""

import fcntl
import http.client
import os
import shlex
import signal
import ssl
import subprocess
import sys
import tempfile
import time
import xmlrpc.client
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from native import certificates, configuration, lone, programs
from native.configuration import Configuration
from supervisor.xmlrpc import SupervisorTransport  # type: ignore[import-untyped]  # Supervisor has no types

from inference_core.settings import SettingsError

PHOTO = "models/efficientnet-lite0/examples/chelsea.jpg"
READY_SECONDS = 60
LOG_LINES = 20
HAS_TERMINAL = os.isatty(0)
SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT}


class StackError(Exception):
    pass


class Stop(Exception):
    pass


REASONS = (
    OSError,
    StackError,
    SettingsError,
    certificates.CertificateError,
    configuration.ConfigurationError,
    programs.MissingError,
)


def main() -> int | str:
    # They are looked for at pauses, and so interrupt nothing. What is ignored, as after nohup, stays ignored.
    signal.pthread_sigmask(signal.SIG_BLOCK, [n for n in SIGNALS if signal.getsignal(n) != signal.SIG_IGN])
    lone.adopt()
    try:
        _run(configuration.read_environment(os.environ))
    except REASONS as error:
        return f"tiercel: {error}"  # sys.exit prints a string and exits with 1
    except Stop:
        return 0


def _pause(seconds: float) -> None:
    # A terminal that closes tells only the process that leads its session, which may be a `make` that waits for this.
    if signal.sigtimedwait(SIGNALS, seconds) or (HAS_TERMINAL and not os.isatty(0)):
        _say("\nStopping; what has begun is finished first.\n")
        raise Stop


def _say(text: str) -> None:
    with suppress(OSError):  # the terminal may be gone
        sys.stdout.write(text)
        sys.stdout.flush()


def _run(environment: dict[str, str]) -> NoReturn:
    programs.ensure(environment["PATH"])
    configuration.check(environment)
    # Not in the folder: its path may be longer than a socket's may be, and its file system may have none.
    sockets = tempfile.TemporaryDirectory(prefix="tiercel-stack-", dir="/tmp")
    with sockets as run, _claimed(Path(environment["STACK_DIR"])):
        stack = configuration.configure(environment, Path(run))
        certificates.ensure(stack.folder)
        with _supervisor(stack) as supervisor:
            _wait_until_ready(stack, supervisor)
            _say(_welcome(stack))
            with (stack.folder / "logs/supervisord.log").open() as log:
                log.seek(0, os.SEEK_END)
                while True:
                    _check(stack, supervisor)
                    _say(log.read())
                    _pause(1)


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """The folder for what outlives the stack, used by one stack at a time."""
    for name in ("logs", "redis-cache", "redis-queue", "prometheus"):
        (folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
    (folder / ".gitignore").write_text("*\n")
    with (folder / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StackError(f"STACK_DIR: {folder}: a stack runs here; stop it, or set another folder") from None
        yield


@contextmanager
def _supervisor(stack: Configuration) -> "Iterator[subprocess.Popen[bytes]]":
    supervisord = [sys.executable, "-m", "supervisor.supervisord", "-c", f"{stack.run}/supervisord.conf"]
    command = [sys.executable, "native/lone.py", f"{stack.run}/supervisord.group", *supervisord]
    # In a session of its own: Ctrl-C is for this process, which then ends that one.
    with subprocess.Popen(command, env=stack.environment, start_new_session=True) as process:
        try:
            yield process
        finally:
            process.terminate()
            while process.poll() is None:
                _states(stack)  # PERF: to be asked wakes it up; by itself it looks once a second whether one has ended
                time.sleep(0.05)
            for group in stack.run.glob("*.group"):
                lone.end(group)


def _wait_until_ready(stack: Configuration, supervisor: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not (_check(stack, supervisor) and _answers(stack)):
        if time.monotonic() > deadline:
            raise StackError(f"not ready after {READY_SECONDS} s{_end_of_log(stack, 'api')}")
        _pause(0.05)


def _check(stack: Configuration, supervisor: "subprocess.Popen[bytes]") -> bool:
    """Whether every program runs or has just been started; StackError if one of them never will."""
    if supervisor.poll() is not None:
        raise StackError(f"the supervisor has ended{_end_of_log(stack, 'supervisord')}")
    states = _states(stack)
    for name, state in states.items():
        if state == "FATAL":
            raise StackError(f"{name} can not be started{_end_of_log(stack, name)}")
    return bool(states) and set(states.values()) <= {"STARTING", "RUNNING"}


def _states(stack: Configuration) -> dict[str, str]:
    """The state of each program in Supervisor's words; of none while Supervisor does not answer."""
    transport = SupervisorTransport("stack", stack.password, f"unix://{stack.run}/supervisord.sock")
    try:
        processes: Any = xmlrpc.client.ServerProxy("http://supervisor", transport).supervisor.getAllProcessInfo()
    except (OSError, http.client.HTTPException, xmlrpc.client.Error):
        return {}
    finally:
        transport.close()
    return {process["name"]: process["statename"] for process in processes}


def _answers(stack: Configuration) -> bool:
    context = ssl.create_default_context(cafile=stack.folder / "tls/ca.crt")
    context.check_hostname = False  # the certificate may be one of your own, for a name of your own
    port = int(stack.environment["EDGE_HTTPS_PORT"])
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=1, context=context)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == http.HTTPStatus.OK
    except ssl.SSLCertVerificationError as error:
        raise StackError(f"{stack.folder}/tls/server.crt: {error.verify_message}") from None
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _end_of_log(stack: Configuration, name: str) -> str:
    path = stack.folder / f"logs/{name}.log"
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    return "\n".join([f"; {path} ends with:\n", *lines[-LOG_LINES:]])


def _welcome(stack: Configuration) -> str:
    url = f"https://localhost:{stack.environment['EDGE_HTTPS_PORT']}"
    prometheus = f"Prometheus: http://127.0.0.1:{stack.environment['PROMETHEUS_PORT']}"
    if not stack.has_prometheus:
        prometheus = f"Prometheus: none here. To install it:\n\n  {programs.apt_line('prometheus')}\n"
    return f"""
Tiercel is ready on {url}. Classify a photo:

  TOKEN=$({_variables(stack)}make -s token)
  curl --cacert {stack.folder}/tls/ca.crt -H "Authorization: Bearer $TOKEN" -H 'Content-Type: image/jpeg' \\
    --data-binary @{PHOTO} {url}/v1/models/efficientnet-lite0:predict

{prometheus}
Logs: {stack.folder}/logs
What runs: {Path(sys.executable).parent}/supervisorctl -c {stack.run}/supervisord.conf status
Ctrl-C stops everything.
"""


def _variables(stack: Configuration) -> str:
    """Those by which `make token` finds a stack that is not where it looks by itself."""
    found = {name: stack.environment[name] for name in ("STACK_DIR", "EDGE_HTTPS_PORT")}
    others = {name: value for name, value in found.items() if value != configuration.DEFAULTS[name]}
    return "".join(f"{name}={shlex.quote(value)} " for name, value in others.items())


if __name__ == "__main__":
    sys.exit(main())
