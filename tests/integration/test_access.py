"""Who may do what, over HTTP in this process: every route with every kind of token, and where tokens come from."""

import base64
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus, urlencode

import jwt
import pytest
from app_client import Client, start
from falcon.testing import Result, TestClient
from model_zoo import Zoo
from openapi_spec_validator import validate
from structlog.testing import capture_logs
from tokens import ALGORITHMS, ATTACKS, AUDIENCE, ISSUER, Fixed, issuer_folder, repeats, signer, trusted

from access_control.clients import SCOPES, revoke_client
from access_control.issuer import BuiltInIssuer
from access_control.tokens import Verifier
from inference_api import oauth2
from inference_api.app import create_app, routes
from inference_api.authorisation import PUBLIC, Route
from inference_api.oauth2 import ATTEMPTS, MAX_FIELDS, MAX_FORM_BYTES
from inference_core.bootstrap import Services

TOKEN = "/oauth2/token"  # noqa: S105  # a path
PREDICT = "/v1/models/scale:predict"
INSTANCES = {"instances": [[1, 2, 3]]}
PUBLIC_PATHS = {
    "/v2/health/live",
    "/v2/health/ready",
    "/openapi.json",
    "/metrics",
    TOKEN,
    "/.well-known/jwks.json",
    "/.well-known/oauth-authorization-server",
}
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PURGE", "PROPFIND"]
# RFC 6750, section 3: what stands between quotes.
CHALLENGE = re.compile(r'Bearer realm="tiercel"(, (error|error_description|scope)="[\x20-\x21\x23-\x5b\x5d-\x7e]+")*')


class Guarded(Client):
    """The application where tokens are required; `reached` are the requests that came as far as a resource."""

    def __init__(self, services: Services, verifier: Verifier, issuer: BuiltInIssuer | None = None) -> None:
        self.services = services
        self.issuer_routes = oauth2.routes(issuer, services.quotas) if issuer else []
        app = create_app(services, verifier, self.issuer_routes)
        app.add_middleware(self)
        self.reached: list[str] = []
        self._http = TestClient(app)
        self.document = self._http.simulate_get("/openapi.json").json
        self.reached.clear()

    def process_resource(self, req: Any, resp: Any, resource: Any, params: Any) -> None:
        self.reached.append(f"{req.method} {req.path}")

    def routes(self) -> list[Route]:
        """All of them."""
        return [*routes(self.services), *self.issuer_routes, Route("/openapi.json", None, PUBLIC)]

    def refusal(self, status: int, answer: Result) -> str:
        """The challenge of a refusal, once it is sure that it is one in due form, and that nothing was reached."""
        assert self.refused(status, answer)
        assert self.reached == []
        challenge: str = answer.headers["WWW-Authenticate"]
        assert CHALLENGE.fullmatch(challenge)
        return challenge


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("access")


@pytest.fixture(scope="module")
def secrets(folder: Path) -> dict[str, str]:
    """Those of two clients."""
    return issuer_folder(folder / "issuer", signer(), app=("predict", "models:read:scale"), other=("jobs",))


@pytest.fixture(scope="module")
def issuer(folder: Path, secrets: dict[str, str]) -> BuiltInIssuer:
    issuer = BuiltInIssuer(folder / "issuer", ISSUER, AUDIENCE, 900)
    issuer.read()
    return issuer


@pytest.fixture(scope="module")
def services(folder: Path) -> Iterator[Services]:
    zoo = Zoo(folder / "models")
    zoo.scale()
    zoo.scale("other")
    services = start(zoo.root, folder / "state")
    yield services
    services.rollout.stop()


@pytest.fixture(scope="module")
def shared_client(services: Services, issuer: BuiltInIssuer) -> Guarded:
    """Its tokens are those of `tokens.signer`, of whichever algorithm."""
    return Guarded(services, Verifier(Fixed(trusted()), ISSUER, AUDIENCE, ALGORITHMS), issuer)


@pytest.fixture
def client(shared_client: Guarded) -> Guarded:
    shared_client.reached.clear()
    return shared_client


