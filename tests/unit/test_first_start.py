import base64
import fcntl
import hashlib
import importlib.util
import json
import os
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
import rq
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from redis import Redis
from redis.exceptions import AuthenticationError, NoPermissionError
from rq.serializers import JSONSerializer
from servers import wait_until

from access_control.clients import Client, add_client, is_secret_of, read_clients, revoke_client
from inference_api.serve import _redis_program

SCRIPT = Path(__file__).parents[2] / "docker" / "first_start.py"
SPEC = importlib.util.spec_from_file_location("first_start", SCRIPT)
first_start = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(first_start)

FILES = [
    "ca/ca.key",
    "ca/ca.crt",
    "tls/server.key",
    "tls/server.crt",
    "tls/ca.crt",
    "secrets/signing_keys/first.pem",
    "secrets/demo_client_secret",
    "secrets/clients.json",
]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths in these tests, and in what is printed, are relative."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def start(capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """Run it with further arguments, and get its lines; fails where it fails."""

    def start(*arguments: str) -> list[str]:
        assert first_start.main(options(*arguments)) is None
        return capsys.readouterr().out.splitlines()

    return start


def options(*more: str) -> list[str]:
    return ["--ca", "ca", "--tls", "tls", "--secrets", "secrets", *more]


def contents() -> dict[str, bytes]:
    return {path.as_posix(): path.read_bytes() for path in Path().rglob("*") if path.is_file()}


def changed(before: dict[str, bytes]) -> set[str]:
    return {name for name, content in contents().items() if before.get(name) != content} | (before.keys() - contents())


def certificate(path: str = "tls/server.crt") -> x509.Certificate:
    return x509.load_pem_x509_certificate(Path(path).read_bytes())


def value(of: x509.Certificate, kind: type[x509.ExtensionType]) -> x509.ExtensionType:
    return of.extensions.get_extension_for_class(kind).value


def names(of: x509.Certificate) -> list[str]:
    return [str(name.value) for name in value(of, x509.SubjectAlternativeName)]


def shake_hands(name: str, trusted: str = "tls/ca.crt") -> None:
    """A client that trusts `trusted` connects to `name`, with every check that OpenSSL has; raises ssl.SSLError."""
    client = ssl.create_default_context(cafile=trusted)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain("tls/server.crt", "tls/server.key")
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    while ends:
        for end in list(ends):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            ends.remove(end)


def write_key(path: str, key: ec.EllipticCurvePrivateKey, encryption: KeySerializationEncryption | None = None) -> None:
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption()))


def write_own(
    stem: str, *dns: str, days: float = 365, key: object = None, extensions: tuple[x509.ExtensionType, ...] = ()
) -> None:
    """A certificate of the user's own with its key: signed by itself, for `dns`, and good for `days` more."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    name = x509.Name.from_rfc4514_string("CN=Example")
    end = datetime.now(UTC) + timedelta(days=days)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, end - timedelta(days=400), end)
    for extension in (x509.SubjectAlternativeName(map(x509.DNSName, dns)), *extensions) if dns else extensions:
        builder = builder.add_extension(extension, critical=False)
    write_key(f"{stem}.key", key)
    Path(f"{stem}.crt").write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))


def test_the_first_start_makes_everything(start: Callable[..., list[str]]) -> None:
    """One line says of each file that it is made, and nothing else is left behind."""
    assert start() == [f"made    {name}" for name in FILES]
    assert sorted(contents()) == sorted(FILES)
    assert {path.name for path in Path().rglob("*") if path.is_dir()} == {"ca", "tls", "secrets", "signing_keys"}


def test_the_next_start_keeps_everything(start: Callable[..., list[str]]) -> None:
    """Started again, it touches no file and says so."""
    start()
    before = contents()
    assert start() == [f"kept    {name}" for name in FILES]
    assert changed(before) == set()


@pytest.mark.parametrize("lost", ["tls/ca.crt", "secrets/signing_keys/first.pem", "secrets/clients.json"])
def test_what_stands_alone_is_made_again(start: Callable[..., list[str]], lost: str) -> None:
    """A file that belongs to no pair is made where it is missing, and the others are kept."""
    start()
    before = contents()
    Path(lost).unlink()
    assert start() == [f"{'made' if name == lost else 'kept':8}{name}" for name in FILES]
    assert changed(before) <= {lost}


