"""`tiercel jobs`, as its user types it, against a real server and a real batch worker."""

import json
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, Self

import pytest
from batch import BLUE, GREEN, RED, Worker, lines, photo, read_lines, zipped
from edge import make_certificate
from model_zoo import Zoo
from redis_server import RedisServer
from servers import Server

from command_line.main import main

ROWS = [[i, i + 1, i + 2] for i in range(11)]
DOUBLED = [{"index": i, "prediction": [2 * value for value in row]} for i, row in enumerate(ROWS)]

Run = Callable[..., list[str]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("jobs")
    zoo = Zoo(folder / "models")
    zoo.scale()
    zoo.colour()
    with (
        RedisServer(folder) as redis,
        Server(zoo.root, "llhttp", workers=1, jobs_dir=folder / "jobs", queue_url=redis.url) as server,
        Worker(redis.url, folder / "jobs", zoo.root),
    ):
        yield server


@pytest.fixture
def url(server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The server's, as the environment says."""
    url = f"http://127.0.0.1:{server.port}"
    monkeypatch.setenv("TIERCEL_URL", url)
    monkeypatch.delenv("TIERCEL_TOKEN", raising=False)
    return url


@pytest.fixture
def run(url: str, capsys: pytest.CaptureFixture[str]) -> Run:
    """The lines that a command prints; fails where it fails."""

    def run(*arguments: str) -> list[str]:
        assert main(["jobs", *arguments]) is None
        return capsys.readouterr().out.splitlines()

    return run


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"".join(lines(ROWS)))
    return path


def test_a_file_of_rows_is_handed_over_and_its_results_are_saved(run: Run, rows: Path) -> None:
    """Beside it, unless told otherwise."""
    [line] = run("submit", str(rows), "--model", "scale", "--version", "1")
    saved = rows.with_name("rows.jsonl.results.jsonl")
    assert line == f"succeeded: 11 of 11 rows, 0 with errors; {saved}"
    assert read_lines(saved.read_bytes()) == DOUBLED
    run("submit", str(rows), "--model", "scale", "--output", str(rows.with_name("elsewhere")))
    assert rows.with_name("elsewhere").read_bytes() == saved.read_bytes()


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_photos_are_handed_over_in_a_folder_or_a_zip(run: Run, tmp_path: Path, form: str) -> None:
    """In the order of their names; what is no photo stays behind."""
    files = {"a/1.png": photo(RED), "a/2.JPG": photo(GREEN, "JPEG"), "b.webp": photo(BLUE, "WEBP")}
    source = tmp_path / "photos"
    if form == "zip":
        source = tmp_path / "photos.zip"
        source.write_bytes(zipped(files))
    else:
        for name, content in (files | {"read.me": b"no photo"}).items():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes(content)
    output = tmp_path / "results"
    run("submit", str(source), "--model", "colour", "--top-k", "1", "--output", str(output))
    found = read_lines(output.read_bytes())
    assert [each["name"] for each in found] == list(files)
    assert [each["prediction"][0]["label"] for each in found] == ["red", "green", "blue"]


def test_rows_with_errors_are_counted(run: Run, rows: Path) -> None:
    rows.write_bytes(b"[1,2,3]\nnonsense\n")
    [line] = run("submit", str(rows), "--model", "scale")
    assert line.startswith("succeeded: 2 of 2 rows, 1 with errors; ")


def test_one_sees_how_far_it_is_on_a_terminal(
    url: str, rows: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["jobs", "submit", str(rows), "--model", "scale"]) is None
    shown = capsys.readouterr().err
    assert f"[{'#' * 30}] 11 of 11" in shown
    assert shown.endswith("\n")


def test_the_list_has_ones_jobs_newest_first(run: Run, rows: Path) -> None:
    for _ in range(2):
        run("submit", str(rows), "--model", "scale")
    first, second, *_ = run("list")
    assert first.split()[0] > second.split()[0]
    assert first.split()[2:] == ["succeeded", "11", "of", "11", "scale"]


def test_one_that_has_ended_is_not_cancelled(run: Run, rows: Path) -> None:
    run("submit", str(rows), "--model", "scale")
    assert run("cancel", run("list")[0].split()[0]) == ["succeeded"]


def test_one_that_waits_is_cancelled(run: Run, server: Server) -> None:
    """As long as nobody has it."""
    body = b"".join(lines([[1, 2, 3]] * 100_000))
    fields = {"Content_Type": "application/x-ndjson"}
    first, second = (server.post("/v1/jobs?model=scale", body, **fields).json() for _ in range(2))
    assert run("cancel", second["id"]) == ["cancelled"]
    assert run("cancel", first["id"])[0] in ("running", "cancelled", "queued")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["cancel", "nobody"], "404 Not Found: job 'nobody': there is none"),
        (["submit", "ROWS", "--model", "nobody"], "404 Not Found: model 'nobody'"),
        (["submit", "ROWS", "--model", "scale", "--version", "2"], "404 Not Found: model 'scale': expected version 1"),
        (["submit", "ROWS", "--model", "colour", "--top-k", "9"], "400 Bad Request: top_k: expected 1 to 3, got 9"),
        (["submit", "/nowhere.jsonl", "--model", "scale"], "[Errno 2] No such file"),
        (["submit", "/etc/hostname", "--model", "scale"], "/etc/hostname: expected a folder or a file in .jsonl,"),
        (["submit", "EMPTY", "--model", "colour"], "EMPTY: expected photos in it"),
        (["--url", "http://127.0.0.1:1", "list"], "http://127.0.0.1:1: "),
        (["--url", "nonsense", "list"], "unknown url type"),
        (["--url", "https://localhost:1", "--ca", "/nowhere", "list"], "[Errno 2] No such file"),
    ],
)
def test_what_cannot_be_done_is_explained(
    url: str, rows: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    """In one line, which is the exit's."""
    empty = tmp_path / "empty"
    empty.mkdir()
    places = {"ROWS": str(rows), "EMPTY": str(empty)}
    error = str(main(["jobs", *[places.get(argument, argument) for argument in arguments]]))
    assert error.startswith(f"tiercel: {said}".replace("EMPTY", str(empty)))
    assert "\n" not in error


class Stub:
    """A server that takes a job, says that it has ended so, and sends as much of the results as it is told."""

    def __init__(
        self,
        job: dict[str, Any],
        results: bytes = b"",
        length: int | None = None,
        context: ssl.SSLContext | None = None,
    ) -> None:
        received: list[Any] = []
        usual = {"id": "7", "rows": 2, "done": 2, "errors": 0, "rate": None, "reason": "", "status": "queued"}

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                received.append((self.command, self.path, dict(self.headers)))
                body = results if self.path.endswith("/results") else json.dumps(usual | job).encode()
                said = length if length is not None and self.path.endswith("/results") else len(body)
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.send_response(200)
                self.send_header("Content-Length", str(said))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_DELETE = do_GET  # noqa: N815  # whose names those are

            def log_message(self, *_: Any) -> None:
                pass

        self.received = received
        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        if context:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def test_results_that_are_cut_are_not_taken_for_whole(rows: Path) -> None:
    with Stub({"status": "succeeded"}, b'{"index":0,"prediction":1}\n', length=54) as stub:
        error = str(main(["jobs", "--url", stub.url, "submit", str(rows), "--model", "m"]))
    assert error == "tiercel: results: expected 54 bytes, got 27; they can be asked for again"


@pytest.mark.parametrize(
    ("job", "said"),
    [
        ({"status": "failed", "reason": "no such version"}, "job 7 has failed: no such version"),
        ({"status": "cancelled"}, "job 7 has been cancelled"),
    ],
)
def test_a_job_that_does_not_succeed_is_a_failure(
    rows: Path, capsys: pytest.CaptureFixture[str], job: dict[str, Any], said: str
) -> None:
    """But what it has is saved."""
    with Stub(job, b'{"index":0,"prediction":1}\n') as stub:
        assert main(["jobs", "--url", stub.url, "submit", str(rows), "--model", "m"]) == f"tiercel: {said}"
    assert len(read_lines(rows.with_name("rows.jsonl.results.jsonl").read_bytes())) == 1


def test_the_token_comes_from_the_environment(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the submission has a key, for whoever repeats it on the way."""
    monkeypatch.setenv("TIERCEL_TOKEN", "secret")
    with Stub({"status": "succeeded"}) as stub:
        assert main(["jobs", "--url", stub.url, "submit", str(rows), "--model", "m"]) is None
    assert {fields["Authorization"] for _, _, fields in stub.received} == {"Bearer secret"}
    method, path, fields = stub.received[0]
    assert (method, path) == ("POST", "/v1/jobs?model=m")
    assert len(fields["Idempotency-Key"]) == 36


def test_a_server_that_nobody_vouches_for_is_not_trusted(tmp_path: Path) -> None:
    """Unless its CA is given; then its name is checked as well."""
    tls = make_certificate(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tls / "server.crt", tls / "server.key")
    with Stub({}, context=context) as stub:
        url = stub.url.replace("http://127.0.0.1", "https://localhost")
        assert "CERTIFICATE_VERIFY_FAILED" in str(main(["jobs", "--url", url, "cancel", "7"]))
        assert main(["jobs", "--url", url, "--ca", str(tls / "ca.crt"), "cancel", "7"]) is None
