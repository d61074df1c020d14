"""Batch jobs over HTTP, taken and worked on in this process: what is refused, and what comes of the rest."""

import base64
import io
import json
import struct
import zipfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from app_client import MODELS, Client, start
from batch import BLUE, GREEN, RED, Queue, lines, make_runner, make_store, photo, read_lines, zipped
from falcon.testing import Result, TestClient
from model_zoo import Zoo
from PIL import Image
from tokens import ALGORITHMS, AUDIENCE, ISSUER, Fixed, signer, trusted

from access_control.tokens import Verifier
from batch_worker.housekeeping import Housekeeper
from inference_api.app import create_app
from inference_core import jobs
from inference_core.bodies import compress
from inference_core.bootstrap import Jobs, Services
from inference_core.jobs import JobStore, State

JOBS, LINES, ZIP = "/v1/jobs", {"Content_Type": "application/x-ndjson"}, {"Content_Type": "application/zip"}
ROWS = [[i, i + 1, i + 2] for i in range(11)]
DOUBLED = [{"index": i, "prediction": [2 * value for value in row]} for i, row in enumerate(ROWS)]
SETTINGS: dict[str, Any] = {
    "jobs_dir": "set",
    "max_job_bytes": 1 << 20,
    "max_job_rows": 50,
    "max_body_bytes": 100_000,
    "max_image_pixels": 64 * 64,
}
UNKNOWN = "018bcfe56800-5312f0fede552f48"


class Stage(Client):
    """The application with jobs; `work()` does those that are on its queue, in this process."""

    def __init__(self, services: Services) -> None:
        super().__init__(services)
        assert services.jobs
        self.store: JobStore = services.jobs.store
        self.queue: Any = services.jobs.queue
        self.runner = make_runner(
            self.store, services.repository.root, max_image_pixels=services.settings.max_image_pixels
        )

    def work(self) -> None:
        self.queue.run_all(self.runner)

    def submit(self, path: str = JOBS, body: Any = b"", **headers: str) -> Any:
        """The description of a job that is taken, in due form."""
        answer = self.post(path, body, **headers)
        assert answer.status_code == 202, answer.text
        assert answer.headers["Location"] == f"{JOBS}/{answer.json['id']}"
        assert answer.headers["Retry-After"] == "1"
        return answer.json

    def results(self, job: Any) -> list[Any]:
        """Of a job, once it has been worked on and is there in due form."""
        self.work()
        answer = self.get(f"{JOBS}/{job['id']}/results")
        assert answer.status_code == 200, answer.text
        assert answer.headers["Content-Type"] == "application/x-ndjson"
        assert int(answer.headers["Content-Length"]) == len(answer.content)
        return read_lines(answer.content)

    def predictions(self, job: Any) -> list[Any]:
        found = self.results(job)
        assert [each["index"] for each in found] == list(range(job["rows"]))
        return [each.get("prediction") for each in found]


def with_jobs(services: Services, root: Path) -> Services:
    """`services` with a store of their own and a queue without Redis."""
    store = make_store(root, services.settings.max_jobs, services.settings.max_jobs_bytes)
    return msgspec.structs.replace(services, jobs=Jobs(store, Queue()))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    folder = tmp_path_factory.mktemp("jobs")
    zoo = Zoo(folder / "models")
    for add in (zoo.scale, zoo.named, zoo.mixed, zoo.count, zoo.gather, zoo.colour):
        add()
    zoo.scale("other")
    services = start(zoo.root, folder / "state", **SETTINGS)
    yield services
    services.rollout.stop()


@pytest.fixture
def stage(services: Services, tmp_path: Path) -> Stage:
    """Without any jobs yet."""
    return Stage(with_jobs(services, tmp_path / "jobs"))


@pytest.fixture
def limited(services: Services, tmp_path: Path) -> Callable[..., Stage]:
    """A stage with other settings."""

    def limited(**settings: Any) -> Stage:
        changed = msgspec.structs.replace(services.settings, **settings)
        return Stage(with_jobs(msgspec.structs.replace(services, settings=changed), tmp_path / "limited"))

    return limited


# JSON and JSON Lines.


def test_a_job_as_json_from_its_beginning_to_its_end(stage: Stage) -> None:
    job = stage.submit(JOBS, {"model": "scale", "instances": ROWS})
    assert (job["status"], job["rows"], job["done"], job["errors"]) == ("queued", 11, 0, 0)
    served = stage.get("/v1/models/scale").json
    assert job["model"] == {name: served[name] for name in ("name", "version", "digest")}
    assert (job["started"], job["ended"], job["rate"], job["estimated_end"]) == (None, None, None, None)
    assert stage.get(f"{JOBS}/{job['id']}").json == job
    assert stage.predictions(job) == [each["prediction"] for each in DOUBLED]
    ended = stage.get(f"{JOBS}/{job['id']}")
    assert "Retry-After" not in ended.headers
    assert (ended.json["status"], ended.json["done"], ended.json["errors"]) == ("succeeded", 11, 0)
    times = [datetime.fromisoformat(ended.json[name]) for name in ("created", "started", "ended")]
    assert times == sorted(times)
    assert {time.tzinfo for time in times} == {UTC}


@pytest.mark.parametrize(
    "kind", ["application/json", "application/json; charset=utf-8", "", "application/octet-stream"]
)
def test_json_is_taken_under_each_of_its_names(stage: Stage, kind: str) -> None:
    fields = {"Content_Type": kind} if kind else {}
    assert stage.predictions(stage.submit(JOBS, {"model": "scale", "instances": ROWS[:1]}, **fields)) == [[0, 2, 4]]


