"""`make serve`, as its user sees it, from the start to Ctrl-C."""

import http.client
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import free_port, wait_until

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "inference_api.serve"]


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [descendant for child in map(int, text.split()) for descendant in (child, *children(child))]


@pytest.fixture
def served() -> Iterator[subprocess.Popen[str]]:
    environment = os.environ | {"TIERCEL_BIND": f"127.0.0.1:{free_port()}"}
    with subprocess.Popen(COMMAND, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        yield process
        if process.poll() is None:
            process.kill()


def test_the_command_that_it_prints_classifies_a_real_photo(served: subprocess.Popen[str]) -> None:
    assert served.stdout is not None
    printed = next(line for line in served.stdout if line.strip().startswith("curl "))
    _, _, header, _, photo, url = shlex.split(printed)
    matched = re.fullmatch(r"http://([\d.]+:\d+)(/.*)", url)
    assert matched
    assert photo.startswith("@")
    connection = http.client.HTTPConnection(matched[1], timeout=10)
    connection.request("POST", matched[2], (ROOT / photo[1:]).read_bytes(), dict([header.split(": ")]))
    predictions = json.loads(connection.getresponse().read())["predictions"]
    connection.close()
    assert predictions[0]["label"] in ("tabby cat", "tiger cat", "Egyptian cat")

    started = children(served.pid)
    names = {Path(f"/proc/{pid}/comm").read_text().strip() for pid in started}
    assert "redis-server" in names, "the private Redis runs"
    assert any("batch_worker.main" in Path(f"/proc/{pid}/cmdline").read_text() for pid in started), "so do jobs"
    check_jobs(matched[1])
    served.send_signal(signal.SIGINT)
    assert served.wait(20) == 0
    wait_until(
        lambda: not any(Path(f"/proc/{pid}").exists() for pid in started), "everything that it started has ended"
    )


def check_jobs(address: str) -> None:
    """They are taken and done."""

    def ask(method: str, path: str, body: bytes | None = None) -> bytes:
        connection = http.client.HTTPConnection(address, timeout=10)
        connection.request(method, path, body, {"Content-Type": "application/x-ndjson"})
        answer = connection.getresponse().read()
        connection.close()
        return answer

    rows = json.loads((ROOT / "models/breast-cancer/examples/instances.json").read_text())["instances"]
    body = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    path = f"/v1/jobs/{json.loads(ask('POST', '/v1/jobs?model=breast-cancer', body))['id']}"
    wait_until(lambda: json.loads(ask("GET", path))["status"] == "succeeded", "the job is done")
    assert [json.loads(line)["index"] for line in ask("GET", f"{path}/results").splitlines()] == [0, 1]


def test_a_setting_that_does_not_fit_stops_it_with_its_name() -> None:
    environment = os.environ | {"TIERCEL_WORKERS": "many"}
    ended = subprocess.run(COMMAND, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=20, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith("tiercel: TIERCEL_WORKERS: ")
    assert "many" in ended.stderr


def test_oversubscription_stops_it_with_the_reason() -> None:
    environment = os.environ | {"TIERCEL_WORKERS": "100", "TIERCEL_INTRA_OP_THREADS": "100"}
    environment["TIERCEL_BIND"] = f"127.0.0.1:{free_port()}"
    ended = subprocess.run(COMMAND, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=20, check=False)
    assert ended.returncode == 1
    assert "100 x 100 = 10000" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_an_address_that_is_taken_is_said_so_at_once() -> None:
    """Rather than take the server that has it for the one that was started."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        bind = f"127.0.0.1:{other.getsockname()[1]}"
        environment = os.environ | {"TIERCEL_BIND": bind}
        ended = subprocess.run(
            COMMAND, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=20, check=False
        )
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"tiercel: TIERCEL_BIND: {bind}: Address already in use; ")
    assert "ready" not in ended.stdout


def test_others_are_not_let_in_without_tokens() -> None:
    bind = f"0.0.0.0:{free_port()}"
    ended = subprocess.run(
        COMMAND,
        cwd=ROOT,
        env=os.environ | {"TIERCEL_BIND": bind},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert ended.returncode == 1
    assert f"tiercel: TIERCEL_AUTH: expected required, as others can reach TIERCEL_BIND={bind}, got off" in ended.stderr
    assert "ready" not in ended.stdout


def test_a_start_that_fails_leaves_no_folder_behind(tmp_path: Path) -> None:
    """Neither one that fails on its models nor one that finds its folder of models missing."""
    for models in (tmp_path / "missing", tmp_path / "bad"):
        (tmp_path / "bad/model/1").mkdir(parents=True, exist_ok=True)
        (tmp_path / "bad/model/model.toml").write_text("[")
        (tmp_path / "temporary").mkdir(exist_ok=True)
        environment = os.environ | {
            "TIERCEL_MODELS_DIR": str(models),
            "TIERCEL_BIND": f"127.0.0.1:{free_port()}",
            "TMPDIR": str(tmp_path / "temporary"),
        }
        ended = subprocess.run(
            COMMAND, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=20, check=False
        )
        assert ended.returncode == 1
        assert "Traceback" not in ended.stderr
        assert list((tmp_path / "temporary").iterdir()) == []
