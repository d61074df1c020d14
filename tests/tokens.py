"""Access tokens for tests: good ones, an issuer's folder and keys, and what attackers make of tokens."""

import base64
import functools
import hashlib
import hmac
import json
import time
import zlib
from collections.abc import Callable
from datetime import datetime, tzinfo
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Self

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key as generate_rsa_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from access_control.clients import add_client
from access_control.tokens import MAX_HEADER_CHARS, MAX_TOKEN_CHARS, Key, Trusted

ISSUER, AUDIENCE = "https://issuer.test", "tiercel"
ALGORITHMS = ("ES256", "EdDSA", "RS256")
FULL_WIDTH = str.maketrans("0123456789", "０１２３４５６７８９")  # noqa: RUF001  # digits to int(), not to JSON
# The ASN.1 in front of a digest by SHA-256 (RFC 8017, section 9.2).
DIGEST_INFO = bytes.fromhex("3031300d060960864801650304020105000420")

Sign = Callable[[bytes], bytes]


class Signer:
    """A private key with an id, as an issuer has it."""

    def __init__(self, algorithm: str, key_id: str, private: Any) -> None:
        self.algorithm = algorithm
        self.id = key_id
        self.private = private

    @property
    def key(self) -> Key:
        return Key(self.algorithm, self.private.public_key())

    def sign(self, message: bytes) -> bytes:
        return jwt.get_algorithm_by_name(self.algorithm).sign(message, self.private)

    def jwk(self, **changes: Any) -> dict[str, Any]:
        found: dict[str, Any] = jwt.get_algorithm_by_name(self.algorithm).to_jwk(self.key.public, as_dict=True)
        return changed(found | {"kid": self.id, "use": "sig", "alg": self.algorithm}, changes)

    def pem(self) -> bytes:
        pem: bytes = self.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return pem

    def public(self, encoding: Encoding) -> bytes:
        public: bytes = self.key.public.public_bytes(encoding, PublicFormat.SubjectPublicKeyInfo)
        return public

    def header(self, **changes: Any) -> dict[str, Any]:
        return changed({"typ": "at+jwt", "alg": self.algorithm, "kid": self.id}, changes)

    def token(self, **claims_: Any) -> str:
        return written(self.header(), claims(**claims_), self.sign)


def signer(algorithm: str = "ES256", key_id: str = "") -> Signer:
    """The same key each time; its id is the algorithm in small letters unless it is given."""
    return _signer(algorithm, key_id or algorithm.lower())


@functools.cache
def _signer(algorithm: str, key_id: str) -> Signer:
    make: dict[str, Callable[[], Any]] = {
        "ES256": lambda: generate_private_key(SECP256R1()),
        "EdDSA": Ed25519PrivateKey.generate,
        "RS256": lambda: generate_rsa_key(65537, 2048),
    }
    return Signer(algorithm, key_id, make[algorithm]())


def trusted(*signers: Signer, clients: dict[str, float] | None = None) -> Trusted:
    """Those signers; or one for each algorithm."""
    return Trusted({each.id: each.key for each in signers or map(signer, ALGORITHMS)}, clients)


def jwks(*keys: Signer | dict[str, Any]) -> bytes:
    return json.dumps({"keys": [key.jwk() if isinstance(key, Signer) else key for key in keys]}).encode()


class Fixed:
    """An issuer whose keys are what a test says, and who counts how often it is asked for others."""

    def __init__(self, trusted: Trusted | None) -> None:
        self.trusted = trusted
        self.asked = 0

    def look_for_keys(self) -> None:
        self.asked += 1


class Clock:
    """Time of PyJWT and of `modules`, which stands still unless a test moves it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> None:
        self.now = float(int(time.time()))
        clock = self

        class Now(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> Self:
                return cls.fromtimestamp(clock.now, tz)

        monkeypatch.setattr("jwt.api_jwt.datetime", Now)
        for module in modules:
            monkeypatch.setattr(module, "time", self)

    def time(self) -> float:
        return self.now


def issuer_folder(folder: Path, *signers: Signer, **clients: tuple[str, ...]) -> dict[str, str]:
    """Make what the built-in issuer reads: keys, and clients with their scopes. Returns the clients' secrets."""
    (folder / "signing_keys").mkdir(parents=True)
    for each in signers or (signer(),):
        (folder / f"signing_keys/{each.id}.pem").write_bytes(each.pem())
    return {name: add_client(folder / "clients.json", name, scopes) for name, scopes in clients.items()}