@pytest.mark.parametrize(
    "body",
    [
        b"[0,1,2]\n[1,2,3]\n[2,3,4]\n",
        b"[0,1,2]\n[1,2,3]\n[2,3,4]",
        b"[0,1,2]\r\n[1,2,3]\r\n[2,3,4]\r\n",
        b"\n\n[0,1,2]\n\r\n \n[1,2,3]\n\t\n[2,3,4]\n\n\n",
        b"  [0,\t1, 2]  \n[1,2,3]\n[2,3,4]",
    ],
)
def test_json_lines_are_rows_however_they_end(stage: Stage, body: bytes) -> None:
    """Empty ones are none."""
    job = stage.submit(f"{JOBS}?model=scale", body, **LINES)
    assert job["rows"] == 3
    assert stage.predictions(job) == [[0, 2, 4], [2, 4, 6], [4, 6, 8]]


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_body_may_be_compressed(stage: Stage, coding: str) -> None:
    body = compress(b"".join(lines(ROWS)), coding)
    job = stage.submit(f"{JOBS}?model=scale", body, **LINES, Content_Encoding=coding)
    assert stage.results(job) == DOUBLED


def test_line_breaks_inside_an_instance_are_white_space(stage: Stage) -> None:
    body = b'{"model": "scale", "instances": [[0,\n1,\r\n2], [\r1, 2, 3\n]\n]}'
    assert stage.predictions(stage.submit(JOBS, body)) == [[0, 2, 4], [2, 4, 6]]


def test_a_line_break_that_is_written_in_a_text_stays_in_it(stage: Stage, services: Services) -> None:
    """As JSON writes it, with a backslash."""
    job = stage.submit(JOBS, {"model": "named", "instances": [{"a\nb": 1}, {"width": 1, "height": 2, "depth": 3}]})
    wrong, right = stage.results(job)
    assert "a\nb" in wrong["error"]
    assert right["prediction"] == {"total": 6, "positive": True}


@pytest.mark.parametrize(
    "line",
    [
        "1],[2",
        "[1,2,3],[4,5,6]",
        "[1,2,3]]}",
        "[1,2",
        '"',
        "nonsense",
        "[1,2,3]//",
        "\xff",
        "[" * 40 + "]" * 40,
        "[1,2]",
        "{}",
    ],
)
def test_what_is_wrong_with_a_line_is_its_result_and_nobody_elses(stage: Stage, line: str) -> None:
    """Neither is a row lost nor one put in."""
    rows = lines(ROWS)
    rows[5] = line.encode("latin-1") + b"\n"
    job = stage.submit(f"{JOBS}?model=scale", b"".join(rows), **LINES)
    assert job["rows"] == 11
    found = stage.results(job)
    assert found[5].keys() == {"index", "error"}
    assert found[:5] + found[6:] == DOUBLED[:5] + DOUBLED[6:]
    described = stage.get(f"{JOBS}/{job['id']}").json
    assert (described["status"], described["done"], described["errors"]) == ("succeeded", 11, 1)


@pytest.mark.parametrize(
    ("model", "rows"),
    [
        ("named", [[1, 2, 3], {"width": -1, "height": 0, "depth": 0}, {"x": [1, 1, 1]}]),
        ("mixed", [{"a": 1, "b": [1, 2]}, {"a": -(2**62), "b": [0.5, -0.25]}]),
        ("gather", [0, 1, 2]),
        ("scale", [[1e30, -1e-30, 0], [0.1, 0.2, 0.3]]),
    ],
)
def test_a_result_is_what_predict_says(stage: Stage, model: str, rows: list[Any]) -> None:
    """Of each row by itself, in each of its forms."""
    expected = [stage.post(f"/v1/models/{model}:predict", {"instances": [row]}).json["predictions"][0] for row in rows]
    assert stage.predictions(stage.submit(JOBS, {"model": model, "instances": rows})) == expected
    body = b"".join(lines(rows))
    assert stage.predictions(stage.submit(f"{JOBS}?model={model}", body, **LINES)) == expected


def test_the_errors_of_rows_are_what_predict_says(stage: Stage) -> None:
    rows = [[1], [1, 2, None], {"x": 1}, "a", [[1, 2, 3]]]
    expected = [stage.refused(400, stage.post("/v1/models/scale:predict", {"instances": [row]})) for row in rows]
    found = stage.results(stage.submit(JOBS, {"model": "scale", "instances": rows}))
    assert [each["error"] for each in found] == expected


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        (JOBS, {"model": "scale", "instances": []}, "rows: expected 1 to 50, got 0"),
        (JOBS, {"model": "scale"}, "missing required field instances"),
        (JOBS, {"instances": [[1, 2, 3]]}, "missing required field model"),
        (JOBS, {"model": "scale", "instances": 1}, "instances: expected an array, got something else"),
        (JOBS, {"model": "scale", "instances": [[1]], "vresion": "1"}, "unknown field vresion"),
        (JOBS, {"model": "scale", "instances": [[1]], "version": "0"}, "version"),
        (JOBS, {"model": "scale", "instances": [[1]], "top_k": 0}, "top_k: expected"),
        (JOBS, {"model": "colour", "instances": [[1]], "top_k": 4}, "top_k: expected 1 to 3, got 4"),
        (JOBS, {"model": "count", "instances": [[1]]}, "takes no rows: use /v2/models/count/infer"),
        (JOBS, b"", "expected JSON, got an empty body"),
        (JOBS, b"{", "truncated"),
        (JOBS, b'{"model": "scale", "instances": [' + b"[" * 50 + b"]" * 50 + b"]}", "nested at most 32 deep"),
    ],
)
def test_what_is_no_job_is_refused_and_said_why(stage: Stage, path: str, body: Any, said: str) -> None:
    assert said in stage.refused(400, stage.post(path, body))
    assert stage.get(JOBS).json["jobs"] == []