@pytest.fixture
def own_client(services: Services, issuer: BuiltInIssuer) -> Guarded:
    """Its tokens are those of the built-in issuer."""
    return Guarded(services, Verifier(issuer, ISSUER, AUDIENCE, ("ES256",)), issuer)


def bearer(*scopes: str, **claims: Any) -> str:
    return f"Bearer {signer('EdDSA').token(scope=' '.join(scopes), **claims)}"


# The matrix: every route and every method for every kind of token.


def test_every_route_has_a_scope(client: Guarded) -> None:
    """And nothing is public that is not on this list."""
    assert {route.path for route in client.routes() if route.scope == PUBLIC} == PUBLIC_PATHS
    assert {route.scope.removesuffix(":*") for route in client.routes()} <= {PUBLIC, *SCOPES}
    assert {route.path for route in client.routes()} >= set(client.document["paths"])


def test_what_changes_something_is_for_those_who_may(client: Guarded) -> None:
    """Whatever else is in the table."""
    for route in routes(client.services):
        if re.search("load$", route.path):
            assert route.scope == "models:admin"
        if re.search("(infer|:predict)$", route.path):
            assert route.scope == "predict"
        if route.path.startswith("/v1/jobs"):
            assert route.scope == "jobs:*", "whose resource asks for the model's"


def others(scope: str) -> list[str]:
    """All scopes but that one, for all models and for this one."""
    return [each for known in SCOPES if known != scope for each in (known, f"{known}:scale")]


# What a request for a route with this scope brings, and whether it may pass if the route is about a model, about none,
# or about one that only its resource will know.
CREDENTIALS: dict[str, tuple[Any, bool, bool, bool]] = {
    "no token": (lambda scope: None, False, False, False),
    "an expired token": (lambda scope: bearer(*SCOPES, exp=1), False, False, False),
    "a token without scopes": (lambda scope: bearer(), False, False, False),
    "a token with all other scopes": (lambda scope: bearer(*others(scope)), False, False, False),
    "a token with what the scope begins with": (lambda scope: bearer(scope[:-1], f"{scope}x"), False, False, False),
    "a token with the scope": (bearer, True, True, True),
    "a token with the scope for this model": (lambda scope: bearer(f"{scope}:scale"), True, False, True),
    "a token with the scope for another model": (
        lambda scope: bearer(f"{scope}:other", f"{scope}:SCALE"),
        False,
        False,
        True,
    ),
    "a token with all scopes": (lambda scope: bearer(*SCOPES), True, True, True),
}


@pytest.mark.filterwarnings("ignore:Unknown REQUEST_METHOD")
@pytest.mark.parametrize("what", CREDENTIALS)
def test_a_request_passes_if_it_may_and_only_then(client: Guarded, what: str) -> None:
    """Each route with each method; what is refused reaches no resource, and what passes is answered otherwise."""
    credential, if_about_a_model, if_not, if_about_any = CREDENTIALS[what]
    wrong = []
    for route, method in itertools.product(client.routes(), METHODS):
        by_scope = if_about_any if route.scope.endswith(":*") else if_not
        may_pass = route.scope == PUBLIC or (if_about_a_model if "{model}" in route.path else by_scope)
        path = re.sub(r"{(?!model)\w+}", "7", route.path).replace("{model}", "scale")
        given = credential(route.scope.removesuffix(":*"))
        fields = {"Authorization": given} if given else {}
        client.reached.clear()
        # Nothing that would be done: neither JSON nor a form.
        answer = client._http.simulate_request(method, path, body=b"{", headers=fields)
        if may_pass and path != TOKEN:
            as_it_should = answer.status_code not in (401, 403)
        elif may_pass:
            as_it_should = answer.headers.get("WWW-Authenticate") in (None, 'Basic realm="tiercel"')
        else:
            expected = 401 if what in ("no token", "an expired token") else 403
            as_it_should = answer.status_code == expected and bool(CHALLENGE.match(answer.headers["WWW-Authenticate"]))
        if not as_it_should or bool(client.reached) != may_pass:
            wrong.append(f"{method} {path}: {answer.status_code}")
    assert wrong == []


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v2/", 401),
        ("/v2/models/scale/", 401),
        ("/v2/models/%73cale", 401),
        ("/v2/%6dodels/scale/infer", 401),
        ("/%76%32/models/scale", 401),
        ("/v1/models/scale%3Apredict", 401),
        ("/v1/models/scale:predict/", 401),
        ("/v2/models/%2e%2e", 401),
        ("/v2/models/health", 401),
        ("/v2/models/scale;x=1", 401),
        ("/v2/models/scale%00", 401),
        ("/v2/models/scale?access_token=x", 401),
        ("//v2", 401),
        ("/v2//models/scale", 404),
        ("/v2/./models/scale", 404),
        ("/v2/health/../models/scale", 404),
        ("/v2/health/live/../../models/scale", 404),
        ("/v2/health/live%2F..%2F..%2Fmodels/scale", 404),
        ("/V2/models/scale", 404),
        ("/v2/models/scale%2Finfer", 401),
        ("/v2%20", 404),
        ("/v2/models/scale/nowhere", 404),
        ("/nowhere", 404),
        ("/", 404),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_no_spelling_of_a_path_gets_round_it(client: Guarded, method: str, path: str, status: int) -> None:
    """It is a route's, and needs a token; or nobody's, and there is nothing."""
    answer = client._http.simulate_request(method, path)
    assert answer.status_code == status
    assert client.reached == []


