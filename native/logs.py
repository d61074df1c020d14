"""`make logs REQUEST=id`: what all have said of one request, in order of time, from the stack here or in Compose."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from native import certificates

# Who says of which request it speaks.
SERVICES = ("nginx", "api", "worker")
IN_COMPOSE = ["docker", "compose", "logs", "--no-color", "--no-log-prefix", *SERVICES]
REQUEST_ID = re.compile("[A-Za-z0-9-]{8,64}")


def main() -> str | None:
    request_id = sys.argv[1]
    if not REQUEST_ID.fullmatch(request_id):
        return f"tiercel: REQUEST: expected 8 to 64 letters, digits and hyphens, got {request_id!r}"
    # Each line begins with the time, in one form.
    found = sorted(line for line in _lines(Path(os.environ.get("STACK_DIR", ".stack"))) if _is_about(line, request_id))
    sys.stdout.writelines(found)
    return None if found else f"tiercel: {request_id}: none of {', '.join(SERVICES)} has a line about it any more"


def _lines(folder: Path) -> Iterator[str]:
    """Of a stack on this machine while it runs, else of the one in Compose, or of what was left of the former."""
    is_here = (folder / "lock").exists() and certificates.is_running(folder)
    if not is_here and certificates.is_running_in_compose():
        with subprocess.Popen(IN_COMPOSE, stdout=subprocess.PIPE, text=True, errors="replace") as process:
            # Compose (seen with 2.26) puts something for terminals before it.
            yield from (line[max(line.find("{"), 0) :] for line in process.stdout or ())
        return
    for path in (path for name in SERVICES for path in folder.glob(f"logs/{name}.log*")):
        with path.open(errors="replace") as file:
            yield from file


def _is_about(line: str, request_id: str) -> bool:
    if request_id not in line:  # PERF: most lines are not
        return False
    try:
        return request_id in (json.loads(line).get(key) for key in ("request_id", "trace_id"))
    except ValueError:
        return False


if __name__ == "__main__":
    sys.exit(main())
