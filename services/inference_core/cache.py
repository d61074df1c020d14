"""Predictions that were made before: in this process, and in Redis for all.

A key is a digest of everything that an answer follows from: the package and its runtime, the wanted outputs, and each
input's name, type, shape and bytes; for a photo, its bytes before they are decoded. So an entry of a replaced version,
or of another model, type or shape with the same bytes, cannot be found. Entries expire, and a broken one is taken for
none.
"""

import hashlib
import math
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import msgspec
import numpy as np
from redis import Redis

from inference_core.model import Model
from inference_core.store import ASSUMED_SECONDS, Store, StoreAway
from inference_core.tensors import DATATYPES, Tensor

# What must lie between a model's cost and a look-up's: most look-ups find nothing.
WORTH = 4.0
# Seconds by which entries expire earlier or later than others, as a fraction of their time.
JITTER = 0.1
POLL_SECONDS = 0.002
# What Python takes for an entry and for each of its tensors beside its numbers, about.
OVERHEAD_BYTES, TENSOR_BYTES = 400, 200
# SECURITY: what numpy would make of other names, such as structures or times, is no tensor.
DTYPES = {datatype.dtype.str: datatype.dtype for datatype in DATATYPES.values()}
# How long others wait for who computes, in multiples of what the model usually takes, and at least.
PATIENCE, MIN_PATIENCE_SECONDS = 5.0, 0.05
# In place of a claim, for so long: the answer is too large to be shared, so that nobody is to wait for it.
UNSHARED, UNSHARED_SECONDS = b"-", 60.0

Answer = list[Tensor]
Feeds = dict[str, Tensor]


class Question(msgspec.Struct):
    """What a model is asked: inputs by name, made when they are needed; or the `photo` that they are made of."""

    model: Model
    feeds: Callable[[], Feeds]
    # None: all.
    outputs: list[str] | None = None
    photo: bytes | None = None

    def key(self) -> bytes:
        digest = hashlib.sha256()
        for part in self._parts():
            digest.update(len(part).to_bytes(8, "big"))
            digest.update(part)
        return b"c:" + digest.digest()

    def _parts(self) -> "Iterator[bytes | memoryview]":
        yield self.model.fingerprint.encode()
        yield msgspec.msgpack.encode(self.outputs)
        if self.photo is not None:
            yield b"photo"
            yield self.photo
            return
        yield b"tensors"
        for name, tensor in sorted(self.feeds().items()):
            yield msgspec.msgpack.encode((name, tensor.dtype.str, tensor.shape))
            if tensor.dtype == object:
                yield msgspec.msgpack.encode(tensor.ravel().tolist())
            else:
                yield np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data


class Stored(msgspec.Struct, array_like=True):
    datatype: str
    shape: tuple[Annotated[int, msgspec.Meta(ge=0)], ...]
    # Texts, or the bytes of numbers.
    data: list[str] | bytes


class Entry(msgspec.Struct, array_like=True):
    """`expires` in seconds of the day: what is found shortly before has no second life in the worker that found it."""

    expires: float
    tensors: Annotated[list[Stored], msgspec.Meta(min_length=1)]


class Claim(msgspec.Struct, frozen=True):
    """That we compute what `key` stands for, and others wait for us; until `ends`, on the monotonic clock."""

    key: bytes
    ends: float

    def is_ours(self) -> bool:
        """Whether it is there still, and not somebody else's by now."""
        return time.monotonic() < self.ends


class PredictionCache:
    """`local_bytes` of answers in this process, in front of `store`. Entries over `max_entry_bytes` are not kept."""

    def __init__(self, store: Store, ttl_seconds: float, max_entry_bytes: int, local_bytes: int) -> None:
        self._store = store
        self._ttl = ttl_seconds
        self._max_entry_bytes = max_entry_bytes
        self._local = LocalTier(local_bytes)

    def is_worth(self, model: Model) -> bool:
        """Whether to look: as the model's policy says, or if it costs clearly more than looking."""
        if not self._store.exists or model.policy.cache == "off":
            return False
        if model.policy.cache == "on" or model.seconds > WORTH * self._store.seconds:
            return True
        # It may have been slow once, and be quick again: somebody has to look.
        return model.seconds > WORTH * ASSUMED_SECONDS and self._store.is_stale()

    def get(self, key: bytes) -> Answer | None:
        if found := self._local.get(key):
            return found
        try:
            text = self._store.ask(lambda redis: redis.get(key))
        except StoreAway:
            return None
        return self._taken(key, text)

    def put(self, key: bytes, answer: Answer, claim: Claim | None = None) -> bool:
        """Keep `answer` and let those who wait for it have it; whether it could be kept for all."""
        lifetime = self._ttl * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311  # so that not all expire at once
        # PERF: what ONNX Runtime allocated lies between the large buffers of inferences, and would keep them apart for
        # as long as it is kept: a worker of 50 MB grows to 120.
        answer = [tensor.copy() for tensor in answer]
        for tensor in answer:
            tensor.flags.writeable = False  # from here on it is others' as well
        text = _encode(answer, time.time() + lifetime)
        fits = len(text) <= self._max_entry_bytes
        try:
            if fits:
                self._local.put(key, answer, len(text), lifetime)
                self._store.ask(lambda redis: _set(redis, key, text, lifetime, claim))
            elif claim:
                self._store.ask(lambda redis: redis.set(_claimed(key), UNSHARED, px=_milliseconds(UNSHARED_SECONDS)))
        except StoreAway:
            return False
        return fits

    def wait_for_turn(self, key: bytes, seconds: float, lifetime: float) -> tuple[Answer | None, Claim | None]:
        """After a miss: what somebody else computes, within `seconds`; or None, when it is for us to compute.

        With a claim, which ends after `lifetime`, others wait for us.
        """
        deadline = time.monotonic() + seconds
        while True:
            claim = Claim(key, time.monotonic() + lifetime)
            try:
                before, text = self._store.ask(lambda redis: _claim_and_get(redis, key, lifetime))
            except StoreAway:
                return None, None
            answer = self._taken(key, text)
            if before is None:
                if answer is None:
                    return None, claim
                self.give_up(claim)  # it came since the last look
            if answer is not None or before == UNSHARED or time.monotonic() > deadline:
                return answer, None
            time.sleep(POLL_SECONDS)

    def give_up(self, claim: Claim) -> None:
        """What was claimed will not come."""
        if not claim.is_ours():
            return
        try:
            self._store.ask(lambda redis: redis.delete(_claimed(claim.key)))
        except StoreAway:
            return

    def _taken(self, key: bytes, text: Any) -> Answer | None:
        """The answer in an entry of Redis, from now on here as well."""
        if not isinstance(text, bytes) or (entry := _decode(text)) is None:
            return None
        answer, expires = entry
        # Clocks differ: no longer than what is new, and not at all by one that tells no time.
        longest = self._ttl * (1 + JITTER)
        lifetime = expires - time.time()
        self._local.put(key, answer, len(text), 0.0 if math.isnan(lifetime) else min(lifetime, longest))
        return answer


