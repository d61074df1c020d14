"""The built-in issuer: its folder of keys and clients, and the tokens that it makes."""

import hashlib
import json
import os
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    SECP384R1,
    derive_private_key,
    generate_private_key,
)
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from servers import wait_until
from structlog.testing import capture_logs
from tokens import AUDIENCE, ISSUER, Clock, Signer, base64url, issuer_folder, jwks, signer

from access_control import issuer as module
from access_control import tokens
from access_control.clients import MAX_SCOPE_CHARS, add_client, revoke_client
from access_control.issuer import PUBLISHED_SECONDS, BuiltInIssuer, InvalidClient, InvalidScope, IssuerError
from access_control.jwks import read_keys
from access_control.tokens import Verifier
from inference_core.errors import Unauthenticated

FIRST, SECOND = signer("ES256", "first"), signer("ES256", "second")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch, module, tokens)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "issuer"


@pytest.fixture
def secret(folder: Path) -> str:
    """That of the client app, the only one; the folder has one key."""
    return issuer_folder(folder, FIRST, app=("predict", "models:read:scale"))["app"]


@pytest.fixture
def issuer(folder: Path, secret: str) -> BuiltInIssuer:
    return opened(folder)


def opened(folder: Path) -> BuiltInIssuer:
    """Another process's view of the folder."""
    issuer = BuiltInIssuer(folder, ISSUER, AUDIENCE, 900)
    issuer.read()
    return issuer


def verifier(issuer: BuiltInIssuer) -> Verifier:
    return Verifier(issuer, ISSUER, AUDIENCE, ("ES256",))


def key_of(token: str) -> str:
    key_id: str = jwt.get_unverified_header(token)["kid"]
    return key_id


def id_of(key: Signer) -> str:
    return module._thumbprint(key.private)


def drop(folder: Path, key: Signer) -> Path:
    path = folder / f"signing_keys/{key.id}.pem"
    path.write_bytes(key.pem())
    return path


def test_a_token_is_as_rfc_9068_has_it(issuer: BuiltInIssuer, secret: str, clock: Clock) -> None:
    grant, token_id = issuer.issue("app", secret, None)
    header = jwt.get_unverified_header(grant.access_token)
    assert header == {"alg": "ES256", "typ": "at+jwt", "kid": id_of(FIRST)}
    claims = jwt.decode(grant.access_token, FIRST.key.public, ["ES256"], audience=AUDIENCE, issuer=ISSUER)
    now = int(clock.now)
    assert claims == {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "app",
        "client_id": "app",
        "iat": now,
        "exp": now + 900,
        "jti": token_id,
        "scope": "predict models:read:scale",
    }
    assert uuid.UUID(token_id).version == 4
    assert (grant.token_type, grant.expires_in, grant.scope) == ("Bearer", 900, claims["scope"])


def test_no_two_tokens_have_the_same_id(issuer: BuiltInIssuer, secret: str) -> None:
    assert len({issuer.issue("app", secret, None)[1] for _ in range(3)}) == 3


def test_its_tokens_are_good_here(issuer: BuiltInIssuer, secret: str) -> None:
    caller = verifier(issuer).verify(issuer.issue("app", secret, None)[0].access_token)
    assert (caller.subject, caller.client, *sorted(caller.scopes)) == ("app", "app", "models:read:scale", "predict")


