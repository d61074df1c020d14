"""Batch jobs: hand over many rows, come back for the results. `/v1/jobs` is its maker's alone."""

import hashlib
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from urllib.parse import urlsplit

import falcon
import msgspec

from inference_api import submissions
from inference_api.authorisation import authorise, subject
from inference_api.observation.request import Observation
from inference_api.openapi import Operation
from inference_api.requests import count_job, media_type, read_body, whole_number
from inference_api.submissions import JSON_LINES, ZIP, Submission
from inference_api.v2 import Resource, send
from inference_core.bootstrap import Services
from inference_core.errors import Conflict, InvalidInput, NotFound, UnsupportedMedia
from inference_core.instances import ModelIdentity
from inference_core.jobs import ENDED, Job, JobStore, State, StoredJob, new_id, owner_of
from inference_core.model import Model
from observability.families import JOBS_ACCEPTED
from observability.tracing import Span, Trace, new_span_id

KEY = re.compile(r"[\x21-\x7e]{1,255}")
DEFAULT_TOP_K = 5
PAGE, MAX_PAGE = 20, 100
PIECE_BYTES = 64 << 10
URL = re.compile(r"[\x21-\x7e]{1,2048}")
# How long a client may wait until it asks again, in seconds.
ASK_AGAIN = "1"


class JobDescription(msgspec.Struct):
    """Times as in RFC 3339. `rate` is rows per second; `estimated_end` is there while it runs."""

    id: str
    status: str
    model: ModelIdentity
    rows: int
    done: int
    errors: int
    created: str
    started: str | None
    ended: str | None
    rate: float | None
    estimated_end: str | None
    reason: str


class JobList(msgspec.Struct):
    """Newest first. `next` is the `before` of the next page, if there is one."""

    jobs: list[JobDescription]
    next: str | None


class JobsResource(Resource):
    """One's own jobs: a new one, or a list of them."""

    operations = (
        (
            "post",
            Operation(
                summary="Hand over rows to predict for: JSON, JSON Lines, or photos in a ZIP file.",
                request=submissions.JobRequest,
                request_required=True,
                response=JobDescription,
                status=202,
                binary=(JSON_LINES, ZIP),
                parameters=("?model", "?version", "top_k", "webhook", "Idempotency-Key"),
                errors=(404, 409, 413, 415, 422, 429, 503),
            ),
        ),
        (
            "get",
            Operation(
                summary="One's own jobs, newest first.",
                response=JobList,
                parameters=("before", "limit"),
                errors=(404,),
            ),
        ),
    )

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        body = read_body(req, self._services.settings.max_job_bytes)
        accept(req, resp, self._services, submissions.read(req, body, self._services.settings), body)

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        count = whole_number("limit", req.get_param("limit", default=str(PAGE)), 1, MAX_PAGE)
        owner = owner_of(subject(req.env))
        found = _store(self._services).newest(owner, req.get_param("before"), count + 1)
        more = found[count - 1].folder.name if len(found) > count else None
        send(resp, JobList([*_all_described(found[:count])], more))

    on_head = on_get


class JobResource(Resource):
    """How far a job is; or end it."""

    operations = (
        ("get", Operation(summary="How far a job is.", response=JobDescription, errors=(404,))),
        ("delete", Operation(summary="End a job.", response=JobDescription, status=202, errors=(404,))),
    )

    def on_get(self, req: falcon.Request, resp: falcon.Response, job: str) -> None:
        stored = _store(self._services).get(owner_of(subject(req.env)), job)
        described = _described(stored)
        if described.status not in ENDED:
            resp.set_header("Retry-After", ASK_AGAIN)
        send(resp, described)

    on_head = on_get

    def on_delete(self, req: falcon.Request, resp: falcon.Response, job: str) -> None:
        stored = _store(self._services).get(owner_of(subject(req.env)), job)
        stored.cancel()
        resp.status = falcon.HTTP_202
        send(resp, _described(stored))


class JobResultsResource(Resource):
    """One line of JSON per row, in the order of the input: `index` and `prediction`, or `error`."""

    operation = Operation(response=None, media=JSON_LINES, errors=(404, 409))

    def on_get(self, req: falcon.Request, resp: falcon.Response, job: str) -> None:
        stored = _store(self._services).get(owner_of(subject(req.env)), job)
        state = stored.state()
        if state.status not in ENDED:
            raise Conflict(f"job '{job}': is {state.status}, and has results when it has ended")
        resp.content_type = JSON_LINES
        if not stored.results.exists():  # it ended before it began
            resp.data = b""
            return
        resp.content_length = stored.results.stat().st_size
        resp.stream = _pieces(stored)

    on_head = on_get


def accept(req: falcon.Request, resp: falcon.Response, services: Services, submission: Submission, body: bytes) -> None:
    """Keep a job and say where it is: 202, or what the Idempotency-Key stands for already."""
    authorise(req.env, "jobs", submission.name)
    store, owner, key = _store(services), owner_of(subject(req.env)), _key(req)
    asked = hashlib.sha256(f"{media_type(req)}\n{req.path}\n{req.query_string}\n".encode() + body).hexdigest()
    # First of all: another version, or none, may be served by the time that a client asks again.
    stored = store.find(owner, key, asked) if key else None
    if stored is None:
        began, span = time.time_ns(), new_span_id()
        job = _job(req, services, submission, owner, _keep_trace(req).header(span))
        count_job(req, resp, services)
        stored, is_new = store.submit(job, submission.rows, key, asked)
        if is_new and services.jobs:
            services.jobs.queue.enqueue(job.owner, job.id)
            JOBS_ACCEPTED.of(job.model).add()
            about = {"tiercel.job": job.id, "tiercel.rows": job.rows}
            req.context.observation.spans = [Span("enqueue job", began, time.time_ns(), about, "PRODUCER", id=span)]
    resp.status = falcon.HTTP_202
    resp.set_header("Location", f"/v1/jobs/{stored.folder.name}")
    resp.set_header("Retry-After", ASK_AGAIN)
    send(resp, _described(stored))