def test_the_model_of_a_scope_is_the_one_that_is_served(client: Guarded) -> None:
    """However the path spells it."""
    mine = bearer("predict:scale")
    for path in (PREDICT, "/v1/models/%73cale:predict", "/v1/models/scale%3apredict", "/v1/models/scale:predict/"):
        assert client.post(path, INSTANCES, Authorization=mine).json["predictions"] == [[2, 4, 6]]
    client.reached.clear()
    for path in ("/v1/models/other:predict", "/v1/models/%6fther:predict"):
        client.refusal(403, client.post(path, INSTANCES, Authorization=mine))


def test_the_document_says_what_needs_which_scope(client: Guarded) -> None:
    """And is one by the rules of OpenAPI."""
    validate(client.document)
    needed = {
        path: [scope for each in operation["security"] for scopes in each.values() for scope in scopes]
        for path, item in client.document["paths"].items()
        for operation in item.values()
    }
    scopes = {route.path: route.scope.removesuffix(":*") for route in client.routes()}
    assert needed == {path: [scope] if scope else [] for path, scope in scopes.items()}


# Refusals, in the words of RFC 6750.


@pytest.mark.parametrize("path", ["/v2", "/v1/models"])
def test_who_brings_no_token_is_told_what_is_expected(client: Guarded, path: str) -> None:
    """401 without an error code, in the form of errors of the path's family."""
    answer = client.get(path)
    assert client.refusal(401, answer) == 'Bearer realm="tiercel"'
    assert "expected one as Authorization: Bearer TOKEN, got none" in client.refused(401, answer)


def test_who_lacks_a_scope_is_told_which(client: Guarded) -> None:
    answer = client.post(PREDICT, INSTANCES, Authorization=bearer("models:read"))
    assert client.refusal(403, answer) == 'Bearer realm="tiercel", error="insufficient_scope", scope="predict"'
    assert client.refused(403, answer) == "access token: expected scope predict, got models:read"


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_refused(client: Guarded, name: str) -> None:
    """401 with the reason, in a header that is safe; neither the answer nor the log has the token."""
    token = ATTACKS[name].make()
    with capture_logs() as logs:
        answer = client.get("/v2", Authorization=f"Bearer {token.encode().decode('latin-1')}")
    challenge = client.refusal(401, answer)
    assert challenge.startswith('Bearer realm="tiercel", error="invalid_token", error_description="')
    assert ATTACKS[name].because in client.refused(401, answer)
    [line] = logs
    assert line["event"] == "access refused"
    for text in (answer.text, str(answer.headers), json.dumps(line)):
        assert not repeats(text, token)