def patience(model: Model) -> float:
    """Seconds after which an answer that somebody computes is not waited for any longer."""
    return max(PATIENCE * model.seconds, MIN_PATIENCE_SECONDS)


class LocalTier:
    """The answers that were used last, within `max_bytes` of memory; nobody may write into them."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._lock = threading.Lock()
        self._entries: OrderedDict[bytes, tuple[Answer, int, float]] = OrderedDict()

    def get(self, key: bytes) -> Answer | None:
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            if time.monotonic() > entry[2]:
                self._drop(key)
                return None
            self._entries.move_to_end(key)
            return entry[0]

    def put(self, key: bytes, answer: Answer, size: int, lifetime: float) -> None:
        size += OVERHEAD_BYTES + TENSOR_BYTES * len(answer)
        with self._lock:
            self._drop(key)
            if size > self._max_bytes:
                return
            self._entries[key] = (answer, size, time.monotonic() + lifetime)
            self._bytes += size
            while self._bytes > self._max_bytes:
                self._drop(next(iter(self._entries)))

    def _drop(self, key: bytes) -> None:
        if entry := self._entries.pop(key, None):
            self._bytes -= entry[1]


def _claimed(key: bytes) -> bytes:
    return b"cl" + key[1:]


def _claim_and_get(redis: Redis, key: bytes, lifetime: float) -> tuple[Any, Any]:
    """The claim that there was before ours, and the entry, in one round trip; in this order nothing slips through."""
    pipeline = redis.pipeline(transaction=False)
    pipeline.set(_claimed(key), b"", nx=True, get=True, px=_milliseconds(lifetime))
    pipeline.get(key)
    before, text = pipeline.execute()
    return before, text


def _set(redis: Redis, key: bytes, text: bytes, lifetime: float, claim: Claim | None) -> None:
    """Keep an entry, and end the claim to it if that is ours, in one round trip."""
    pipeline = redis.pipeline(transaction=False)
    pipeline.set(key, text, px=_milliseconds(lifetime))
    if claim and claim.is_ours():
        pipeline.delete(_claimed(key))
    pipeline.execute()


def _milliseconds(seconds: float) -> int:
    return max(1, int(seconds * 1000))


def _encode(answer: Answer, expires: float) -> bytes:
    tensors = [
        Stored(tensor.dtype.str, tensor.shape, tensor.ravel().tolist() if tensor.dtype == object else tensor.tobytes())
        for tensor in answer
    ]
    return msgspec.msgpack.encode(Entry(expires, tensors))


def _decode(text: bytes) -> tuple[Answer, float] | None:
    """The answer and when it expires; None for what is of another release, or not ours."""
    try:
        entry = msgspec.msgpack.decode(text, type=Entry)
        return [_tensor(stored) for stored in entry.tensors], entry.expires
    except (msgspec.DecodeError, KeyError, TypeError, ValueError, RecursionError):
        return None


def _tensor(stored: Stored) -> Tensor:
    dtype = DTYPES[stored.datatype]
    texts = dtype.hasobject
    expected = math.prod(stored.shape) * (1 if texts else dtype.itemsize)
    if isinstance(stored.data, bytes) == texts or len(stored.data) != expected:
        raise ValueError("not what its type and shape say")
    if isinstance(stored.data, bytes):
        return np.frombuffer(stored.data, dtype).reshape(stored.shape)
    tensor = np.array(stored.data, object).reshape(stored.shape)
    tensor.flags.writeable = False
    return tensor
