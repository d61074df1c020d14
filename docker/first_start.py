"""What a first start needs and no image may carry: a development CA, the server's certificate, and secrets.

    ca/       ca.key, ca.crt                    who signs
    tls/      server.key, server.crt, ca.crt    what NGINX presents, and what clients check that with
    secrets/  signing_keys/*.pem, clients.json    by what the API issues access tokens, and to whom
              demo_client_secret
    redis/    passwords, and lists of users for both Redis
    grafana/  admin_password

What is there already is kept, so that files of your own take the place of these. It may run again, and twice at once.
"""

import argparse
import base64
import fcntl
import hashlib
import ipaddress
import json
import os
import re
import secrets
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
PRIVATE, PUBLIC, SHARED = 0o600, 0o644, 0o444
CA_LIFETIME = timedelta(days=3650)
# Mozilla's recommendation: https://wiki.mozilla.org/Security/Server_Side_TLS
SERVER_LIFETIME = timedelta(days=90)
WARN_BEFORE = timedelta(days=30)
BACKDATED = timedelta(hours=1)  # clocks differ
DNS_NAME = re.compile(r"(\*\.)?[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")


# SECURITY: what Redis lets each of its users do, https://redis.io/docs/latest/operate/oss_and_stack/management/security/acl
REDIS_RIGHTS = {
    "cache": "resetchannels ~c:* ~cl:* ~q:* -@all +get +set +del +incrby +decrby +pttl +pexpire +ping",
    "queue": "resetchannels &rq:* ~rq:* +@all -@admin -@dangerous +info +client|list",
}
DEMO_SCOPES = ["predict", "jobs", "models:read"]
MONITOR_RIGHTS = "resetchannels -@all +ping +info +config|get +slowlog|get +slowlog|len +latency|latest +client|setname"


class Refused(Exception):
    """What is there is not what it should be, and only its owner can tell what to do."""


class Pair(NamedTuple):
    key: Key
    certificate: x509.Certificate


def main(arguments: list[str] | None = None) -> str | None:
    options = _options(arguments)
    try:
        _first_start(options)
    except (Refused, OSError) as error:
        return f"first start: {error}"  # sys.exit prints a string and exits with 1
    return None


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for folder in ("ca", "tls", "secrets"):
        parser.add_argument(f"--{folder}", type=Path, required=True, metavar="DIR")
    parser.add_argument("--redis", type=Path, metavar="DIR", help="for the users of both Redis and their passwords")
    parser.add_argument(
        "--grafana", type=Path, metavar="DIR", help="for the password of Grafana's admin, if there is one"
    )
    parser.add_argument("--name", type=_name, action="append", default=[], help="that clients call; may be repeated")
    parser.add_argument("--renew-certificate", action="store_true", help="a new server.crt for the same key and names")
    return parser.parse_args(arguments)


def _name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        if DNS_NAME.fullmatch(text.lower()):
            return x509.DNSName(text.lower())
    raise argparse.ArgumentTypeError(f"expected a DNS name or an IP address, got {text!r}")


def _first_start(options: argparse.Namespace) -> None:
    for folder in (options.ca, options.tls, options.secrets):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _opened(options.ca) as lock:
        # Of two first starts at once the second waits, and then finds everything made.
        fcntl.flock(lock, fcntl.LOCK_EX)
        ca = _ensure_pair(options.ca / "ca", _ca_certificate)
        server = _ensure_server(options.tls / "server", ca, options.name, renew=options.renew_certificate)
        if _is_issued_by(server, ca.certificate):
            _ensure(options.tls / "ca.crt", lambda: _pem(ca.certificate), PUBLIC)
        _ensure_issuer(options.secrets)
        if options.redis:
            _ensure_redis(options.redis)
        if options.grafana:
            options.grafana.mkdir(parents=True, exist_ok=True)
            # For another user to read: nobody else has this folder.
            _ensure(options.grafana / "admin_password", _random, SHARED)
    _warn(options.ca / "ca.crt", ca.certificate, [])
    _warn(options.tls / "server.crt", server, options.name)