@pytest.mark.parametrize("umask", [0, 0o077])
def test_only_certificates_are_for_others_to_read(start: Callable[..., list[str]], umask: int) -> None:
    """Keys, secrets and new folders are for their owner alone, whatever the umask."""
    previous = os.umask(umask)
    try:
        start()
    finally:
        os.umask(previous)
    assert {name for name in FILES if Path(name).stat().st_mode & 0o777 == 0o644} == {n for n in FILES if ".crt" in n}
    assert {Path(name).stat().st_mode & 0o777 for name in FILES if ".crt" not in name} == {0o600}
    assert {Path(name).stat().st_mode & 0o777 for name in ("ca", "tls", "secrets", "secrets/signing_keys")} == {0o700}


def test_a_folder_that_is_there_keeps_its_mode(start: Callable[..., list[str]]) -> None:
    """Who made the folder has decided who may look into it."""
    Path("tls").mkdir()
    Path("tls").chmod(0o750)
    start()
    assert Path("tls").stat().st_mode & 0o777 == 0o750


def test_grafana_gets_a_password_that_its_own_user_can_read(start: Callable[..., list[str]]) -> None:
    """It is another user, and sees this folder only."""
    assert start("--grafana", "grafana")[-1] == "made    grafana/admin_password"
    password = Path("grafana/admin_password")
    assert (password.stat().st_mode & 0o777, password.parent.stat().st_mode & 0o777) == (0o444, 0o755)
    assert len(password.read_bytes()) == 43
    assert start("--grafana", "grafana")[-1] == "kept    grafana/admin_password"


def test_both_redis_get_users_whose_passwords_are_in_files(start: Callable[..., list[str]]) -> None:
    """Redis itself sees hashes only; who asks it has the password, and nobody may do without."""
    start("--redis", "redis")
    for name in ("cache", "queue"):
        password = Path(f"redis/{name}_password")
        assert password.stat().st_mode & 0o777 == 0o600
        users = Path(f"redis/{name}.acl").read_text()
        assert hashlib.sha256(password.read_bytes()).hexdigest() in users
        assert password.read_text() not in users
        assert "user default off\n" in users
    exporter = json.loads(Path("redis/exporter.json").read_text())
    assert set(exporter.values()) == {Path("redis/monitor_password").read_text()}
    before = contents()
    start("--redis", "redis")
    assert not changed(before)


@pytest.fixture
def redis_with_users(start: Callable[..., list[str]], tmp_path: Path) -> Iterator[Callable[[str], Redis]]:
    """A client of each user, of a Redis with the rights that `name` has."""
    start("--redis", "redis")
    started, clients = [], []

    def connect(name: str, user: str = "", instance: str = "") -> Redis:
        path = tmp_path / f"{instance or name}.sock"
        if not path.exists():
            command = [_redis_program(), "--port", "0", "--unixsocket", str(path), "--save", ""]
            acl = tmp_path / f"redis/{instance or name}.acl"
            started.append(subprocess.Popen([*command, "--aclfile", str(acl)], stdout=subprocess.DEVNULL))
            wait_until(path.is_socket, "Redis has started")
        password = (tmp_path / f"redis/{user or name}_password").read_text()
        clients.append(Redis(unix_socket_path=str(path), username=user or name, password=password, protocol=2))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()
    for process in started:
        process.terminate()
        process.wait()


def test_the_cache_may_do_what_the_cache_does_and_no_more(redis_with_users: Callable[..., Redis]) -> None:
    cache = redis_with_users("cache")
    assert cache.set("c:1", b"x", px=1000)
    assert cache.get("c:1") == b"x"
    assert cache.set("cl:1", b"", nx=True, px=1000)
    assert cache.incrby("q:default:me", 2) == 2
    assert cache.pttl("q:default:me") == -1
    cache.delete("c:1", "cl:1")
    for forbidden in (
        lambda: cache.get("other"),
        lambda: cache.set("rq:job:1", b""),
        cache.flushall,
        lambda: cache.config_get("*"),
        lambda: cache.keys("*"),
        lambda: cache.eval("return 1", 0),
        lambda: cache.execute_command("RESTORE", "c:1", 0, b""),
    ):
        with pytest.raises(NoPermissionError):
            forbidden()


