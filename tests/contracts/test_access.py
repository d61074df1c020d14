"""Access tokens at real servers: attacks on every worker class, and a client of the shelf that comes through NGINX."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jwt
import pytest
from edge import Edge
from oauthlib.oauth2 import BackendApplicationClient, InvalidClientError, InvalidScopeError
from requests_oauthlib import OAuth2Session
from servers import Server, free_port, held, wait_until
from tokens import (
    ALGORITHMS,
    ATTACKS,
    AUDIENCE,
    ISSUER,
    exponent_one,
    issuer_folder,
    jwks,
    of_size,
    parts,
    signer,
)

from access_control.clients import revoke_client

PREDICT = "/v1/models/scale:predict"
INSTANCES = {"instances": [[1, 2, 3]]}
CHALLENGE = re.compile(r'Bearer realm="tiercel"(, (error|error_description|scope)="[\x20-\x21\x23-\x5b\x5d-\x7e]+")*')
# Servers and NGINX take header lines of up to 8 KB, with the field's name and the scheme.
LARGEST_TOKEN = 8160
FIRST, SECOND = signer("ES256", "first"), signer("ES256", "second")


@pytest.fixture(scope="module")
def guarded_server(models: Path, worker_class: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One that trusts the keys in a file, where there are some that it had better not."""
    path = tmp_path_factory.mktemp("access") / "jwks.json"
    path.write_bytes(jwks(*map(signer, ALGORITHMS), exponent_one(), {"kty": "oct", "k": "c2VjcmV0", "kid": "secret"}))
    settings: dict[str, Any] = {"auth": "required", "auth_jwks": path, "auth_issuer": ISSUER, "auth_audience": AUDIENCE}
    with Server(models, worker_class, workers=2, auth_algorithms=",".join(ALGORITHMS), **settings) as server:
        wait_until(lambda: len(server.workers()) == 2, "both workers have started")
        yield server


@pytest.fixture
def guarded(guarded_server: Server) -> Iterator[Server]:
    """It has the same workers after the test as before it."""
    before = set(guarded_server.workers())
    yield guarded_server
    assert set(guarded_server.workers()) == before, guarded_server.log()[-3000:]


def bearer(token: str) -> str:
    return f"Bearer {token.encode().decode('latin-1')}"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_good_token_is_taken(guarded: Server, algorithm: str) -> None:
    """Of each algorithm, in either case of the scheme, and as long as a line of a header can be."""
    good = signer(algorithm).token(scope="predict:scale models:read")
    for given in (bearer(good), f"bearer {good}"):
        answer = guarded.post(PREDICT, INSTANCES, Authorization=given)
        assert (answer.status, answer.json()["predictions"]) == (200, [[2, 4, 6]])
    assert guarded.post("/v1/models/mixed:predict", INSTANCES, Authorization=bearer(good)).status == 403
    assert guarded.get("/v2", Authorization=bearer(of_size(LARGEST_TOKEN))).status == 403


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_refused(guarded: Server, name: str) -> None:
    """With the challenge of RFC 6750; nothing of the token is in the log. What is too long may not even be read."""
    token = ATTACKS[name].make()
    request = f"GET /v2 HTTP/1.1\r\nHost: test\r\nConnection: close\r\nAuthorization: {bearer(token)}\r\n\r\n"
    try:
        answer = guarded.raw(request.encode("latin-1")).decode("latin-1")
    except (BrokenPipeError, ConnectionResetError):
        answer = ""
    if len(token) > LARGEST_TOKEN:
        assert re.match(r"$|HTTP/1.[01] (400|401|431) ", answer)
    else:
        assert answer.startswith("HTTP/1.1 401 ")
        [challenge] = re.findall(r"(?i)^www-authenticate: (.*)\r$", answer, re.MULTILINE)
        assert CHALLENGE.fullmatch(challenge)
    log = guarded.log()
    assert not any(part[:40] in log for part in parts(token) if len(part) >= 40)