@pytest.mark.parametrize(
    ("query", "body", "status", "said"),
    [
        ("", b"[1,2,3]", 400, "model"),
        ("?model=", b"[1,2,3]", 404, "model ''"),
        ("?model=scale", b"", 400, "rows: expected 1 to 50, got 0"),
        ("?model=scale", b"\n \r\n", 400, "rows: expected 1 to 50, got 0"),
        ("?model=colour&top_k=0", b"[1]", 400, "top_k"),
        ("?model=colour&top_k=x", b"[1]", 400, "top_k"),
        ("?model=colour&top_k=4", b"[1]", 400, "top_k: expected 1 to 3, got 4"),
        ("?model=nobody", b"[1]", 404, "model 'nobody'"),
        ("?model=..", b"[1]", 404, "model '..'"),
        ("?model=scale&version=2", b"[1]", 404, "expected version 1, which is loaded, got 2"),
        ("?model=scale&version=x", b"[1]", 404, "got x"),
    ],
)
def test_what_the_query_says_is_checked(stage: Stage, query: str, body: bytes, status: int, said: str) -> None:
    assert said in stage.refused(status, stage.post(f"{JOBS}{query}", body, **LINES))
    assert stage.get(JOBS).json["jobs"] == []


@pytest.mark.parametrize(
    ("values", "status"),
    [({"model": "nobody"}, 404), ({"version": "2"}, 404), ({"version": "1"}, 202), ({"version": None}, 202)],
)
def test_the_model_and_its_version_must_be_served(stage: Stage, values: dict[str, Any], status: int) -> None:
    assert stage.post(JOBS, {"model": "scale", "instances": [[1, 2, 3]]} | values).status_code == status


@pytest.mark.parametrize("kind", ["text/csv", "image/png", "application/x-tar", "multipart/form-data; boundary=x"])
def test_another_media_type_is_refused_with_those_that_are_taken(stage: Stage, kind: str) -> None:
    said = stage.refused(415, stage.post(f"{JOBS}?model=scale", b"1", Content_Type=kind))
    assert "expected application/json, application/x-ndjson or application/zip" in said


# Photos.

FILES = {"a/red.png": photo(RED), "green.webp": photo(GREEN, "WEBP"), "blue.jpg": photo(BLUE, "JPEG")}


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_photos_are_what_predict_says_of_each(stage: Stage, compression: int) -> None:
    job = stage.submit(f"{JOBS}?model=colour&top_k=2", zipped(FILES, compression), **ZIP)
    found = stage.results(job)
    assert [each["name"] for each in found] == list(FILES)
    expected = [
        stage.post("/v1/models/colour:predict?top_k=2", body, Content_Type="image/png").json["predictions"]
        for body in FILES.values()
    ]
    assert [each["prediction"] for each in found] == expected


def test_folders_and_what_macos_adds_are_no_photos(stage: Stage) -> None:
    extra = {"a/": b"", "__MACOSX/._a.png": b"x", "__MACOSX/a/": b""}
    job = stage.submit(f"{JOBS}?model=colour", zipped(extra | FILES), **ZIP)
    assert job["rows"] == 3
    assert [each["name"] for each in stage.results(job)] == list(FILES)


def test_what_is_no_photo_is_its_own_fault_alone(stage: Stage) -> None:
    """Nor is one that is damaged, in whichever way."""
    large = io.BytesIO()
    Image.new("RGB", (65, 64)).save(large, "PNG")
    wrong = {"read.me": b"hello", "cut.png": photo()[:40], "large.png": large.getvalue(), "empty.png": b""}
    files = {"1.png": photo(RED)} | wrong | {"2.png": photo(BLUE)}
    found = stage.results(stage.submit(f"{JOBS}?model=colour&top_k=1", zipped(files), **ZIP))
    assert [each["name"] for each in found if "error" in each] == list(wrong)
    assert [each["prediction"][0]["label"] for each in found if "prediction" in each] == ["red", "blue"]


def damaged(name: str) -> bytes:
    """FILES, deflated, of which one cannot be inflated."""
    content = bytearray(zipped(FILES, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entry = archive.getinfo(name)
    at = entry.header_offset + 30 + len(name)
    content[at : at + entry.compress_size] = b"\xaa" * entry.compress_size
    return bytes(content)


def test_a_file_that_cannot_be_inflated_spoils_no_other(stage: Stage) -> None:
    job = stage.submit(f"{JOBS}?model=colour", damaged("green.webp"), **ZIP)
    found = stage.results(job)
    assert ["error" in each for each in found] == [False, True, False]
    assert stage.get(f"{JOBS}/{job['id']}").json["status"] == "succeeded"


def claiming(size: int) -> bytes:
    """A file whose size is said to be another than it is."""
    content = bytearray(zipped({"a.png": bytes(10_000)}, zipfile.ZIP_DEFLATED))
    at = content.rindex(b"PK\x01\x02") + 24
    content[at : at + 4] = struct.pack("<I", size)
    return bytes(content)


def test_a_file_that_lies_about_its_size_is_not_inflated_further(stage: Stage) -> None:
    [found] = stage.results(stage.submit(f"{JOBS}?model=colour", claiming(10), **ZIP))
    assert found["error"].startswith("file: ")


@pytest.mark.parametrize(("size", "status"), [(100_000, 202), (100_001, 413)])
def test_a_file_is_as_large_as_a_photo_may_be_and_no_larger(stage: Stage, size: int, status: int) -> None:
    """Inflated: a bomb is refused by what it says itself."""
    body = zipped({"a.png": bytes(size)}, zipfile.ZIP_DEFLATED)
    answer = stage.post(f"{JOBS}?model=colour", body, **ZIP)
    assert answer.status_code == status
    if status == 413:
        assert "file 'a.png': expected at most 100000 bytes, got 100001" in stage.refused(413, answer)


def encrypted() -> bytes:
    content = bytearray(zipped({"a.png": photo()}))
    content[6] |= 1
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    return bytes(content)


def newer() -> bytes:
    """One that needs a version of ZIP that there is not yet."""
    content = bytearray(zipped({"a.png": photo()}))
    content[content.rindex(b"PK\x01\x02") + 6] = 99
    return bytes(content)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "body: expected a ZIP file, got something else"),
        (b"PK\x03\x04", "body: expected a ZIP file, got something else"),
        (photo(), "body: expected a ZIP file, got something else"),
        (zipped(FILES)[:-30], "body: expected a ZIP file, got something else"),
        (newer(), "body: expected a ZIP file, got something else"),
        (zipped({}), "rows: expected 1 to 50, got 0"),
        (zipped({"a/": b"", "__MACOSX/._a": b"x"}), "rows: expected 1 to 50, got 0"),
        (encrypted(), "file 'a.png': expected one that is not encrypted, got one that is"),
    ],
)
def test_what_is_no_zip_of_photos_is_refused(stage: Stage, body: bytes, said: str) -> None:
    assert said in stage.refused(400, stage.post(f"{JOBS}?model=colour", body, **ZIP))


