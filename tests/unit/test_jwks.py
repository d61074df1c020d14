"""The keys of an outside issuer: over HTTPS from a real server that may be down or lie, or from a file."""

import json
import os
import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa
from edge import make_certificate
from servers import wait_until
from structlog.testing import capture_logs
from tokens import ALGORITHMS, AUDIENCE, ISSUER, UNKNOWN, Signer, exponent_one, jwks, signer

from access_control import jwks as module
from access_control.jwks import (
    FIRST_FETCH_SECONDS,
    MAX_AGE_SECONDS,
    MAX_KEYS,
    MAX_SET_BYTES,
    MIN_FETCH_SECONDS,
    REFRESH_SECONDS,
    JwksError,
    OutsideIssuer,
    read_keys,
)
from access_control.tokens import Verifier
from inference_core.errors import Unauthenticated, Unavailable

OLD, NEW = signer("ES256"), signer("ES256", "next")
# The beginnings of long answers.
HEAD = "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"
CHUNKED = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def answer(body: bytes, status: str = "200 OK", *fields: str) -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *fields]
    return "\r\n".join([*head, "", ""]).encode() + body


class Provider(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """Where an issuer's keys are, over TLS: it sends `answer`, whatever that is, then closes if `closes`."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, tls: Path) -> None:
        super().__init__(("127.0.0.1", 0), _ProviderHandler)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(tls / "server.crt", tls / "server.key")
        self.answer = answer(jwks(OLD))
        # What it repeats for ever after its answer, and every so many seconds; nothing: it is silent.
        self.closes, self.drips = True, b""
        self.asked: list[str] = []
        self.ended = threading.Event()

    @property
    def url(self) -> str:
        return f"https://localhost:{self.server_address[1]}/jwks.json"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.ended.set()
        self.shutdown()
        self.server_close()

    def finish_request(self, request: Any, client_address: Any) -> None:
        try:
            with self._context.wrap_socket(request, server_side=True) as secured:
                super().finish_request(secured, client_address)
        except OSError:  # the client has gone, or does not trust us
            return


class _ProviderHandler(socketserver.StreamRequestHandler):
    server: Provider

    def handle(self) -> None:
        self.server.asked.append(self.rfile.readline().split()[1].decode())
        while self.rfile.readline().strip():
            pass
        self.wfile.write(self.server.answer)
        while not self.server.closes and not self.server.ended.wait(0.02):
            self.wfile.write(self.server.drips)


class Clock:
    """Time of the module, which stands still unless a test moves it; a pause of a thread counts, and is short."""

    def __init__(self) -> None:
        self.now = float(int(time.time()))
        self.pauses = self.parked = 0
        self.has_ended = False

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        self.pauses += 1
        if self.has_ended:
            self.parked += 1
            threading.Event().wait()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture
def provider(tls: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Provider]:
    monkeypatch.setenv("SSL_CERT_FILE", str(tls / "ca.crt"))
    with Provider(tls) as provider:
        yield provider


@pytest.fixture
def make(provider: Provider, clock: Clock, tmp_path: Path) -> Iterator[Callable[..., OutsideIssuer]]:
    """Who reads the provider's keys, as a process of its own would; no thread does so any more after the test."""
    made = []

    def make(location: str = provider.url, folder: Path = tmp_path) -> OutsideIssuer:
        made.append(OutsideIssuer(location, ALGORITHMS, folder))
        return made[-1]

    before = set(threading.enumerate())
    yield make
    clock.has_ended = True
    threads = [thread for thread in set(threading.enumerate()) - before if thread.name == "jwks"]

    def all_are_parked() -> bool:
        for issuer in made:
            issuer.look_for_keys()
        return clock.parked == len(threads)

    wait_until(all_are_parked, "nobody looks for keys")


def look(issuer: OutsideIssuer, clock: Clock | None = None) -> list[str]:
    """What its thread does every five minutes; returns the ids of the keys that are known then."""
    if clock:
        clock.now += REFRESH_SECONDS
    issuer._refresh(REFRESH_SECONDS)
    return sorted(issuer.trusted.keys) if issuer.trusted else []


def verifier(issuer: OutsideIssuer) -> Verifier:
    return Verifier(issuer, ISSUER, AUDIENCE, ALGORITHMS)


def test_tokens_are_verified_by_the_keys_that_are_fetched(provider: Provider, make: Callable[..., Any]) -> None:
    provider.answer = answer(jwks(*map(signer, ALGORITHMS)))
    issuer = make()
    assert look(issuer) == ["eddsa", "es256", "rs256"]
    for algorithm in ALGORITHMS:
        assert verifier(issuer).verify(signer(algorithm).token()).subject == "somebody"
    assert provider.asked == ["/jwks.json"]


def test_a_rotation_disturbs_nobody(provider: Provider, make: Callable[..., Any], clock: Clock) -> None:
    """While both keys are there the tokens of both are good; with the old key its tokens end."""
    issuer = make()
    look(issuer)
    verify = verifier(issuer).verify
    old, new = OLD.token(exp=clock.now + 9000), NEW.token(exp=clock.now + 9000)
    assert verify(old)
    with pytest.raises(Unauthenticated, match=UNKNOWN):
        verify(new)
    provider.answer = answer(jwks(OLD, NEW))
    assert look(issuer, clock) == ["es256", "next"]
    assert verify(old)
    assert verify(new)
    provider.answer = answer(jwks(NEW))
    assert look(issuer, clock) == ["next"]
    with pytest.raises(Unauthenticated, match=UNKNOWN):
        verify(old)
    assert verify(new)


def test_the_same_keys_again_change_nothing(provider: Provider, make: Callable[..., Any], clock: Clock) -> None:
    """What was remembered of tokens stays remembered."""
    issuer = make()
    look(issuer)
    known = issuer.trusted
    look(issuer, clock)
    assert len(provider.asked) == 2
    assert issuer.trusted is known


def test_processes_share_what_one_fetched(provider: Provider, make: Callable[..., Any], clock: Clock) -> None:
    issuers = [make() for _ in range(3)]
    assert [look(issuer) for issuer in issuers] == [["es256"]] * 3
    assert len(provider.asked) == 1
    clock.now += REFRESH_SECONDS
    provider.answer = answer(jwks(NEW))
    assert [look(issuer) for issuer in issuers] == [["next"]] * 3
    assert len(provider.asked) == 2


def test_processes_that_start_at_once_fetch_once(provider: Provider, make: Callable[..., Any]) -> None:
    issuers = [make() for _ in range(4)]
    threads = [threading.Thread(target=look, args=(issuer,)) for issuer in issuers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(issuer.trusted for issuer in issuers)
    assert len(provider.asked) == 1


def test_a_flood_of_unknown_keys_is_one_fetch_in_30_seconds(
    provider: Provider, make: Callable[..., Any], clock: Clock
) -> None:
    """Of all processes together, however many tokens name however many keys."""
    issuers = [make() for _ in range(3)]
    for issuer in issuers:
        issuer.start()
    assert len(provider.asked) == 1

    def flood_and(true: Callable[[], bool]) -> bool:
        for issuer in issuers:
            for number in range(10):
                with pytest.raises(Unauthenticated, match=UNKNOWN):
                    verifier(issuer).verify(signer("EdDSA", "attacker").token(jti=f"{number}"))
        return true()

    for seconds, fetched in ((MIN_FETCH_SECONDS - 0.1, 1), (0.1, 2), (MIN_FETCH_SECONDS, 3)):
        clock.now += seconds
        clock.pauses = 0
        wait_until(lambda: flood_and(lambda: clock.pauses > 30), "each has looked at least once")
        assert len(provider.asked) == fetched


def test_a_new_key_is_known_as_soon_as_a_token_names_it(
    provider: Provider, make: Callable[..., Any], clock: Clock
) -> None:
    """Not only after five minutes: 30 s after the last fetch."""
    issuer = make()
    issuer.start()
    provider.answer = answer(jwks(OLD, NEW))
    clock.now += MIN_FETCH_SECONDS
    with pytest.raises(Unauthenticated, match=UNKNOWN):
        verifier(issuer).verify(NEW.token())
    wait_until(lambda: NEW.id in issuer.trusted.keys, "the new key is known")
    assert verifier(issuer).verify(NEW.token())


def test_an_outage_is_none_for_a_day(
    provider: Provider, make: Callable[..., Any], clock: Clock, tmp_path: Path
) -> None:
    """Then nobody can say whose tokens are good, until the issuer is back."""
    issuer = make()
    look(issuer)
    [cache] = tmp_path.glob("jwks-*.json")
    provider.answer = answer(b"", "503 Service Unavailable")
    for age, known in ((MAX_AGE_SECONDS, ["es256"]), (MAX_AGE_SECONDS + 1, [])):
        clock.now += REFRESH_SECONDS
        os.utime(cache, (0, clock.now - age))
        assert look(issuer) == known
    assert len(provider.asked) == 3, "a fetch that fails counts as one"
    with pytest.raises(Unavailable):
        verifier(issuer).verify(OLD.token())
    provider.answer = answer(jwks(OLD))
    assert look(issuer, clock) == ["es256"]


def test_an_issuer_that_is_down_at_the_start_is_waited_for(
    provider: Provider, make: Callable[..., Any], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is refused for good meanwhile."""
    monkeypatch.setattr(module, "REREAD_SECONDS", 0.01)
    provider.answer = answer(b"", "502 Bad Gateway")
    issuer = make()
    issuer.start()
    with pytest.raises(Unavailable):
        verifier(issuer).verify(OLD.token())
    provider.answer = answer(jwks(OLD))
    clock.now += FIRST_FETCH_SECONDS
    wait_until(lambda: issuer.trusted, "the keys are known")
    assert verifier(issuer).verify(OLD.token())


def test_a_restart_while_the_issuer_is_down_is_none_either(
    provider: Provider, make: Callable[..., Any], clock: Clock
) -> None:
    """What was fetched is in the folder that processes share."""
    look(make())
    provider.answer = answer(b"", "502 Bad Gateway")
    assert look(make(), clock) == ["es256"]
    assert len(provider.asked) == 2


def test_keys_of_another_issuer_are_not_taken_up(
    provider: Provider, make: Callable[..., Any], tls: Path, clock: Clock
) -> None:
    """Who changes the issuer, perhaps for a reason, finds nothing of the old one in the folder."""
    look(make())
    with Provider(tls) as other:
        other.answer = answer(b"", "502 Bad Gateway")
        assert look(make(other.url)) == []
        other.answer = answer(jwks(NEW))
        clock.now += REFRESH_SECONDS
        assert look(make(other.url)) == ["next"]
    assert look(make()) == ["es256"]


@pytest.mark.parametrize(
    "lie",
    [
        b"",
        b"\x15\x03\x01",
        b"HTTP/1.1\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzzz\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"a" * 70_000 + b"\r\n\r\n",
        answer(jwks(NEW), "404 Not Found"),
        answer(jwks(NEW), "500 Internal Server Error"),
        answer(b"", "204 No Content"),
        answer(b"<html>Please log in</html>"),
        answer(b"\xff\xfe"),
        answer(b"[]"),
        answer(b"{}"),
        answer(b'{"keys": {}}'),
        answer(b'{"keys": []}'),
        answer(b'{"keys": [1]}'),
        answer(b'{"keys": [{"a": ' + b"[" * 50_000),
        answer(b'{"keys": [{"a": ' + b"[" * 50_000 + b"]" * 50_000 + b"}]}"),
        answer(jwks({"kty": "oct", "k": "c2VjcmV0", "kid": "secret"})),
        answer(jwks(*([NEW.jwk()] * (MAX_KEYS + 1)))),
        answer(jwks(NEW).ljust(MAX_SET_BYTES + 1)),
    ],
    ids=lambda lie: lie[:70].decode("latin-1") + f" of {len(lie)}",
)
def test_what_is_no_set_of_keys_changes_nothing(
    provider: Provider, make: Callable[..., Any], clock: Clock, lie: bytes
) -> None:
    """It is logged, the last keys stay in force, and the thread goes on to the next set."""
    issuer = make()
    issuer.start()
    with capture_logs() as logs:
        provider.answer = lie
        clock.now += MIN_FETCH_SECONDS
        clock.pauses = 0
        issuer.look_for_keys()
        wait_until(lambda: clock.pauses, "it has tried")
    assert [line["event"] for line in logs] == ["keys of the issuer could not be fetched"]
    assert sorted(issuer.trusted.keys) == [OLD.id]
    provider.answer = answer(jwks(OLD, NEW))
    clock.now += MIN_FETCH_SECONDS
    issuer.look_for_keys()
    wait_until(lambda: NEW.id in issuer.trusted.keys, "the next set is known")


def test_a_set_may_be_as_large_as_allowed(provider: Provider, make: Callable[..., Any]) -> None:
    keys = [signer("EdDSA").jwk(kid=f"{number}") for number in range(MAX_KEYS)]
    provider.answer = answer(jwks(*keys).ljust(MAX_SET_BYTES))
    assert len(look(make())) == MAX_KEYS


@pytest.mark.parametrize("status", ["301 Moved Permanently", "302 Found", "303 See Other", "307 -", "308 -"])
@pytest.mark.parametrize("where", ["/elsewhere", "http://localhost/", "file:///etc/passwd"])
def test_a_redirect_is_not_followed(provider: Provider, make: Callable[..., Any], status: str, where: str) -> None:
    provider.answer = answer(jwks(NEW), status, f"Location: {where}")
    assert look(make()) == []
    assert provider.asked == ["/jwks.json"]


@pytest.mark.parametrize(
    ("sent", "drips"), [("", b""), ("HTTP/1.1 200 OK\r\n", b""), (HEAD, b""), (HEAD, b"a"), (CHUNKED, b"1\r\na\r\n")]
)
def test_a_slow_issuer_is_given_up(
    provider: Provider, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, sent: str, drips: bytes
) -> None:
    """Whether it stops or sends a byte now and then: nobody starts until the first fetch has ended."""
    monkeypatch.setattr(module, "FETCH_SECONDS", 0.2)
    provider.answer, provider.drips, provider.closes = sent.encode(), drips, False
    assert look(make()) == []


def test_an_issuer_must_be_whom_its_certificate_says(
    provider: Provider, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signed by whom we trust, and for this name."""
    by_another_name = provider.url.replace("localhost", "127.0.0.2")
    assert look(make(by_another_name)) == []
    monkeypatch.delenv("SSL_CERT_FILE")
    with capture_logs() as logs:
        assert look(make(folder=Path(module.__file__).parent / "none")) == []
    assert logs
    assert provider.asked == []


def test_the_keys_may_be_in_a_file(make: Callable[..., Any], tmp_path: Path) -> None:
    """It is read again when it changes; what is wrong with it, or that it is gone, changes nothing."""
    path = tmp_path / "keys.json"
    issuer = make(str(path))
    assert look(issuer) == []
    write(path, jwks(OLD))
    assert look(issuer) == ["es256"]
    write(path, jwks(OLD, NEW))
    assert look(issuer) == ["es256", "next"]
    for damaged in (b"", b"{", jwks()):
        write(path, damaged)
        assert look(issuer) == ["es256", "next"]
    path.unlink()
    assert look(issuer) == ["es256", "next"]
    write(path, jwks(NEW))
    assert look(issuer) == ["next"]
    assert list(tmp_path.glob("jwks*")) == []


def write(path: Path, data: bytes) -> None:
    """With a time of its own: the system's clock for files ticks a few times in a hundredth of a second only."""
    path.write_bytes(data)
    os.utime(path, ns=(0, time.time_ns()))


def test_a_file_is_followed_by_the_thread(
    make: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REREAD_SECONDS", 0.01)
    path = tmp_path / "keys.json"
    write(path, jwks(OLD))
    issuer = make(str(path))
    issuer.start()
    assert issuer.trusted.keys.keys() == {OLD.id}
    write(path, jwks(NEW))
    wait_until(lambda: issuer.trusted.keys.keys() == {NEW.id}, "the new key is known")


def own(private: Any, algorithm: str, **more: Any) -> dict[str, Any]:
    return Signer(algorithm, "own", private).jwk(**more)


LEFT_OUT: dict[str, Callable[[], Any]] = {
    "a secret": lambda: {"kty": "oct", "k": "c2VjcmV0", "kid": "a", "alg": "HS256"},
    "for encryption": lambda: NEW.jwk(use="enc"),
    "for signing only": lambda: NEW.jwk(use=..., key_ops=["sign"]),
    "without an id": lambda: NEW.jwk(kid=...),
    "an id that is a number": lambda: NEW.jwk(kid=1),
    "an id that is a path": lambda: NEW.jwk(kid="../a"),
    "an id of 65 characters": lambda: NEW.jwk(kid="k" * 65),
    "for another algorithm": lambda: NEW.jwk(alg="RS256"),
    "for an unknown algorithm": lambda: NEW.jwk(alg="XS256"),
    "an algorithm that is a list": lambda: NEW.jwk(alg=["ES256"]),
    "RSA for PSS": lambda: signer("RS256").jwk(alg="PS256"),
    "RSA of 1024 bits": lambda: own(rsa.generate_private_key(65537, 1024), "RS256"),  # noqa: S505  # that is it
    "RSA with exponent 3": lambda: own(rsa.generate_private_key(3, 2048), "RS256"),
    "RSA with exponent 1": exponent_one,
    "RSA without a modulus": lambda: signer("RS256").jwk(n=...),
    "on P-384": lambda: own(ec.generate_private_key(ec.SECP384R1()), "ES384"),
    "on P-384, as if for ES256": lambda: own(ec.generate_private_key(ec.SECP384R1()), "ES384", alg="ES256"),
    "on secp256k1": lambda: own(ec.generate_private_key(ec.SECP256K1()), "ES256K", alg=...),
    "on Ed448": lambda: own(ed448.Ed448PrivateKey.generate(), "EdDSA"),
    "on X25519": lambda: NEW.jwk(kty="OKP", crv="X25519", x="A" * 43, y=..., alg=...),
    "on no curve": lambda: NEW.jwk(crv="P-257"),
    "a point off the curve": lambda: NEW.jwk(x=OLD.jwk()["x"]),
    "without a coordinate": lambda: NEW.jwk(y=...),
    "a coordinate that is a number": lambda: NEW.jwk(y=5),
    "a coordinate that is no base64": lambda: NEW.jwk(y="!"),
    "of no kind": lambda: NEW.jwk(kty=...),
    "of a kind that is a list": lambda: NEW.jwk(kty=["EC"]),
    "with operations that are none": lambda: NEW.jwk(key_ops=None),
    "nothing": dict,
}


@pytest.mark.parametrize("what", LEFT_OUT)
def test_a_key_that_is_not_for_us_is_left_out(what: str) -> None:
    """The others of the set are taken up all the same; alone, it is no set."""
    key = LEFT_OUT[what]()
    assert read_keys(jwks(OLD, key, signer("EdDSA")), ALGORITHMS).keys() == {"es256", "eddsa"}
    with pytest.raises(JwksError, match="expected a key with an id for ES256 or EdDSA or RS256, got none"):
        read_keys(jwks(key), ALGORITHMS)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_keys_for_other_algorithms_are_left_out(algorithm: str) -> None:
    """Of those that are configured each key has one, also if it does not say for which it is."""
    every = jwks(*[signer(each).jwk(alg=..., use=...) for each in ALGORITHMS])
    assert read_keys(every, ALGORITHMS).keys() == {"es256", "eddsa", "rs256"}
    assert read_keys(every, (algorithm,)) == {algorithm.lower(): signer(algorithm).key}


def test_a_private_key_that_was_published_is_a_public_one() -> None:
    """Whoever did that: it verifies, and nothing here can sign with it."""
    jwk = OLD.jwk() | {"d": json.loads(jwks({"d": "AQ"}))["keys"][0]["d"]}
    assert read_keys(jwks(jwk), ALGORITHMS) == {OLD.id: OLD.key}