@pytest.mark.parametrize(
    "lines",
    [
        "",
        "Authorization:",
        "Authorization: Bearer",
        "Authorization: Basic {}",
        "Authorization: Bearer {}\r\nAuthorization: Bearer {}",
        "Authorization: Basic YTpi\r\nAuthorization: Bearer {}",
        "Authorization: Bearer {} {}",
        "Authorization: Bearer {}, Bearer {}",
        "Authorization: Bearer\r\n {}",
        "Authorization: Bearer x\r\n {}",
        "Authorization : Bearer {}",
        "Authorization: Bearer {}\0",
        "Authorization: Bearer {}\x7f",
        "Authorization: Bearer {}\xa0",
        "Authorization: Bearer \xa0{}",
        "Authorization: Bearer {}\rX: y",
        "Proxy-Authorization: Bearer {}",
        "X-Authorization: Bearer {}",
        "Authorization_: Bearer {}",
        "Cookie: access_token={}",
    ],
)
def test_one_token_in_due_form_is_expected(guarded: Server, worker_class: str, lines: str) -> None:
    """Whatever a server makes of such lines, there is no way in."""
    if worker_class == "meinheld" and "\0" in lines:  # it ends a line there; NGINX refuses such a one
        return
    good = signer().token(scope="models:read")
    head = f"GET /v2?access_token={good} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n"
    answer = guarded.raw(f"{head}{lines.format(good, good)}\r\n\r\n".encode("latin-1"))
    assert answer.split(b" ")[1] in (b"400", b"401")
    assert b"extensions" not in answer


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PURGE", "get"])
@pytest.mark.parametrize("path", ["/v2", "/v2/", "//v2", "/%762", "/v2/models/scale", PREDICT, "http://test/v2"])
def test_no_spelling_of_a_request_gets_round_it(guarded: Server, method: str, path: str) -> None:
    """There is no way in without a token."""
    answer = guarded.raw(f"{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n".encode())
    assert answer.split(b" ")[1] in (b"400", b"401", b"404", b"405", b"501")
    assert b"scale, for tests" not in answer
    assert b"extensions" not in answer


def test_what_is_for_everybody_needs_no_token(guarded: Server) -> None:
    for path in ("/v2/health/live", "/v2/health/ready", "/openapi.json"):
        assert guarded.get(path).status == 200


# With the built-in issuer, behind NGINX.


class Stack(NamedTuple):
    edge: Edge
    server: Server
    folder: Path
    secrets: dict[str, str]

    def session(self, client: str, *scopes: str) -> OAuth2Session:
        """A client of the shelf with its token: requests-oauthlib, as its own documentation has it."""
        session = OAuth2Session(client=BackendApplicationClient(client, scope=list(scopes) or None))
        session.verify, session.trust_env = str(self.edge.tls / "ca.crt"), False
        url = f"https://localhost:{self.edge.port}/oauth2/token"
        session.fetch_token(url, client_secret=self.secrets[client], verify=session.verify)
        return session

    def predict(self, session: OAuth2Session) -> int:
        answer = session.post(f"https://localhost:{self.edge.port}{PREDICT}", json=INSTANCES)
        if answer.status_code == 200:
            assert answer.json()["predictions"] == [[2, 4, 6]]
        return int(answer.status_code)


