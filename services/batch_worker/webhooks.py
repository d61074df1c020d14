"""Tells whoever asked for it that a job has ended: a signed POST, tried again for some hours.

As in the Standard Webhooks specification 1.0: the headers `webhook-id`, `webhook-timestamp` and `webhook-signature`,
which is HMAC-SHA256 over `id.timestamp.body` with the operator's secret, `whsec_` and base64. A receiver may get one
twice.
"""

import base64
import fcntl
import hashlib
import hmac
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from contextlib import suppress
from http import HTTPStatus
from urllib.parse import urlsplit

import msgspec
import structlog

from inference_core.jobs import ENDED, Delivery, Job, JobStore, State, StoredJob
from inference_core.settings import SettingsError
from observability.families import WEBHOOKS
from observability.tracing import NO_TRACES, Span, Tracer, read_trace

LOOK_SECONDS = 2.0
# For all of a call, however slowly it gets on.
TIMEOUT_SECONDS = 5.0
# Until each further attempt; after the last one nobody is told.
BACKOFF_SECONDS = (5.0, 30.0, 120.0, 600.0, 3600.0, 7200.0)
MAX_ANSWER_BYTES = 64 << 10

log = structlog.get_logger()


class WebhookError(Exception):
    pass


class Ended(msgspec.Struct):
    job: str
    model: str
    version: str
    status: str
    rows: int
    done: int
    errors: int
    reason: str
    type: str = "job.ended"


class WebhookSender:
    """One worker at a time sends. `may_be_private`: hosts may have addresses that are not public."""

    def __init__(self, store: JobStore, secret: str, *, may_be_private: bool, tracer: Tracer = NO_TRACES) -> None:
        self._store = store
        self._key = _key(secret)
        self._may_be_private = may_be_private
        self._tracer = tracer
        self._lock = store.root / "webhooks.lock"

    def start(self) -> None:
        threading.Thread(target=self._send_for_ever, name="webhooks", daemon=True).start()

    def send_due(self) -> None:
        """Call every webhook that is due, unless another worker does."""
        with self._lock.open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            for stored in self._store.all():
                try:
                    self._look_at(stored)
                except Exception as error:  # whatever has become of its folder, others are still to be told
                    log.warning("a webhook cannot be looked at", job=stored.folder.name, reason=str(error))

    def _look_at(self, stored: StoredJob) -> None:
        delivery, state = stored.delivery(), stored.state()
        if delivery and state.status in ENDED and time.time() >= delivery.not_before:
            self._attempt(stored, stored.job(), state, delivery)

    def _attempt(self, stored: StoredJob, job: Job, state: State, delivery: Delivery) -> None:
        trace = read_trace(job.traceparent)
        span = Span("webhook", time.time_ns(), 0, {"tiercel.job": job.id, "server.address": _host(job)}, "CLIENT")
        try:
            self._post(job, state, {"traceparent": trace.header(span.id)} if trace else {})
        except (WebhookError, OSError, http.client.HTTPException, ValueError) as error:
            attempts, span.error = delivery.attempts + 1, str(error)
            WEBHOOKS.of("failed").add()
            log.warning("a webhook was not delivered", job=job.id, attempt=attempts, reason=str(error))
            if attempts > len(BACKOFF_SECONDS):
                WEBHOOKS.of("given_up").add()
                stored.write_delivery(None)
            else:
                stored.write_delivery(Delivery(attempts, time.time() + BACKOFF_SECONDS[attempts - 1]))
        else:
            log.info("webhook delivered", job=job.id)
            WEBHOOKS.of("delivered").add()
            stored.write_delivery(None)
        span.end = time.time_ns()
        if trace:
            self._tracer.record(trace, span)

    def _post(self, job: Job, state: State, headers: dict[str, str]) -> None:
        parts = urlsplit(job.webhook or "")
        body = msgspec.json.encode(
            Ended(job.id, job.model, job.version, state.status, job.rows, state.done, state.errors, state.reason)
        )
        stamp = str(int(time.time()))
        digest = hmac.digest(self._key, f"{job.id}.{stamp}.".encode() + body, hashlib.sha256)
        headers |= {
            "Content-Type": "application/json",
            "webhook-id": job.id,
            "webhook-timestamp": stamp,
            "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
        }
        host, port = _host(job), parts.port or 443
        connection = _Pinned(host, self._address(host, port), port)
        end = threading.Timer(TIMEOUT_SECONDS, connection.abort)
        end.start()
        try:
            path = f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}"
            connection.request("POST", path, body, headers)
            answer = connection.getresponse()
            answer.read(MAX_ANSWER_BYTES)
        finally:
            end.cancel()
            connection.close()
        if not HTTPStatus.OK <= answer.status < HTTPStatus.MULTIPLE_CHOICES:  # SECURITY: redirects are not followed
            raise WebhookError(f"expected a status from 200 to 299, got {answer.status}")

    def _address(self, host: str, port: int) -> str:
        """SECURITY: looked up once, checked and then used: a name could mean something else the next time."""
        [*addresses] = {info[4][0] for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
        for address in addresses:
            if not self._may_be_private and not _is_public(str(address)):
                raise WebhookError(f"host {host}: expected a public address, got {address}")
        return str(addresses[0])

    def _send_for_ever(self) -> None:
        while True:
            try:
                self.send_due()
            except Exception:  # whatever it is, this thread must go on
                log.exception("webhooks failed")
            time.sleep(LOOK_SECONDS)


def _host(job: Job) -> str:
    return urlsplit(job.webhook or "").hostname or ""


def _key(secret: str) -> bytes:
    try:
        return base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except ValueError:
        raise SettingsError("TIERCEL_WEBHOOK_SECRET_FILE: expected whsec_ and base64, got something else") from None


def _is_public(address: str) -> bool:
    """Reserved are also those in IPv6 that stand for one in IPv4, which may be private."""
    found = ipaddress.ip_address(address)
    return found.is_global and not found.is_multicast and not found.is_reserved


class _Pinned(http.client.HTTPSConnection):
    """To an address that has been checked, and to nobody who cannot show a certificate for the name."""

    def __init__(self, host: str, address: str, port: int) -> None:
        self._tls = ssl.create_default_context()
        super().__init__(host, port, timeout=TIMEOUT_SECONDS, context=self._tls)
        self._address = address

    def connect(self) -> None:
        plain = socket.create_connection((self._address, self.port), self.timeout)
        self.sock = self._tls.wrap_socket(plain, server_hostname=self.host, do_handshake_on_connect=False)
        self.sock.do_handshake()

    def abort(self) -> None:
        """From another thread: whoever waits for it waits no longer."""
        if self.sock:
            with suppress(OSError):
                socket.socket.shutdown(self.sock, socket.SHUT_RDWR)