@pytest.mark.parametrize("form", ["Bearer {}", "bearer {}", "BEARER {}", "Bearer   {}"])
def test_the_scheme_is_read_as_rfc_9110_has_it(client: Guarded, form: str) -> None:
    """In any case, with any number of spaces."""
    assert client.get("/v2", Authorization=form.format(signer().token(scope="models:read"))).status_code == 200


@pytest.mark.parametrize(
    ("form", "status", "error"),
    [
        ("", 401, None),
        ("Basic {}", 401, None),
        ("Basic YTpi", 401, None),
        ("Token {}", 401, None),
        ("DPoP {}", 401, None),
        ("{}", 401, None),
        ("Bearer", 400, "invalid_request"),
        ("Bearer {} {}", 400, "invalid_request"),
        ("Bearer {}, Bearer {}", 400, "invalid_request"),
        ("Bearer {},Bearer {}", 400, "invalid_request"),
        ("Bearer {} x", 400, "invalid_request"),
        ("Bearer\t{}", 400, "invalid_request"),
        ("Bearer {},{}", 401, "invalid_token"),
        ("Bearer token={}", 401, "invalid_token"),
        ('Bearer "{}"', 401, "invalid_token"),
        ("Bearer {}\0", 401, "invalid_token"),
        ("Bearer {}\r\nX-Injected: 1", 400, "invalid_request"),
        ("Bearer {}\xe9", 401, "invalid_token"),
    ],
)
def test_one_token_in_due_form_is_expected(client: Guarded, form: str, status: int, error: str | None) -> None:
    """400 for a malformed request, 401 for what is no token, or for another scheme; each with a challenge."""
    token = signer().token(scope="models:read")
    challenge = client.refusal(status, client.get("/v2", Authorization=form.format(token, token)))
    if error:
        assert challenge.startswith(f'Bearer realm="tiercel", error="{error}"')
    else:
        assert challenge == 'Bearer realm="tiercel"'


def test_a_token_elsewhere_is_none(client: Guarded) -> None:
    """RFC 9700: what is in a URL ends up in logs; what is in a body is for forms of browsers."""
    token = signer().token(scope="predict")
    form = {"Content_Type": "application/x-www-form-urlencoded"}
    for answer in (
        client.post(f"{PREDICT}?access_token={token}", INSTANCES),
        client.post(PREDICT, f"access_token={token}".encode(), **form),
        client.post(PREDICT, INSTANCES, Cookie=f"access_token={token}"),
        client.post(PREDICT, INSTANCES, X_Access_Token=token, Proxy_Authorization=f"Bearer {token}"),
    ):
        assert client.refusal(401, answer) == 'Bearer realm="tiercel"'


def test_nothing_that_a_token_says_gets_into_a_header(client: Guarded) -> None:
    """Quotes, backslashes and line breaks least of all."""
    token = ATTACKS["typ with quotes and a line break"].make()
    answer = client.get("/v2", Authorization=f"Bearer {token}")
    assert "Set-Cookie" not in answer.headers
    assert client.refusal(401, answer).count('"') == 6


def test_without_keys_it_is_nobodys_fault(services: Services) -> None:
    """503 and when to ask again, not 401; who asks without a token is told so, and health is for everybody."""
    client = Guarded(services, Verifier(Fixed(None), ISSUER, AUDIENCE, ALGORITHMS))
    answer = client.post(PREDICT, INSTANCES, Authorization=bearer("predict"))
    assert client.refused(503, answer) == "access token: the issuer's keys are not known yet"
    assert answer.headers["Retry-After"]
    assert client.reached == []
    client.refusal(401, client.post(PREDICT, INSTANCES))
    assert client.get("/v2/health/ready").status_code == 200


def test_without_a_built_in_issuer_there_is_no_token_to_be_had(services: Services) -> None:
    client = Guarded(services, Verifier(Fixed(trusted()), ISSUER, AUDIENCE, ALGORITHMS))
    client.refused(404, client.post(TOKEN))
    client.refused(404, client.get("/.well-known/jwks.json"))
    validate(client.document)


# Where tokens come from.

addresses = (f"10.0.{number // 256}.{number % 256}" for number in itertools.count())


