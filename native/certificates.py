"""`make certs`: a new certificate for the same key, for the stack that runs, here or in Compose."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

RENEW_IN_COMPOSE = (
    "docker compose run --rm setup python /app/first_start.py --ca /var/lib/tiercel/ca --tls /var/lib/tiercel/tls "
    "--secrets /var/lib/tiercel/secrets --renew-certificate"
)
RELOAD_IN_COMPOSE = "docker compose exec nginx sh /etc/tiercel/nginx/start.sh reload"


class CertificateError(Exception):
    pass


def main() -> str | None:
    folder = Path(os.environ.get("STACK_DIR", ".stack"))
    try:
        if not [renew for renew in (_renew_native(folder), _renew_in_compose()) if renew]:
            return "tiercel: there is no certificate yet; `make stack` or `docker compose up` makes one"
    except (CertificateError, subprocess.CalledProcessError) as error:
        return f"tiercel: {error}"
    return None


def ensure(folder: Path, *options: str) -> None:
    """What a first start makes, in `folder`; says what is new."""
    folders = [f"--{name}={folder / name}" for name in ("ca", "tls", "secrets")]
    command = [sys.executable, "docker/first_start.py", *folders, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CertificateError(done.stderr.strip())
    for line in done.stdout.splitlines():
        if not line.startswith("kept"):
            print(line, flush=True)


def _renew_native(folder: Path) -> bool:
    if not (folder / "tls/server.crt").exists():
        return False
    ensure(folder, "--renew-certificate")
    if is_running(folder):
        with suppress(OSError, ValueError):  # it is not there at the moment; it reads the file when it starts
            os.kill(int((folder / "nginx/nginx.pid").read_text()), signal.SIGHUP)
            print("NGINX takes it up.")
    return True


def is_running(folder: Path) -> bool:
    """Whether a stack holds the lock that stack.py takes."""
    with (folder / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _renew_in_compose() -> bool:
    if not is_running_in_compose():
        return False
    for command in (RENEW_IN_COMPOSE, RELOAD_IN_COMPOSE):
        subprocess.run(command.split(), check=True)
    return True


def is_running_in_compose() -> bool:
    return bool(shutil.which("docker") and _output("docker compose ps --status running --quiet nginx"))


def _output(command: str) -> str:
    return subprocess.run(command.split(), capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