def _ensure_issuer(folder: Path) -> None:
    """A key to sign access tokens with, unless there is one of whatever name; and a client to try the API with."""
    keys, secret, clients = folder / "signing_keys", folder / "demo_client_secret", folder / "clients.json"
    keys.mkdir(mode=0o700, exist_ok=True)
    for key in sorted(keys.glob("*.pem")) or [keys / "first.pem"]:
        _ensure(key, lambda: _private_pem(_new_key()))
    # Beside a list of clients it is kept, but not made: none of them would have it.
    if secret.exists() or not clients.exists():
        _ensure(secret, _random)
    _ensure(clients, lambda: _demo_client(secret.read_text().strip()))


def _demo_client(secret: str) -> bytes:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    demo = {"id": "demo", "secret": _slow_hash(secret), "scopes": DEMO_SCOPES, "created": now}
    return json.dumps([demo], indent=2).encode()


def _slow_hash(secret: str) -> str:
    """As access_control/clients.py, which is not in the image that this is for, reads it."""
    salt = secrets.token_bytes(16)
    digest = hashlib.scrypt(secret.encode(), salt=salt, n=1 << 14, r=8, p=1, dklen=32)
    return "$".join(["scrypt", "16384", "8", "1", *(base64.b64encode(part).decode() for part in (salt, digest))])


def _ensure_redis(folder: Path) -> None:
    """Passwords for who asks, lists of users with their hashes for Redis, and the exporter's own list of passwords."""
    folder.mkdir(parents=True, exist_ok=True)
    passwords = {}
    for name in ("cache", "queue", "monitor"):
        path = folder / f"{name}_password"
        _ensure(path, _random)
        passwords[name] = path.read_text()
    for name, rights in REDIS_RIGHTS.items():
        rules = {"default": "off", name: f"on {_hash(passwords[name])} {rights}"}
        rules["monitor"] = f"on {_hash(passwords['monitor'])} {MONITOR_RIGHTS}"
        text = "".join(f"user {user} {rule}\n" for user, rule in rules.items())
        _ensure(folder / f"{name}.acl", text.encode, SHARED)
    addresses = [f"redis://monitor@redis-{name}:6379" for name in REDIS_RIGHTS]
    exporter = json.dumps(dict.fromkeys(addresses, passwords["monitor"]))
    _ensure(folder / "exporter.json", exporter.encode, SHARED)


def _hash(password: str) -> str:
    return f"#{hashlib.sha256(password.encode()).hexdigest()}"


def _random() -> bytes:
    return secrets.token_urlsafe(32).encode()


def _ensure(path: Path, content: Callable[[], bytes], mode: int = PRIVATE) -> None:
    if path.exists():
        return _say("kept", path)
    _write(path, content(), mode)
    return _say("made", path)


def _ensure_pair(stem: Path, certify: Callable[[ec.EllipticCurvePrivateKey], x509.Certificate]) -> Pair:
    pair, files, done = _read_pair(stem), _files(stem), "kept"
    if pair is None:
        key = _new_key()
        pair, done = Pair(key, certify(key)), "made"
        _write(files[0], _private_pem(key), PRIVATE)
        _write(files[1], _pem(pair.certificate), PUBLIC)
    for path in files:
        _say(done, path)
    return pair


def _ensure_server(stem: Path, ca: Pair, names: list[x509.GeneralName], *, renew: bool) -> x509.Certificate:
    wanted = [*map(_name, ("localhost", "127.0.0.1", "::1")), *names]
    pair = _read_pair(stem) if renew else None
    if pair is not None:
        return _renew(stem, ca, pair.certificate, wanted)
    return _ensure_pair(stem, lambda key: _server_certificate(ca, key.public_key(), wanted)).certificate


def _renew(stem: Path, ca: Pair, old: x509.Certificate, names: list[x509.GeneralName]) -> x509.Certificate:
    key, certificate = _files(stem)
    if not _is_issued_by(old, ca.certificate):
        found = old.issuer.rfc4514_string()
        raise Refused(f"{certificate}: expected one that our CA issued, found one of {found!r}; renew it there")
    new = _server_certificate(ca, old.public_key(), [*_names(old), *names])
    # NOTE: for the same key, so that whoever reads both files has two that match, whenever that is.
    _write(certificate, _pem(new), PUBLIC, replace=True)
    _say("kept", key)
    _say("renewed", certificate)
    return new


def _files(stem: Path) -> tuple[Path, Path]:
    return stem.with_suffix(".key"), stem.with_suffix(".crt")


