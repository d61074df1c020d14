"""The clients of the built-in issuer: who they are, what they may ask for, and a slow hash of each one's secret."""

import base64
import fcntl
import hashlib
import hmac
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec

SCOPES = ("predict", "jobs", "models:read", "models:admin")
# RFC 7914; OWASP's lowest for secrets that people make up, and these are random ones of 256 bits.
COST, BLOCK, PARALLEL = 1 << 14, 8, 1
# Of all scopes of a client together: they are in its tokens, which go in a header.
MAX_SCOPE_CHARS = 2048
SALT_BYTES, DIGEST_BYTES = 16, 32

# Whoever can read the issuer's folder needs no secret: `tiercel token`. So nobody else may be called that.
OPERATOR = "operator"

ClientId = Annotated[str, msgspec.Meta(pattern=rf"^(?!{OPERATOR}\Z)[A-Za-z0-9][A-Za-z0-9._-]{{0,63}}\Z")]
Scope = Annotated[str, msgspec.Meta(pattern=rf"^({'|'.join(SCOPES)})(:[A-Za-z0-9][A-Za-z0-9._-]{{0,63}})?\Z")]


Hash = Annotated[
    str,
    msgspec.Meta(pattern=r"^scrypt\$(16384|32768|65536|131072)\$8\$[1-4]\$[A-Za-z0-9+/]{22}==\$[A-Za-z0-9+/]{43}=\Z"),
]


class Client(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`secret` is a hash: scrypt$N$r$p$salt$hash, the last two in base64."""

    id: ClientId
    secret: Hash
    scopes: Annotated[tuple[Scope, ...], msgspec.Meta(min_length=1)]
    created: Annotated[datetime, msgspec.Meta(tz=True)]


class ClientError(Exception):
    pass


def read_clients(path: Path) -> dict[str, Client]:
    """Those in the file, by id; ClientError if it says what it may not."""
    try:
        clients = msgspec.json.decode(path.read_bytes(), type=list[Client])
    except (OSError, msgspec.DecodeError) as error:
        raise ClientError(f"{path}: expected a list of clients: {error}") from None
    return {client.id: client for client in clients}


def add_client(path: Path, name: str, scopes: tuple[str, ...]) -> str:
    """Register a client; returns its secret, which nobody can read again. ClientError if there is one of that name."""
    if name == OPERATOR:
        raise ClientError(f"client {name!r}: is whoever can read this folder, and has `tiercel token`")
    if len(" ".join(scopes)) > MAX_SCOPE_CHARS:
        raise ClientError(f"client {name!r}: expected scopes of {MAX_SCOPE_CHARS} characters at most, got more")
    secret = secrets.token_urlsafe(32)
    now = datetime.now(UTC).replace(microsecond=0)
    try:
        client = msgspec.convert({"id": name, "secret": hashed(secret), "scopes": scopes, "created": now}, Client)
    except msgspec.ValidationError as error:
        raise ClientError(
            f"client {name!r}: {error}; scopes are {', '.join(SCOPES)}, or such as predict:MODEL"
        ) from None
    with _changing(path) as clients:
        if name in clients:
            raise ClientError(f"client {name!r}: there is one already; revoke it first")
        clients[name] = client
    return secret


def revoke_client(path: Path, name: str) -> None:
    """Strike a client off; ClientError if there is none of that name."""
    with _changing(path) as clients:
        if name not in clients:
            raise ClientError(
                f"client {name!r}: there is none; there are {', '.join(sorted(clients)) or 'none at all'}"
            )
        del clients[name]


def hashed(secret: str) -> str:
    salt = secrets.token_bytes(SALT_BYTES)
    return _written(salt, _scrypt(secret, salt, COST, BLOCK, PARALLEL))


def _written(salt: bytes, digest: bytes) -> str:
    salted, hashed = (base64.b64encode(part).decode() for part in (salt, digest))
    return f"scrypt${COST}${BLOCK}${PARALLEL}${salted}${hashed}"


# Of nobody's secret: so that to ask for a client that there is not takes as long.
NOBODY = _written(secrets.token_bytes(SALT_BYTES), secrets.token_bytes(DIGEST_BYTES))


def is_secret_of(client: Client | None, secret: str) -> bool:
    """Whether it is; takes some 40 ms of a CPU, without Python's lock, whether or not there is such a client."""
    _, cost, block, parallel, salt, digest = (client.secret if client else NOBODY).split("$")
    found = _scrypt(secret, base64.b64decode(salt), int(cost), int(block), int(parallel))
    return hmac.compare_digest(found, base64.b64decode(digest)) and client is not None


@contextmanager
def _changing(path: Path) -> Iterator[dict[str, Client]]:
    """The clients in the file, which has what becomes of them when the block ends well; one changes it at a time."""
    with path.with_suffix(".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        clients = read_clients(path) if path.exists() else {}
        yield clients
        staged = path.with_suffix(".new")
        staged.unlink(missing_ok=True)  # SECURITY: one that was left behind may be for others to read
        staged.touch(mode=0o600)
        with staged.open("wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(list(clients.values()))) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        staged.replace(path)


def _scrypt(secret: str, salt: bytes, cost: int, block: int, parallel: int) -> bytes:
    return hashlib.scrypt(secret.encode(), salt=salt, n=cost, r=block, p=parallel, maxmem=256 << 20, dklen=DIGEST_BYTES)
