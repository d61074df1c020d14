"""`tiercel tune` with real servers, and what a server makes of its settings."""

import json
import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from model_zoo import Zoo
from servers import Server

from command_line.main import main
from inference_core.host import fingerprint
from inference_core.settings import read_settings
from tuning.configuration import Configuration
from tuning.load import Load, LoadError
from tuning.mix import requests
from tuning.server import serve
from tuning.trial import Trials

TUNED = ("workers", "intra_op_threads", "spinning", "tuned_for")
ONE = Configuration("llhttp", 1, 1, spinning=False)
REQUEST = b"POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
CLOSED = b"HTTP/1.1 200 OK\r\nconnection: close\r\nContent-Length: 2\r\n\r\n{}"


def with_examples(zoo: Zoo, rows: bytes = b'{"instances": [[1, 2, 3]]}') -> Zoo:
    zoo.scale()
    (zoo.root / "scale/examples").mkdir()
    (zoo.root / "scale/examples/rows.json").write_bytes(rows)
    return zoo


def test_a_server_can_be_started_with_what_is_found(
    zoo: Zoo, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the command to the settings, over a line for each trial; on one CPU, where there are the fewest."""
    monkeypatch.setattr("command_line.tune.granted_cpus", lambda: 1)
    with_examples(zoo)
    places = ["--models", str(zoo.root), "--output", str(tmp_path)]
    assert main(["tune", "--mix", "scale", "--p99", "10s", "--seconds", "0.1", *places]) is None
    captured = capsys.readouterr()
    progress = captured.err.splitlines()
    assert len(progress) == 4
    assert re.match(r"  1/4  llhttp, 1 x 1 threads +[\d,.]+ requests/s   p99 +[\d.]+ ms ", progress[0])
    files = [f"{tmp_path}/tuned.{end}" for end in ("env", "json", "svg")]
    assert captured.out.splitlines()[-1] == " ".join(["written:", *files])
    lines = (tmp_path / "tuned.env").read_text().splitlines()
    settings = read_settings(dict(line.split("=", 1) for line in lines if not line.startswith("#")))
    assert (settings.workers, settings.intra_op_threads, settings.tuned_for) == (1, 1, fingerprint())
    with Server(zoo.root, settings.worker_class, **{name: getattr(settings, name) for name in TUNED}) as server:
        assert server.post("/v1/models/scale:predict", {"instances": [[1, 2, 3]]}).status == 200
        assert "tuned for another host" not in server.log()


def test_a_server_that_was_tuned_elsewhere_says_so(zoo: Zoo) -> None:
    """Once, as a warning, with both hosts; and serves."""
    zoo.scale()
    with Server(zoo.root, "llhttp", workers=1, tuned_for="Other-CPU_64-CPUs") as server:
        [line] = [line for line in server.log().splitlines() if "tuned for another host" in line]
    assert json.loads(line)["level"] == "warning"
    assert f"TIERCEL_TUNED_FOR is Other-CPU_64-CPUs, this is {fingerprint()}" in line


def test_examples_that_the_model_refuses_are_quoted(zoo: Zoo) -> None:
    """With what the server says of them, as what is wrong with the trial."""
    with_examples(zoo, b'{"instances": [[1, 2]]}')
    environ = os.environ | {"TIERCEL_MODELS_DIR": str(zoo.root)}
    trial = Trials(requests({"scale": 1}, zoo.root), environ, goal_ms=1e9, seconds=0.1).measure(ONE)
    assert trial.measured is None
    assert re.match("expected status 200, got b'HTTP/1.1 400 .*expected shape", trial.fault)


def test_a_trial_serves_whatever_the_operator_has_set(zoo: Zoo) -> None:
    """It needs no token, no Redis and no folder of theirs; and leaves nobody behind."""
    with_examples(zoo)
    others = {
        "AUTH": "required",
        "BIND": "0.0.0.0:80",
        "CACHE_URL": "redis://h",
        "QUOTA_REQUESTS": "1",
        "STATE_DIR": "/nowhere",
        "WORKERS": "9",
    }
    environ = os.environ | {f"TIERCEL_{name}": value for name, value in others.items()}
    with serve(ONE, environ | {"TIERCEL_MODELS_DIR": str(zoo.root)}) as port:
        level = Load(port, requests({"scale": 1}, zoo.root)).run(3, 0.1)
    assert level.rate > 0
    assert 0 < level.p50_ms <= level.p99_ms
    assert level.refused == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("no folder")
    with (
        pytest.raises(LoadError, match=r"expected a server that is ready, got one that says: .*TIERCEL_MODELS_DIR"),
        serve(ONE, os.environ | {"TIERCEL_MODELS_DIR": f"{tmp_path}/models"}),
    ):
        pass


@contextmanager
def answering(*answers: bytes) -> Iterator[int]:
    """A port where each connection's requests get the `answers`, in their order, and then its end."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)

        def serve_all() -> None:
            for answer in answers:
                connection, _ = server.accept()
                with connection:
                    read = b""
                    while not read.endswith(b"body"):
                        read += connection.recv(1 << 16)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve_all)
        thread.start()
        yield server.getsockname()[1]
        thread.join()


@pytest.mark.parametrize("status", [b"503 Service Unavailable", b"504 Gateway Timeout"])
def test_refusals_are_counted_apart(status: bytes) -> None:
    with answering(CLOSED.replace(b"200 OK", status)) as port:
        level = Load(port, [REQUEST]).run(1, 1e-6)
    assert (level.refused, level.rate) == (1, 0)
    assert not level.is_within(1e9)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            b"HTTP/1.1 400 Bad Request\r\nContent-Length: 4\r\n\r\nwhy?",
            r"expected status 200, got b'HTTP/1\.1 400 .*why\?'",
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{}", "expected an answer, got the end of the connection"),
        (b"", "expected an answer, got the end of the connection"),
    ],
)
def test_what_is_no_answer_ends_the_load(answer: bytes, said: str) -> None:
    with answering(answer) as port, pytest.raises(LoadError, match=said):
        Load(port, [REQUEST]).run(1, 10)


def test_a_connection_that_the_server_closes_is_opened_again() -> None:
    """As an answer that took long ends it."""
    refused = b"HTTP/1.1 400 Enough\r\nContent-Length: 0\r\n\r\n"
    with answering(CLOSED, CLOSED, refused) as port, pytest.raises(LoadError, match="400 Enough"):
        Load(port, [REQUEST]).run(1, 10)


def test_a_large_request_goes_in_pieces() -> None:
    """While the socket has no room the load does not wait for it."""
    with answering(CLOSED) as port:
        level = Load(port, [b"POST / HTTP/1.1\r\n\r\n" + bytes(8 << 20) + b"body"]).run(1, 1e-6)
    assert level.p50_ms > 0
