"""What the Compose stack says of itself, and who reads it."""

import json
import os
import signal
import time
from typing import Any

from compose import Stack
from servers import wait_until

PREDICT = "/v1/models/breast-cancer:predict"
ROW = json.dumps({"instances": [[1.0] * 30]}).encode()
REQUEST = "a-request-of-the-end-to-end-tests"


def said_of(stack: Stack, request_id: str) -> list[dict[str, Any]]:
    """What `make logs REQUEST=...` shows; nothing as long as nobody has said anything."""
    return [json.loads(line) for line in stack.python("-m", "native.logs", request_id, check=False).splitlines()]


def test_a_request_is_found_in_the_logs_of_all_who_had_it(stack: Stack) -> None:
    """By its id, with its trace, in order of time."""
    headers = {"X-Request-ID": REQUEST}
    assert stack.request("POST", PREDICT, ROW, headers, token="").status == 401
    wait_until(lambda: {line["service"] for line in said_of(stack, REQUEST)} >= {"nginx", "api"}, "both have said so")
    lines = said_of(stack, REQUEST)
    assert [line["timestamp"] for line in lines] == sorted(line["timestamp"] for line in lines)
    assert (lines[-1]["logger"], lines[-1]["status"], lines[-1]["path"]) == ("nginx.access", 401, PREDICT)
    assert len(lines[-1]["trace_id"]) == 32


def test_api_and_worker_say_nothing_but_json(stack: Stack) -> None:
    for service in ("api", "worker"):
        for container in stack.ids(service):
            lines = stack.docker("logs", container).splitlines()
            assert {json.loads(line)["service"] for line in lines} == {service}


def test_the_engines_files_say_whose_they_are(stack: Stack) -> None:
    """By this fluent.conf knows them. It sees those files, and nobody but root does."""
    for container in stack.containers("api"):
        path = f"/containers/{container['Id']}/{container['Id']}-json.log"
        line = json.loads(stack.compose("exec", "-T", "fluentd", "head", "-n", "1", path))
        assert line["attrs"] == {
            "com.docker.compose.project": stack.project,
            "com.docker.compose.service": "api",
            "tag": container["Name"].removeprefix("/"),
        }
        assert json.loads(line["log"])["service"] == "api"


def test_nobody_waits_for_fluentd(stack: Stack) -> None:
    """It hangs, and then there is none: requests are answered, and containers stop, start and are replaced as ever."""
    [fluentd] = stack.ids("fluentd")
    processes = stack.processes(fluentd)
    for pid in processes:
        os.kill(pid, signal.SIGSTOP)
    try:
        check_all_goes_on(stack)
    finally:
        for pid in processes:
            os.kill(pid, signal.SIGCONT)
    stack.compose("kill", "fluentd")
    try:
        check_all_goes_on(stack)
    finally:
        stack.up("--no-recreate", "fluentd")


def check_all_goes_on(stack: Stack) -> None:
    for _ in range(200):
        assert stack.request("POST", PREDICT, ROW).status == 200
    # Its time to stop is 60 s; to wait for somebody who does not answer would take longer, or for ever.
    began = time.monotonic()
    stack.compose("restart", "worker")
    assert time.monotonic() - began < 50
    stack.wait_healthy("worker")
