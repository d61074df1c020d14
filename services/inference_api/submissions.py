"""What is handed over to `POST /v1/jobs`: rows, as JSON, JSON Lines, or photos in a ZIP file."""

import base64
import io
import json
import re
import threading
import zipfile

import falcon
import msgspec

from inference_api.requests import UNSPECIFIED, media_type, whole_number
from inference_core import bodies
from inference_core.errors import InvalidInput, PayloadTooLarge, UnsupportedMedia
from inference_core.jobs import Kind, photos_in
from inference_core.manifest import Version
from inference_core.settings import Settings

JSON_LINES, ZIP = "application/x-ndjson", "application/zip"
# How an entry of a ZIP's directory begins.
ZIP_ENTRY = b"PK\x01\x02"
ONE_AT_A_TIME = threading.Lock()
# One value of JSON from a place on, and where it ends.
SCAN = json.JSONDecoder().raw_decode
SPACE = re.compile(r"[ \t\n\r]*")


class JobRequest(msgspec.Struct, forbid_unknown_fields=True):
    model: str
    instances: msgspec.Raw
    version: Version | None = None
    top_k: int | None = None
    webhook: str | None = None


class PredictRequest(msgspec.Struct):
    instances: msgspec.Raw


class Submission(msgspec.Struct):
    kind: Kind
    rows: list[bytes]
    count: int
    name: str = ""
    version: str | None = None
    top_k: int | None = None
    webhook: str | None = None


def read(req: falcon.Request, body: bytes, settings: Settings) -> Submission:
    """What `body` hands over; of JSON Lines and ZIP files, the query says for which model."""
    kind = media_type(req)
    # SECURITY: rows take many times the memory of their bytes.
    with ONE_AT_A_TIME:
        if kind == "application/json" or kind in UNSPECIFIED:
            return _from_json(body, settings)
        if kind not in (JSON_LINES, ZIP):
            raise UnsupportedMedia(f"Content-Type: expected application/json, {JSON_LINES} or {ZIP}, got {kind}")
        submission = _from_lines(body, settings) if kind == JSON_LINES else _from_zip(body, settings)
    submission.name = req.get_param("model", required=True)
    submission.version = req.get_param("version")
    submission.webhook = req.get_param("webhook")
    top_k = req.get_param("top_k")
    submission.top_k = None if top_k is None else whole_number("top_k", top_k, 1)
    return submission


def rows_of_instances(body: bytes, most: int) -> list[bytes]:
    """A row for each instance that `:predict` was sent, or the first of more than `most`."""
    return _rows(bodies.decode_json(body, PredictRequest).instances, most)


def rows_of_photo(photo: bytes) -> list[bytes]:
    return [_line(msgspec.json.encode({"b64": base64.b64encode(photo).decode()}))]


def _line(value: "bytes | msgspec.Raw") -> bytes:
    """A line break inside a value of JSON is white space."""
    return bytes(value).replace(b"\n", b" ").replace(b"\r", b" ") + b"\n"


def _rows(instances: msgspec.Raw, most: int) -> list[bytes]:
    """The elements of a JSON array, each as it was written; those after the first of more than `most` are not read."""
    rows: list[bytes] = []
    try:
        text = bytes(instances).decode()
        if not text.startswith("["):
            raise InvalidInput("instances: expected an array, got something else")
        at = _after_space(text, 1)
        while text[at] != "]" and len(rows) <= most:
            _, end = SCAN(text, at)
            rows.append(_line(text[at:end].encode()))
            at = _after_space(text, end)
            at = _after_space(text, at + 1) if text[at] == "," else at
    except (ValueError, RecursionError):  # UnicodeDecodeError as well, and numbers without end
        raise InvalidInput("instances: expected an array of JSON values, got something else") from None
    return rows


def _after_space(text: str, at: int) -> int:
    found = SPACE.match(text, at)
    return found.end() if found else at


def _from_json(body: bytes, settings: Settings) -> Submission:
    bodies.check_nesting(body, settings.max_json_depth)
    request = bodies.decode_json(body, JobRequest)
    rows = _rows(request.instances, settings.max_job_rows)
    return Submission("instances", rows, len(rows), request.model, request.version, request.top_k, request.webhook)


def _from_lines(body: bytes, settings: Settings) -> Submission:
    """What is wrong with a line is the line's result; empty ones are none."""
    most = 2 * settings.max_job_rows
    if (breaks := body.count(b"\n")) > most:
        raise PayloadTooLarge(f"body: expected at most {most} lines, empty ones included, got {breaks}")
    rows = [line.strip() + b"\n" for line in body.split(b"\n") if line.strip()]
    return Submission("instances", rows, len(rows))


def _from_zip(body: bytes, settings: Settings) -> Submission:
    """SECURITY: nothing is unpacked here, and no more than its directory promises later."""
    # An entry costs ten times its bytes to list. Folders, and what macOS adds, are no rows: as many again.
    if body.count(ZIP_ENTRY) > 2 * settings.max_job_rows:
        raise PayloadTooLarge(
            f"body: expected a ZIP of at most {2 * settings.max_job_rows} files and folders, got more"
        )
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            entries = list(photos_in(archive))
    except Exception as error:  # zipfile has many for what is damaged, which are not all its own
        raise InvalidInput(f"body: expected a ZIP file, got something else ({error})") from None
    for entry in entries:
        if entry.flag_bits & 1:
            raise InvalidInput(f"file {entry.filename!r}: expected one that is not encrypted, got one that is")
        if entry.file_size > settings.max_body_bytes:
            raise PayloadTooLarge(
                f"file {entry.filename!r}: expected at most {settings.max_body_bytes} bytes, got {entry.file_size}"
            )
    return Submission("photos", [body], len(entries))
