"""The keys of an outside issuer, such as an OpenID Connect provider: a JSON Web Key Set (RFC 7517) by URL or in a file.

A thread of each process keeps them up to date, beside the road of requests. The processes of a server share what was
fetched, in a folder, and when: so there is one fetch for all, an unknown key's id causes one in 30 s at most, and an
issuer that is away, even while we start, is none for a day.
"""

import fcntl
import hashlib
import random
import re
import threading
import time
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jwt
import msgspec
import structlog
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from access_control.tokens import KEY_ID, Key, Trusted

KEY_ID_FORM = re.compile(KEY_ID)
MAX_SET_BYTES = 256 << 10
MAX_KEYS = 64
MIN_RSA_BITS, MIN_RSA_EXPONENT = 2048, 65537
FETCH_SECONDS = 2.0
REFRESH_SECONDS, JITTER = 300.0, 0.1
# A file is looked at this often, which costs nothing.
REREAD_SECONDS = 2.0
# At most one fetch in this time because of unknown keys; and one until there are any at all.
MIN_FETCH_SECONDS, FIRST_FETCH_SECONDS = 30.0, 5.0
PAUSE_SECONDS = 1.0
MAX_AGE_SECONDS = 24 * 3600.0

log = structlog.get_logger()


class JwkSet(msgspec.Struct):
    keys: list[dict[str, Any]]


class JwksError(Exception):
    pass


class OutsideIssuer:
    """Tokens by the keys at `location`, an https URL or the path of a file; `folder` is shared by the processes."""

    def __init__(self, location: str, algorithms: Iterable[str], folder: Path) -> None:
        self._location = location
        self._is_remote = "://" in location
        self._algorithms = frozenset(algorithms)
        # SECURITY: of this issuer alone: who changes to another may have stopped trusting the last one.
        stem = f"jwks-{hashlib.sha256(location.encode()).hexdigest()[:16]}"
        self._cache, self._lock = folder / f"{stem}.json", folder / f"{stem}.lock"
        self._wanted = threading.Event()
        self._read_at = 0
        self.trusted: Trusted | None = None

    def start(self) -> None:
        self._refresh(REFRESH_SECONDS)
        threading.Thread(target=self._keep_up_to_date, name="jwks", daemon=True).start()

    def look_for_keys(self) -> None:
        self._wanted.set()

    def _keep_up_to_date(self) -> None:
        while True:
            seconds = REFRESH_SECONDS * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311  # not all at once
            wanted = self._wanted.wait(seconds if self._is_remote and self.trusted else REREAD_SECONDS)
            self._wanted.clear()
            if not self.trusted:
                self._refresh(FIRST_FETCH_SECONDS)
            else:
                self._refresh(MIN_FETCH_SECONDS if wanted else (1 - 2 * JITTER) * REFRESH_SECONDS)
            time.sleep(PAUSE_SECONDS)  # however many unknown keys are named meanwhile

    def _refresh(self, max_age: float) -> None:
        """Fetch what was fetched more than `max_age` seconds ago, by whichever process; whatever fails, go on."""
        try:
            if self._is_remote:
                self._fetch_unless_recent(max_age)
                self._take(self._cache)
            else:
                self._take(Path(self._location))
        except Exception as error:  # whatever may come from outside, this thread goes on
            log.warning("keys of the issuer could not be read", source=self._location, reason=str(error))

    def _fetch_unless_recent(self, max_age: float) -> None:
        with self._lock.open("a+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            lock.seek(0)
            # It holds when there was an attempt, in seconds of the day; a clock that was set back is no reason to wait.
            if 0 <= time.time() - float(lock.read() or 0) < max_age:
                return
            lock.truncate(0)
            lock.write(f"{time.time():.3f}")
            lock.flush()
            try:
                text = _fetch(self._location)
                read_keys(text, self._algorithms)
            except Exception as error:  # also of http.client, and set on purpose; what was fetched last is still there
                log.warning("keys of the issuer could not be fetched", source=self._location, reason=str(error))
                return
            staged = self._cache.with_suffix(".new")
            staged.write_bytes(text)
            staged.replace(self._cache)

    def _take(self, path: Path) -> None:
        """What is in the file, unless that is what there is already; nothing once it is too old."""
        if self._is_remote and not path.exists():
            return
        status = path.stat()
        if self._is_remote and time.time() - status.st_mtime > MAX_AGE_SECONDS:
            self.trusted = None
        elif status.st_mtime_ns != self._read_at:
            keys = read_keys(path.read_bytes(), self._algorithms)
            if self.trusted is None or keys != self.trusted.keys:
                log.info("keys of the issuer are known", source=self._location, keys=sorted(keys))
                self.trusted = Trusted(keys)
            self._read_at = status.st_mtime_ns


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """SECURITY: none is followed: the issuer is where the configuration says."""


def _fetch(url: str) -> bytes:
    opener, deadline = urllib.request.build_opener(_Redirects), time.monotonic() + FETCH_SECONDS
    text = b""
    with opener.open(url, timeout=FETCH_SECONDS) as response:
        while part := response.read1(1 << 16):  # as it comes: the timeout is for each part, and not for all
            text += part
            if len(text) > MAX_SET_BYTES:
                raise JwksError(f"expected at most {MAX_SET_BYTES} bytes, got more")
            if time.monotonic() > deadline:
                raise JwksError(f"expected all of it within {FETCH_SECONDS} s, got {len(text)} bytes")
    return text


def read_keys(text: bytes, algorithms: Iterable[str]) -> dict[str, Key]:
    """The keys of a set by which tokens can be verified; others may be there for other uses, and are left out."""
    found = msgspec.json.decode(text, type=JwkSet).keys
    if len(found) > MAX_KEYS:
        raise JwksError(f"expected at most {MAX_KEYS} keys, got {len(found)}")
    keys = {}
    for jwk in found:
        name, key = jwk.get("kid"), _key(jwk)
        if key and key.algorithm in algorithms and isinstance(name, str) and KEY_ID_FORM.fullmatch(name):
            keys[name] = key
    if not keys:
        raise JwksError(f"expected a key with an id for {' or '.join(sorted(algorithms))}, got none")
    return keys


def _key(jwk: dict[str, Any]) -> Key | None:
    try:
        if jwk.get("use", "sig") != "sig" or "verify" not in jwk.get("key_ops", ["verify"]) or jwk.get("kty") == "oct":
            return None
        public = jwt.PyJWK({name: value for name, value in jwk.items() if name != "d"}).key
    except (jwt.PyJWTError, TypeError, ValueError):
        return None
    algorithm = algorithm_of(public)
    return Key(algorithm, public) if algorithm and jwk.get("alg", algorithm) == algorithm else None


def algorithm_of(key: Any) -> str | None:
    """The algorithm that a public key is for here, None if it is too weak or of another kind."""
    if isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1):
        return "ES256"
    if isinstance(key, Ed25519PublicKey):
        return "EdDSA"
    if isinstance(key, RSAPublicKey) and key.key_size >= MIN_RSA_BITS and key.public_numbers().e >= MIN_RSA_EXPONENT:
        return "RS256"
    return None
