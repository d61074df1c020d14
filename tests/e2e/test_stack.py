"""The Compose stack as its users see it: clients through NGINX, and the operator."""

import json
import socket

import pytest
from compose import ROOT, Stack
from servers import Answer

PHOTO = ROOT / "models/efficientnet-lite0/examples/chelsea.jpg"
PREDICT = "/v1/models/efficientnet-lite0:predict"
JPEG = {"Content-Type": "image/jpeg"}


def test_every_service_is_healthy(stack: Stack) -> None:
    states = {}
    for container in stack.containers():
        state = container["State"]
        health = state.get("Health", {}).get("Status", "no check")
        states[container["Config"]["Labels"]["com.docker.compose.service"]] = f"{state['Status']} {health}"
    assert states.pop("setup") == "exited no check"
    assert set(states) == set(stack.compose("config", "--services").split()) - {"setup"}
    # Two images have no shell to run a check in.
    unchecked = {"nginx-exporter", "redis-exporter"}
    assert {service for service, state in states.items() if state != "running healthy"} <= unchecked
    assert all(states[service] == "running no check" for service in unchecked)


def test_a_second_up_changes_nothing(stack: Stack) -> None:
    before = stack.ids()
    ca = stack.ca.read_bytes()
    stack.up()
    stack.fetch_ca()
    assert stack.ids() == before
    assert stack.ca.read_bytes() == ca


def test_a_photo_is_classified_over_https(stack: Stack) -> None:
    answer = stack.request("POST", PREDICT, PHOTO.read_bytes(), JPEG)
    assert answer.status == 200
    assert answer.json()["predictions"][0]["label"] == "tiger cat"
    assert answer.headers["Strict-Transport-Security"] == "max-age=63072000; includeSubDomains"


def test_http2_is_spoken(stack: Stack) -> None:
    curl = ["curl", "--silent", "--show-error", "--http2", "--cacert", "/etc/tiercel/tls/ca.crt"]
    rows = json.dumps({"instances": [[1.0] * 30]})
    url = "https://localhost:8443/v1/models/breast-cancer:predict"
    said = stack.compose(
        "exec", "-T", "nginx", *curl, "--data", rows, "--write-out", "\n%{http_version} %{http_code}", url
    )
    body, _, what = said.rpartition("\n")
    assert what == "2 200"
    assert len(json.loads(body)["predictions"]) == 1


def test_clear_text_is_sent_to_https(stack: Stack) -> None:
    with socket.create_connection(("127.0.0.1", stack.clear_port), 10) as client:
        client.sendall(b"GET /v1/models?a=b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = client.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 308 ")
    assert f"Location: https://localhost:{stack.port}/v1/models?a=b\r\n".encode() in answer


def problem(answer: Answer, status: int) -> str:
    assert answer.status == status
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["status"] == status
    assert answer.json()["request_id"] == answer.headers["X-Request-ID"]
    return str(answer.json()["detail"])


def test_errors_have_the_same_form_wherever_they_come_from(stack: Stack) -> None:
    assert "no such route" in problem(stack.request("GET", "/nothing"), 404)
    assert "%25" in problem(stack.request("GET", "/v1/%2561"), 400)
    assert "expected GET, HEAD" in problem(stack.request("PURGE", "/v1/models"), 405)
    assert "at most 8388608 bytes" in problem(stack.request("POST", PREDICT, bytes((8 << 20) + 1), JPEG), 413)
    assert "expected" in problem(stack.request("POST", PREDICT, b"no photo", JPEG), 400)
    answer = stack.request("POST", "/v2/models/breast-cancer/infer", bytes((8 << 20) + 1))
    assert (answer.status, list(answer.json())) == (413, ["error"])


@pytest.mark.parametrize("path", ["/metrics", "/v2/repository/models/breast-cancer/unload", "/status"])
def test_what_is_for_operators_is_not_for_clients(stack: Stack, path: str) -> None:
    for method in ("GET", "POST"):
        assert stack.request(method, path).status == 404
    assert stack.request("GET", "/v2/models/breast-cancer/ready").status == 200


def test_versions_are_changed_from_inside(stack: Stack) -> None:
    """As the runbook says: an operator has a shell on the API's own address, which no client reaches."""
    script = (
        "import http.client as h; c = h.HTTPConnection('127.0.0.1:8000'); "
        "c.request('POST', '/v2/repository/models/breast-cancer/load'); print(c.getresponse().status)"
    )
    assert stack.compose("exec", "-T", "api", "python", "-c", script).strip() == "200"


def test_nothing_but_nginx_can_be_reached_from_elsewhere(stack: Stack) -> None:
    services = json.loads(stack.compose("config", "--format", "json"))["services"]
    for name, service in services.items():
        for port in service.get("ports", []):
            assert name == "nginx" or port["host_ip"] == "127.0.0.1", name


def test_containers_have_given_up_what_they_do_not_need(stack: Stack) -> None:
    for container in stack.containers():
        host, name = container["HostConfig"], container["Name"]
        assert container["Config"]["User"].split(":")[0] not in ("", "0", "root"), name
        assert host["ReadonlyRootfs"], name
        assert host["CapDrop"] == ["ALL"], name
        assert not host["CapAdd"], name
        assert host["SecurityOpt"] == ["no-new-privileges:true"], name
        assert host["PidsLimit"] > 0, name
        assert host["Memory"] > 0, name
        assert host["Init"] or "fluentd" in name, name  # whose image brings its own
        assert host["LogConfig"]["Config"]["max-size"], name


def test_no_secret_is_in_an_environment_or_a_log(stack: Stack) -> None:
    secret = stack.compose("run", "--rm", "-T", "setup", "cat", "/var/lib/tiercel/secrets/demo_client_secret").strip()
    assert len(secret) > 30
    assert secret not in json.dumps(stack.containers())
    assert secret not in stack.compose("logs", "--no-color")