def test_photos_are_for_models_of_photos(stage: Stage) -> None:
    said = stage.refused(415, stage.post(f"{JOBS}?model=scale", zipped(FILES), **ZIP))
    assert said == "Content-Type: model scale takes no photos, got application/zip"


# Bounds.


def zipped_rows(count: int) -> bytes:
    return zipped({f"{i}.png": b"" for i in range(count)})


@pytest.mark.parametrize(("count", "status"), [(1, 202), (50, 202), (51, 400)])
def test_a_job_has_as_many_rows_as_it_may_and_no_more(stage: Stage, count: int, status: int) -> None:
    """In each of the three forms."""
    rows = [[1, 2, 3]] * count
    answers = [
        stage.post(JOBS, {"model": "scale", "instances": rows}),
        stage.post(f"{JOBS}?model=scale", b"".join(lines(rows)), **LINES),
        stage.post(f"{JOBS}?model=colour", zipped_rows(count), **ZIP),
    ]
    assert [answer.status_code for answer in answers] == [status] * 3
    if status == 400:
        assert {stage.refused(400, answer) for answer in answers} == {"rows: expected 1 to 50, got 51"}


def test_a_zip_with_more_files_than_anybody_may_hand_over_is_not_even_listed(stage: Stage) -> None:
    """To list millions takes seconds and gigabytes; folders and macOS may add as many as there are photos."""
    files = {f"__MACOSX/{i}": b"" for i in range(50)} | {f"{i}.png": b"" for i in range(50)}
    assert stage.submit(f"{JOBS}?model=colour", zipped(files), **ZIP)["rows"] == 50
    said = stage.refused(413, stage.post(f"{JOBS}?model=colour", zipped(files | {"a/": b""}), **ZIP))
    assert said == "body: expected a ZIP of at most 100 files and folders, got more"


@pytest.mark.parametrize("coding", [None, "gzip"])
@pytest.mark.parametrize(("size", "status"), [(1 << 20, 202), ((1 << 20) + 1, 413)])
def test_a_body_is_as_large_as_it_may_be_and_no_larger(
    stage: Stage, size: int, status: int, coding: str | None
) -> None:
    """Which is more than of a request for a prediction; compressed or not."""
    body = json.dumps({"model": "scale", "instances": [[1, 2, 3]]}).encode().ljust(size)
    fields = {"Content_Encoding": coding} if coding else {}
    answer = stage.post(JOBS, compress(body, coding) if coding else body, **fields)
    assert answer.status_code == status
    if status == 413:
        assert f"body: expected at most {1 << 20} bytes" in stage.refused(413, answer)
    instances = json.dumps({"instances": [[1, 2, 3]]}).encode().ljust(100_001)
    assert stage.post("/v1/models/scale:predict", instances, Prefer="respond-async").status_code == 413


def test_instances_are_as_many_as_they_may_be_however_they_are_written(stage: Stage) -> None:
    """And each is its own, white space, nesting and brackets in texts and all."""
    text = '{"model": "scale", "instances": [ [1,\n2, 3] ,[4.0, 5, 6e0]\t, [7, 8, 9 ]\n ] }'
    assert stage.predictions(stage.submit(JOBS, text.encode())) == [[2, 4, 6], [8, 10, 12], [14, 16, 18]]
    assert stage.refused(400, stage.post(JOBS, {"model": "scale", "instances": []})) == "rows: expected 1 to 50, got 0"
    many = {"model": "scale", "instances": [[1, 2, 3]] * 50}
    assert stage.post(JOBS, many).json["rows"] == 50
    for count in (51, 5000):
        many["instances"] = [[1, 2, 3]] * count
        assert stage.refused(400, stage.post(JOBS, many)) == "rows: expected 1 to 50, got 51"
    odd = b'["a]", {"b": ["[", "\\"]"]}, 1e400, null]'
    assert stage.submit(JOBS, b'{"model": "scale", "instances": ' + odd + b"}")["rows"] == 4
    huge = b"[" + b"1" * 5000 + b"]"
    assert stage.post(JOBS, b'{"model": "scale", "instances": ' + huge + b"}").status_code in (202, 400)


