"""Access tokens: who asks, and what they may do.

A token is a JWT as RFC 9068 profiles it, from the one issuer that is trusted. Everything about it that costs nothing to
check is checked before any cryptography, and nothing in it chooses how it is verified: the algorithms are configured,
and a key has one (RFC 8725). A token that was verified is remembered by its digest, until it expires or a key changes.
"""

import base64
import binascii
import hashlib
import json
import math
import re
import threading
import time
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple, Protocol

import jwt
import msgspec

from inference_core.errors import Unauthenticated, Unavailable

ALGORITHMS = ("ES256", "EdDSA", "RS256")
TYPES = ("at+jwt", "application/at+jwt")
# What clocks may differ by, in seconds.
LEEWAY = 5
MAX_TOKEN_CHARS = 8192
MAX_HEADER_CHARS = 1024
MAX_REMEMBERED = 10_000
FORM = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
KEY_ID = r"^[A-Za-z0-9_.-]{1,64}\Z"
REQUIRED = ["iss", "aud", "exp", "iat", "jti", "sub", "client_id"]
# SECURITY: fields of the header by which a token would bring its own key, or have itself read in another way.
DANGEROUS = {"crit", "jku", "jwk", "x5u", "x5c", "b64", "zip", "enc"}

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class Key(NamedTuple):
    """A public key of `cryptography`, and the one algorithm that it is for."""

    algorithm: str
    public: Any


class Trusted(NamedTuple):
    """By what a token is verified: keys by their ids; and since when there are which clients, None for any.

    A client that was revoked and added again has no tokens from before.
    """

    keys: Mapping[str, Key]
    clients: Mapping[str, float] | None = None


class Issuer(Protocol):
    """Who is trusted: `trusted` is replaced when it changes, None until it is known for the first time."""

    trusted: Trusted | None

    def look_for_keys(self) -> None:
        """A token has named a key that is not known."""


class Header(msgspec.Struct):
    alg: str
    typ: str
    kid: Annotated[str, msgspec.Meta(pattern=KEY_ID)]


class Claims(msgspec.Struct):
    """RFC 9068, section 2.2; of `scope`, RFC 6749, section 3.3."""

    exp: Annotated[float, msgspec.Meta(gt=0, lt=1e11)]
    iat: Annotated[float, msgspec.Meta(gt=0, lt=1e11)]
    jti: Name
    sub: Name
    client_id: Name
    scope: Annotated[str, msgspec.Meta(max_length=4096)] = ""


class Caller(msgspec.Struct, frozen=True):
    """Who a token speaks for; until `expires`, in seconds of the day."""

    subject: str
    client: str
    scopes: frozenset[str]
    expires: float

    def may(self, scope: str, model: str | None = None) -> bool:
        """Whether it has `scope`, for all models or for this one: `predict` or `predict:breast-cancer`.

        With `*` in place of a model, for any: which one, somebody else will ask.
        """
        if scope.endswith(":*"):
            return any(own == scope[:-2] or own.startswith(scope[:-1]) for own in self.scopes)
        return scope in self.scopes or (model is not None and f"{scope}:{model}" in self.scopes)


class Memory(NamedTuple):
    """Who was verified by `trusted`, by digests of tokens. SECURITY: in one value, so that no thread mixes two."""

    trusted: Trusted | None
    callers: dict[bytes, Caller]


