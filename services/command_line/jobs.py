"""`tiercel jobs`: hand a file or a folder of photos to a server, watch it work, and save the results."""

import argparse
import io
import json
import os
import shutil
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

ENDED = ("succeeded", "failed", "cancelled")
MEDIA_TYPES = {".jsonl": "application/x-ndjson", ".ndjson": "application/x-ndjson", ".zip": "application/zip"}
PHOTOS = {".jpg", ".jpeg", ".png", ".webp"}
ASK_SECONDS, TIMEOUT_SECONDS, PATIENCE_SECONDS = 0.5, 60.0, 60.0
# Not so much a refusal as a word about now.
AGAIN = (502, 503, 504)
BAR_CELLS = 30


class JobsError(Exception):
    pass


class Unreachable(JobsError):
    """For now."""


class Server:
    """A server by its URL; `token` and `ca`, a file, where it needs them."""

    def __init__(self, url: str, token: str, ca: str | None) -> None:
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._context = ssl.create_default_context(cafile=ca) if self._url.startswith("https://") else None

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Any:
        with self.open(method, path, body, **headers) as answer:
            return json.load(answer)

    def open(self, method: str, path: str, body: bytes | None = None, **headers: str) -> IO[bytes]:
        """An answer that is read as it comes; JobsError with the server's own words if it refuses."""
        fields = self._headers | {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self._url + path, body, fields, method=method)  # noqa: S310  # whose URL it is
        try:
            answer: IO[bytes] = urllib.request.urlopen(  # noqa: S310  # the same
                request, timeout=TIMEOUT_SECONDS, context=self._context
            )
        except urllib.error.HTTPError as error:
            kind = Unreachable if error.code in AGAIN else JobsError
            raise kind(f"{error.code} {error.reason}: {_detail(error.read())}") from None
        except (urllib.error.URLError, OSError) as error:
            raise Unreachable(f"{self._url}: {error}") from None
        return answer


def add_to(commands: Any) -> None:
    parser = commands.add_parser("jobs", help="batch jobs on a server", description=__doc__)
    url = os.environ.get("TIERCEL_URL", "http://127.0.0.1:8000")
    parser.add_argument("--url", default=url, help="of the server; default TIERCEL_URL or %(default)s")
    parser.add_argument("--ca", help="file with the certificate that the server's is checked with")
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    submit = actions.add_parser("submit", help="hand over rows, wait, and save the results")
    submit.add_argument("input", type=Path, help="JSON Lines, a ZIP of photos, or a folder of photos")
    submit.add_argument("--model", required=True)
    submit.add_argument("--version")
    submit.add_argument("--top-k", type=int)
    submit.add_argument("--output", type=Path, help="default: the input's name with .results.jsonl")
    submit.set_defaults(run=lambda options: _run(_submit, options))
    results = actions.add_parser("results", help="save the results of a job that has ended")
    results.add_argument("id")
    results.add_argument("output", type=Path)
    results.set_defaults(run=lambda options: _run(lambda server, given: _save(server, given.id, given.output), options))
    listed = actions.add_parser("list", help="one's own jobs, newest first")
    listed.set_defaults(run=lambda options: _run(_list, options))
    cancel = actions.add_parser("cancel", help="end a job")
    cancel.add_argument("id")
    cancel.set_defaults(run=lambda options: _run(_cancel, options))


def _run(action: Any, options: argparse.Namespace) -> str | None:
    """The token comes from the environment: what stands in a command, others can read."""
    try:
        action(Server(options.url, os.environ.get("TIERCEL_TOKEN", ""), options.ca), options)
    except (JobsError, OSError, ValueError) as error:
        return f"tiercel: {error}"  # sys.exit prints a string and exits with 1
    return None


def _submit(server: Server, options: argparse.Namespace) -> None:
    body, kind = _read(options.input)
    wanted = {"model": options.model, "version": options.version, "top_k": options.top_k}
    query = urllib.parse.urlencode({name: value for name, value in wanted.items() if value is not None})
    # However often it is sent, it is one job.
    headers = {"Content_Type": kind, "Idempotency_Key": str(uuid.uuid4())}
    job = _patiently(lambda: server.ask("POST", f"/v1/jobs?{query}", body, **headers))
    sys.stderr.write(f"job {job['id']}\n")
    for job in _watch(server, job):  # noqa: B020  # the job as it is by now
        _show(job)
    sys.stderr.write("\n")
    output = options.output or options.input.with_name(f"{options.input.name}.results.jsonl")
    _save(server, job["id"], output)
    print(f"{job['status']}: {job['done']} of {job['rows']} rows, {job['errors']} with errors; {output}")
    if job["status"] != "succeeded":
        how = f"has failed: {job['reason']}" if job["status"] == "failed" else f"has been {job['status']}"
        raise JobsError(f"job {job['id']} {how}")


def _save(server: Server, job_id: str, output: Path) -> None:
    with server.open("GET", f"/v1/jobs/{job_id}/results") as answer, output.open("wb") as file:
        shutil.copyfileobj(answer, file)
        expected, got = int(answer.headers["Content-Length"]), file.tell()  # type: ignore[attr-defined]  # urllib's
    if got != expected:  # which the library does not mind
        raise JobsError(f"results: expected {expected} bytes, got {got}; they can be asked for again")


def _watch(server: Server, job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield job
    while job["status"] not in ENDED:
        time.sleep(ASK_SECONDS)
        path = f"/v1/jobs/{job['id']}"
        job = _patiently(lambda path=path: server.ask("GET", path))  # type: ignore[misc]  # mypy #15459
        yield job


def _patiently(ask: Callable[[], Any]) -> Any:
    """What `ask` returns; again while the server cannot be reached or has no room, for a minute."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return ask()
        except Unreachable:
            if time.monotonic() > deadline:
                raise
            time.sleep(ASK_SECONDS)


def _show(job: dict[str, Any]) -> None:
    if not sys.stderr.isatty():
        return
    full = BAR_CELLS * job["done"] // job["rows"]
    rate = f", {job['rate']:,.0f} rows/s" if job["rate"] else ""
    bar = "#" * full + "." * (BAR_CELLS - full)
    sys.stderr.write(f"\r{job['status']:10} [{bar}] {job['done']:,} of {job['rows']:,}{rate}   ")


def _list(server: Server, options: argparse.Namespace) -> None:
    page = server.ask("GET", "/v1/jobs")
    for job in page["jobs"]:
        model = job["model"]["name"]
        print(f"{job['id']}  {job['created']}  {job['status']:10} {job['done']:>8,} of {job['rows']:>8,}  {model}")


def _cancel(server: Server, options: argparse.Namespace) -> None:
    print(server.ask("DELETE", f"/v1/jobs/{options.id}")["status"])


def _read(path: Path) -> tuple[bytes, str]:
    if path.is_dir():
        return _zipped(path), "application/zip"
    if path.suffix not in MEDIA_TYPES:
        raise JobsError(f"{path}: expected a folder or a file in {', '.join(sorted(MEDIA_TYPES))}")
    return path.read_bytes(), MEDIA_TYPES[path.suffix]


def _zipped(folder: Path) -> bytes:
    photos = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PHOTOS)
    if not photos:
        raise JobsError(f"{folder}: expected photos in it ({', '.join(sorted(PHOTOS))}), found none")
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:  # photos are compressed already
        for path in photos:
            archive.write(path, str(path.relative_to(folder)))
    return memory.getvalue()


def _detail(body: bytes) -> str:
    try:
        answer = json.loads(body)
    except ValueError:
        return body[:200].decode(errors="replace")
    return str(answer.get("detail") or answer.get("error") or answer)