def changed(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`values` with what `changes` says; what is ... there is left out."""
    return {name: value for name, value in (values | changes).items() if value is not ...}


def claims(**changes: Any) -> dict[str, Any]:
    """Those of a good token of ten minutes for "somebody", who may do nothing."""
    now = int(time.time())
    values = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "somebody",
        "client_id": "client",
        "iat": now,
        "exp": now + 600,
        "jti": "0123456789",
    }
    return changed(values, changes)


def written(header: Any, payload: Any, sign: Sign | None = None) -> str:
    """A token of any header and payload: JSON of them, unless they are bytes."""
    message = ".".join(base64url(part) for part in (header, payload))
    return f"{message}.{base64url(sign(message.encode()) if sign else b'')}"


def base64url(value: Any) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def repeats(text: str, token: str, size: int = 20) -> bool:
    """Whether there is more of a token in a text than chance would have it."""
    return any(token[start : start + size] in text for start in range(min(len(token), 20_000) - size + 1))


def parts(token: str) -> list[str]:
    return token.split(".")


def of_size(size: int) -> str:
    """A good token of so many characters."""
    for extra in range(3):  # base64 without its padding comes in three of four lengths
        header = base64url(signer().header(more="m" * extra))
        room = (size - len(header) - len(".." + base64url(bytes(64)))) * 3 // 4
        payload = json.dumps(claims(more=""), separators=(",", ":"))
        payload = payload.replace('"more":""', f'"more":"{"m" * (room - len(payload))}"')
        token = written(signer().header(more="m" * extra), payload.encode(), signer().sign)
        if len(token) == size:
            return token
    raise AssertionError(f"no token of {size} characters")


def of_header_size(size: int) -> str:
    """A good token whose header has so many characters, as long as they are a multiple of four."""
    header = signer().header(more="")
    header["more"] = "m" * (size * 3 // 4 - len(json.dumps(header, separators=(",", ":"))))
    token = written(header, claims(), signer().sign)
    assert token.index(".") == size
    return token


def hmac_by(secret: bytes) -> Sign:
    return lambda message: hmac.digest(secret, message, "sha256")


def _always(signature: bytes) -> Sign:
    return lambda message: signature


def _exponent_one(message: bytes) -> bytes:
    """A signature by which RSA with the exponent 1 is satisfied: the padded digest itself."""
    digest = DIGEST_INFO + hashlib.sha256(message).digest()
    return b"\0\1" + b"\xff" * (256 - 3 - len(digest)) + b"\0" + digest


def exponent_one() -> dict[str, Any]:
    """A key for which everybody can sign."""
    return signer("RS256").jwk(kid="exponent-one", e="AQ")


class Attack(NamedTuple):
    """`because`: how the reason begins for which it must be refused, so that it is for no other."""

    because: str
    make: Callable[[], str]


TYPE = "expected type at+jwt, got "
NOT_ALLOWED = "expected ES256 or EdDSA or RS256, got "
NO_JWT = "expected a JWT: three parts"
HEADER = "its header does not fit: "
CLAIMS = "its claims do not fit: "
SIGNATURE = "its signature is wrong"
UNKNOWN = "its key is not one of the issuer's"
MALFORMED = "it is malformed"
LACKS = "it lacks one of iss, aud, exp, iat, jti, sub, client_id"
TOO_LONG = f"expected at most {MAX_TOKEN_CHARS} characters, got "


def _with_header(because: str, **header: Any) -> Attack:
    """Rightly signed, so that nothing but its header is wrong."""
    return Attack(because, lambda: written(signer().header(**header), claims(), signer().sign))


def _unsigned(algorithm: str) -> Attack:
    return Attack(NO_JWT, lambda: written(signer().header(alg=algorithm), claims()))


def _with_claims(because: str, **changes: Any) -> Attack:
    return Attack(because, lambda: signer().token(**changes))


def _with_payload(because: str, payload: bytes) -> Attack:
    return Attack(because, lambda: written(signer().header(), payload, signer().sign))


def _symmetric(secret: Callable[[], bytes]) -> Attack:
    return Attack(f"{NOT_ALLOWED}'HS256'", lambda: written(signer().header(alg="HS256"), claims(), hmac_by(secret())))


def _changed(because: str, change: Callable[[str], str]) -> Attack:
    """A good token that was changed on its way."""
    return Attack(because, lambda: change(signer().token()))


def _twice(value: dict[str, Any], name: str, again: Any) -> bytes:
    """JSON in which `name` is there twice."""
    return json.dumps(value)[:-1].encode() + f', "{name}": {json.dumps(again)}}}'.encode()


def _swapped(first: int, second: int, third: int) -> Attack:
    def make() -> str:
        both = [parts(signer().token(sub=name)) for name in ("somebody", "anybody")]
        return ".".join(both[whose][part] for part, whose in enumerate((first, second, third)))

    return Attack(SIGNATURE, make)


def _own_key() -> Signer:
    return signer("ES256", "attacker")


def _by_own_key(because: str, header: Callable[[], dict[str, Any]]) -> Attack:
    return Attack(because, lambda: written(header(), claims(), _own_key().sign))


def _deflated() -> bytes:
    """Four megabytes of nothing, in as many bytes as a token may have."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(bytes(4 << 20)) + packer.flush()


NOW = time.time
ATTACKS: dict[str, Attack] = {
    # Who chooses how it is verified.
    **{f"alg {name} without a signature": _unsigned(name) for name in ("none", "None", "NONE")},
    **{f"alg {name}": _with_header(f"{NOT_ALLOWED}{name!r}", alg=name) for name in ("none", "None", "NONE", "nOnE")},
    "HS256 with the public key in PEM": _symmetric(lambda: signer().public(Encoding.PEM)),
    "HS256 with the public key in DER": _symmetric(lambda: signer().public(Encoding.DER)),
    "HS256 with the public key in PEM behind a line": _symmetric(lambda: b"\n" + signer().public(Encoding.PEM)),
    "HS256 with the public key as JWK": _symmetric(lambda: json.dumps(signer().jwk()).encode()),
    "HS256 with RSA's public key in PEM": _symmetric(lambda: signer("RS256").public(Encoding.PEM)),
    "HS256 with nothing": _symmetric(bytes),
    "alg of another key": _with_header("its key is for ES256, and not for RS256", alg="RS256"),
    "key of another alg": _with_header("its key is for RS256, and not for ES256", kid="rs256"),
    "alg ES384": _with_header(f"{NOT_ALLOWED}'ES384'", alg="ES384"),
    "alg in small letters": _with_header(f"{NOT_ALLOWED}'es256'", alg="es256"),
    "alg missing": _with_header(HEADER, alg=...),
    "alg a list": _with_header(HEADER, alg=["ES256"]),
    # Signatures.
    "ES256 with r and s of zero": Attack(SIGNATURE, lambda: written(signer().header(), claims(), _always(bytes(64)))),
    "EdDSA of zeros": Attack(SIGNATURE, lambda: written(signer("EdDSA").header(), claims(), _always(bytes(64)))),
    "RS256 of zeros": Attack(SIGNATURE, lambda: written(signer("RS256").header(), claims(), _always(bytes(256)))),
    "RS256 by a key with exponent 1": Attack(
        UNKNOWN, lambda: written(signer("RS256").header(kid="exponent-one"), claims(), _exponent_one)
    ),
    "RS256 as if the exponent were 1": Attack(
        SIGNATURE, lambda: written(signer("RS256").header(), claims(), _exponent_one)
    ),
    "signature stripped": _changed(NO_JWT, lambda token: token.rpartition(".")[0]),
    "signature emptied": _changed(NO_JWT, lambda token: token.rpartition(".")[0] + "."),
    "signature of one byte": Attack(SIGNATURE, lambda: written(signer().header(), claims(), _always(b"\0"))),
    "truncated by a byte": _changed(SIGNATURE, lambda token: token[:-2]),
    "truncated in the payload": _changed(NO_JWT, lambda token: token[: len(token) // 2]),
    "signed by another key of the same id": Attack(
        SIGNATURE, lambda: written(signer().header(), claims(), _own_key().sign)
    ),
    "payload of another token": _swapped(0, 1, 0),
    "signature of another token": _swapped(0, 0, 1),
    # Which key.
    "kid a path": _with_header(HEADER, kid="../../../../dev/null"),
    "kid SQL": _with_header(HEADER, kid="x' UNION SELECT 'key"),
    "kid a command": _with_header(HEADER, kid="es256|/bin/true"),
    "kid of 64 characters that nobody knows": _with_header(UNKNOWN, kid="k" * 64),
    "kid of 65 characters": _with_header(HEADER, kid="k" * 65),
    "kid of 10 KB": _with_header(TOO_LONG, kid="k" * 10_000),
    "kid with a line break": _with_header(HEADER, kid="es256\n"),
    "kid in full-width digits": _with_header(HEADER, kid="es256".translate(FULL_WIDTH)),
    "kid empty": _with_header(HEADER, kid=""),
    "kid missing": _with_header(HEADER, kid=...),
    "kid a number": _with_header(HEADER, kid=1),
    "kid null": _with_header(HEADER, kid=None),
    "kid that nobody knows": _by_own_key(UNKNOWN, lambda: _own_key().header()),
    "jku": _by_own_key("expected no jku in its header", lambda: signer().header(jku="https://attacker.test/jwks.json")),
    "x5u": _by_own_key("expected no x5u in its header", lambda: signer().header(x5u="https://attacker.test/x.pem")),
    "jwk": _by_own_key("expected no jwk in its header", lambda: signer().header(jwk=_own_key().jwk())),
    "x5c": _by_own_key("expected no x5c in its header", lambda: signer().header(x5c=["MIIB"])),
    # How it is read.
    "crit": _with_header("expected no crit in its header", crit=["exp"]),
    "crit unknown": _with_header("expected no crit in its header", crit=["x"], x=1),
    "b64 false": _with_header("expected no b64 in its header", b64=False),
    "zip": Attack(
        "expected no zip in its header", lambda: written(signer().header(zip="DEF"), _deflated(), signer().sign)
    ),
    "typ JWT": _with_header(f"{TYPE}'JWT'", typ="JWT"),
    "typ of an ID token": _with_header(f"{TYPE}'id+jwt'", typ="id+jwt"),
    "typ with quotes and a line break": _with_header(TYPE, typ='"\r\nSet-Cookie: a="b'),
    "typ missing": _with_header(HEADER, typ=...),
    "typ a number": _with_header(HEADER, typ=1),
    "JWE": Attack(
        NO_JWT,
        lambda: f"{base64url({'alg': 'dir', 'enc': 'A256GCM', 'typ': 'at+jwt', 'kid': 'es256'})}..AAAA.AAAA.AAAA",
    ),
    "JWS in JSON": _changed(
        NO_JWT,
        lambda token: json.dumps(
            dict(zip(("protected", "payload", "signature"), parts(token), strict=True)), separators=(",", ":")
        ),
    ),
    "header no object": Attack(HEADER, lambda: written([], claims(), signer().sign)),
    "header no JSON": Attack(HEADER, lambda: written(b"alg=ES256", claims(), signer().sign)),
    "header no UTF-8": Attack(HEADER, lambda: written(b'{"\xff": 1}', claims(), signer().sign)),
    "header nested": Attack(HEADER, lambda: written(b"[" * 700, claims(), signer().sign)),
    "header with a name twice": Attack(
        HEADER, lambda: written(_twice(signer().header(), "alg", "none"), claims(), signer().sign)
    ),
    f"header of {MAX_HEADER_CHARS + 4} characters": Attack(
        f"expected a header of at most {MAX_HEADER_CHARS} characters", lambda: of_header_size(MAX_HEADER_CHARS + 4)
    ),
    "four parts": _changed(NO_JWT, lambda token: token + ".AAAA"),
    "one part": Attack(NO_JWT, lambda: "secret"),
    "padding": _changed(NO_JWT, lambda token: token + "=="),
    "letters of plain base64": _changed(NO_JWT, lambda token: token[:-2] + "+/"),
    "one letter too many": _changed(MALFORMED, lambda token: token + "AAA"),
    "full-width digits": _changed(NO_JWT, lambda token: token.translate(FULL_WIDTH) + "1".translate(FULL_WIDTH)),
    f"{MAX_TOKEN_CHARS + 1} characters": Attack(TOO_LONG, lambda: of_size(MAX_TOKEN_CHARS + 1)),
    "a megabyte": Attack(TOO_LONG, lambda: "a" * (1 << 20)),
    # When.
    "exp missing": _with_claims(LACKS, exp=...),
    "exp null": _with_claims(LACKS, exp=None),
    "exp past": Attack("it has expired", lambda: signer().token(exp=int(NOW()) - 60)),
    "exp zero": _with_claims("it has expired", exp=0),
    "exp true": _with_claims("it has expired", exp=True),
    "exp text": Attack(CLAIMS, lambda: signer().token(exp=str(int(NOW()) + 600))),
    "exp text in full-width digits": Attack(
        CLAIMS, lambda: signer().token(exp=str(int(NOW()) + 600).translate(FULL_WIDTH))
    ),
    "exp far away": _with_claims(CLAIMS, exp=10**11),
    "exp a list": _with_claims(MALFORMED, exp=[1]),
    "exp infinite": Attack(
        MALFORMED,
        lambda: written(
            signer().header(), json.dumps(claims(exp=0)).replace('"exp": 0', '"exp": 1e400').encode(), signer().sign
        ),
    ),
    "exp no number": _with_claims(MALFORMED, exp=float("nan")),
    "exp of 5000 digits": Attack(
        MALFORMED,
        lambda: written(
            signer().header(),
            json.dumps(claims(exp=0)).replace('"exp": 0', f'"exp": {"9" * 5000}').encode(),
            signer().sign,
        ),
    ),
    "nbf in the future": Attack("it is not valid yet", lambda: signer().token(nbf=int(NOW()) + 60)),
    "nbf null": _with_claims(MALFORMED, nbf=None),
    "nbf a list": _with_claims(MALFORMED, nbf=[1]),
    "iat in the future": Attack("it is not valid yet", lambda: signer().token(iat=int(NOW()) + 60)),
    "iat missing": _with_claims(LACKS, iat=...),
    "iat text": Attack(CLAIMS, lambda: signer().token(iat=str(int(NOW())))),
    "iat a list": _with_claims(MALFORMED, iat=[1]),
    # From whom, for whom, about whom.
    "iss another": _with_claims("it is from another issuer", iss="https://attacker.test"),
    "iss with a slash": _with_claims("it is from another issuer", iss=f"{ISSUER}/"),
    "iss in capitals": _with_claims("it is from another issuer", iss=ISSUER.upper()),
    "iss a list": _with_claims("it is from another issuer", iss=[ISSUER]),
    "iss missing": _with_claims(LACKS, iss=...),
    "aud another": _with_claims("it is for another audience", aud="other"),
    "aud others": _with_claims("it is for another audience", aud=["other", f"{AUDIENCE}/"]),
    "aud a longer name": _with_claims("it is for another audience", aud=f"{AUDIENCE}-admin"),
    "aud an object": _with_claims("it is for another audience", aud={AUDIENCE: 1}),
    "aud a list with a number": _with_claims("it is for another audience", aud=[AUDIENCE, 1]),
    "aud empty": _with_claims(LACKS, aud=[]),
    "aud missing": _with_claims(LACKS, aud=...),
    "sub missing": _with_claims(LACKS, sub=...),
    "sub empty": _with_claims(CLAIMS, sub=""),
    "sub a number": _with_claims(MALFORMED, sub=1),
    "sub of 257 characters": _with_claims(CLAIMS, sub="s" * 257),
    "sub half a character": _with_claims(CLAIMS, sub="\ud800"),
    "client_id missing": _with_claims(LACKS, client_id=...),
    "client_id a list": _with_claims(CLAIMS, client_id=["client"]),
    "jti missing": _with_claims(LACKS, jti=...),
    "jti of 257 characters": _with_claims(CLAIMS, jti="j" * 257),
    "scope a list": _with_claims(CLAIMS, scope=["predict"]),
    "scope null": _with_claims(CLAIMS, scope=None),
    "scope of 4097 characters": _with_claims(CLAIMS, scope="s" * 4097),
    "scope half a character": _with_claims(CLAIMS, scope="predict \ud800"),
    # What the rightly signed payload is.
    "claims with a name twice": Attack(
        CLAIMS, lambda: written(signer().header(), _twice(claims(), "sub", "admin"), signer().sign)
    ),
    "claims with a name twice further down": Attack(
        CLAIMS,
        lambda: written(
            signer().header(),
            json.dumps(claims(a=0)).replace('"a": 0', '"a": {"b": 1, "b": 2}').encode(),
            signer().sign,
        ),
    ),
    "claims no object": _with_payload(MALFORMED, b"[]"),
    "claims no JSON": _with_payload(MALFORMED, b"sub=somebody"),
    "claims no UTF-8": _with_payload(MALFORMED, b'{"sub": "\xff"}'),
    "claims nested": _with_payload(MALFORMED, b"[" * 5000),
}