def test_the_queue_may_do_what_rq_does_and_no_more(redis_with_users: Callable[..., Redis]) -> None:
    queue = redis_with_users("queue")
    job = rq.Queue("jobs", connection=queue, serializer=JSONSerializer).enqueue("builtins.len", [1, 2])
    rq.SimpleWorker(["jobs"], connection=queue, serializer=JSONSerializer).work(burst=True)
    assert job.return_value() == 2
    for forbidden in (lambda: queue.get("c:1"), queue.flushall, lambda: queue.config_set("maxmemory", 1)):
        with pytest.raises(NoPermissionError):
            forbidden()


def test_the_monitor_may_look_and_nothing_else(redis_with_users: Callable[..., Redis]) -> None:
    monitor = redis_with_users("monitor", "monitor", "cache")
    assert monitor.info()["redis_version"]
    for forbidden in (lambda: monitor.get("c:1"), lambda: monitor.config_set("maxmemory", 1), monitor.acl_list):
        with pytest.raises(NoPermissionError):
            forbidden()


def test_nobody_else_may_do_anything(redis_with_users: Callable[..., Redis], tmp_path: Path) -> None:
    redis_with_users("cache").ping()
    with Redis(unix_socket_path=str(tmp_path / "cache.sock"), protocol=2) as nobody, pytest.raises(AuthenticationError):
        nobody.ping()


def test_no_secret_is_printed(start: Callable[..., list[str]]) -> None:
    """Output ends up in logs."""
    printed = "\n".join([*start(), *start("--renew-certificate")])
    assert Path("secrets/demo_client_secret").read_text() not in printed
    assert "BEGIN" not in printed


def test_clients_accept_the_server_by_each_of_its_names(start: Callable[..., list[str]]) -> None:
    """Who trusts ca.crt connects to the given names and to this machine's own, and to no other."""
    start("--name", "API.example", "--name", "10.1.2.3", "--name", "*.pets.example", "--name", "localhost")
    assert names(certificate()) == ["localhost", "127.0.0.1", "::1", "api.example", "10.1.2.3", "*.pets.example"]
    for name in ("localhost", "127.0.0.1", "::1", "api.example", "10.1.2.3", "cat.pets.example"):
        shake_hands(name)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shake_hands("other.example")


def test_the_server_certificate_is_short_lived_and_for_servers(start: Callable[..., list[str]]) -> None:
    """90 days, for TLS servers only, on P-256, valid at once even for a client whose clock is slow."""
    start()
    made = certificate()
    assert made.not_valid_after_utc - made.not_valid_before_utc == timedelta(days=90)
    assert made.not_valid_before_utc < datetime.now(UTC) - timedelta(minutes=50)
    assert list(value(made, x509.ExtendedKeyUsage)) == [x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]
    assert value(made, x509.BasicConstraints).ca is False
    assert made.public_key().curve.name == "secp256r1"


def test_the_ca_signs_certificates_of_servers_and_nothing_else(start: Callable[..., list[str]]) -> None:
    """Ten years, no CA below it, on P-256; clients get a copy."""
    start()
    made = certificate("ca/ca.crt")
    assert made.not_valid_after_utc - made.not_valid_before_utc == timedelta(days=3650)
    assert value(made, x509.BasicConstraints) == x509.BasicConstraints(ca=True, path_length=0)
    usage = value(made, x509.KeyUsage)
    assert (usage.key_cert_sign, usage.digital_signature, usage.crl_sign) == (True, False, False)
    assert made.public_key().curve.name == "secp256r1"
    assert certificate("tls/ca.crt") == made


def test_the_token_key_is_for_es256(start: Callable[..., list[str]]) -> None:
    """A private key on P-256, in PKCS8."""
    start()
    pem = Path("secrets/signing_keys/first.pem").read_bytes()
    assert pem.startswith(b"-----BEGIN PRIVATE KEY-----\n")
    assert load_pem_private_key(pem, None).curve.name == "secp256r1"


def test_a_token_key_of_any_name_is_enough(start: Callable[..., list[str]]) -> None:
    """Keys are changed by adding one and removing another: the one that was removed must not come back."""
    start()
    Path("secrets/signing_keys/first.pem").rename("secrets/signing_keys/2027.pem")
    before = contents()
    assert "kept    secrets/signing_keys/2027.pem" in start()
    assert changed(before) == set()