def basic(name: str, secret: str) -> str:
    return f"Basic {base64.b64encode(f'{name}:{secret}'.encode()).decode()}"


def ask(client: Guarded, fields: Any, authorization: str | None = None, **headers: str) -> Result:
    """For a token, from an address of its own; `fields` are a form, unless they are bytes."""
    body = fields if isinstance(fields, bytes) else urlencode(fields).encode()
    given = {"Content_Type": "application/x-www-form-urlencoded", "X_Real_IP": next(addresses)} | headers
    answer = client.post(TOKEN, body, **given | ({"Authorization": authorization} if authorization else {}))
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Pragma"] == "no-cache"
    return answer


def error_of(answer: Result, status: int = 400) -> str:
    """The code of an error as RFC 6749 has it, in section 5.2."""
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json.keys() == {"error", "error_description"}
    assert re.fullmatch(r"[\x20-\x21\x23-\x5b\x5d-\x7e]+", answer.json["error_description"])
    assert answer.headers.get("WWW-Authenticate") == ('Basic realm="tiercel"' if status == 401 else None)
    return str(answer.json["error"])


GRANT = {"grant_type": "client_credentials"}


def test_a_token_is_had_for_a_secret_and_good_for_predictions(own_client: Guarded, secrets: dict[str, str]) -> None:
    """By HTTP Basic or in the body."""
    for answer in (
        ask(own_client, GRANT, basic("app", secrets["app"])),
        ask(own_client, GRANT, basic("app", secrets["app"]).replace("Basic ", "basic  ")),
        ask(own_client, GRANT | {"client_id": "app", "client_secret": secrets["app"]}),
        ask(own_client, GRANT | {"unknown": "ignored", "scope": ""}, basic("app", secrets["app"])),
        ask(own_client, GRANT, basic("app", secrets["app"]), Content_Type=f"{oauth2.FORM}; charset=UTF-8"),
    ):
        assert answer.status_code == 200
        assert answer.json.keys() == {"access_token", "expires_in", "scope", "token_type"}
        assert (answer.json["token_type"], answer.json["expires_in"]) == ("Bearer", 900)
        assert answer.json["scope"] == "predict models:read:scale"
        given = f"Bearer {answer.json['access_token']}"
        assert own_client.post(PREDICT, INSTANCES, Authorization=given).json["predictions"] == [[2, 4, 6]]
        assert own_client.get("/v2/models/scale", Authorization=given).status_code == 200
        assert own_client.get("/v2/models/other", Authorization=given).status_code == 403


def test_a_token_for_less_is_good_for_less(own_client: Guarded, secrets: dict[str, str]) -> None:
    answer = ask(own_client, GRANT | {"scope": "models:read:scale"}, basic("app", secrets["app"]))
    own_client.reached.clear()
    own_client.refusal(403, own_client.post(PREDICT, INSTANCES, Authorization=f"Bearer {answer.json['access_token']}"))


