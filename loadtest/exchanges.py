"""What is sent, and what must come back: answers in HTTP/1.1 that are delimited by Content-Length."""

import http
from collections.abc import Callable
from dataclasses import dataclass, field

HEAD_END = b"\r\n\r\n"
LENGTH = b"\r\ncontent-length:"
CLOSE = b"\r\nconnection: close"


@dataclass(frozen=True)
class Exchange:
    """A whole request, what is wrong with the body of an answer to it (None: nothing), and how it may be refused."""

    request: bytes
    fault: Callable[[bytes], str | None]
    refusals: frozenset[int] = frozenset()
    accepted: set[bytes] = field(default_factory=set)


def extent(data: bytes) -> tuple[int, bool]:
    """How many bytes the answer that starts `data` has, 0 while its head is incomplete; whether its connection ends."""
    end = data.find(HEAD_END)
    if end < 0:
        return 0, False
    head = data[:end].lower()
    at = head.find(LENGTH)
    if at < 0:
        raise ValueError(f"expected an answer with Content-Length, got {head!r}")
    at += len(LENGTH)
    line_end = head.find(b"\r\n", at)
    size = end + len(HEAD_END) + int(head[at : line_end if line_end > 0 else end])
    return size, CLOSE in head


def status_of(data: bytes) -> int:
    """The status of the answer that starts `data`, 0 if it is none in HTTP/1.1."""
    return int(data[9:12]) if data.startswith(b"HTTP/1.1 ") and data[9:12].isdigit() else 0


def fault_of(exchange: Exchange, data: bytes, size: int) -> str | None:
    """What is wrong with the answer `data`, which should have `size` bytes.

    A body is compared in full the first time that it is seen, and recognised by its bytes from then on.
    """
    body = data[data.find(HEAD_END) + len(HEAD_END) :]
    status = status_of(data)
    if status in exchange.refusals and len(data) == size:
        return None
    if status != http.HTTPStatus.OK or len(data) > size:
        return f"expected one answer of status 200, got {data[:400]!r}"
    if body in exchange.accepted:
        return None
    fault = exchange.fault(body)
    if fault is None:
        exchange.accepted.add(body)
    return fault
