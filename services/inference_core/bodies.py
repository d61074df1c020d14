"""The body of a request: content codings undone, JSON nesting checked, JSON decoded into the type that is expected."""

import zlib
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from inference_core.errors import InvalidInput, PayloadTooLarge, UnsupportedCoding, in_plain_words

T = TypeVar("T")

# zlib's window bits: what RFC 9110 calls deflate is the zlib format.
CODINGS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
NOT_NESTING = bytes(set(range(256)) - set(b'[]{}"'))
# What each byte adds to the depth.
STEPS = np.zeros(256, np.int8)
STEPS[list(b"[{")] = 1
STEPS[list(b"]}")] = -1


def too_large(limit: int, got: int | str) -> PayloadTooLarge:
    return PayloadTooLarge(f"body: expected at most {limit} bytes, got {got}")


def decompress(body: bytes, coding: str, limit: int) -> bytes:
    """`body` with its content coding undone; never inflates more than `limit` bytes (SECURITY: decompression bombs)."""
    if coding not in CODINGS:
        raise UnsupportedCoding(f"Content-Encoding: expected {' or '.join(CODINGS)}, got {coding!r}")
    inflater = zlib.decompressobj(CODINGS[coding])
    try:
        plain = inflater.decompress(body, limit + 1)
    except zlib.error as error:
        raise InvalidInput(f"body: expected {coding} data, got something else ({error})") from None
    if len(plain) > limit:
        raise too_large(limit, f"more once its {coding} coding is undone")
    if not inflater.eof or inflater.unused_data:
        raise InvalidInput(f"body: expected one whole {coding} stream, got a cut or continued one")
    return plain


def compress(body: bytes, coding: str) -> bytes:
    # PERF: level 1, as the time of the answer counts for more than its last few bytes.
    deflater = zlib.compressobj(1, zlib.DEFLATED, CODINGS[coding])
    return deflater.compress(body) + deflater.flush()


def check_nesting(body: bytes, limit: int) -> None:
    """Raise InvalidInput if JSON in `body` nests deeper than `limit`, before a parser recurses into it."""
    # PERF: nearly every body has too few brackets to nest that deep, and counting them takes a microsecond.
    if body.count(b"[") + body.count(b"{") <= limit:
        return
    if _depths(body).max() > limit:
        raise InvalidInput(f"body: expected JSON nested at most {limit} deep, got more")


def decode_json(body: bytes | memoryview | msgspec.Raw, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        if not memoryview(body).nbytes:
            raise InvalidInput("request: expected JSON, got an empty body") from None
        raise InvalidInput(f"request: {in_plain_words(error)}") from None


def _depths(body: bytes) -> NDArray[Any]:
    """The depth after each bracket and quote of JSON text; brackets inside strings do not count."""
    # PERF: whole-array steps, as a loop over a body of brackets alone would hold its worker for a second.
    unescaped = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    kept = np.frombuffer(unescaped.translate(None, NOT_NESTING), np.uint8)
    outside = 1 - (np.cumsum(kept == ord('"'), dtype=np.int32) & 1)
    return np.cumsum(STEPS[kept] * outside, dtype=np.int32)