@pytest.mark.parametrize(
    ("asked", "granted"),
    [
        (None, "predict models:read:scale"),
        ("", "predict models:read:scale"),
        ("predict", "predict"),
        ("models:read:scale predict", "models:read:scale predict"),
        ("predict:scale", "predict:scale"),
        ("predict " * (MAX_SCOPE_CHARS // 8), "predict"),
    ],
)
def test_a_client_may_ask_for_less_than_it_has(
    issuer: BuiltInIssuer, secret: str, asked: str | None, granted: str
) -> None:
    """All of it if it asks for nothing; the same twice is the same once."""
    grant, _ = issuer.issue("app", secret, asked)
    assert grant.scope == granted
    assert verifier(issuer).verify(grant.access_token).scopes == set(granted.split())


@pytest.mark.parametrize(
    ("asked", "lacking"),
    [
        ("models:admin", "models:admin"),
        ("predict models:read", "models:read"),
        ("predict:../scale", "predict:../scale"),
        ("predict:scale:other", "predict:scale:other"),
        ("models:read:other", "models:read:other"),
        ("Predict", "Predict"),
        ("predict,models:read:scale", "predict,models:read:scale"),
        ("x" * MAX_SCOPE_CHARS, "x" * 200),
    ],
)
def test_a_client_may_not_ask_for_more(issuer: BuiltInIssuer, secret: str, asked: str, lacking: str) -> None:
    with pytest.raises(InvalidScope) as refused:
        issuer.issue("app", secret, asked)
    assert str(refused.value) == f"scope: expected some of predict models:read:scale, got {lacking!r}"


def test_what_a_client_asks_for_is_bounded(issuer: BuiltInIssuer, secret: str) -> None:
    assert issuer.issue("app", secret, "predict".ljust(MAX_SCOPE_CHARS))
    with pytest.raises(InvalidScope, match=f"^scope: expected {MAX_SCOPE_CHARS} characters at most, got "):
        issuer.issue("app", secret, "predict".ljust(MAX_SCOPE_CHARS + 1))


@pytest.mark.parametrize("name", ["app", "other", "", "App", "app\0", "../app"])
@pytest.mark.parametrize("given", ["wrong", "", "\0", "\ud7ff" * 4000])
def test_without_the_secret_there_is_no_token(issuer: BuiltInIssuer, name: str, given: str) -> None:
    """And nothing tells whether there is such a client."""
    with pytest.raises(InvalidClient, match=r"^client: there is none with this id and secret$"):
        issuer.issue(name, given, "models:admin")


def test_a_secret_is_that_of_its_own_client(folder: Path) -> None:
    secrets = issuer_folder(folder, one=("predict",), two=("predict",))
    issuer = opened(folder)
    assert issuer.issue("one", secrets["one"], None)
    with pytest.raises(InvalidClient):
        issuer.issue("one", secrets["two"], None)


def test_a_new_key_signs_once_everybody_knows_it(
    issuer: BuiltInIssuer, folder: Path, secret: str, clock: Clock
) -> None:
    """The tokens of both are good all the time, in a process that has seen neither being made."""
    before, _ = issuer.issue("app", secret, None)
    drop(folder, SECOND)
    clock.now = time.time()
    issuer.read()
    during, _ = issuer.issue("app", secret, None)
    clock.now += PUBLISHED_SECONDS
    after, _ = issuer.issue("app", secret, None)
    keys = [key_of(grant.access_token) for grant in (before, during, after)]
    assert keys == [id_of(FIRST), id_of(FIRST), id_of(SECOND)]
    for grant in (before, during, after):
        assert verifier(opened(folder)).verify(grant.access_token)


def test_a_key_that_was_made_elsewhere_is_as_new_as_its_place_here(
    issuer: BuiltInIssuer, folder: Path, secret: str, clock: Clock, tmp_path: Path
) -> None:
    """Whoever moves an older file into the folder moves a key that nobody knows yet."""
    path = tmp_path / "made-elsewhere.pem"
    path.write_bytes(SECOND.pem())
    long_ago = time.time() - 3600
    os.utime(folder / f"signing_keys/{FIRST.id}.pem", (long_ago, long_ago - 1))
    os.utime(path, (long_ago, long_ago))
    clock.now = time.time() + PUBLISHED_SECONDS / 2
    path.rename(folder / "signing_keys/moved.pem")
    issuer.read()
    assert key_of(issuer.issue("app", secret, None)[0].access_token) == id_of(FIRST)
    clock.now += PUBLISHED_SECONDS
    assert key_of(issuer.issue("app", secret, None)[0].access_token) == id_of(SECOND)


def test_a_key_that_is_alone_signs_at_once(folder: Path, secret: str) -> None:
    """A first start does not wait."""
    assert opened(folder).issue("app", secret, None)


def test_a_key_that_was_removed_ends_its_tokens(issuer: BuiltInIssuer, folder: Path, secret: str, clock: Clock) -> None:
    drop(folder, SECOND)
    verify = verifier(issuer).verify
    old = issuer.issue("app", secret, None)[0].access_token
    assert verify(old)
    (folder / f"signing_keys/{FIRST.id}.pem").unlink()
    issuer.read()
    with pytest.raises(Unauthenticated, match="its key is not one of the issuer's"):
        verify(old)
    new = issuer.issue("app", secret, None)[0].access_token
    assert key_of(new) == id_of(SECOND)
    assert verify(new)


def test_a_key_that_was_replaced_under_its_name_is_another(issuer: BuiltInIssuer, folder: Path, secret: str) -> None:
    """Its id follows from the key."""
    old = issuer.issue("app", secret, None)[0].access_token
    path = folder / f"signing_keys/{FIRST.id}.pem"
    path.unlink()
    path.write_bytes(SECOND.pem())
    issuer.read()
    with pytest.raises(Unauthenticated):
        verifier(issuer).verify(old)
    assert key_of(issuer.issue("app", secret, None)[0].access_token) == id_of(SECOND)


def test_a_client_that_was_revoked_ends_its_tokens(issuer: BuiltInIssuer, folder: Path, secret: str) -> None:
    verify = verifier(issuer).verify
    token = issuer.issue("app", secret, None)[0].access_token
    assert verify(token)
    assert issuer.knows("app")
    revoke_client(folder / "clients.json", "app")
    issuer.read()
    with pytest.raises(Unauthenticated, match="its client has been revoked"):
        verify(token)
    with pytest.raises(InvalidClient):
        issuer.issue("app", secret, None)
    assert not issuer.knows("app")


def test_a_client_that_was_revoked_and_added_again_has_no_tokens_yet(
    issuer: BuiltInIssuer, folder: Path, secret: str, clock: Clock
) -> None:
    """Who took the old secret keeps nothing of it; the new one is good at once."""
    clock.now -= 60
    old = issuer.issue("app", secret, None)[0].access_token
    clock.now += 61
    revoke_client(folder / "clients.json", "app")
    new_secret = add_client(folder / "clients.json", "app", ("predict",))
    issuer.read()
    verify = verifier(issuer).verify
    with pytest.raises(Unauthenticated, match="its client has been revoked"):
        verify(old)
    assert verify(issuer.issue("app", new_secret, None)[0].access_token)


def test_a_client_that_was_added_gets_tokens(issuer: BuiltInIssuer, folder: Path) -> None:
    secret = add_client(folder / "clients.json", "new", ("predict",))
    issuer.read()
    assert verifier(issuer).verify(issuer.issue("new", secret, None)[0].access_token).client == "new"


def test_nothing_new_is_nothing_to_do(issuer: BuiltInIssuer) -> None:
    """What was remembered of tokens stays remembered."""
    before = issuer.trusted
    issuer.read()
    assert issuer.trusted is before


def test_there_may_be_no_clients_yet(folder: Path) -> None:
    issuer_folder(folder)
    with pytest.raises(InvalidClient):
        opened(folder).issue("app", "secret", None)


def _encrypted(key: Signer) -> bytes:
    pem: bytes = key.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password"))
    return pem


DAMAGE: dict[str, Callable[[], bytes]] = {
    "nothing": bytes,
    "half of it": lambda: SECOND.pem()[:100],
    "no PEM": lambda: b"secret",
    "a public key": lambda: SECOND.public(Encoding.PEM),
    "a key behind a password": lambda: _encrypted(SECOND),
    "a key for RSA": lambda: signer("RS256").pem(),
    "a key on Ed25519": lambda: signer("EdDSA").pem(),
    "a key on P-384": lambda: Signer("ES384", "other", generate_private_key(SECP384R1())).pem(),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_key_that_is_none_changes_nothing(issuer: BuiltInIssuer, folder: Path, secret: str, what: str) -> None:
    """It is named, and what was there stays in force; at the start, it is a reason not to."""
    token = issuer.issue("app", secret, None)[0].access_token
    path = folder / "signing_keys/new.pem"
    path.write_bytes(DAMAGE[what]())
    for read in (issuer.read, issuer.read, lambda: opened(folder)):
        with pytest.raises(IssuerError, match=f"^{path}: expected a "):
            read()
    assert verifier(issuer).verify(token)
    assert issuer.issue("app", secret, None)
    drop(folder, SECOND).rename(path)
    issuer.read()
    assert len(issuer.jwks()["keys"]) == 2


@pytest.mark.parametrize("text", ["", "{}", '[{"id": "app"}]', "[1]", "\0"])
def test_a_damaged_list_of_clients_changes_nothing(issuer: BuiltInIssuer, folder: Path, secret: str, text: str) -> None:
    path = folder / "clients.json"
    kept = path.read_bytes()
    path.write_text(text)
    for read in (issuer.read, lambda: opened(folder)):
        with pytest.raises(IssuerError, match=f"^{path}: expected a list of clients"):
            read()
    assert issuer.issue("app", secret, None)
    path.write_bytes(kept)
    issuer.read()


@pytest.mark.parametrize("made", ["", "issuer", "issuer/signing_keys"])
def test_a_folder_without_a_key_is_named(tmp_path: Path, made: str) -> None:
    (tmp_path / made).mkdir(parents=True, exist_ok=True)
    with pytest.raises(IssuerError) as refused:
        opened(tmp_path / "issuer")
    assert str(refused.value) == f"{tmp_path}/issuer/signing_keys: expected a key, NAME.pem, found none"


def test_the_last_key_that_is_removed_stays_in_force(issuer: BuiltInIssuer, folder: Path, secret: str) -> None:
    """Rather than to refuse everybody, as it is more likely a volume that went away."""
    (folder / f"signing_keys/{FIRST.id}.pem").unlink()
    with pytest.raises(IssuerError):
        issuer.read()
    assert verifier(issuer).verify(issuer.issue("app", secret, None)[0].access_token)


def test_a_thread_follows_the_folder(folder: Path, secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after it could not read it, which it logs."""
    turns = threading.Semaphore(0)

    class Paused:
        time = staticmethod(time.time)

        @staticmethod
        def sleep(seconds: float) -> None:
            turns.acquire()

    monkeypatch.setattr(module, "time", Paused)
    issuer = BuiltInIssuer(folder, ISSUER, AUDIENCE, 900)
    issuer.start()
    damaged = folder / "signing_keys/damaged.pem"
    damaged.touch()
    with capture_logs() as logs:
        turns.release()
        wait_until(lambda: logs, "it has said so")
    [line] = logs
    assert line["event"] == "the issuer's folder could not be read; what was there stays in force"
    assert line["reason"].startswith(f"{damaged}: ")
    damaged.unlink()
    drop(folder, SECOND)
    turns.release()
    wait_until(lambda: len(issuer.jwks()["keys"]) == 2, "the new key is known")


def test_others_verify_by_the_keys_that_it_publishes(issuer: BuiltInIssuer, folder: Path, secret: str) -> None:
    """RFC 7517, without anything private."""
    drop(folder, SECOND)
    issuer.read()
    published = issuer.jwks()
    for key in published["keys"]:
        assert key.keys() == {"kty", "crv", "x", "y", "kid", "use", "alg"}
    grant, _ = issuer.issue("app", secret, None)
    key = jwt.PyJWKSet.from_dict(published)[key_of(grant.access_token)]
    assert jwt.decode(grant.access_token, key, ["ES256"], audience=AUDIENCE, issuer=ISSUER)["sub"] == "app"
    assert issuer.trusted
    assert read_keys(jwks(*published["keys"]), ["ES256"]) == issuer.trusted.keys


def test_an_id_is_the_thumbprint_that_rfc_7638_defines() -> None:
    """Also where a coordinate begins with a zero (RFC 7518, section 6.2.1.2): it has 32 bytes all the same."""
    for number in range(1, 600):
        key = derive_private_key(number, SECP256R1())
        jwk = module.public_jwk(key)
        assert len(jwk["x"]) == len(jwk["y"]) == 43
        x = key.public_key().public_numbers().x
        if x < 1 << 248:
            break
    else:
        raise AssertionError("none with a zero was tried")
    text = f'{{"crv":"P-256","kty":"EC","x":"{jwk["x"]}","y":"{jwk["y"]}"}}'
    assert json.dumps(json.loads(text), sort_keys=True, separators=(",", ":")) == text
    assert module._thumbprint(key) == base64url(hashlib.sha256(text.encode()).digest())