def _read_pair(stem: Path) -> Pair | None:
    """What the two files hold if they belong together, None if neither is there."""
    files = _files(stem)
    there = [path for path in files if path.exists()]
    if not there:
        return None
    for path in set(files) - set(there):
        raise Refused(f"{path}: expected it beside {there[0]}, found none; add it, or remove the other for a new pair")
    pair = _load_pair(*files)
    if pair.key.public_key() != pair.certificate.public_key():
        raise Refused(f"{files[1]}: expected a certificate for the key in {files[0]}, found one for another key")
    return pair


def _load_pair(key_file: Path, certificate_file: Path) -> Pair:
    path = key_file
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
        path = certificate_file
        certificate = x509.load_pem_x509_certificates(path.read_bytes())[0]  # of a chain, the first is the server's own
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise Refused(f"{path}: expected PEM that needs no password, found something else: {error}") from None
    if not isinstance(key, Key):
        raise Refused(f"{key_file}: expected a key for EC or RSA, found {type(key).__name__}")
    return Pair(key, certificate)


def _write(path: Path, content: bytes, mode: int, *, replace: bool = False) -> None:
    """All of it or nothing, durably, and over nothing that is there unless `replace` is set."""
    # Beside it, because a name moves at once within a file system only; nobody else may look into this folder.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".first-start-") as staging:
        staged = Path(staging) / path.name
        with staged.open("xb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            staged.replace(path)
        else:
            path.hardlink_to(staged)  # fails where a rename would overwrite
    with _opened(path.parent) as folder:
        os.fsync(folder)


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)


def _ca_certificate(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    # The number tells one from the next in the lists of what a machine trusts.
    name = x509.Name.from_rfc4514_string(f"CN=Tiercel development CA {secrets.token_hex(4)}")
    return _builder(name, name, key.public_key(), CA_LIFETIME, is_ca=True).sign(key, SHA256())


def _server_certificate(ca: Pair, key: CertificatePublicKeyTypes, names: list[x509.GeneralName]) -> x509.Certificate:
    """The whole chain: the CA that issues it is the root, which clients have and servers do not send."""
    name = x509.Name.from_rfc4514_string("CN=Tiercel")
    builder = _builder(ca.certificate.subject, name, key, SERVER_LIFETIME, is_ca=False)
    builder = builder.add_extension(x509.SubjectAlternativeName(dict.fromkeys(names)), critical=False)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    for extension in ca.certificate.extensions:
        if isinstance(extension.value, x509.SubjectKeyIdentifier):
            authority = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(extension.value)
            builder = builder.add_extension(authority, critical=False)
    return builder.sign(ca.key, SHA256())


def _builder(
    issuer: x509.Name, subject: x509.Name, key: CertificatePublicKeyTypes, lifetime: timedelta, *, is_ca: bool
) -> x509.CertificateBuilder:
    start = datetime.now(UTC) - BACKDATED
    builder = x509.CertificateBuilder(issuer, subject, key, x509.random_serial_number(), start, start + lifetime)
    # Of the nine uses, the first is to sign handshakes and the sixth to sign certificates.
    uses = x509.KeyUsage(not is_ca, False, False, False, False, is_ca, False, False, False)
    builder = builder.add_extension(uses, critical=True)
    builder = builder.add_extension(x509.BasicConstraints(ca=is_ca, path_length=0 if is_ca else None), critical=True)
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)


def _is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, TypeError, ValueError):
        return False
    return True


def _warn(path: Path, certificate: x509.Certificate, names: list[x509.GeneralName]) -> None:
    end = certificate.not_valid_after_utc
    if end - datetime.now(UTC) < WARN_BEFORE:
        _say("warning", f"{path}: expected {WARN_BEFORE.days} days or more to go, found that it ends on {end:%Y-%m-%d}")
    found = [str(name.value) for name in _names(certificate)]
    for name in (str(name.value) for name in names):
        if name not in found and f"*.{name.partition('.')[2]}" not in found:
            _say("warning", f"{path}: expected the name {name}, found {', '.join(found) or 'none'}")


def _names(certificate: x509.Certificate) -> list[x509.GeneralName]:
    found = [extension.value for extension in certificate.extensions]
    return [name for value in found if isinstance(value, x509.SubjectAlternativeName) for name in value]


def _say(done: str, what: Path | str) -> None:
    print(f"{done:8}{what}")


if __name__ == "__main__":
    sys.exit(main())
