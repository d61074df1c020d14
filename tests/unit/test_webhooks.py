"""Webhooks: to real receivers over TLS, on a clock that a test moves; and to none that the operator has not named."""

import base64
import hashlib
import hmac
import json
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

import pytest
from batch import Clock
from edge import make_certificate
from structlog.testing import capture_logs

from batch_worker import webhooks
from batch_worker.webhooks import BACKOFF_SECONDS, WebhookSender
from inference_api.jobs import _webhook
from inference_core.bootstrap import Services
from inference_core.errors import InvalidInput
from inference_core.jobs import Delivery, Job, JobStore, State, StoredJob, new_id
from inference_core.settings import Settings, SettingsError

KEY = bytes(range(32))
SECRET = f"whsec_{base64.b64encode(KEY).decode()}"
OK = b"HTTP/1.1 204 No Content\r\n\r\n"
GetAddresses = Callable[..., list[Any]]


class Call(NamedTuple):
    line: str
    fields: dict[str, str]
    body: bytes


class Receiver(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """Who is told, over TLS: it remembers each call and sends the first of `answers`, the last one again and again.

    `drips`: it sends this without end, instead of an answer, or before TLS even begins.
    """

    daemon_threads = True

    def __init__(self, tls: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(tls / "server.crt", tls / "server.key")
        self.answers, self.drips, self.secures = [OK], b"", True
        self.calls: list[Call] = []
        self.connections = 0
        self.ended = threading.Event()

    @property
    def port(self) -> int:
        port: int = self.server_address[1]
        return port

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}/hook?of=tests"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.shutdown()
        self.server_close()

    def finish_request(self, request: Any, client_address: Any) -> None:
        self.connections += 1
        try:
            if not self.secures:
                self.drip(request.sendall)
                return
            with self._context.wrap_socket(request, server_side=True) as secured:
                super().finish_request(secured, client_address)
        except OSError:  # the caller has gone, or does not trust us
            return

    def drip(self, send: Callable[[bytes], object]) -> None:
        while not self.ended.wait(0.02):
            send(self.drips)


class _Handler(socketserver.StreamRequestHandler):
    server: Receiver

    def handle(self) -> None:
        line = self.rfile.readline().decode().strip()
        fields = {}
        while field := self.rfile.readline().decode().strip():
            name, _, value = field.partition(": ")
            fields[name.lower()] = value
        self.server.calls.append(Call(line, fields, self.rfile.read(int(fields["content-length"]))))
        if self.server.drips:
            self.server.drip(self.wfile.write)
        self.wfile.write(self.server.answers[0])
        if len(self.server.answers) > 1:
            del self.server.answers[0]


class Jobs:
    """Ended jobs in a store, and who tells of them."""

    def __init__(self, root: Path, clock: Clock) -> None:
        self.store = JobStore(root, 100, 1 << 30)
        self.clock = clock
        self.sender = self.another()

    def another(self, *, may_be_private: bool = True) -> WebhookSender:
        return WebhookSender(self.store, SECRET, may_be_private=may_be_private)

    def ended(self, url: str, status: Any = "succeeded") -> StoredJob:
        job = Job(new_id(), "anna", "scale", "3", "d1", "instances", 7, 70, self.clock.now, "r1", webhook=url)
        stored, _ = self.store.submit(job, [b"1\n"], None, "")
        stored.write_state(State(status, done=6, errors=2, ended=self.clock.now, reason="why"))
        return stored

    def failures(self, sender: WebhookSender | None = None) -> list[str]:
        """Send what is due; why calls failed."""
        with capture_logs() as logs:
            (sender or self.sender).send_due()
        return [entry["reason"] for entry in logs if entry["event"] == "a webhook was not delivered"]


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture
def receiver(tls: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setenv("SSL_CERT_FILE", str(tls / "ca.crt"))
    with Receiver(tls) as receiver:
        yield receiver


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Jobs:
    return Jobs(tmp_path, Clock(monkeypatch, webhooks))


def resolve(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Names mean these addresses, other ones each time; returns what is asked for."""
    asked: list[str] = []

    def getaddrinfo(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        asked.append(host)
        found = answers[min(len(asked), len(answers)) - 1]
        return [
            (socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in found
        ]

    monkeypatch.setattr(webhooks.socket, "getaddrinfo", getaddrinfo)
    return asked


# What is sent.


def test_a_call_is_signed_as_standard_webhooks_says(receiver: Receiver, jobs: Jobs) -> None:
    """HMAC-SHA256 by the decoded secret over id, time and body, with full stops between them."""
    stored = jobs.ended(receiver.url)
    assert jobs.failures() == []
    [call] = receiver.calls
    assert call.line == "POST /hook?of=tests HTTP/1.1"
    assert call.fields["host"] == f"localhost:{receiver.port}"
    assert call.fields["content-type"] == "application/json"
    assert call.fields["webhook-id"] == stored.folder.name
    assert call.fields["webhook-timestamp"] == str(int(jobs.clock.now))
    signed = f"{stored.folder.name}.{int(jobs.clock.now)}.".encode() + call.body
    digest = base64.b64encode(hmac.digest(KEY, signed, hashlib.sha256)).decode()
    assert call.fields["webhook-signature"] == f"v1,{digest}"


def test_it_says_how_the_job_ended(receiver: Receiver, jobs: Jobs) -> None:
    stored = jobs.ended(receiver.url, "failed")
    jobs.sender.send_due()
    assert json.loads(receiver.calls[0].body) == {
        "type": "job.ended",
        "job": stored.folder.name,
        "model": "scale",
        "version": "3",
        "status": "failed",
        "rows": 7,
        "done": 6,
        "errors": 2,
        "reason": "why",
    }


@pytest.mark.parametrize("secret", ["whsec_no base64", "hunter2!", "whsec_YQ"])
def test_a_secret_of_another_form_is_refused_without_being_shown(tmp_path: Path, secret: str) -> None:
    store = JobStore(tmp_path, 1, 1)
    with pytest.raises(SettingsError, match="TIERCEL_WEBHOOK_SECRET_FILE: expected whsec_ and base64") as refused:
        WebhookSender(store, secret, may_be_private=True)
    assert secret not in str(refused.value)


def test_a_secret_may_come_without_its_prefix(receiver: Receiver, jobs: Jobs) -> None:
    plain = WebhookSender(jobs.store, base64.b64encode(KEY).decode(), may_be_private=True)
    jobs.ended(receiver.url)
    plain.send_due()
    jobs.ended(receiver.url)
    jobs.sender.send_due()
    for call in receiver.calls:
        signed = f"{call.fields['webhook-id']}.{call.fields['webhook-timestamp']}.".encode() + call.body
        expected = base64.b64encode(hmac.digest(KEY, signed, hashlib.sha256)).decode()
        assert call.fields["webhook-signature"] == f"v1,{expected}"
    assert len(receiver.calls) == 2


# When.


def test_it_is_sent_once_the_job_has_ended_and_once_only(receiver: Receiver, jobs: Jobs) -> None:
    stored = jobs.ended(receiver.url)
    for status in ("queued", "running"):
        stored.write_state(State(status))  # type: ignore[arg-type]
        assert jobs.failures() == []
        assert receiver.calls == []
    stored.write_state(State("cancelled", ended=jobs.clock.now))
    for _ in range(3):
        jobs.sender.send_due()
    assert len(receiver.calls) == 1
    assert stored.delivery() is None


def test_jobs_without_one_are_left_alone(jobs: Jobs, tmp_path: Path) -> None:
    job = Job(new_id(), "anna", "scale", "3", "d1", "instances", 7, 70, 0.0, "r1")
    stored, _ = jobs.store.submit(job, [b"1\n"], None, "")
    stored.write_state(State("succeeded", ended=1.0))
    assert jobs.failures() == []


def test_it_is_tried_again_later_and_later_and_then_given_up(receiver: Receiver, jobs: Jobs) -> None:
    receiver.answers = [b"HTTP/1.1 500 Broken\r\nContent-Length: 0\r\n\r\n"]
    stored = jobs.ended(receiver.url)
    for number, seconds in enumerate(BACKOFF_SECONDS, 1):
        assert jobs.failures() == ["expected a status from 200 to 299, got 500"]
        assert stored.delivery() == Delivery(number, jobs.clock.now + seconds)
        jobs.clock.now += seconds - 0.001
        assert jobs.failures() == []
        jobs.clock.now += 0.002
    assert len(jobs.failures()) == 1
    assert stored.delivery() is None
    assert len(receiver.calls) == len(BACKOFF_SECONDS) + 1


def test_what_was_tried_again_with_success_is_done(receiver: Receiver, jobs: Jobs) -> None:
    receiver.answers = [b"HTTP/1.1 503 Later\r\n\r\n", OK]
    stored = jobs.ended(receiver.url)
    assert len(jobs.failures()) == 1
    jobs.clock.now += BACKOFF_SECONDS[0]
    assert jobs.failures() == []
    first, second = receiver.calls
    assert stored.delivery() is None
    # The receiver knows by its id that it is the same, and by its time that it is not an old one.
    assert first.fields["webhook-id"] == second.fields["webhook-id"]
    assert first.fields["webhook-timestamp"] != second.fields["webhook-timestamp"]
    assert first.fields["webhook-signature"] != second.fields["webhook-signature"]


@pytest.mark.parametrize("status", [200, 201, 204, 299])
def test_any_success_will_do(receiver: Receiver, jobs: Jobs, status: int) -> None:
    receiver.answers = [b"HTTP/1.1 %d Yes\r\nContent-Length: 2\r\n\r\nhi" % status]
    jobs.ended(receiver.url)
    assert jobs.failures() == []


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308, 400, 401, 404, 410, 500])
def test_nothing_else_will_and_no_redirect_is_followed(receiver: Receiver, jobs: Jobs, status: int) -> None:
    receiver.answers = [b"HTTP/1.1 %d No\r\nLocation: /hook\r\nContent-Length: 0\r\n\r\n" % status, OK]
    jobs.ended(receiver.url)
    assert jobs.failures() == [f"expected a status from 200 to 299, got {status}"]
    assert len(receiver.calls) == 1


@pytest.mark.parametrize("answer", [b"", b"\r\n", b"garbage\r\n\r\n", b"HTTP/1.1 200" + bytes(1 << 17)])
def test_an_answer_that_is_none_is_a_failure(receiver: Receiver, jobs: Jobs, answer: bytes) -> None:
    receiver.answers = [answer]
    jobs.ended(receiver.url)
    assert len(jobs.failures()) == 1


def test_of_a_large_answer_only_a_part_is_read(receiver: Receiver, jobs: Jobs) -> None:
    receiver.answers = [b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n" + bytes(1 << 20)]
    jobs.ended(receiver.url)
    assert jobs.failures() == []


@pytest.mark.parametrize("drips", [b"", b"H", b"HTTP/1.1 100 Continue\r\n\r\n"])
@pytest.mark.parametrize("secures", [True, False])
def test_who_is_slow_is_not_waited_for(
    receiver: Receiver, jobs: Jobs, monkeypatch: pytest.MonkeyPatch, drips: bytes, secures: bool
) -> None:
    """Neither if nothing comes, nor if something comes all the time; and others are told in the same look."""
    monkeypatch.setattr(webhooks, "TIMEOUT_SECONDS", 0.2)
    receiver.drips, receiver.secures = drips or b"\x16", secures
    if not drips:
        receiver.drip = lambda send: receiver.ended.wait()  # type: ignore[method-assign, assignment]
    jobs.ended(receiver.url)
    jobs.ended(receiver.url)
    assert len(jobs.failures()) == 2
    assert receiver.connections == 2


def test_who_is_not_there_is_tried_again(jobs: Jobs) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    stored = jobs.ended(f"https://localhost:{port}/")
    [failure] = jobs.failures()
    assert "refused" in failure
    assert stored.delivery() == Delivery(1, jobs.clock.now + BACKOFF_SECONDS[0])


@pytest.mark.parametrize("host", ["no-such-host.invalid", f"{'a' * 64}.test", "a..b"])
def test_a_name_that_means_nothing_is_tried_again(jobs: Jobs, monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    stored = jobs.ended(f"https://{host}/")
    assert len(jobs.failures()) == 1
    assert stored.delivery() == Delivery(1, jobs.clock.now + BACKOFF_SECONDS[0])


def test_two_workers_send_it_once(receiver: Receiver, jobs: Jobs) -> None:
    """While the one is on its way to the receiver, the other has nothing to do."""
    others = [jobs.another() for _ in range(3)]
    meanwhile: list[int] = []

    def look(send: Callable[[bytes], object]) -> None:
        for other in others:
            other.send_due()
        meanwhile.append(len(receiver.calls))

    receiver.drips, receiver.drip = b"-", look  # type: ignore[method-assign]
    jobs.ended(receiver.url)
    assert jobs.failures() == []
    for other in others:
        other.send_due()
    assert (len(receiver.calls), meanwhile) == (1, [1])


def test_a_damaged_folder_keeps_nobody_from_being_told(receiver: Receiver, jobs: Jobs) -> None:
    *damaged, stored = [jobs.ended(receiver.url) for _ in range(3)]
    (damaged[0].folder / "job.json").unlink()
    (damaged[1].folder / "state.json").unlink()
    (damaged[1].folder / "state.json").mkdir()
    jobs.sender.send_due()
    assert [call.fields["webhook-id"] for call in receiver.calls] == [stored.folder.name]


# To whom.


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.9.9.9",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::10.0.0.1",
        "fe80::1",
        "fe80::1%lo",
        "fd00::1",
        "ff02::1",
    ],
)
def test_an_address_that_is_not_public_is_not_called(jobs: Jobs, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Also if it is one of several."""
    resolve(monkeypatch, ["8.8.8.8", address])
    monkeypatch.setattr(socket, "create_connection", lambda *_: pytest.fail("it has been called"))
    stored = jobs.ended("https://hook.test/")
    [failure] = jobs.failures(jobs.another(may_be_private=False))
    assert failure == f"host hook.test: expected a public address, got {address}"
    assert stored.delivery() == Delivery(1, jobs.clock.now + BACKOFF_SECONDS[0])


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost", "0", "0x7f.1", "2130706433", "127.1"])
def test_nor_is_a_spelling_of_this_machine(jobs: Jobs, monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setattr(socket, "create_connection", lambda *_: pytest.fail("it has been called"))
    jobs.ended(f"https://{host}/")
    [failure] = jobs.failures(jobs.another(may_be_private=False))
    assert "expected a public address" in failure


def test_a_private_one_is_where_the_operator_says_so(receiver: Receiver, jobs: Jobs) -> None:
    jobs.ended(receiver.url)
    assert len(jobs.failures(jobs.another(may_be_private=False))) == 1
    jobs.clock.now += BACKOFF_SECONDS[0]
    assert jobs.failures(jobs.another(may_be_private=True)) == []
    assert len(receiver.calls) == 1


def test_the_address_that_was_checked_is_the_one_that_is_called(
    receiver: Receiver, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the name means another one the next time: DNS rebinding."""
    called: list[Any] = []
    monkeypatch.setattr(socket, "create_connection", lambda address, timeout: called.append(address) or _refuse())
    asked = resolve(monkeypatch, ["8.8.8.8"], ["127.0.0.1"])
    jobs.ended(f"https://hook.test:{receiver.port}/")
    assert jobs.failures(jobs.another(may_be_private=False)) == ["not really"]
    assert (asked, called) == (["hook.test"], [("8.8.8.8", receiver.port)])
    jobs.clock.now += BACKOFF_SECONDS[0]
    [failure] = jobs.failures(jobs.another(may_be_private=False))
    assert failure == "host hook.test: expected a public address, got 127.0.0.1"
    assert len(called) == 1


def _refuse() -> None:
    raise ConnectionRefusedError("not really")


def test_a_certificate_for_another_name_is_refused(
    receiver: Receiver, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name is the one of the URL, whatever address it has."""
    resolve(monkeypatch, ["127.0.0.1"])
    jobs.ended(f"https://hook.test:{receiver.port}/")
    [failure] = jobs.failures()
    assert "certificate is not valid for 'hook.test'" in failure
    assert receiver.calls == []


def test_a_certificate_that_nobody_vouches_for_is_refused(
    receiver: Receiver, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    jobs.ended(receiver.url)
    [failure] = jobs.failures()
    assert "CERTIFICATE_VERIFY_FAILED" in failure
    assert receiver.calls == []


# What may be asked for: `_webhook` is what `POST /v1/jobs` asks.

HOSTS = "hook.test, Other.Test,,127.0.0.1"


def asked_for(url: str | None, hosts: str = HOSTS) -> str | None:
    services = Services(Settings(webhook_hosts=hosts), *[None] * 5)  # type: ignore[arg-type]  # nothing else is asked
    return _webhook(url, services)


@pytest.mark.parametrize(
    "url",
    [
        None,
        "https://hook.test",
        "https://hook.test/",
        "https://hook.test:8443/a/b?c=d#e",
        "https://HOOK.Test/",
        "HTTPS://hook.test/",
        "https://other.test/",
        "https://127.0.0.1/",
        "https://hook.test/@evil.test/https://evil.test",
        "https://hook.test/" + "a" * (2048 - 18),
    ],
)
def test_hosts_on_the_list_may_be_told(url: str | None) -> None:
    assert asked_for(url) == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "https://evil.test/",
        "http://hook.test/",
        "ftp://hook.test/",
        "file:///etc/passwd",
        "//hook.test/",
        "hook.test",
        "https:hook.test",
        "https:/hook.test/",
        "https:///hook.test/",
        "https://hook.test.evil.test/",
        "https://evilhook.test/",
        "https://sub.hook.test/",
        "https://evil.test/hook.test",
        "https://evil.test/https://hook.test/",
        "https://evil.test?hook.test",
        "https://evil.test#hook.test",
        "https://hook.test@evil.test/",
        "https://hook.test:443@evil.test/",
        "https://evil.test@hook.test/",
        "https://:pw@hook.test/",
        "https://@hook.test/",
        "https://hook.test\\@evil.test/",
        "https://evil.test\\.hook.test/",
        "https://hook.test./",
        "https://hook.test%00.evil.test/",
        "https://hook%2etest/",
        "https://hook\u3002test/",
        "https://hoök.test/",
        "https://\uff48ook.test/",
        "https://xn--hok-sna.test/",
        "https://hook.test:0/",
        "https://hook.test:65536/",
        "https://hook.test:-1/",
        "https://hook.test:https/",
        "https://[hook.test]/",
        "https://[::1]/",
        "https://[127.0.0.1]/",
        "https://2130706433/",
        "https://hook.test/a b",
        " https://hook.test/",
        "https://hook.test/\r\nHost: evil.test",
        "https://hook.test/\t",
        "https://hook.test/\x00",
        "https://hook.test/ö",
        "https://,/",
        "https://hook.test,other.test/",
        "https://hook.test/" + "a" * (2049 - 18),
    ],
)
def test_others_are_refused(url: str) -> None:
    with pytest.raises(InvalidInput, match="webhook: expected an https URL of one of the hosts"):
        asked_for(url)


def test_without_a_list_nobody_is_told() -> None:
    for url in ("https://hook.test/", "https://", "https:///"):
        with pytest.raises(InvalidInput):
            asked_for(url, hosts="")