@pytest.fixture(scope="module")
def stack(models: Path, worker_class: str, tls: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """NGINX before a server that issues tokens in the name by which clients reach it."""
    folder = tmp_path_factory.mktemp("stack")
    secrets = issuer_folder(
        folder / "issuer", FIRST, app=("predict", "models:read:scale"), fleeting=("predict",), steady=("predict",)
    )
    edge = Edge(folder / "api.sock", tls, folder / "run")
    name = f"https://localhost:{edge.port}"
    settings: dict[str, Any] = {"auth": "required", "auth_dir": folder / "issuer", "auth_issuer": name}
    with held(folder / "api.sock") as path:
        server = Server(models, worker_class, listener=path, workers=2, **settings)
        with server, edge:
            yield Stack(edge, server, folder / "issuer", secrets)


def test_a_client_of_the_shelf_gets_a_token_and_predicts(stack: Stack) -> None:
    session = stack.session("app")
    assert stack.predict(session) == 200
    assert session.get(f"https://localhost:{stack.edge.port}/v2/models/scale").status_code == 200
    assert session.get(f"https://localhost:{stack.edge.port}/v2").status_code == 403


def test_a_client_of_the_shelf_asks_for_less(stack: Stack) -> None:
    session = stack.session("app", "models:read:scale")
    assert session.token["scope"] == ["models:read:scale"]
    assert stack.predict(session) == 403
    with pytest.raises(InvalidScopeError, match="got 'models:admin'"):
        stack.session("app", "models:admin")


def test_a_client_of_the_shelf_understands_a_refusal(stack: Stack) -> None:
    wrong = stack._replace(secrets={"app": "wrong", "nobody": "wrong"})
    for client in ("app", "nobody"):
        with pytest.raises(InvalidClientError, match="there is none with this id and secret"):
            wrong.session(client)


def test_others_find_the_keys_by_themselves(stack: Stack) -> None:
    """From the description to the keys, over TLS, as libraries do."""
    described = stack.edge.get("/.well-known/oauth-authorization-server").json()
    assert described["issuer"] == f"https://localhost:{stack.edge.port}"
    token = stack.session("app").token["access_token"]
    keys = jwt.PyJWKClient(described["jwks_uri"], ssl_context=stack.edge.context())
    key = keys.get_signing_key_from_jwt(token)
    claims = jwt.decode(token, key, ["ES256"], audience=AUDIENCE, issuer=described["issuer"])
    assert claims["client_id"] == "app"


def test_a_refusal_comes_through_nginx_with_its_challenge(stack: Stack) -> None:
    answer = stack.edge.get("/v2", {"Authorization": bearer(signer().token())})
    assert answer.status == 401
    assert CHALLENGE.fullmatch(answer.headers["WWW-Authenticate"])
    assert stack.edge.post("/oauth2/token", b"").headers["Cache-Control"] == "no-store"


def test_who_is_revoked_is_out_within_seconds(stack: Stack) -> None:
    """In each worker, without a restart; others are not concerned."""
    revoked, steady = stack.session("fleeting"), stack.session("steady")
    assert stack.predict(revoked) == 200
    revoke_client(stack.folder / "clients.json", "fleeting")
    wait_until(lambda: {stack.predict(revoked) for _ in range(10)} == {401}, "no worker takes its tokens")
    with pytest.raises(InvalidClientError):
        stack.session("fleeting")
    assert stack.predict(steady) == 200


def test_a_key_is_replaced_while_requests_come(stack: Stack, worker_class: str) -> None:
    """Tokens are good all the time, in every worker, until the key that signed them is taken away."""
    if worker_class != "llhttp":  # the others follow the folder as well, above; this takes ten seconds by its nature
        return
    server, addresses = stack.server, (f"192.0.2.{number}" for number in itertools.count())

    def token() -> str:
        """Had from another address each time, as each may try only so often."""
        secret = stack.secrets["steady"]
        form = f"grant_type=client_credentials&client_id=steady&client_secret={secret}".encode()
        fields = {"X-Real-IP": next(addresses), "Content-Type": "application/x-www-form-urlencoded"}
        return str(server.request("POST", "/oauth2/token", form, fields).json()["access_token"])

    def statuses(token: str) -> set[int]:
        return {server.post(PREDICT, INSTANCES, Authorization=bearer(token)).status for _ in range(6)}

    def is_signed_by_another() -> bool:
        new = token()
        assert statuses(old) == statuses(new) == {200}
        return bool(jwt.get_unverified_header(new)["kid"] != jwt.get_unverified_header(old)["kid"])

    old = token()
    (stack.folder / "signing_keys/second.pem").write_bytes(SECOND.pem())
    wait_until(is_signed_by_another, "the new key signs")
    new = token()
    (stack.folder / "signing_keys/first.pem").unlink()
    wait_until(lambda: statuses(old) == {401}, "no worker takes the old key's tokens")
    assert statuses(new) == {200}


# At the start.


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"bind": "0.0.0.0:{port}"}, "TIERCEL_AUTH: expected required, as others can reach TIERCEL_BIND=0.0.0.0:"),
        ({"auth": "required"}, "TIERCEL_AUTH: required, so expected TIERCEL_AUTH_JWKS or TIERCEL_AUTH_DIR"),
        ({"auth": "perhaps"}, "TIERCEL_AUTH: expected off or required, got 'perhaps'"),
        (
            {"auth": "required", "auth_jwks": "http://issuer.test/jwks.json"},
            "TIERCEL_AUTH_JWKS: expected an https URL or a file, got 'http://issuer.test/jwks.json'",
        ),
        (
            {"auth": "required", "auth_dir": "/nowhere"},
            "tiercel: TIERCEL_AUTH_DIR: /nowhere/signing_keys: expected a key, NAME.pem, found none",
        ),
    ],
)
def test_what_is_not_settled_stops_the_start_with_its_name(models: Path, settings: dict[str, Any], said: str) -> None:
    """SECURITY: before anybody is served."""
    given: dict[str, Any] = {name: value.format(port=free_port()) for name, value in settings.items()}
    with pytest.raises(AssertionError, match="the server ended with ") as ended, Server(models, "gthread", **given):
        pass
    assert said in str(ended.value)