def test_lines_are_counted_before_they_are_read(stage: Stage) -> None:
    """Empty ones included, of which there may be as many again."""
    row = b"[1, 2, 3]\n"
    assert stage.submit(f"{JOBS}?model=scale", row * 50 + b"\n" * 50, **LINES)["rows"] == 50
    answer = stage.post(f"{JOBS}?model=scale", row * 50 + b"\n" * 51, **LINES)
    assert stage.refused(413, answer) == "body: expected at most 100 lines, empty ones included, got 101"


def test_jobs_have_a_quota_of_their_own(limited: Callable[..., Stage]) -> None:
    """One that is there already costs none, nor does what is refused for another reason."""
    stage, body = limited(quota_jobs=2), {"model": "scale", "instances": ROWS}
    answers = [stage.post(JOBS, body, Idempotency_Key=key) for key in ("a", "b", "a")]
    assert [answer.status_code for answer in answers] == [202, 202, 202]
    assert [answer.headers.get("RateLimit", "").partition(";t=")[0] for answer in answers] == [
        '"jobs";r=1',
        '"jobs";r=0',
        "",
    ]
    assert stage.post(JOBS, {"model": "scale", "instances": []}).status_code == 400
    answer = stage.post(JOBS, body)
    assert stage.refused(429, answer) == "quota 'jobs': expected at most 2 requests in 60 s, got more"
    assert answer.headers["RateLimit-Policy"] == '"jobs";q=2;w=60'
    assert stage.post("/v1/models/scale:predict", {"instances": ROWS[:1]}).status_code == 200


def test_a_client_has_as_many_jobs_as_it_may_and_no_more(limited: Callable[..., Stage]) -> None:
    """Those that have ended do not count."""
    stage = limited(max_jobs=2)
    for _ in range(2):
        stage.submit(JOBS, {"model": "scale", "instances": ROWS})
    answer = stage.post(JOBS, {"model": "scale", "instances": ROWS})
    assert stage.refused(429, answer) == "jobs: expected at most 2 that have not ended, got one more"
    assert answer.headers["Retry-After"] == "1"
    stage.work()
    stage.submit(JOBS, {"model": "scale", "instances": ROWS})


def test_the_store_is_as_full_as_it_may_be_and_no_fuller(
    limited: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "OWNERS_PART", 1)
    stage = limited(max_jobs_bytes=600_000)
    body = b"".join(lines([[1, 2, 3] + [0] * 10_000] * 10))
    stage.submit(f"{JOBS}?model=scale", body, **LINES)
    answer = stage.post(f"{JOBS}?model=scale", body, **LINES)
    assert "there is no room for" in stage.refused(503, answer)
    assert answer.headers["Retry-After"] == "1"


# States and lists.


def test_results_are_there_at_the_end_and_not_before(stage: Stage) -> None:
    job = stage.submit(JOBS, {"model": "scale", "instances": ROWS})
    path = f"{JOBS}/{job['id']}/results"
    answer = stage.get(path)
    assert stage.refused(409, answer) == f"job '{job['id']}': is queued, and has results when it has ended"
    assert answer.headers["Retry-After"] == "1"
    [stored] = stage.store.all()
    stored.write_state(State("running", done=3))
    assert "is running" in stage.refused(409, stage.get(path))
    assert stage.results(job) == DOUBLED


def test_how_far_a_job_is_and_how_long_it_will_take(stage: Stage) -> None:
    job = stage.submit(JOBS, {"model": "scale", "instances": ROWS})
    [stored] = stage.store.all()
    started = stored.job().created
    stored.write_state(State("running", done=5, errors=2, attempts=1, started=started, updated=started + 2))
    answer = stage.get(f"{JOBS}/{job['id']}")
    assert answer.headers["Retry-After"] == "1"
    found = answer.json
    assert (found["status"], found["done"], found["errors"], found["rate"]) == ("running", 5, 2, 2.5)
    assert datetime.fromisoformat(found["estimated_end"]) > datetime.fromisoformat(found["started"])
    stored.write_state(State("running", started=started, updated=started))
    assert stage.get(f"{JOBS}/{job['id']}").json["estimated_end"] is None, "nobody knows before it has begun"


def test_head_is_answered_as_get_is(stage: Stage) -> None:
    job = stage.submit(JOBS, {"model": "scale", "instances": ROWS})
    stage.work()
    for path in (JOBS, f"{JOBS}/{job['id']}", f"{JOBS}/{job['id']}/results"):
        head, get = stage.request("HEAD", path), stage.get(path)
        assert (head.status_code, head.content) == (200, b"")
        for name in ("Content-Type", "Content-Length"):
            assert head.headers[name] == get.headers[name]


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("job", [UNKNOWN, "x", "..", "%2e%2e", "keys", "a%2Fb", "everybody"])
def test_a_job_that_is_not_there_is_not_found(stage: Stage, method: str, job: str) -> None:
    stage.submit(JOBS, {"model": "scale", "instances": ROWS})
    assert stage.refused(404, stage.request(method, f"{JOBS}/{job}"))
    assert stage.refused(404, stage.get(f"{JOBS}/{job}/results"))


def test_the_list_is_newest_first_in_pages(stage: Stage) -> None:
    ids = [stage.submit(JOBS, {"model": "scale", "instances": ROWS})["id"] for _ in range(5)]
    pages, path = [], f"{JOBS}?limit=2"
    while path:
        page = stage.get(path).json
        pages.append([job["id"] for job in page["jobs"]])
        path = f"{JOBS}?limit=2&before={page['next']}" if page["next"] else ""
    assert [len(page) for page in pages] == [2, 2, 1]
    assert [each for page in pages for each in page] == sorted(ids, reverse=True)
    assert stage.get(f"{JOBS}?limit=5").json["next"] is None
    assert stage.get(f"{JOBS}?before=0").json["jobs"] == []