def _keep_trace(req: falcon.Request) -> Trace:
    """Jobs are few and long: the trace of each is kept."""
    observation: Observation = req.context.observation
    return observation.keep_trace()


def _job(req: falcon.Request, services: Services, submission: Submission, owner: str, traceparent: str) -> Job:
    """What is asked for, once it is sure that it can be done."""
    model = services.repository.get(submission.name, submission.version)
    _check(submission, model, services)
    return Job(
        id=new_id(),
        owner=owner,
        model=model.manifest.name,
        version=model.manifest.version,
        digest=model.digest,
        kind=submission.kind,
        rows=submission.count,
        bytes=sum(map(len, submission.rows)),
        created=time.time(),
        request_id=req.context.request_id,
        traceparent=traceparent,
        webhook=_webhook(submission.webhook, services),
        top_k=min(submission.top_k or DEFAULT_TOP_K, len(model.manifest.labels) or DEFAULT_TOP_K),
    )


def prefers_async(req: falcon.Request, services: Services) -> bool:
    """RFC 7240, section 4.1; a preference, so that it says nothing where there are no jobs."""
    preferences = {preference.strip().lower() for preference in req.env["HTTP_PREFER"].split(",")}
    return services.jobs is not None and "respond-async" in preferences


def accept_prediction(
    req: falcon.Request,
    resp: falcon.Response,
    services: Services,
    model: str,
    version: str | None,
    top_k: int,
    body: bytes,
    *,
    photo: bool,
) -> None:
    """Make a job of what was asked of `:predict`: one row for each instance, or one for the photo."""
    rows = (
        submissions.rows_of_photo(body)
        if photo
        else submissions.rows_of_instances(body, services.settings.max_job_rows)
    )
    accept(req, resp, services, Submission("instances", rows, len(rows), model, version, top_k or None), body)


def _check(submission: Submission, model: Model, services: Services) -> None:
    manifest, most = model.manifest, services.settings.max_job_rows
    if not 1 <= submission.count <= most:
        raise InvalidInput(f"rows: expected 1 to {most}, got {submission.count}")
    if not manifest.max_batch_size:
        raise InvalidInput(f"model {manifest.name} takes no rows: use /v2/models/{manifest.name}/infer")
    if submission.kind == "photos" and manifest.image is None:
        raise UnsupportedMedia(f"Content-Type: model {manifest.name} takes no photos, got {ZIP}")
    if submission.top_k is not None and not 1 <= submission.top_k <= max(1, len(manifest.labels)):
        raise InvalidInput(f"top_k: expected 1 to {len(manifest.labels)}, got {submission.top_k}")


def _webhook(url: str | None, services: Services) -> str | None:
    """SECURITY: to a host that the operator has named, and in no other way."""
    if url is None:
        return None
    hosts = [host.strip() for host in services.settings.webhook_hosts.lower().split(",") if host.strip()]
    try:
        parts = urlsplit(url)
        is_good = parts.scheme == "https" and parts.hostname in hosts and "@" not in parts.netloc and parts.port != 0
    except ValueError:
        is_good = False
    if not is_good or not URL.fullmatch(url):
        raise InvalidInput(f"webhook: expected an https URL of one of the hosts {hosts}, got another")
    return url


def _key(req: falcon.Request) -> str | None:
    """draft-ietf-httpapi-idempotency-key-header; with or without its quotes."""
    given: str | None = req.env.get("HTTP_IDEMPOTENCY_KEY")
    if given is not None and not KEY.fullmatch(given):
        raise InvalidInput("Idempotency-Key: expected 1 to 255 visible ASCII characters")
    return given


def _store(services: Services) -> JobStore:
    if services.jobs is None:
        raise NotFound("jobs: this server takes none")
    return services.jobs.store


def _all_described(found: list[StoredJob]) -> Iterator[JobDescription]:
    for stored in found:
        with suppress(NotFound):  # it has just been removed
            yield _described(stored)


def _described(stored: StoredJob) -> JobDescription:
    job, state = stored.job(), stored.state()
    rate = _rate(state)
    remaining = (job.rows - state.done) / rate if rate and state.status == "running" else None
    return JobDescription(
        id=job.id,
        status=state.status,
        model=ModelIdentity(job.model, job.version, job.digest),
        rows=job.rows,
        done=state.done,
        errors=state.errors,
        created=_time(job.created) or "",
        started=_time(state.started),
        ended=_time(state.ended),
        rate=rate,
        estimated_end=_time(time.time() + remaining) if remaining is not None else None,
        reason=state.reason,
    )


def _rate(state: State) -> float | None:
    last = state.ended or state.updated
    if state.started is None or last is None or not state.done or last <= state.started:
        return None
    return round(state.done / (last - state.started), 1)


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _pieces(stored: StoredJob) -> Iterator[bytes]:
    with stored.results.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield piece
