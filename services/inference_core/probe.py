"""Try a package in a process of its own: `python -m inference_core.probe FOLDER MAX_BYTES SECONDS KEYS_FILE`.

A damaged or hostile graph can crash, hang or exhaust the process that loads it; that process should be this one.
"""

import math
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

from inference_core.errors import PackageRefused
from inference_core.manifest import read_manifest, read_package

REFUSED = 3
MEMORY_BYTES = 4 << 30
REASON_CHARS = 2000


def try_package(folder: Path, max_bytes: int, timeout: float, keys_file: str = "") -> None:
    """Raise PackageRefused with the reason unless the package in `folder` answers within `timeout` seconds."""
    model = read_manifest(folder, keys_file)[0].model_file
    command = [sys.executable, "-m", __name__, str(folder), str(max_bytes), str(timeout), keys_file]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + timeout
        while process.poll() is None:
            if time.monotonic() > deadline:
                process.kill()
                raise PackageRefused(f"{model}: expected to load within {timeout:g} s, got no end")
            time.sleep(0.01)
        reason = process.stdout.read().decode() if process.stdout else ""
    if process.returncode == REFUSED:
        raise PackageRefused(reason)
    if process.returncode < 0:
        raise PackageRefused(f"{model}: crashes the runtime that loads it ({signal.Signals(-process.returncode).name})")
    if process.returncode:
        raise PackageRefused(f"{model}: the trial load ended with status {process.returncode}")


def main(folder: str, max_bytes: str, timeout: str, keys_file: str) -> int:
    from inference_core.model import load_model  # noqa: PLC0415  # after the limits are in place

    seconds = math.ceil(float(timeout))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    memory = MEMORY_BYTES + 6 * int(max_bytes)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    try:
        load_model(read_package(Path(folder), int(max_bytes), keys_file), intra_op_threads=1)
    except PackageRefused as error:
        # As much as a pipe takes: nobody reads before this process has ended.
        sys.stdout.buffer.write(str(error)[:REASON_CHARS].encode())
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
