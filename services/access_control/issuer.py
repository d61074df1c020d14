"""The built-in issuer, for a stack that has no other: client credentials in, access tokens out (RFC 6749, section 4.4).

    signing_keys/*.pem   private keys for ES256; the newest signs, all of them verify
    clients.json         who may ask, see clients.py

To change the key, add a file; to end the tokens of the old one, remove its file. A thread of each process looks at the
folder every two seconds, so a key that is new is known everywhere before anybody signs with it.
"""

import base64
import hashlib
import threading
import time
import uuid
from pathlib import Path
from typing import Any, NamedTuple

import jwt
import msgspec
import structlog
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from jwt.algorithms import ECAlgorithm

from access_control.clients import MAX_SCOPE_CHARS, OPERATOR, Client, ClientError, is_secret_of, read_clients
from access_control.tokens import Key, Trusted
from inference_core.manifest import is_name

ALGORITHM = "ES256"
LOOK_SECONDS = 2.0
# How long a key must have been there before it signs, unless there is no other: all processes know it by then.
PUBLISHED_SECONDS = 10.0

log = structlog.get_logger()


class IssuerError(Exception):
    """The folder does not hold what an issuer needs."""


class InvalidClient(Exception):
    """RFC 6749, section 5.2: invalid_client."""


class InvalidScope(Exception):
    """RFC 6749, section 5.2: invalid_scope."""


class SigningKey(NamedTuple):
    """`made` and `placed`, in seconds of the day: a file that is moved or copied here may be older than it is here."""

    id: str
    private: EllipticCurvePrivateKey
    made: float
    placed: float


class Grant(msgspec.Struct):
    """RFC 6749, section 5.1. `expires_in` in seconds."""

    access_token: str
    expires_in: int
    scope: str
    token_type: str = "Bearer"  # noqa: S105  # a kind


class BuiltInIssuer:
    """Named `name`, a URL; its tokens are for `audience` and last for `lifetime` seconds."""

    def __init__(self, folder: Path, name: str, audience: str, lifetime: int) -> None:
        self._folder = folder
        self.name = name
        self._audience = audience
        self._lifetime = lifetime
        self._stamp: Any = None
        self._keys: list[SigningKey] = []
        self._clients: dict[str, Client] = {}
        self.trusted: Trusted | None = None

    def start(self) -> None:
        """Read the folder, and go on doing so; while it holds no good key and clients, no token is good."""
        self._read_if_possible()
        threading.Thread(target=self._keep_up_to_date, name="issuer", daemon=True).start()

    def read(self) -> None:
        """Take up what has changed in the folder; IssuerError if there is no key or a file is damaged."""
        files = sorted((self._folder / "signing_keys").glob("*.pem"))
        clients = self._folder / "clients.json"
        try:
            stamp = [(path, path.stat().st_mtime_ns, path.stat().st_ino) for path in [*files, clients] if path.exists()]
            if stamp == self._stamp:
                return
            keys = [_read_key(path) for path in files]
            found = read_clients(clients) if clients.exists() else {}
        except (OSError, ClientError) as error:
            raise IssuerError(str(error)) from None
        if not keys:
            raise IssuerError(f"{self._folder}/signing_keys: expected a key, NAME.pem, found none")
        self._keys, self._clients, self._stamp = keys, found, stamp
        public = {key.id: Key(ALGORITHM, key.private.public_key()) for key in keys}
        self.trusted = Trusted(public, {OPERATOR: 0.0} | {name: found[name].created.timestamp() for name in found})

    def look_for_keys(self) -> None:
        """Nothing to do: the folder is looked at anyway."""

    def knows(self, client_id: str) -> bool:
        return client_id in self._clients

    def issue(self, client_id: str, secret: str, scope: str | None) -> tuple[Grant, str]:
        """A token for the client's own scopes, or those of them that it asks for; and the token's id.

        InvalidClient unless the secret is right, InvalidScope for what the client has not.
        """
        client = self._clients.get(client_id)
        if not is_secret_of(client, secret) or client is None:
            raise InvalidClient("client: there is none with this id and secret")
        if scope and len(scope) > MAX_SCOPE_CHARS:
            raise InvalidScope(f"scope: expected {MAX_SCOPE_CHARS} characters at most, got {len(scope)}")
        granted = " ".join(dict.fromkeys(scope.split() if scope else client.scopes))
        if lacking := [each for each in granted.split() if not _is_part_of(each, client.scopes)]:
            raise InvalidScope(f"scope: expected some of {' '.join(client.scopes)}, got {' '.join(lacking)[:200]!r}")
        return self.sign(client_id, granted)

    def sign(self, client_id: str, scope: str) -> tuple[Grant, str]:
        """A token for a client that is known, or for the operator, and the token's id."""
        now, token_id = int(time.time()), str(uuid.uuid4())
        claims = {
            "iss": self.name,
            "aud": self._audience,
            "sub": client_id,
            "client_id": client_id,
            "iat": now,
            "exp": now + self._lifetime,
            "jti": token_id,
            "scope": scope,
        }
        key = self._signing_key()
        token = jwt.encode(claims, key.private, ALGORITHM, headers={"typ": "at+jwt", "kid": key.id})
        return Grant(token, self._lifetime, scope), token_id

    def jwks(self) -> dict[str, Any]:
        """The public keys, as an RFC 7517 set."""
        return {
            "keys": [public_jwk(key.private) | {"kid": key.id, "use": "sig", "alg": ALGORITHM} for key in self._keys]
        }

    def _signing_key(self) -> SigningKey:
        published = [key for key in self._keys if time.time() - key.placed >= PUBLISHED_SECONDS]
        if published:
            return max(published, key=lambda key: key.made)
        return min(self._keys, key=lambda key: key.placed)

    def _keep_up_to_date(self) -> None:
        while True:
            time.sleep(LOOK_SECONDS)
            self._read_if_possible()

    def _read_if_possible(self) -> None:
        try:
            self.read()
        except IssuerError as error:
            log.warning("the issuer's folder could not be read; what was there stays in force", reason=str(error))


def _is_part_of(scope: str, scopes: tuple[str, ...]) -> bool:
    """Whether it is one of them, or one for a single model of one that is for all."""
    general, _, model = scope.rpartition(":")
    return scope in scopes or (general in scopes and is_name(model))


def _read_key(path: Path) -> SigningKey:
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise IssuerError(f"{path}: expected a private key in PEM without a password: {error}") from None
    if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP256R1):
        raise IssuerError(f"{path}: expected a key on P-256, for {ALGORITHM}, got {type(key).__name__}")
    status = path.stat()
    return SigningKey(_thumbprint(key), key, status.st_mtime, status.st_ctime)


def public_jwk(key: EllipticCurvePrivateKey) -> dict[str, Any]:
    return {
        name: value for name, value in ECAlgorithm.to_jwk(key.public_key(), as_dict=True).items() if name != "key_ops"
    }


def _thumbprint(key: EllipticCurvePrivateKey) -> str:
    """RFC 7638: an id that follows from the key."""
    canonical = msgspec.json.encode(public_jwk(key), order="deterministic")
    return base64.urlsafe_b64encode(hashlib.sha256(canonical).digest()).rstrip(b"=").decode()