@pytest.mark.parametrize(
    ("limit", "status"), [("1", 200), ("100", 200), ("0", 400), ("101", 400), ("-1", 400), ("x", 400)]
)
def test_a_page_is_as_long_as_it_may_be_and_no_longer(stage: Stage, limit: str, status: int) -> None:
    assert stage.get(f"{JOBS}?limit={limit}").status_code == status


def test_a_page_has_twenty_unless_told_otherwise(stage: Stage) -> None:
    for _ in range(21):
        stage.submit(JOBS, {"model": "scale", "instances": [[1, 2, 3]]})
    page = stage.get(JOBS).json
    assert len(page["jobs"]) == 20
    assert page["next"] == page["jobs"][-1]["id"]


# Cancelling.


def test_one_that_waits_is_cancelled_at_once(stage: Stage) -> None:
    job = stage.submit(JOBS, {"model": "scale", "instances": ROWS})
    answer = stage.request("DELETE", f"{JOBS}/{job['id']}")
    assert (answer.status_code, answer.json["status"]) == (202, "cancelled")
    assert stage.results(job) == [], "it ended before it began"
    assert stage.get(f"{JOBS}/{job['id']}").json["status"] == "cancelled"


def test_one_that_runs_is_cancelled_after_its_batch(stage: Stage) -> None:
    """With what it has by then."""
    job = stage.submit(JOBS, {"model": "scale", "instances": ROWS})
    said: list[Any] = []
    stage.runner._beat = lambda: said.append(stage.request("DELETE", f"{JOBS}/{job['id']}").json["status"])
    assert stage.results(job) == DOUBLED[:4]
    assert said == ["running"]
    described = stage.get(f"{JOBS}/{job['id']}").json
    assert (described["status"], described["done"]) == ("cancelled", 4)


def test_one_that_has_ended_stays_as_it_is(stage: Stage) -> None:
    """To cancel it is no error: who does may not have known yet."""
    job = stage.submit(JOBS, {"model": "scale", "instances": ROWS})
    stage.work()
    answer = stage.request("DELETE", f"{JOBS}/{job['id']}")
    assert (answer.status_code, answer.json["status"]) == (202, "succeeded")
    assert stage.results(job) == DOUBLED


# Idempotency-Key.


def test_the_same_key_and_request_are_the_same_job(stage: Stage) -> None:
    """Whether it waits or has ended; it is done once."""
    body = {"model": "scale", "instances": ROWS}
    first = stage.submit(JOBS, body, Idempotency_Key="a")
    assert stage.submit(JOBS, body, Idempotency_Key="a") == first
    assert len(stage.queue.jobs) == 1
    stage.work()
    again = stage.submit(JOBS, body, Idempotency_Key="a")
    assert (again["id"], again["status"]) == (first["id"], "succeeded")
    assert stage.queue.jobs == []
    assert stage.submit(JOBS, body, Idempotency_Key="b")["id"] != first["id"]
    assert stage.submit(JOBS, body)["id"] != first["id"]


