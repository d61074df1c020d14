"""The Compose stack as its users see it: clients through NGINX, and the operator."""

import base64
import json
import socket

import pytest
from compose import ROOT, Stack
from servers import Answer, wait_until

PHOTO = ROOT / "models/efficientnet-lite0/examples/chelsea.jpg"
PREDICT = "/v1/models/efficientnet-lite0:predict"
JPEG = {"Content-Type": "image/jpeg"}
ROW = json.dumps({"instances": [[1.0] * 30]}).encode()


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
    curl += ["--header", f"Authorization: Bearer {stack.token}"]
    url = "https://localhost:8443/v1/models/breast-cancer:predict"
    said = stack.compose(
        "exec", "-T", "nginx", *curl, "--data", ROW.decode(), "--write-out", "\n%{http_version} %{http_code}", url
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


@pytest.mark.parametrize("path", ["/metrics", "/status"])
def test_what_is_for_operators_is_not_for_clients(stack: Stack, path: str) -> None:
    token = operator_token(stack)
    for method in ("GET", "POST"):
        assert stack.request(method, path, token=token).status == 404


def operator_token(stack: Stack) -> str:
    """As the runbook gets it: who has a shell in there needs no client."""
    return stack.compose("exec", "-T", "api", "tiercel", "token", "models:read", "models:admin").strip()


def test_nothing_but_health_is_for_who_has_no_token(stack: Stack) -> None:
    answer = stack.request("POST", PREDICT, PHOTO.read_bytes(), JPEG, token="")
    assert "expected one as Authorization: Bearer TOKEN" in problem(answer, 401)
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="tiercel"'
    assert stack.request("POST", PREDICT, PHOTO.read_bytes(), JPEG, token=f"{stack.token}x").status == 401
    assert stack.request("GET", "/v2/health/ready", token="").status == 200


def test_the_issuer_is_named_as_clients_reach_it(stack: Stack) -> None:
    described = stack.request("GET", "/.well-known/oauth-authorization-server", token="").json()
    assert described["issuer"] == f"https://localhost:{stack.port}"
    assert described["token_endpoint"] == f"https://localhost:{stack.port}/oauth2/token"


def test_make_token_prints_one_that_works(stack: Stack) -> None:
    token = stack.python("-m", "native.access_token").strip()
    assert token != stack.token
    assert stack.request("POST", PREDICT, PHOTO.read_bytes(), JPEG, token=token).status == 200


def test_versions_are_changed_by_who_has_the_scope(stack: Stack) -> None:
    path = "/v2/repository/models/breast-cancer/load"
    assert stack.request("POST", path, token="").status == 401
    answer = stack.request("POST", path)
    assert (answer.status, list(answer.json())) == (403, ["error"])
    assert stack.request("POST", path, token=operator_token(stack)).status == 200


def test_clients_come_and_go_while_it_runs(stack: Stack, two_containers: None) -> None:
    """Every API container follows within seconds, whichever of them the command was for."""
    command = ("run", "--rm", "-T", "tiercel", "clients")
    said = dict(line.split() for line in stack.compose(*command, "add", "shop", "predict:breast-cancer").splitlines())
    assert said["client_id"] == "shop"
    tokens = {container: issued_in(stack, container, "shop", said["client_secret"]) for container in stack.ids("api")}
    assert len(tokens) == 2
    for token in tokens.values():
        assert stack.request("POST", "/v1/models/breast-cancer:predict", ROW, token=token).status == 200
        assert stack.request("POST", PREDICT, PHOTO.read_bytes(), JPEG, token=token).status == 403
    listed = {line.split()[0]: line.split()[2:] for line in stack.compose(*command, "list").splitlines()}
    assert listed == {"demo": ["predict", "jobs", "models:read"], "shop": ["predict:breast-cancer"]}

    stack.compose(*command, "revoke", "shop")
    for container, token in tokens.items():
        check = f"c.request('POST', '/v1/models/breast-cancer:predict', '', {{'Authorization': 'Bearer {token}'}})"
        wait_until(lambda check=check, at=container: ask_in(stack, at, check)[0] == "401", "its tokens have ended", 10)
    assert "shop" not in stack.compose(*command, "list")
    assert stack.request("GET", "/v1/models").status == 200, "others are as they were"


def issued_in(stack: Stack, container: str, client: str, secret: str) -> str:
    """A token from the container itself, which may not have heard of the client yet."""
    basic = base64.b64encode(f"{client}:{secret}".encode()).decode()
    fields = {"Authorization": f"Basic {basic}", "Content-Type": "application/x-www-form-urlencoded"}
    ask = f"c.request('POST', '/oauth2/token', 'grant_type=client_credentials', {fields})"
    answers: list[list[str]] = []

    def is_known() -> bool:
        answers.append(ask_in(stack, container, ask))
        return answers[-1][0] == "200"

    wait_until(is_known, f"{client} has a token", 10)
    return str(json.loads(answers[-1][1])["access_token"])


def ask_in(stack: Stack, container: str, ask: str) -> list[str]:
    """Status and body of an answer at the container's own door."""
    script = (
        f"import http.client as h; c = h.HTTPConnection('127.0.0.1:8000'); {ask}; "
        "a = c.getresponse(); print(a.status, a.read().decode())"
    )
    return stack.docker("exec", container, "python", "-c", script).split(maxsplit=1)


def test_nothing_but_nginx_can_be_reached_from_elsewhere(stack: Stack) -> None:
    services = json.loads(stack.compose("config", "--format", "json"))["services"]
    for name, service in services.items():
        for port in service.get("ports", []):
            assert name == "nginx" or port["host_ip"] == "127.0.0.1", name


def test_containers_have_given_up_what_they_do_not_need(stack: Stack) -> None:
    for container in stack.containers():
        host, name = container["HostConfig"], container["Name"]
        is_root = container["Config"]["User"].split(":")[0] in ("", "0", "root")
        assert is_root == ("fluentd" in name), name  # which reads files of root's
        assert host["ReadonlyRootfs"], name
        assert host["CapDrop"] == ["ALL"], name
        assert not host["CapAdd"], name
        assert host["SecurityOpt"] == ["no-new-privileges:true"], name
        assert host["PidsLimit"] > 0, name
        assert host["Memory"] > 0, name
        assert host["Init"] or "fluentd" in name, name  # whose image brings its own
        assert host["LogConfig"]["Config"]["max-size"], name


def test_no_secret_is_in_an_environment_or_a_log(stack: Stack) -> None:
    assert len(stack.secret) > 30
    for secret in (stack.secret, stack.token):
        assert secret not in json.dumps(stack.containers())
        assert secret not in stack.compose("logs", "--no-color")