class Verifier:
    """`verify` is on the road of every request; a token that was seen before costs it a digest and a look."""

    def __init__(self, issuer: Issuer, name: str, audience: str, algorithms: tuple[str, ...]) -> None:
        self._issuer = issuer
        self._name = name
        self._audience = audience
        self._algorithms = algorithms
        self._lock = threading.Lock()
        self._memory = Memory(None, {})

    def verify(self, token: str) -> Caller:
        """Who `token` speaks for; Unauthenticated if it is not good, Unavailable while no key is known."""
        trusted, memory = self._issuer.trusted, self._memory
        if memory.trusted is not trusted:
            memory = self._memory = Memory(trusted, {})
        callers, digest = memory.callers, hashlib.sha256(token.encode()).digest()
        caller = callers.get(digest)
        if caller is not None and caller.expires > time.time():
            return caller
        if trusted is None:
            raise Unavailable("access token: the issuer's keys are not known yet")
        caller = self._verified(token, trusted)
        with self._lock:
            if len(callers) >= MAX_REMEMBERED:
                del callers[next(iter(callers))]
            callers[digest] = caller
        return caller

    def _verified(self, token: str, trusted: Trusted) -> Caller:
        header = _header(token)
        if header.typ.lower() not in TYPES:
            raise Unauthenticated.because(f"expected type at+jwt, got {header.typ[:32]!r}")
        if header.alg not in self._algorithms:
            raise Unauthenticated.because(f"expected {' or '.join(self._algorithms)}, got {header.alg[:32]!r}")
        key = trusted.keys.get(header.kid)
        if key is None:
            self._issuer.look_for_keys()
            raise Unauthenticated.because("its key is not one of the issuer's")
        if key.algorithm != header.alg:
            raise Unauthenticated.because(f"its key is for {key.algorithm}, and not for {header.alg}")
        claims = self._claims(token, key)
        if trusted.clients is not None and claims.iat + LEEWAY < trusted.clients.get(claims.client_id, math.inf):
            raise Unauthenticated.because("its client has been revoked")
        return Caller(claims.sub, claims.client_id, frozenset(claims.scope.split()), claims.exp + LEEWAY)

    def _claims(self, token: str, key: Key) -> Claims:
        try:
            jwt.decode(
                token,
                key.public,
                [key.algorithm],
                options={"require": REQUIRED, "enforce_minimum_key_length": True},
                audience=self._audience,
                issuer=self._name,
                leeway=LEEWAY,
            )
            payload = _segment(token, 1)
            _loads(payload)
            return msgspec.json.decode(payload, type=Claims)  # which takes no half characters, as others do
        except jwt.PyJWTError as error:
            raise Unauthenticated.because(REASONS.get(type(error), "it is malformed")) from None
        except (ValueError, RecursionError) as error:  # msgspec's as well: claims of another type, or twice the same
            raise Unauthenticated.because(f"its claims do not fit: {error}") from None


# What may be told to who brought it. Nothing of the token is repeated.
REASONS: dict[type[Exception], str] = {
    jwt.ExpiredSignatureError: "it has expired",
    jwt.ImmatureSignatureError: "it is not valid yet",
    jwt.InvalidSignatureError: "its signature is wrong",
    jwt.InvalidAudienceError: "it is for another audience",
    jwt.InvalidIssuerError: "it is from another issuer",
    jwt.MissingRequiredClaimError: f"it lacks one of {', '.join(REQUIRED)}",
}


def _header(token: str) -> Header:
    if len(token) > MAX_TOKEN_CHARS:
        raise Unauthenticated.because(f"expected at most {MAX_TOKEN_CHARS} characters, got {len(token)}")
    if not FORM.fullmatch(token):
        raise Unauthenticated.because("expected a JWT: three parts in base64url, with dots between them")
    if token.index(".") > MAX_HEADER_CHARS:
        raise Unauthenticated.because(f"expected a header of at most {MAX_HEADER_CHARS} characters, got more")
    try:
        fields = _loads(_segment(token, 0))
        if isinstance(fields, dict) and fields.keys() & DANGEROUS:
            raise Unauthenticated.because(f"expected no {min(fields.keys() & DANGEROUS)} in its header, got one")
        return msgspec.convert(fields, Header)
    except (ValueError, RecursionError) as error:
        raise Unauthenticated.because(f"its header does not fit: {error}") from None


def _segment(token: str, number: int) -> bytes:
    text = token.split(".")[number]
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error:
        raise ValueError("expected base64url") from None


def _loads(text: bytes) -> Any:
    """JSON in which no name is there twice, as readers differ in which of the two they take."""
    return json.loads(text, object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("expected each name once, got one twice")
    return found