def test_credentials_are_decoded_as_rfc_6749_has_them(
    client: Guarded, issuer: BuiltInIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By HTTP Basic they are encoded as in a form first; so a secret may have a colon or a percent sign in it."""
    seen = []

    def issue(*given: str | None) -> Any:
        seen.append(given)
        return issuer.sign("app", "predict")

    monkeypatch.setattr(issuer, "issue", issue)
    secret = "a:b+c%41 ü/"  # noqa: S105  # no one's
    assert ask(client, GRANT, basic("app", quote_plus(secret))).status_code == 200
    assert ask(client, GRANT | {"client_id": "app", "client_secret": secret}).status_code == 200
    assert seen == [("app", secret, None)] * 2


@pytest.mark.parametrize(
    ("fields", "authorization", "code", "status"),
    [
        (GRANT, "{app}", "", 200),
        ({}, "{app}", "invalid_request", 400),
        ({"scope": "predict"}, "{app}", "invalid_request", 400),
        ({"grant_type": "password"}, "{app}", "unsupported_grant_type", 400),
        ({"grant_type": "authorization_code", "code": "x"}, "{app}", "unsupported_grant_type", 400),
        ({"grant_type": "CLIENT_CREDENTIALS"}, "{app}", "unsupported_grant_type", 400),
        (GRANT | {"client_secret": "x", "client_id": "app"}, "{app}", "invalid_request", 400),
        (GRANT | {"client_secret": ""}, "{app}", "invalid_request", 400),
        (b"grant_type=client_credentials&grant_type=client_credentials", "{app}", "invalid_request", 400),
        (b"grant_type=client_credentials&scope=predict&scope=predict", "{app}", "invalid_request", 400),
        (b"grant_type=client_credentials&x=%ff", "{app}", "invalid_request", 400),
        (b"grant_type=client_credentials&x=\xff", "{app}", "invalid_request", 400),
        (b"grant_type", "{app}", "invalid_request", 400),
        (b'{"grant_type": "client_credentials"}', "{app}", "invalid_request", 400),
        (GRANT | {f"{number}": "x" for number in range(MAX_FIELDS - 1)}, "{app}", "", 200),
        (GRANT | {f"{number}": "x" for number in range(MAX_FIELDS)}, "{app}", "invalid_request", 400),
        (GRANT | {"scope": "models:admin"}, "{app}", "invalid_scope", 400),
        (GRANT | {"scope": 'predict "\\\r\n\u00e9'}, "{app}", "invalid_scope", 400),
        (GRANT, None, "invalid_client", 401),
        (GRANT | {"client_id": "app"}, None, "invalid_client", 401),
        (GRANT | {"client_secret": "x"}, None, "invalid_client", 401),
        (GRANT, basic("app", "wrong"), "invalid_client", 401),
        (GRANT, basic("nobody", "wrong"), "invalid_client", 401),
        (GRANT, basic("", ""), "invalid_client", 401),
        (GRANT, "{other}", "invalid_client", 401),
        (GRANT | {"client_id": "app", "client_secret": "wrong"}, None, "invalid_client", 401),
        (GRANT, "Basic", "invalid_client", 401),
        (GRANT, "Basic !", "invalid_client", 401),
        (GRANT, "Basic \xe9", "invalid_client", 401),
        (GRANT, "Basic YXBw", "invalid_client", 401),
        (GRANT, "Basic /////w==", "invalid_client", 401),
        (GRANT, "Bearer YTpi", "invalid_client", 401),
    ],
)
def test_a_request_for_a_token_is_answered_as_rfc_6749_has_it(
    client: Guarded, secrets: dict[str, str], fields: Any, authorization: str | None, code: str, status: int
) -> None:
    """Who asks for one in the wrong way, or has no right to it, is told why in the words of OAuth."""
    known = {"{app}": basic("app", secrets["app"]), "{other}": basic("app", secrets["other"])}
    answer = ask(client, fields, known.get(authorization or "", authorization))
    if status == 200:
        assert answer.status_code == 200
    else:
        assert error_of(answer, status) == code


@pytest.mark.parametrize("media_type", ["application/json", "text/plain", "", "multipart/form-data; boundary=x"])
def test_another_media_type_is_no_request_for_a_token(
    client: Guarded, secrets: dict[str, str], media_type: str
) -> None:
    answer = ask(client, GRANT, basic("app", secrets["app"]), Content_Type=media_type)
    assert error_of(answer) == "invalid_request"


def test_a_form_is_bounded(client: Guarded, secrets: dict[str, str]) -> None:
    """As many bytes as allowed are read, one more is 413."""
    form = urlencode(GRANT).encode() + b"&pad="
    app = basic("app", secrets["app"])
    assert ask(client, form.ljust(MAX_FORM_BYTES, b"x"), app).status_code == 200
    answer = ask(client, form.ljust(MAX_FORM_BYTES + 1, b"x"), app)
    assert f"at most {MAX_FORM_BYTES} bytes" in client.refused(413, answer)


def test_attempts_are_limited_for_each_address(client: Guarded, secrets: dict[str, str]) -> None:
    """Whether they succeed or not, and whatever was asked for; others are not concerned."""
    mine, other = next(addresses), next(addresses)
    for _ in range(ATTEMPTS.requests):
        assert error_of(ask(client, GRANT, X_Real_IP=mine), 401) == "invalid_client"
    answer = ask(client, GRANT, basic("app", secrets["app"]), X_Real_IP=mine)
    assert "quota 'token'" in client.refused(429, answer)
    assert 0 < int(answer.headers["Retry-After"]) <= ATTEMPTS.seconds
    assert ask(client, GRANT, basic("app", secrets["app"]), X_Real_IP=other).status_code == 200


def test_a_token_is_asked_for_by_post_only(client: Guarded) -> None:
    """A secret in a URL would end up in logs."""
    assert client.request("GET", f"{TOKEN}?grant_type=client_credentials").status_code == 405


def test_the_issuer_describes_itself(client: Guarded) -> None:
    """RFC 8414; the issuer's name is that of its tokens."""
    answer = client.get("/.well-known/oauth-authorization-server")
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json == {
        "issuer": ISSUER,
        "token_endpoint": f"{ISSUER}/oauth2/token",
        "jwks_uri": f"{ISSUER}/.well-known/jwks.json",
        "scopes_supported": ["predict", "jobs", "models:read", "models:admin"],
        "response_types_supported": [],
        "grant_types_supported": ["client_credentials"],
        "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
    }


def test_others_can_verify_its_tokens(client: Guarded, secrets: dict[str, str]) -> None:
    """By the keys that it publishes, in the way of any library."""
    token = ask(client, GRANT, basic("app", secrets["app"])).json["access_token"]
    keys = jwt.PyJWKSet.from_dict(client.get("/.well-known/jwks.json").json)
    key = keys[jwt.get_unverified_header(token)["kid"]]
    assert jwt.decode(token, key, ["ES256"], audience=AUDIENCE, issuer=ISSUER)["client_id"] == "app"


@pytest.mark.parametrize("path", ["/.well-known/jwks.json", "/.well-known/oauth-authorization-server"])
def test_descriptions_are_for_everybody(client: Guarded, path: str) -> None:
    for method in ("GET", "HEAD"):
        assert client.request(method, path).status_code == 200


def test_a_client_that_is_revoked_is_out(zoo: Zoo, tmp_path: Path) -> None:
    """Its tokens as well."""
    zoo.scale()
    secret = issuer_folder(tmp_path / "issuer", signer(), app=("predict",))["app"]
    issuer = BuiltInIssuer(tmp_path / "issuer", ISSUER, AUDIENCE, 900)
    issuer.read()
    services = start(zoo.root, tmp_path / "state")
    client = Guarded(services, Verifier(issuer, ISSUER, AUDIENCE, ("ES256",)), issuer)
    given = f"Bearer {ask(client, GRANT, basic('app', secret)).json['access_token']}"
    assert client.post(PREDICT, INSTANCES, Authorization=given).status_code == 200
    revoke_client(tmp_path / "issuer/clients.json", "app")
    issuer.read()
    client.reached.clear()
    assert "revoked" in client.refusal(401, client.post(PREDICT, INSTANCES, Authorization=given))
    assert error_of(ask(client, GRANT, basic("app", secret)), 401) == "invalid_client"
    services.rollout.stop()


# What is written down.


def test_a_token_that_is_issued_is_written_down(client: Guarded, secrets: dict[str, str]) -> None:
    """Who got it, from where and for what, with its id; not the secret, nor the token."""
    with capture_logs() as logs:
        answer = ask(
            client, GRANT, basic("app", secrets["app"]), X_Request_ID="request-of-a-token", X_Real_IP="192.0.2.7"
        )
    token = answer.json["access_token"]
    assert logs == [
        {
            "event": "token issued",
            "log_level": "info",
            "request_id": "request-of-a-token",
            "client": "app",
            "address": "192.0.2.7",
            "scope": "predict models:read:scale",
            "token_id": jwt.decode(token, options={"verify_signature": False})["jti"],
        }
    ]
    assert not repeats(str(logs), token)


@pytest.mark.parametrize(
    ("name", "secret", "known", "reason"),
    [("app", "wr0ng-secret", "app", "invalid_client"), ("wr0ng-secret", "app", None, "invalid_client")],
)
def test_a_token_that_is_refused_is_written_down(
    client: Guarded, name: str, secret: str, known: str | None, reason: str
) -> None:
    """Without the secret, nor a name that nobody has: somebody may have mistaken one for the other."""
    with capture_logs() as logs:
        answer = ask(client, GRANT, basic(name, secret), X_Request_ID="request-of-a-token", X_Real_IP="192.0.2.8")
    assert answer.status_code == 401
    [line] = logs
    assert line == {
        "event": "token refused",
        "log_level": "warning",
        "request_id": "request-of-a-token",
        "client": known,
        "address": "192.0.2.8",
        "reason": reason,
    }


def test_access_that_is_refused_is_written_down(client: Guarded) -> None:
    """Who it was is known once the token is good."""
    with capture_logs() as logs:
        client.post(PREDICT, INSTANCES, X_Request_ID="refused-at-first")
        given = bearer("models:read", sub="anna")
        client.post(f"{PREDICT}?secret=1", INSTANCES, X_Request_ID="refused-again", Authorization=given)
    common = {"event": "access refused", "log_level": "warning", "method": "POST", "path": PREDICT}
    assert logs == [
        common
        | {
            "request_id": "refused-at-first",
            "subject": None,
            "reason": "access token: expected one as Authorization: Bearer TOKEN, got none",
        },
        common
        | {
            "request_id": "refused-again",
            "subject": "anna",
            "reason": "access token: expected scope predict, got models:read",
        },
    ]


def test_whoever_changes_what_is_served_is_written_down(zoo: Zoo, tmp_path: Path) -> None:
    """With the id of the request."""
    zoo.scale()
    services = start(zoo.root, tmp_path / "state")
    client = Guarded(services, Verifier(Fixed(trusted()), ISSUER, AUDIENCE, ALGORITHMS))
    given = bearer("models:admin:scale", sub="anna")
    with capture_logs() as logs:
        for action in ("unload", "load"):
            path = f"/v2/repository/models/scale/{action}"
            answer = client.post(path, b"", Authorization=given, X_Request_ID=f"request-to-{action}")
            assert answer.status_code == 200
    written = [(line["event"], line["subject"], line["request_id"]) for line in logs if "subject" in line]
    assert written == [
        ("model unloaded on request", "anna", "request-to-unload"),
        ("model loaded on request", "anna", "request-to-load"),
    ]
    services.rollout.stop()


# Quotas.


def test_a_quota_is_that_of_who_asks_and_not_of_an_address(zoo: Zoo, tmp_path: Path) -> None:
    """Two behind one address have one each; one at two addresses has one."""
    zoo.scale()
    services = start(zoo.root, tmp_path / "state", quota_requests=2)
    client = Guarded(services, Verifier(Fixed(trusted()), ISSUER, AUDIENCE, ALGORITHMS))

    def predict(subject: str, address: str) -> int:
        given = bearer("predict", sub=subject)
        status: int = client.post(PREDICT, INSTANCES, Authorization=given, X_Real_IP=address).status_code
        return status

    assert [predict("anna", "192.0.2.1") for _ in range(3)] == [200, 200, 429]
    assert [predict("bert", "192.0.2.1") for _ in range(3)] == [200, 200, 429]
    assert predict("anna", "192.0.2.2") == 429
    services.rollout.stop()


def test_who_is_refused_uses_up_nothing(zoo: Zoo, tmp_path: Path) -> None:
    """Somebody else's bad tokens cost nobody a request."""
    zoo.scale()
    services = start(zoo.root, tmp_path / "state", quota_requests=1)
    client = Guarded(services, Verifier(Fixed(trusted()), ISSUER, AUDIENCE, ALGORITHMS))
    for given in (bearer("jobs", sub="anna"), bearer("predict", sub="anna", exp=1)):
        assert client.post(PREDICT, INSTANCES, Authorization=given).status_code in (401, 403)
    assert client.post(PREDICT, INSTANCES, Authorization=bearer("predict", sub="anna")).status_code == 200
    services.rollout.stop()
