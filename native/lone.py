"""Becomes COMMAND once nothing is left of what ran in its place before:  python lone.py PIDFILE COMMAND...

A supervisor notices that a program's first process has ended, and starts another. If it was killed, its children are
still there, and those of NGINX and Gunicorn still have the ports that the new ones want.
"""

import ctypes
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

# As long as children of Gunicorn take to see that they have lost it and to answer what they have, and more.
PATIENCE_SECONDS = 15.0
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # prctl(2)


def main(arguments: list[str]) -> None:
    pid_file, command = Path(arguments[0]), arguments[1:]
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    end(pid_file)
    pid_file.write_text(str(os.getpid()))
    adopt()
    # Whoever started this may be killed too, and then nobody is left who could stop it.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    os.execvp(command[0], command)  # noqa: S606  # to become it is the purpose


def adopt() -> None:
    """From now on descendants that lose their parent are children of this process; process 1 need not be an init."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def end(pid_file: Path, patience: float = PATIENCE_SECONDS) -> None:
    """End the group of processes whose first one wrote `pid_file`: ask, and insist if it takes too long."""
    with suppress(OSError, ValueError):  # there was none, or all of it has ended
        group = int(pid_file.read_text())
        _signal(group, signal.SIGTERM, patience)
        _signal(group, signal.SIGKILL, patience)


def _signal(group: int, number: int, patience: float) -> None:
    """Send a signal and wait; ProcessLookupError says that the group has ended."""
    os.killpg(group, number)
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        with suppress(ChildProcessError):  # as long as those that we adopted are not waited for, they are there
            os.waitpid(-group, os.WNOHANG)
        os.killpg(group, 0)
        time.sleep(0.02)


if __name__ == "__main__":
    main(sys.argv[1:])