def test_the_same_key_is_the_same_job_whatever_is_served_by_now(
    stage: Stage, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asks again has not heard the first answer; meanwhile there may be another version, or none."""
    body = {"model": "scale", "version": "1", "instances": ROWS}
    first = stage.submit(JOBS, body, Idempotency_Key="a")
    monkeypatch.setattr(services.repository, "_models", {})
    assert stage.submit(JOBS, body, Idempotency_Key="a") == first
    assert stage.post(JOBS, body, Idempotency_Key="b").status_code == 503


@pytest.mark.parametrize(
    ("path", "body", "fields"),
    [
        (JOBS, {"model": "scale", "instances": ROWS[1:]}, {}),
        (JOBS, {"model": "other", "instances": ROWS}, {}),
        (f"{JOBS}?a=b", {"model": "scale", "instances": ROWS}, {}),
        (f"{JOBS}?model=scale", b"[0,1,2]", LINES),
        ("/v1/models/scale:predict", {"instances": ROWS[:1]}, {"Prefer": "respond-async"}),
    ],
)
def test_the_same_key_for_something_else_is_refused(stage: Stage, path: str, body: Any, fields: dict[str, str]) -> None:
    stage.submit(JOBS, {"model": "scale", "instances": ROWS}, Idempotency_Key="a")
    said = stage.refused(422, stage.post(path, body, Idempotency_Key="a", **fields))
    assert said == "Idempotency-Key: expected the request that it was first sent with, got another"
    assert len(stage.get(JOBS).json["jobs"]) == 1


def test_a_key_whose_job_is_on_its_way_is_a_conflict(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another worker is writing it to the disk at the moment."""
    body, answers = {"model": "scale", "instances": ROWS}, []
    check_room = stage.store._check_room

    def meanwhile(*arguments: Any) -> None:
        monkeypatch.setattr(stage.store, "_check_room", check_room)
        answers.append(stage.post(JOBS, body, Idempotency_Key="a"))

    monkeypatch.setattr(stage.store, "_check_room", meanwhile)
    job = stage.submit(JOBS, body, Idempotency_Key="a")
    assert stage.refused(409, answers[0]) == "Idempotency-Key: its first request is on its way; ask again"
    assert answers[0].headers["Retry-After"] == "1"
    assert stage.submit(JOBS, body, Idempotency_Key="a") == job


def test_the_key_of_what_was_refused_is_free(stage: Stage) -> None:
    assert stage.post(JOBS, {"model": "scale", "instances": []}, Idempotency_Key="a").status_code == 400
    stage.submit(JOBS, {"model": "scale", "instances": ROWS}, Idempotency_Key="a")


@pytest.mark.parametrize(
    ("key", "status"),
    [
        ("x", 202),
        ("x" * 255, 202),
        ('"quoted"', 202),
        ("!~", 202),
        ("x" * 256, 400),
        ("", 400),
        ("a b", 400),
        ("\xe9", 400),
    ],
)
def test_a_key_has_its_form(stage: Stage, key: str, status: int) -> None:
    answer = stage.post(JOBS, {"model": "scale", "instances": ROWS}, Idempotency_Key=key)
    assert answer.status_code == status
    if status == 400:
        assert stage.refused(400, answer) == "Idempotency-Key: expected 1 to 255 visible ASCII characters"


# Prefer: respond-async.


@pytest.mark.parametrize("prefer", ["respond-async", "Respond-Async", "wait=10, respond-async", "respond-async,wait=1"])
def test_a_prediction_becomes_a_job_if_the_client_prefers_it(stage: Stage, prefer: str) -> None:
    answer = stage.post("/v1/models/scale:predict", {"instances": ROWS[:3]}, Prefer=prefer)
    assert answer.status_code == 202
    assert answer.headers["Preference-Applied"] == "respond-async"
    assert answer.headers["Location"] == f"{JOBS}/{answer.json['id']}"
    assert stage.results(answer.json) == DOUBLED[:3]


def test_it_may_have_more_rows_than_a_prediction(stage: Stage) -> None:
    """It is a job by all bounds but that of its body."""
    body = {"instances": [[1, 2, 3]] * 50}
    assert stage.post("/v1/models/scale:predict", body).status_code == 400
    assert stage.predictions(stage.submit("/v1/models/scale:predict", body, Prefer="respond-async")) == [[2, 4, 6]] * 50
    body = {"instances": [[1, 2, 3]] * 51}
    said = stage.refused(400, stage.post("/v1/models/scale:predict", body, Prefer="respond-async"))
    assert said == "rows: expected 1 to 50, got 51"


def test_so_does_a_photo(stage: Stage) -> None:
    path, fields = "/v1/models/colour:predict?top_k=2", {"Content_Type": "image/png"}
    expected = stage.post(path, photo(BLUE), **fields).json["predictions"]
    job = stage.submit(path, photo(BLUE), Prefer="respond-async", **fields)
    assert stage.predictions(job) == [expected]


def test_so_does_one_for_a_version(stage: Stage) -> None:
    path = "/v1/models/scale/versions/{}:predict"
    job = stage.submit(path.format(1), {"instances": ROWS[:1]}, Prefer="respond-async")
    assert job["model"]["version"] == "1"
    assert stage.post(path.format(2), {"instances": ROWS[:1]}, Prefer="respond-async").status_code == 404


def test_one_that_is_no_photo_by_its_media_type_is_told_so(stage: Stage) -> None:
    """As without the preference."""
    for fields in ({}, {"Prefer": "respond-async"}):
        said = stage.refused(415, stage.post("/v1/models/colour:predict", photo(), **fields))
        assert said.endswith("got what looks like a photo without saying so")


@pytest.mark.parametrize("prefer", ["", "wait=10", "respond-asynchronously", "return=minimal"])
def test_another_preference_is_none(stage: Stage, prefer: str) -> None:
    answer = stage.post("/v1/models/scale:predict", {"instances": ROWS[:3]}, Prefer=prefer)
    assert (answer.status_code, answer.json["predictions"]) == (200, [each["prediction"] for each in DOUBLED[:3]])
    assert stage.get(JOBS).json["jobs"] == []


# Where there are no jobs.


def test_where_no_jobs_are_taken_there_are_none(services: Services) -> None:
    client = Client(services)
    for method, path in (("POST", JOBS), ("GET", JOBS), ("GET", f"{JOBS}/x"), ("DELETE", f"{JOBS}/x")):
        body = json.dumps({"model": "scale", "instances": ROWS}).encode()
        assert client.refused(404, client.request(method, path, body)) == "jobs: this server takes none"
    assert client.refused(404, client.get(f"{JOBS}/x/results")) == "jobs: this server takes none"


def test_where_no_jobs_are_taken_the_preference_says_nothing(services: Services) -> None:
    answer = Client(services).post("/v1/models/scale:predict", {"instances": ROWS[:1]}, Prefer="respond-async")
    assert (answer.status_code, answer.json["predictions"]) == (200, [[0, 2, 4]])
    assert "Preference-Applied" not in answer.headers


# The queue.


def test_a_job_is_taken_while_the_queue_is_away_and_done_when_it_is_back(stage: Stage) -> None:
    keeper = Housekeeper(stage.store, stage.queue, 1e9, 1e9)
    stage.queue.away = True
    job = stage.submit(JOBS, {"model": "scale", "instances": ROWS})
    keeper.keep_house()
    stage.queue.away = False
    [stored] = stage.store.all()
    stored.write_state(State("queued", not_before=1.0))  # as if it had waited for long
    keeper.keep_house()
    assert stage.results(job) == DOUBLED


# Who asks.


class Callers(Stage):
    """The application where tokens are required."""

    def __init__(self, services: Services) -> None:
        super().__init__(services)
        self._http = TestClient(create_app(services, Verifier(Fixed(trusted()), ISSUER, AUDIENCE, ALGORITHMS)))
        self.document = self._http.simulate_get("/openapi.json").json

    def by(self, subject: str, method: str, path: str, body: Any = None, scope: str = "jobs", **headers: str) -> Result:
        token = signer("EdDSA").token(scope=scope, sub=subject)
        content = None if body is None else json.dumps(body).encode()
        return self.request(method, path, content, {"Authorization": f"Bearer {token}"} | headers)


@pytest.fixture
def callers(services: Services, tmp_path: Path) -> Callers:
    return Callers(with_jobs(services, tmp_path / "callers"))


def test_a_job_is_its_makers_alone(callers: Callers) -> None:
    """To others it is not there: not to be seen, read, ended, listed or asked for by its key."""
    body = {"model": "scale", "instances": ROWS}
    mine = callers.by("anna", "POST", JOBS, body, Idempotency_Key="a").json
    callers.work()
    path = f"{JOBS}/{mine['id']}"
    for subject in ("berta", "Anna", "anna ", "everybody", ".."):
        for method, place in (("GET", path), ("HEAD", path), ("DELETE", path), ("GET", f"{path}/results")):
            assert callers.by(subject, method, place).status_code == 404
        assert callers.by(subject, "GET", JOBS).json["jobs"] == []
        assert callers.by(subject, "GET", f"{JOBS}?before=zzz").json["jobs"] == []
        assert callers.by(subject, "POST", JOBS, body, Idempotency_Key="a").json["id"] != mine["id"]
    assert [job["id"] for job in callers.by("anna", "GET", JOBS).json["jobs"]] == [mine["id"]]
    assert callers.by("anna", "GET", path).json["status"] == "succeeded"
    assert read_lines(callers.by("anna", "GET", f"{path}/results").content) == DOUBLED
    assert callers.by("anna", "DELETE", path).status_code == 202


def test_bounds_are_each_ones_own(services: Services, tmp_path: Path) -> None:
    changed = msgspec.structs.replace(services, settings=msgspec.structs.replace(services.settings, max_jobs=1))
    callers = Callers(with_jobs(changed, tmp_path / "bounds"))
    body = {"model": "scale", "instances": ROWS}
    statuses = [callers.by(subject, "POST", JOBS, body).status_code for subject in ("anna", "anna", "berta", "berta")]
    assert statuses == [202, 429, 202, 429]


@pytest.mark.parametrize(
    ("scope", "model", "status"),
    [
        ("jobs", "scale", 202),
        ("jobs:scale", "scale", 202),
        ("predict jobs:scale", "scale", 202),
        ("jobs:scale", "other", 403),
        ("jobs:scale", "nobody", 403),
        ("jobs:SCALE", "scale", 403),
        ("predict", "scale", 403),
        ("jobsx", "scale", 403),
        ("", "scale", 403),
    ],
)
def test_a_model_needs_its_scope(callers: Callers, scope: str, model: str, status: int) -> None:
    """Which model it is stands in the body, or in the query."""
    body = {"model": model, "instances": ROWS}
    answers = [
        callers.by("anna", "POST", JOBS, body, scope),
        callers.by("anna", "POST", f"{JOBS}?model={model}", [1, 2, 3], scope, **LINES),
    ]
    assert [answer.status_code for answer in answers] == [status] * 2
    if status == 403:
        said = {callers.refused(403, answer) for answer in answers}
        assert said == {
            f"access token: expected scope {'jobs' if 'jobs:' in scope else 'jobs:*'}, got {scope or 'none'}"
        }
        assert list(callers.store.all()) == []


@pytest.mark.parametrize(
    ("scope", "status"),
    [
        ("predict", 403),
        ("jobs", 403),
        ("predict jobs", 202),
        ("predict:scale jobs:scale", 202),
        ("predict jobs:other", 403),
    ],
)
def test_to_prefer_a_job_needs_the_scopes_of_both(callers: Callers, scope: str, status: int) -> None:
    answer = callers.by(
        "anna", "POST", "/v1/models/scale:predict", {"instances": ROWS[:1]}, scope, Prefer="respond-async"
    )
    assert answer.status_code == status
    if status == 202:
        assert callers.by("anna", "GET", answer.headers["Location"]).status_code == 200


# The models that ship.


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("shipped jobs")
    services = start(MODELS, folder / "state", jobs_dir="set")
    yield Stage(with_jobs(services, folder / "jobs"))
    services.rollout.stop()


def test_the_classifier_says_of_each_photo_what_predict_says(shipped: Stage) -> None:
    """In batches of several, and among files that are none."""
    photos = sorted((MODELS / "efficientnet-lite0/examples").glob("*.jpg"))
    files = {path.name: path.read_bytes() for path in photos} | {"read.me": b"no photo"}
    expected = [
        shipped.post("/v1/models/efficientnet-lite0:predict", files[path.name], Content_Type="image/jpeg")
        for path in photos
    ]
    *found, wrong = shipped.results(shipped.submit(f"{JOBS}?model=efficientnet-lite0", zipped(files), **ZIP))
    assert [each["name"] for each in found] == [path.name for path in photos]
    for each, answer in zip(found, expected, strict=True):
        got, want = each["prediction"], answer.json["predictions"]
        assert [label["label"] for label in got] == [label["label"] for label in want]
        assert [label["score"] for label in got] == pytest.approx([label["score"] for label in want], rel=1e-5)
    assert "error" in wrong


def test_photos_in_base64_are_the_same_photos(shipped: Stage) -> None:
    body = (MODELS / "efficientnet-lite0/examples/chelsea.jpg").read_bytes()
    row = {"b64": base64.b64encode(body).decode()}
    as_file, as_text = (
        shipped.predictions(shipped.submit(f"{JOBS}?model=efficientnet-lite0", content, **fields))
        for content, fields in ((zipped({"a.jpg": body}), ZIP), (lines([row])[0], LINES))
    )
    assert as_file == as_text