def test_the_client_secret_cannot_be_guessed(start: Callable[..., list[str]]) -> None:
    """32 random bytes as text that needs no escaping, without a line break that readers would have to strip."""
    start()
    secret = Path("secrets/demo_client_secret").read_text()
    assert len(base64.urlsafe_b64decode(secret + "=")) == 32
    for name in ("demo_client_secret", "clients.json"):
        Path("secrets", name).unlink()
    start()
    assert Path("secrets/demo_client_secret").read_text() != secret


def demo_client() -> Client:
    return read_clients(Path("secrets/clients.json"))["demo"]


def test_the_api_knows_the_demo_client_by_its_secret(start: Callable[..., list[str]]) -> None:
    """It may do what does no harm; of the secret there is nothing but a slow hash."""
    start()
    secret = Path("secrets/demo_client_secret").read_text()
    assert is_secret_of(demo_client(), secret)
    assert not is_secret_of(demo_client(), secret[:-1])
    assert "models:admin" not in demo_client().scopes
    assert secret not in Path("secrets/clients.json").read_text()


def test_the_list_of_clients_is_made_for_the_secret_that_is_there(start: Callable[..., list[str]]) -> None:
    """Be it one's own, with the end of its line; or that of a first start that was killed between the two."""
    Path("secrets").mkdir()
    Path("secrets/demo_client_secret").write_text("of my own\n")
    start()
    assert is_secret_of(demo_client(), "of my own")
    assert Path("secrets/demo_client_secret").read_text() == "of my own\n"


def test_a_list_of_clients_is_kept_whoever_is_in_it(start: Callable[..., list[str]]) -> None:
    """Neither the demo client nor a secret for it comes back once it has been revoked."""
    start()
    add_client(Path("secrets/clients.json"), "shop", ("predict",))
    revoke_client(Path("secrets/clients.json"), "demo")
    Path("secrets/demo_client_secret").unlink()
    before = contents()
    assert start()[-1] == "kept    secrets/clients.json"
    assert changed(before) == set()


@pytest.mark.parametrize(
    ("lost", "other"),
    [
        ("ca/ca.key", "ca/ca.crt"),
        ("ca/ca.crt", "ca/ca.key"),
        ("tls/server.key", "tls/server.crt"),
        ("tls/server.crt", "tls/server.key"),
    ],
)
@pytest.mark.parametrize("arguments", [[], ["--renew-certificate"]])
def test_half_a_pair_stops_it(start: Callable[..., list[str]], lost: str, other: str, arguments: list[str]) -> None:
    """A key without its certificate, or the reverse, is for its owner to mend; nothing is changed."""
    start()
    Path(lost).unlink()
    before = contents()
    assert first_start.main(options(*arguments)) == (
        f"first start: {lost}: expected it beside {other}, found none; add it, or remove the other for a new pair"
    )
    assert changed(before) == set()


@pytest.mark.parametrize("stem", ["ca/ca", "tls/server"])
def test_a_pair_that_does_not_match_stops_it(start: Callable[..., list[str]], stem: str) -> None:
    """A certificate for another key is nothing that a server could present."""
    start()
    write_key(f"{stem}.key", ec.generate_private_key(ec.SECP256R1()))
    assert first_start.main(options()) == (
        f"first start: {stem}.crt: expected a certificate for the key in {stem}.key, found one for another key"
    )


