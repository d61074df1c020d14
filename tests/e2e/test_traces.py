"""Traces of the Compose stack, as Jaeger tells them."""

import json
import secrets
import urllib.error
from typing import Any

from compose import Stack, fetch
from servers import wait_until

LINES = {"Content-Type": "application/x-ndjson"}


def spans_of(stack: Stack, trace: str) -> dict[str, dict[str, Any]]:
    """By name; none as long as Jaeger has not heard of it."""
    try:
        found = fetch(f"{stack.url('jaeger')}/api/traces/{trace}")["data"]
    except urllib.error.HTTPError:
        return {}
    return {span["operationName"]: span for each in found for span in each["spans"]}


def wait_for_spans(stack: Stack, trace: str, names: set[str]) -> dict[str, dict[str, Any]]:
    """Those of API and worker, each of which sends its own when it likes."""
    wait_until(lambda: spans_of(stack, trace).keys() >= names, f"Jaeger has {sorted(names)}")
    return spans_of(stack, trace)


def parent(span: dict[str, Any]) -> str | None:
    return next((each["spanID"] for each in span["references"] if each["refType"] == "CHILD_OF"), None)


def test_a_request_that_was_traced_already_goes_on_in_its_trace(stack: Stack) -> None:
    """The span that it came from, the server's, and in that its stages."""
    trace, caller = secrets.token_hex(16), secrets.token_hex(8)
    headers = {"traceparent": f"00-{trace}-{caller}-01"}
    row = json.dumps({"instances": [[secrets.randbelow(1000) / 10] * 30]}).encode()  # whose answer nobody has kept
    assert stack.request("POST", "/v1/models/breast-cancer:predict", row, headers).status == 200
    server = "POST /v1/models/{model}:predict"
    spans = wait_for_spans(stack, trace, {server, "queue", "preprocess", "inference", "postprocess"})
    assert parent(spans[server]) == caller
    stages = spans.keys() - {server}
    assert {parent(spans[stage]) for stage in stages} == {spans[server]["spanID"]}


def test_a_job_is_in_the_trace_of_who_handed_it_over(stack: Stack) -> None:
    """Across the queue, although nobody asked for its trace to be kept."""
    request_id = secrets.token_hex(16)
    body = json.dumps([1.0] * 30).encode() + b"\n"
    answer = stack.request("POST", "/v1/jobs?model=breast-cancer", body, LINES | {"X-Request-ID": request_id})
    assert answer.status == 202, answer
    lines = wait_for_job_line(stack, request_id)
    trace = lines[-1]["trace_id"]
    spans = wait_for_spans(stack, trace, {"POST /v1/jobs", "enqueue job", "run job"})
    enqueue = spans["enqueue job"]["spanID"]
    assert parent(spans["enqueue job"]) == spans["POST /v1/jobs"]["spanID"]
    assert parent(spans["POST /v1/jobs"]) is None
    assert {each["spanID"] for each in spans["run job"]["references"]} == {enqueue}
    assert {line["trace_id"] for line in lines} == {trace}


def wait_for_job_line(stack: Stack, request_id: str) -> list[dict[str, Any]]:
    """What API and worker have said of the request, once the worker has said that its job has ended."""
    lines: list[dict[str, Any]] = []

    def has_ended() -> bool:
        said = [
            json.loads(line)
            for service in ("api", "worker")
            for container in stack.ids(service)
            for line in stack.docker("logs", container).splitlines()
            if request_id in line
        ]
        lines[:] = [line for line in said if line["logger"] in ("tiercel.request", "tiercel.job")]
        return any(line["event"] == "job ended" for line in lines)

    wait_until(has_ended, "the job has ended", 60)
    return lines