@pytest.mark.parametrize("name", ["ca/ca.key", "tls/server.crt"])
@pytest.mark.parametrize(
    "content", [b"", b"not PEM", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
)
def test_a_damaged_file_stops_it(start: Callable[..., list[str]], name: str, content: bytes) -> None:
    """What is no key or no certificate is named, and kept."""
    start()
    Path(name).write_bytes(content)
    before = contents()
    expected = f"first start: {name}: expected PEM that needs no password, found something else: "
    assert first_start.main(options()).startswith(expected)
    assert changed(before) == set()


def test_a_key_behind_a_password_stops_it(start: Callable[..., list[str]]) -> None:
    """Nobody is there to type it when the server starts."""
    start()
    key = load_pem_private_key(Path("tls/server.key").read_bytes(), None)
    write_key("tls/server.key", key, BestAvailableEncryption(b"secret"))
    assert first_start.main(options()) == (
        "first start: tls/server.key: expected PEM that needs no password, found something else: "
        "Password was not given but private key is encrypted"
    )


def test_a_key_of_a_rare_kind_stops_it() -> None:
    """Certificates are signed with EC or RSA, as clients understand these."""
    write_own("ca/ca")
    write_key("ca/ca.key", ed25519.Ed25519PrivateKey.generate())
    assert first_start.main(options()) == (
        "first start: ca/ca.key: expected a key for EC or RSA, found Ed25519PrivateKey"
    )


def test_a_folder_that_cannot_be_made_stops_it() -> None:
    """What the system says is passed on with the path."""
    Path("tls").touch()
    assert first_start.main(options()) == "first start: [Errno 17] File exists: 'tls'"


def test_a_name_that_leads_nowhere_is_not_replaced() -> None:
    """A link to a file on a volume that is not mounted looks like nothing, and is somebody's all the same."""
    Path("tls").mkdir()
    Path("tls/server.key").symlink_to("/nowhere/server.key")
    assert "File exists: " in first_start.main(options())
    assert Path("tls/server.key").readlink() == Path("/nowhere/server.key")
    assert [path.name for path in Path("tls").iterdir()] == ["server.key"]


def test_a_certificate_of_ones_own_is_kept(start: Callable[..., list[str]]) -> None:
    """It comes first in its file, intermediates may follow; our ca.crt, which is not its issuer's, is kept away."""
    write_own("tls/server", "api.example")
    with Path("tls/server.crt").open("ab") as file:
        write_own("intermediate")
        file.write(Path("intermediate.crt").read_bytes())
    before = contents()
    assert start("--name", "api.example") == [
        f"{'kept' if 'server' in name else 'made':8}{name}" for name in FILES if name != "tls/ca.crt"
    ]
    assert changed(before) == {name for name in FILES if "tls" not in name}


def test_a_certificate_of_ones_own_is_not_renewed(start: Callable[..., list[str]]) -> None:
    """Clients that trust its issuer would not trust ours."""
    write_own("tls/server", "api.example")
    start()
    before = contents()
    assert first_start.main(options("--renew-certificate")) == (
        "first start: tls/server.crt: expected one that our CA issued, found one of 'CN=Example'; renew it there"
    )
    assert changed(before) == set()


def test_a_ca_of_ones_own_issues_the_certificate(start: Callable[..., list[str]]) -> None:
    """Also with an RSA key, which it calls what it likes."""
    extensions = (
        x509.BasicConstraints(ca=True, path_length=None),
        x509.SubjectKeyIdentifier(b"a name of its own"),
    )
    write_own("ca/ca", key=rsa.generate_private_key(65537, 2048), extensions=extensions)
    before = contents()
    assert start()[:3] == ["kept    ca/ca.key", "kept    ca/ca.crt", "made    tls/server.key"]
    assert changed(before) == set(FILES[2:])
    assert certificate().issuer == certificate("ca/ca.crt").subject
    assert value(certificate(), x509.AuthorityKeyIdentifier).key_identifier == b"a name of its own"
    certificate().verify_directly_issued_by(certificate("ca/ca.crt"))


def test_two_cas_are_told_apart(start: Callable[..., list[str]]) -> None:
    """A machine that trusted the last one lists both."""
    start()
    first = certificate("ca/ca.crt").subject
    for name in ("ca/ca.key", "ca/ca.crt"):
        Path(name).unlink()
    start()
    assert certificate("ca/ca.crt").subject != first


def test_renewal_replaces_the_certificate_only(start: Callable[..., list[str]]) -> None:
    """The key stays, so that no reader can find two that do not match; names are kept and may be added."""
    start("--name", "old.example")
    before, old = contents(), certificate()
    lines = start("--renew-certificate", "--name", "new.example")
    assert lines == [f"{'renewed' if name == 'tls/server.crt' else 'kept':8}{name}" for name in FILES]
    assert changed(before) == {"tls/server.crt"}
    assert certificate().serial_number != old.serial_number
    assert names(certificate()) == ["localhost", "127.0.0.1", "::1", "old.example", "new.example"]
    assert Path("tls/server.crt").stat().st_mode & 0o777 == 0o644
    shake_hands("new.example")


def test_renewal_gives_a_whole_lifetime(start: Callable[..., list[str]]) -> None:
    """A certificate that is about to end, or has ended, is renewed for 90 days without a warning."""
    start()
    ca_key = load_pem_private_key(Path("ca/ca.key").read_bytes(), None)
    old, end = certificate(), datetime.now(UTC) - timedelta(days=1)
    builder = x509.CertificateBuilder(
        old.issuer, old.subject, old.public_key(), 1, end - timedelta(days=90), end, [*old.extensions]
    )
    Path("tls/server.crt").write_bytes(builder.sign(ca_key, hashes.SHA256()).public_bytes(Encoding.PEM))
    assert [line for line in start() if "warning" in line] != []
    assert [line for line in start("--renew-certificate") if "warning" in line] == []
    assert certificate().not_valid_after_utc > datetime.now(UTC) + timedelta(days=89)


def test_renewal_is_one_step_for_who_reads_meanwhile(start: Callable[..., list[str]]) -> None:
    """A file that was opened before stays whole: another takes its name, none is written over."""
    start()
    old = Path("tls/server.crt").read_bytes()
    with Path("tls/server.crt").open("rb") as file:
        start("--renew-certificate")
        assert file.read() == old


def test_renewal_of_nothing_makes_it(start: Callable[..., list[str]]) -> None:
    """One command for both: what is not there cannot be out of date."""
    assert start("--renew-certificate") == [f"made    {name}" for name in FILES]


@pytest.mark.parametrize(("days", "warned"), [(-1, True), (29.9, True), (30.1, False)])
def test_the_end_of_the_certificate_is_announced(start: Callable[..., list[str]], days: float, warned: bool) -> None:
    """From 30 days before, in one line that names the day."""
    write_own("tls/server", "api.example", days=days)
    expected = (
        "warning tls/server.crt: expected 30 days or more to go, "
        f"found that it ends on {certificate().not_valid_after_utc:%Y-%m-%d}"
    )
    assert [line for line in start() if "warning" in line] == [expected] * warned


@pytest.mark.parametrize(
    ("present", "wanted", "found"),
    [
        (["api.example"], "api.example", None),
        (["*.example"], "api.example", None),
        (["*.example"], "v2.api.example", "*.example"),
        (["api.example", "www.example"], "other.example", "api.example, www.example"),
        (["api.example"], "10.1.2.3", "api.example"),
        ([], "api.example", "none"),
    ],
)
def test_a_name_that_the_certificate_lacks_is_announced(
    start: Callable[..., list[str]], present: list[str], wanted: str, found: str | None
) -> None:
    """Clients that call that name would refuse to connect; a wildcard stands for one label."""
    write_own("tls/server", *present)
    expected = [f"warning tls/server.crt: expected the name {wanted}, found {found}"] if found else []
    assert [line for line in start("--name", wanted) if "warning" in line] == expected


@pytest.mark.parametrize("name", ["", "https://api.example", "api.example:443", "a b", "a..b", "ä.example", "x" * 64])
def test_a_name_that_is_none_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is made."""
    with pytest.raises(SystemExit, match="2"):
        first_start.main(options("--name", name))
    assert f"argument --name: expected a DNS name or an IP address, got {name!r}" in capsys.readouterr().err
    assert contents() == {}


@pytest.fixture
def locked_ca() -> Iterator[Callable[[], None]]:
    """As if a first start were under way, until this is called."""
    Path("ca").mkdir()
    descriptor = os.open("ca", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield lambda: fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def test_of_two_at_once_one_makes_and_one_keeps(locked_ca: Callable[[], None]) -> None:
    """Both wait for a third to end, then race; either finds what the other made, and both succeed."""
    command = [sys.executable, str(SCRIPT), *options()]
    racers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    wait_until(lambda: {racer.pid for racer in racers} <= waiting_for_locks(), "both wait for the lock")
    assert contents() == {}
    locked_ca()
    outputs = [racer.communicate(timeout=20)[0].splitlines() for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0]
    assert sorted(outputs) == [[f"{done:8}{name}" for name in FILES] for done in ("kept", "made")]
    shake_hands("localhost")


def waiting_for_locks() -> set[int]:
    """The processes that wait for a lock that another has (proc_locks(5))."""
    lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return {int(fields[5]) for fields in lines if fields[1] == "->"}


def test_addresses_are_addresses_in_the_certificate(start: Callable[..., list[str]]) -> None:
    """Clients compare an address with addresses only (RFC 9525)."""
    start("--name", "2001:db8::1")
    addresses = value(certificate(), x509.SubjectAlternativeName).get_values_for_type(x509.IPAddress)
    assert addresses == [ip_address(text) for text in ("127.0.0.1", "::1", "2001:db8::1")]
