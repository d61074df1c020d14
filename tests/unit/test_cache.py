"""The prediction cache with a real Redis, each worker with a cache of its own."""

import itertools
import random
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import numpy as np
import pytest
from builders import manifest, tensor
from fault_proxy import FaultProxy
from redis_server import RedisServer
from servers import wait_until

from inference_core import cache as cache_module
from inference_core.cache import (
    JITTER,
    MIN_PATIENCE_SECONDS,
    PATIENCE,
    UNSHARED_SECONDS,
    WORTH,
    Answer,
    Claim,
    LocalTier,
    PredictionCache,
    Question,
    patience,
)
from inference_core.errors import DeadlineExceeded, InferenceFailed
from inference_core.model import Model, RunOptions
from inference_core.policy import Policy
from inference_core.predictor import Caching, Prediction, Predictor
from inference_core.store import MAX_FAILURES, Store, StoreAway, open_store
from inference_core.tensors import DATATYPES, Tensor
from inference_core.watchdog import InFlight

KEY = b"c:" + bytes(32)
MODELS = {"one": "1" * 64, "two": "2" * 64}
FP32 = [np.array([[1.5, -2.0]], np.float32)]


class FakeModel:
    """Answers with how often it has run; `run` waits for `resume`, and can be replaced."""

    def __init__(self, digest: str = MODELS["one"], seconds: float = 10.0, cache: Any = "on") -> None:
        self.manifest = manifest([tensor("FP32", -1, 2)])
        self.fingerprint, self.seconds, self.policy = digest, seconds, Policy(cache=cache)
        self.runs = 0
        self.resume = threading.Event()
        self.resume.set()
        self.fails = False

    def run(self, feeds: dict[str, Tensor], outputs: list[str] | None, options: RunOptions) -> Answer:
        self.runs += 1
        number = self.runs
        assert self.resume.wait(20)
        if self.fails:
            raise InferenceFailed("no")
        return [np.array([number], np.int64)]


class FakeCall:
    """A request that has to be answered in so many seconds."""

    def __init__(self, seconds: float) -> None:
        self.options = RunOptions()
        self._deadline = time.monotonic() + seconds

    def remaining(self) -> float:
        return self._deadline - time.monotonic()


def question(model: Any = None, photo: bytes | None = None, outputs: list[str] | None = None, **feeds: Any) -> Question:
    arrays = feeds or {"x": np.zeros((1, 2), np.float32)}
    return Question(cast(Model, model or FakeModel()), lambda: arrays, outputs, photo)


def predict(predictor: Predictor, asked: Question, caching: Caching | None = None, seconds: float = 20) -> Prediction:
    return predictor.predict(asked, cast(InFlight, FakeCall(seconds)), caching or Caching())


def claimed(cache: PredictionCache, key: bytes, seconds: float = 600) -> Claim | None:
    """A claim to compute the answer, unless somebody else has one; without waiting for that."""
    return cache.wait_for_turn(key, 0, seconds)[1]


@pytest.fixture(scope="module")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis(shared_redis: RedisServer) -> RedisServer:
    shared_redis.admin.flushall()
    shared_redis.reset_calls()
    return shared_redis


@pytest.fixture
def new_cache(redis: RedisServer) -> Iterator[Callable[..., PredictionCache]]:
    """What a worker has: a cache with connections of its own. Its timeout is long, as others use these cores."""
    stores = []

    def new_cache(
        ttl: float = 60, max_entry: int = 1 << 20, local: int = 0, url: str = redis.url, timeout: float = 5
    ) -> PredictionCache:
        stores.append(open_store(url, "", timeout))
        stores[-1]._probe_seconds = 0.01
        return PredictionCache(stores[-1], ttl, max_entry, local)

    yield new_cache
    for store in stores:
        store._is_back = lambda: True  # type: ignore[method-assign]
    wait_until(lambda: not any(store.away for store in stores), "nobody looks for Redis")
    for store in stores:
        assert store._client
        store._client.close()


@pytest.fixture
def away(new_cache: Callable[..., PredictionCache]) -> PredictionCache:
    """The cache of a worker that has found that Redis is away."""
    cache = new_cache(url="redis://127.0.0.1:1")
    for _ in range(MAX_FAILURES):
        assert cache.get(KEY) is None
    assert cache._store.away
    return cache


def same(one: Answer, other: Answer) -> bool:
    """To the last bit, which NaN does not equal."""
    return [(t.dtype, t.shape, _elements(t)) for t in one] == [(t.dtype, t.shape, _elements(t)) for t in other]


def _elements(array: Tensor) -> Any:
    return array.ravel().tolist() if array.dtype == object else array.tobytes()


BYTES_12 = np.arange(12, dtype=np.uint8)
NAN, OTHER_NAN = (np.array([bits], np.uint32).view(np.float32) for bits in (0x7FC00000, 0x7FC00001))
DIFFERENT: dict[str, Question] = {
    "the model": question(x=FP32[0]),
    "another model": question(FakeModel(MODELS["two"]), x=FP32[0]),
    "another name": question(y=FP32[0]),
    "a longer name": question(xx=FP32[0]),
    "an input more": question(x=FP32[0], y=FP32[0]),
    "all outputs but by name": question(outputs=["a", "b"], x=FP32[0]),
    "outputs in another order": question(outputs=["b", "a"], x=FP32[0]),
    "one output": question(outputs=["a"], x=FP32[0]),
    "one output with the name of two": question(outputs=["ab"], x=FP32[0]),
    "bytes": question(x=BYTES_12),
    "bytes as rows": question(x=BYTES_12.reshape(3, 4)),
    "bytes as other rows": question(x=BYTES_12.reshape(4, 3)),
    "bytes as one row": question(x=BYTES_12.reshape(1, 12)),
    "bytes as INT8": question(x=BYTES_12.view(np.int8)),
    "bytes as INT32": question(x=BYTES_12.view(np.int32)),
    "bytes as UINT32": question(x=BYTES_12.view(np.uint32)),
    "bytes as FP32": question(x=BYTES_12.view(np.float32)),
    "bytes as FP16": question(x=BYTES_12.view(np.float16)),
    "bytes as a photo": question(photo=BYTES_12.tobytes()),
    "bytes as a photo, one output": question(photo=BYTES_12.tobytes(), outputs=["a"]),
    "bytes as a photo for another model": question(FakeModel(MODELS["two"]), photo=BYTES_12.tobytes()),
    "a photo less": question(photo=BYTES_12.tobytes()[:-1]),
    "no photo": question(photo=b""),
    "bytes cut between inputs": question(x=BYTES_12[:6], y=BYTES_12[6:]),
    "bytes cut elsewhere": question(x=BYTES_12[:5], y=BYTES_12[5:]),
    "bytes cut, the other way round": question(y=BYTES_12[:6], x=BYTES_12[6:]),
    "a scalar": question(x=np.float32(1.5).reshape(())),
    "a row of it": question(x=np.array([1.5], np.float32)),
    "nothing": question(x=np.zeros((0,), np.float32)),
    "nothing in rows": question(x=np.zeros((0, 2), np.float32)),
    "nothing in columns": question(x=np.zeros((2, 0), np.float32)),
    "zero": question(x=np.array([0.0], np.float32)),
    "minus zero": question(x=np.array([-0.0], np.float32)),
    "NaN": question(x=NAN),
    "another NaN": question(x=OTHER_NAN),
    "texts": question(x=np.array(["ab", "c"], object)),
    "texts cut elsewhere": question(x=np.array(["a", "bc"], object)),
    "texts in a row": question(x=np.array([["ab", "c"]], object)),
    "a text": question(x=np.array(["abc"], object)),
    "a text of one character": question(x=np.array(["1"], object)),
    "a number": question(x=np.array([1], np.int64)),
    "a text of no characters": question(x=np.array([""], object)),
    "no text": question(x=np.array([], object)),
    "a text with a zero": question(x=np.array(["a\0b"], object)),
    "texts around a zero": question(x=np.array(["a", "b"], object)),
}


def test_different_questions_have_different_keys() -> None:
    """Models, outputs, names, types, shapes, values; a photo and its bytes: an answer is given to its question only."""
    keys = {name: asked.key() for name, asked in DIFFERENT.items()}
    alike = [pair for pair in itertools.combinations(keys, 2) if keys[pair[0]] == keys[pair[1]]]
    assert alike == []


def test_a_key_follows_type_shape_and_bytes_and_nothing_else() -> None:
    """Random tensors of few bytes: two have one key if they are the same, and only then."""
    dice = np.random.default_rng(random.getrandbits(32))
    tensors = []
    for _ in range(300):
        data = dice.integers(0, 2, int(dice.choice([0, 4, 8])), np.uint8).tobytes()
        array = np.frombuffer(data, dice.choice(["u1", "i1", "<u2", "<f2", "<i4", "<f4"]))
        tensors.append(array.reshape([(-1,), (1, -1), (-1, 1)][dice.integers(3)]))
    said = [(array.dtype.str, array.shape, array.tobytes()) for array in tensors]
    keys = [question(x=array).key() for array in tensors]
    assert len(set(said)) > 50
    for i, j in itertools.combinations(range(len(tensors)), 2):
        assert (said[i] == said[j]) == (keys[i] == keys[j])


SQUARE = np.arange(16, dtype=np.float32).reshape(4, 4)
ROWS = {"x": SQUARE[:2], "y": np.array([["a", "b"], ["c", "d"]], object)}
WRITE_PROTECTED = SQUARE[:2].copy()
WRITE_PROTECTED.flags.writeable = False


@pytest.mark.parametrize(
    "feeds",
    [
        pytest.param({"y": ROWS["y"], "x": ROWS["x"]}, id="inputs in another order"),
        pytest.param(ROWS | {"x": ROWS["x"].copy()}, id="a copy"),
        pytest.param(ROWS | {"x": np.asfortranarray(ROWS["x"])}, id="Fortran's order"),
        pytest.param(ROWS | {"x": SQUARE.repeat(2, 0)[:4:2]}, id="every second row"),
        pytest.param(ROWS | {"x": SQUARE.repeat(2, 1)[:2, ::2]}, id="every second column"),
        pytest.param(ROWS | {"x": SQUARE[:2][::-1].copy()[::-1]}, id="backwards"),
        pytest.param(
            ROWS | {"x": np.frombuffer(b"-" + ROWS["x"].tobytes(), np.uint8)[1:].view("<f4").reshape(2, 4)},
            id="not aligned",
        ),
        pytest.param(ROWS | {"x": WRITE_PROTECTED}, id="not to be written to"),
        pytest.param(ROWS | {"y": np.asfortranarray(ROWS["y"])}, id="texts in Fortran's order"),
        pytest.param(ROWS | {"y": np.array([["a", "c"], ["b", "d"]], object).T}, id="texts, turned"),
    ],
)
def test_equal_questions_have_equal_keys(feeds: dict[str, Tensor]) -> None:
    """However their inputs come to lie in memory, and whichever was named first."""
    assert question(**feeds).key() == question(**ROWS).key()


def test_a_key_reads_a_photo_and_does_not_decode_it() -> None:
    """Decoding costs more than some models do."""
    never = Question(cast(Model, FakeModel()), lambda: pytest.fail("it is decoded"), ["p"], b"photo")
    assert never.key() == question(photo=b"photo", outputs=["p"]).key()


def some(datatype: str, shape: tuple[int, ...]) -> Tensor:
    """Random bits; for BYTES, texts that are hard to get right."""
    dtype, size = DATATYPES[datatype].dtype, int(np.prod(shape))
    if datatype == "BYTES":
        texts = ["", "a", "a\0b", "\N{SNOWMAN}", "\U0001f985" * 3, "x" * 70_000, "\x7f\x80"]
        array = np.empty(shape, object)
        array[...] = np.array([texts[i % len(texts)] for i in range(size)], object).reshape(shape)
        return array
    if datatype == "BOOL":
        return np.array([i % 3 == 0 for i in range(size)], bool).reshape(shape)
    bits = random.getrandbits(8 * dtype.itemsize * size).to_bytes(dtype.itemsize * size, "little")
    return np.frombuffer(bits, dtype).reshape(shape)


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (1,), (2, 3), (1, 2, 3, 4)])
@pytest.mark.parametrize("datatype", DATATYPES)
def test_an_answer_comes_back_as_it_was(
    datatype: str, shape: tuple[int, ...], new_cache: Callable[..., PredictionCache]
) -> None:
    """Through Redis and from this process, bit by bit, whatever NaN says to that; in Fortran's order as well."""
    here, there = new_cache(local=1 << 20), new_cache()
    answer = [some(datatype, shape), np.asfortranarray(some(datatype, shape)), *FP32]
    assert here.put(KEY, answer)
    for cache in (here, there):
        found = cache.get(KEY)
        assert found is not None
        assert same(found, answer)


@pytest.mark.parametrize("bits", [0x7C01, 0x7E00, 0xFE42, 0x7C00, 0x8000, 0x0001])
def test_every_nan_is_kept_as_it_is(bits: int, new_cache: Callable[..., PredictionCache]) -> None:
    """FP16: signalling, quiet, negative; infinity, minus zero and the smallest number beside them."""
    answer = [np.array([bits], np.uint16).view(np.float16)]
    assert new_cache().put(KEY, answer)
    [found] = new_cache().get(KEY) or []
    assert found.view(np.uint16).tolist() == [bits]


def test_what_was_never_asked_is_not_found(new_cache: Callable[..., PredictionCache]) -> None:
    assert new_cache(local=1 << 20).get(KEY) is None


def entry(*stored: Any, expires: Any = 4e9) -> bytes:
    return msgspec.msgpack.encode([expires, list(stored)])


def test_the_broken_entries_of_these_tests_would_not_be_broken_with_other_values(
    redis: RedisServer, new_cache: Callable[..., PredictionCache]
) -> None:
    """What is refused below is refused for what is wrong with it, not because entries have come to look otherwise."""
    redis.admin.set(KEY, entry(["<f4", [1], np.float32(1.5).tobytes()], ["|O", [1, 2], ["a", "b"]]))
    assert same(new_cache().get(KEY) or [], [np.array([1.5], np.float32), np.array([["a", "b"]], object)])


BROKEN = {
    "nothing": b"",
    "no msgpack": b"\xc1",
    "text": b"prediction",
    "cut": entry(["<f4", [1], b"abcd"])[:-1],
    "more than one": entry(["<f4", [1], b"abcd"]) * 2,
    "no tensor": entry(),
    "a number": msgspec.msgpack.encode(7),
    "of another release": msgspec.msgpack.encode([["<f4", [1], b"abcd"]]),
    "an end that is no time": entry(["<f4", [1], b"abcd"], expires="tomorrow"),
    "a map": msgspec.msgpack.encode({"datatype": "<f4", "shape": [1], "data": b"abcd"}),
    "tensors of two fields": entry(["<f4", [1]]),
    "bytes that are too few": entry(["<f4", [2], b"abcd"]),
    "bytes that are too many": entry(["<f4", [1], b"abcdefgh"]),
    "half an element": entry(["<f4", [1], b"abc"]),
    "a negative dimension": entry(["<f4", [-1], b"abcd"]),
    "a dimension of no machine": entry(["<f4", [2**64 - 1], b"abcd"]),
    "nothing in a dimension of no machine": entry(["<f4", [0, 2**64 - 1], b""]),
    "no texts in a dimension of no machine": entry(["|O", [0, 2**64 - 1], []]),
    "too many dimensions": entry(["<f4", [1] * 100, b"abcd"]),
    "an unknown type": entry(["<f3", [1], b"abc"]),
    "no type": entry(["", [1], b"abcd"]),
    "a type that is Python": entry([",", [1], b"abcd"]),
    "a structure": entry(["i2,i2", [1], b"abcd"]),
    "a time": entry(["<m8[s]", [1], b"abcdefgh"]),
    "objects": entry(["O", [1], b"abcdefgh"]),
    "text for bytes": entry(["<f4", [1], "abcd"]),
    "numbers for bytes": entry(["<f4", [1], [1.0]]),
    "bytes for texts": entry(["|O", [3], b"abc"]),
    "numbers for texts": entry(["|O", [2], [1, 2]]),
    "texts that are too few": entry(["|O", [2], ["a"]]),
    "texts that are too many": entry(["|O", [2], ["a", "b", "c"]]),
    "lists for texts": entry(["|O", [2], [["a"], ["b", "c"]]]),
    "more texts than memory": entry(["|O", [2**45], ["a"]]),
    "lists in lists": entry(["|O", [1], "x"]).replace(b"\xa1x", b"\x91" * 5000 + b"\xa1a"),
    "no list": b"\x91" * 5000,
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
@pytest.mark.filterwarnings("default::DeprecationWarning")
def test_a_broken_entry_is_taken_for_none(
    text: bytes, redis: RedisServer, new_cache: Callable[..., PredictionCache]
) -> None:
    """It comes from another release, or from nobody we know. The next answer takes its place."""
    redis.admin.set(KEY, text)
    cache = new_cache(local=1 << 20)
    assert cache.get(KEY) is None
    assert cache.put(KEY, FP32)
    assert same(new_cache().get(KEY) or [], FP32)


@pytest.mark.filterwarnings("default::DeprecationWarning")
def test_an_entry_with_any_byte_wrong_raises_nothing(
    redis: RedisServer, new_cache: Callable[..., PredictionCache]
) -> None:
    """It is an answer, or none."""
    cache = new_cache()
    cache.put(KEY, [np.array([["a", "b"]], object), np.ones((1, 2), np.float32)])
    text = cast(bytes, redis.admin.get(KEY))
    for i in range(len(text)):
        for byte in {0, 0x2C, 0x7F, 0x90, 0xC1, 0xDD, 0xFF, text[i] ^ 1, text[i] ^ 0x80}:
            redis.admin.set(KEY, text[:i] + bytes([byte]) + text[i + 1 :])
            found = cache.get(KEY)
            assert found is None or all(isinstance(array, np.ndarray) for array in found)


def test_a_key_that_holds_something_else_is_taken_for_none(
    redis: RedisServer, new_cache: Callable[..., PredictionCache]
) -> None:
    """Redis refuses to read a list as a text. That is no reason to do without it."""
    redis.admin.rpush(KEY, "x")
    cache = new_cache()
    for _ in range(MAX_FAILURES + 1):
        assert cache.get(KEY) is None
    assert cache.put(KEY, FP32)
    assert same(cache.get(KEY) or [], FP32)


def test_entries_expire_a_tenth_earlier_or_later(redis: RedisServer, new_cache: Callable[..., PredictionCache]) -> None:
    """Not all at once, and none without an end."""
    cache, ttl = new_cache(ttl=1000), 1000_000
    lives = []
    for i in range(200):
        key = b"c:%d" % i
        cache.put(key, FP32)
        lives.append(redis.admin.pttl(key))
    assert ttl * (1 - JITTER) - 10_000 < min(lives) <= max(lives) <= ttl * (1 + JITTER)
    assert max(lives) - min(lives) > ttl * JITTER
    assert all(redis.admin.pttl(key) > 0 for key in redis.admin.keys("*"))


def test_an_entry_that_has_expired_is_gone(redis: RedisServer, new_cache: Callable[..., PredictionCache]) -> None:
    here, there = new_cache(ttl=0.05, local=1 << 20), new_cache()
    here.put(KEY, FP32)
    wait_until(lambda: here.get(KEY) is None and there.get(KEY) is None, "it has expired")


def test_an_entry_is_not_kept_here_for_longer_than_there(
    redis: RedisServer, new_cache: Callable[..., PredictionCache]
) -> None:
    """Found shortly before its end, it has no second life in the worker that found it."""
    new_cache(ttl=0.5).put(KEY, FP32)
    cache = new_cache(ttl=60, local=1 << 20)
    assert cache.get(KEY)
    wait_until(lambda: not redis.admin.exists(KEY), "it has expired in Redis")
    wait_until(lambda: cache.get(KEY) is None, "it has expired in the worker", 2)


@pytest.mark.parametrize("expires", [4e9, float("inf"), float("nan")])
def test_a_clock_that_is_wrong_gives_no_entry_a_longer_life(
    expires: float, redis: RedisServer, new_cache: Callable[..., PredictionCache]
) -> None:
    """Not longer than those of this worker have at most, whatever the one that kept it takes the time to be."""
    redis.admin.set(KEY, entry(["<f4", [1], b"abcd"], expires=expires), px=500)
    cache = new_cache(ttl=0.5, local=1 << 20)
    assert cache.get(KEY)
    wait_until(lambda: cache.get(KEY) is None, "it has expired in the worker", 2)


def test_an_entry_of_the_very_limit_is_kept_and_a_larger_one_is_not(
    redis: RedisServer, new_cache: Callable[..., PredictionCache]
) -> None:
    """Not here either."""
    new_cache().put(KEY, FP32)
    size = redis.admin.strlen(KEY)
    redis.admin.flushall()
    small = new_cache(max_entry=size - 1, local=1 << 20)
    assert not small.put(KEY, FP32)
    assert small.get(KEY) is None
    assert redis.admin.keys("*") == []
    assert new_cache(max_entry=size).put(KEY, FP32)
    assert redis.admin.strlen(KEY) == size


def test_a_redis_that_is_full_keeps_nothing_and_holds_nobody_up(
    redis: RedisServer, new_cache: Callable[..., PredictionCache]
) -> None:
    """What it refuses is computed by each; what it has, it gives."""
    new_cache().put(KEY, FP32)
    model, predictor = FakeModel(), Predictor(new_cache())
    with redis.configured(maxmemory_policy="noeviction", maxmemory=1):
        assert [predict(predictor, question(model)).cache for _ in range(5)] == ["fwd=miss"] * 5
        assert new_cache().get(KEY)
    assert model.runs == 5
    assert predict(predictor, question(model)).cache == "fwd=miss; stored"


# The local tier


ROOM = 350_000
BIG = 100_000


def test_what_was_used_last_stays_and_what_was_not_goes() -> None:
    """By bytes: as many as fit, whatever their number."""
    tier = LocalTier(ROOM)
    for name in (b"a", b"b", b"c"):
        tier.put(name, FP32, BIG, 60)
    assert tier.get(b"a")
    tier.put(b"d", FP32, BIG, 60)
    assert [name for name in (b"a", b"b", b"c", b"d") if tier.get(name)] == [b"a", b"c", b"d"]
    tier.put(b"e", FP32, 2 * BIG, 60)
    assert [name for name in (b"a", b"c", b"d", b"e") if tier.get(name)] == [b"d", b"e"]


def test_what_takes_all_the_room_is_kept_and_a_byte_more_is_not() -> None:
    """What does not fit drives nothing out. What an entry costs beside its bytes may count."""
    tier = LocalTier(ROOM)
    tier.put(b"a", FP32, BIG, 60)
    largest = ROOM - (tier._bytes - BIG)
    tier.put(b"b", FP32, largest + 1, 60)
    assert tier.get(b"a")
    assert not tier.get(b"b")
    tier.put(b"b", FP32, largest, 60)
    assert not tier.get(b"a")
    assert tier.get(b"b")


def test_what_is_put_again_counts_once_and_is_the_new_one() -> None:
    tier = LocalTier(ROOM)
    tier.put(b"a", FP32, BIG, 60)
    for _ in range(10):
        tier.put(b"b", FP32, BIG, 60)
    tier.put(b"b", [*FP32, *FP32], BIG, 60)
    assert len(tier.get(b"a") or []) == 1
    assert len(tier.get(b"b") or []) == 2


def test_a_tier_of_no_bytes_keeps_nothing(redis: RedisServer, new_cache: Callable[..., PredictionCache]) -> None:
    cache = new_cache(local=0)
    cache.put(KEY, FP32)
    for _ in range(3):
        cache.get(KEY)
    assert redis.calls("get") == 3


def test_what_is_found_here_is_not_looked_for_in_redis(
    redis: RedisServer, new_cache: Callable[..., PredictionCache]
) -> None:
    """Neither by who has put it nor by who has found it once."""
    here, there = new_cache(local=1 << 20), new_cache(local=1 << 20)
    here.put(KEY, FP32)
    for _ in range(5):
        assert here.get(KEY)
        assert there.get(KEY)
    assert redis.calls("get") == 1


def test_what_is_here_expires_and_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(cache_module, "time", SimpleNamespace(monotonic=lambda: now))
    tier = LocalTier(1 << 20)
    tier.put(b"a", FP32, 1000, 60)
    now += 59
    assert tier.get(b"a")
    now += 2
    assert tier.get(b"a") is None
    assert not tier._entries
    assert not tier._bytes


@pytest.mark.parametrize("tensors", [1, 20])
def test_its_bytes_are_the_memory_that_it_takes(tensors: int) -> None:
    """The answers of a small model are smaller than what Python needs to keep them: that must count, too."""
    limit = 1 << 20
    tier = LocalTier(limit)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for i in range(100_000 // tensors):
            tier.put(b"c:%032d" % i, [np.array([[1.5]], np.float32) for _ in range(tensors)], 10 + 13 * tensors, 60)
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert limit / 4 < taken < 2 * limit


def test_threads_share_it_and_none_is_hurt() -> None:
    """gthread has several in a worker: what one drops, another may be about to touch."""
    tier, errors = LocalTier(ROOM), []
    dice = [random.Random(random.getrandbits(32)) for _ in range(4)]  # noqa: S311  # which key is no secret

    def use(dice: random.Random) -> None:
        try:
            for _ in range(20_000):
                name = b"%d" % dice.randrange(12)
                if dice.random() < 0.5:
                    tier.get(name)
                else:
                    tier.put(name, FP32, dice.randrange(BIG), 60)
        except BaseException as error:
            errors.append(repr(error))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=use, args=(each,)) for each in dice]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        sys.setswitchinterval(interval)
    assert errors == []
    for name in list(tier._entries):
        tier._drop(name)
    assert tier._bytes == 0


@pytest.mark.parametrize("array", [FP32[0], np.array([["a"]], object)], ids=["numbers", "texts"])
def test_nobody_can_write_into_an_answer_that_others_will_get(
    array: Tensor, new_cache: Callable[..., PredictionCache]
) -> None:
    """Neither who has computed it, whose own it is no more, nor who has got it from here or from Redis."""
    here, there = new_cache(local=1 << 20), new_cache(local=1 << 20)
    given = [array.copy()]
    here.put(KEY, given)
    given[0][...] = 0
    for found in (here.get(KEY), there.get(KEY), there.get(KEY)):
        assert found is not None
        with pytest.raises(ValueError, match="read-only"):
            found[0][...] = 0
    for cache in (here, there, new_cache()):
        assert same(cache.get(KEY) or [], [array])


# Who computes


def in_threads(*calls: Callable[[], Any]) -> list[Any]:
    """What they return or raise, in order, once all have ended."""
    results: list[Any] = [None] * len(calls)

    def call(i: int) -> None:
        try:
            results[i] = calls[i]()
        except Exception as error:
            results[i] = error

    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


def test_of_many_who_ask_at_once_one_computes(redis: RedisServer, new_cache: Callable[..., PredictionCache]) -> None:
    """Four threads in each of five workers: the others get what that one has computed."""
    model, predictors = FakeModel(), [Predictor(new_cache()) for _ in range(5)]
    for round_ in range(20):
        asked = question(model, x=np.full((1, 2), round_, np.float32))
        model.runs = 0
        model.resume.clear()
        redis.reset_calls()
        calls = [lambda p=p, asked=asked: predict(p, asked) for p in predictors for _ in range(4)]
        release = threading.Thread(
            target=lambda: (wait_until(lambda: redis.calls("set") >= 20, "all have asked"), model.resume.set())
        )
        release.start()
        results = in_threads(*calls)
        release.join(20)
        assert [result.answer[0].tolist() for result in results] == [[1]] * 20
        assert model.runs == 1
        kinds = sorted(result.cache for result in results)
        assert kinds.count("fwd=miss; stored") == 1
        assert set(kinds) <= {"hit", "fwd=miss; collapsed", "fwd=miss; stored"}
        assert len(redis.admin.keys("*")) == round_ + 1, "no claim is left"


@pytest.mark.parametrize("moment", range(1, 5))
def test_an_answer_that_comes_between_two_questions_to_redis_is_not_computed_again(
    moment: int, new_cache: Callable[..., PredictionCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker has the claim, and has done just before the `moment`th command of this one, whichever that is."""
    model, cache, other = FakeModel(), new_cache(), new_cache()
    asked = question(model)
    claim = claimed(other, asked.key())
    assert claim
    commands = itertools.count(1)
    ask = cache._store.ask

    def ask_after_the_other(what: Any) -> Any:
        if next(commands) == moment:
            other.put(asked.key(), FP32, claim)
        return ask(what)

    monkeypatch.setattr(cache._store, "ask", ask_after_the_other)
    prediction = predict(Predictor(cache), asked)
    assert same(prediction.answer, FP32)
    assert model.runs == 0
    assert same(new_cache().get(asked.key()) or [], FP32)
    new_cache()._store.ask(lambda redis: redis.delete(asked.key()))
    assert claimed(new_cache(), asked.key()), "no claim is left"


def test_who_fails_lets_another_compute(redis: RedisServer, new_cache: Callable[..., PredictionCache]) -> None:
    """What failed is not kept, and not waited for any longer."""
    failing, model = FakeModel(), FakeModel()
    failing.fails = True
    failing.resume.clear()
    first, second = Predictor(new_cache()), Predictor(new_cache())

    def ask_while_the_first_computes() -> Prediction:
        wait_until(lambda: failing.runs, "the first computes")
        return predict(second, question(model))

    def fail() -> None:
        wait_until(lambda: redis.calls("get", "set") > 10, "it is waited for")
        failing.resume.set()

    failed, prediction, _ = in_threads(lambda: predict(first, question(failing)), ask_while_the_first_computes, fail)
    assert isinstance(failed, InferenceFailed)
    assert prediction.cache == "fwd=miss; stored"
    assert (failing.runs, model.runs) == (1, 1)


def test_an_input_that_cannot_be_made_is_a_failure_like_any_other(
    redis: RedisServer, new_cache: Callable[..., PredictionCache]
) -> None:
    """A photo is decoded once it is known that its answer is not there."""
    broken = Question(cast(Model, FakeModel()), lambda: _raise(InferenceFailed("no photo")), None, b"photo")
    with pytest.raises(InferenceFailed, match="no photo"):
        predict(Predictor(new_cache()), broken)
    assert redis.admin.keys("*") == []


def _raise(error: Exception) -> Any:
    raise error


@pytest.mark.parametrize("claimed_for", [0.001, 0.05, 600])
def test_who_is_gone_is_not_waited_for_longer_than_it_should_take(
    claimed_for: float, new_cache: Callable[..., PredictionCache]
) -> None:
    """However long it has claimed the answer for. The bound is loose: others use these cores."""
    model = FakeModel(seconds=0.001)
    asked = question(model)
    assert claimed(new_cache(), asked.key(), claimed_for)
    began = time.monotonic()
    assert predict(Predictor(new_cache()), asked).cache == "fwd=miss; stored"
    assert time.monotonic() - began < 5
    assert model.runs == 1


def test_a_claim_ends_by_itself(redis: RedisServer, new_cache: Callable[..., PredictionCache]) -> None:
    """A worker that dies takes nothing with it."""
    cache = new_cache()
    assert claimed(cache, KEY, 60)
    assert not claimed(cache, KEY, 60)
    [claim] = redis.admin.keys("*")
    assert 0 < redis.admin.pttl(claim) <= 60_000
    redis.admin.pexpire(claim, 1)
    wait_until(lambda: claimed(cache, KEY, 0), "the claim has ended, and another lasts however little time is left")


@pytest.mark.parametrize("end", ["keep", "give up"])
def test_who_computes_for_too_long_leaves_the_next_claim_alone(
    end: str, redis: RedisServer, new_cache: Callable[..., PredictionCache]
) -> None:
    """A claim that has ended may be another's by now."""
    slow, next_one = new_cache(), new_cache()
    over = claimed(slow, KEY, 0.001)
    assert over
    wait_until(lambda: claimed(next_one, KEY), "the next has it")
    if end == "keep":
        assert slow.put(KEY, FP32, over)
        redis.admin.delete(KEY)
    else:
        slow.give_up(over)
    assert not claimed(new_cache(), KEY)


def test_an_answer_that_is_too_large_is_not_waited_for(
    redis: RedisServer, new_cache: Callable[..., PredictionCache]
) -> None:
    """Or those who ask the same would compute it one after the other, each waiting for the one before."""
    model, predictors = FakeModel(seconds=100), [Predictor(new_cache(max_entry=1)) for _ in range(2)]
    asked = question(model)
    assert predict(predictors[0], asked).cache == "fwd=miss"
    model.resume.clear()
    release = threading.Thread(
        target=lambda: (wait_until(lambda: model.runs == 3, "both compute"), model.resume.set()), daemon=True
    )
    release.start()
    results = in_threads(*[lambda p=p: predict(p, asked) for p in predictors])
    assert [result.cache for result in results] == ["fwd=miss", "fwd=miss"]
    [state] = redis.admin.keys("*")
    assert 0 < redis.admin.pttl(state) <= UNSHARED_SECONDS * 1000


def test_nobody_waits_beyond_the_deadline(new_cache: Callable[..., PredictionCache]) -> None:
    """A claim is waited for no longer than the request has time; then it is over, like any that comes too late."""
    model = FakeModel(seconds=100)
    asked = question(model)
    assert claimed(new_cache(), asked.key())
    with pytest.raises(DeadlineExceeded):
        predict(Predictor(new_cache()), asked, seconds=0.05)
    assert model.runs == 0


def test_patience_is_in_proportion_to_what_a_model_takes() -> None:
    assert patience(cast(Model, FakeModel(seconds=0.0))) == MIN_PATIENCE_SECONDS
    assert patience(cast(Model, FakeModel(seconds=2.0))) == 2 * PATIENCE


def test_without_redis_everybody_computes_and_nobody_waits(
    away: PredictionCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And there is no claim that somebody else could have."""
    clock = SimpleNamespace(time=time.time, monotonic=time.monotonic, sleep=lambda _: pytest.fail("somebody waits"))
    monkeypatch.setattr(cache_module, "time", clock)
    model, predictor = FakeModel(), Predictor(away)
    results = in_threads(*[lambda: predict(predictor, question(model)) for _ in range(20)])
    assert [result.cache for result in results] == ["fwd=miss"] * 20
    assert sorted(int(result.answer[0][0]) for result in results) == list(range(1, 21))


def test_who_waits_computes_when_redis_goes_away(redis: RedisServer, new_cache: Callable[..., PredictionCache]) -> None:
    """The answer may have come, but not to us."""
    model, cache = FakeModel(), new_cache(timeout=0.2)
    asked = question(model)
    assert claimed(new_cache(), asked.key())
    stopped = threading.Event()

    def stop_redis() -> None:
        wait_until(lambda: redis.calls("get", "set") > 10, "it is waited for")
        with redis.stopped():
            assert stopped.wait(20)

    def answer() -> Prediction:
        try:
            return predict(Predictor(cache), asked)
        finally:
            stopped.set()

    prediction, _ = in_threads(answer, stop_redis)
    assert prediction.cache == "fwd=miss"
    assert model.runs == 1


# What the caller wants


def test_what_was_computed_is_given_again(new_cache: Callable[..., PredictionCache]) -> None:
    """By every worker."""
    model, first, second = FakeModel(), Predictor(new_cache()), Predictor(new_cache())
    assert [predict(each, question(model)).cache for each in (first, first, second)] == [
        "fwd=miss; stored",
        "hit",
        "hit",
    ]
    assert model.runs == 1


def test_who_wants_it_new_gets_it_new_and_the_others_get_that(new_cache: Callable[..., PredictionCache]) -> None:
    model, predictor, other = FakeModel(), Predictor(new_cache(local=1 << 20)), Predictor(new_cache())
    predict(predictor, question(model))
    prediction = predict(predictor, question(model), Caching(read=False))
    assert (prediction.cache, prediction.answer[0].tolist()) == ("fwd=request; stored", [2])
    for each in (predictor, other):
        prediction = predict(each, question(model))
        assert (prediction.cache, prediction.answer[0].tolist()) == ("hit", [2])


def test_who_wants_it_new_does_not_wait(redis: RedisServer, new_cache: Callable[..., PredictionCache]) -> None:
    """Another computes already, perhaps from before."""
    model = FakeModel()
    assert claimed(new_cache(), question(model).key())
    assert predict(Predictor(new_cache()), question(model), Caching(read=False)).cache == "fwd=request; stored"


def test_who_wants_it_new_and_fails_leaves_the_claim_to_who_has_it(
    new_cache: Callable[..., PredictionCache],
) -> None:
    """Otherwise one more would compute what is being computed."""
    model = FakeModel()
    model.fails = True
    assert claimed(new_cache(), question(model).key())
    with pytest.raises(InferenceFailed):
        predict(Predictor(new_cache()), question(model), Caching(read=False))
    assert not claimed(new_cache(), question(model).key())


def test_who_wants_nothing_kept_leaves_no_trace(redis: RedisServer, new_cache: Callable[..., PredictionCache]) -> None:
    """Neither here nor in Redis, and what is there is not read."""
    model, predictor = FakeModel(), Predictor(new_cache(local=1 << 20))
    for _ in range(2):
        assert predict(predictor, question(model), Caching(read=False, write=False)).cache == "fwd=bypass"
    assert redis.calls("get", "set", "del") == 0
    assert predict(predictor, question(model)).cache == "fwd=miss; stored"
    assert model.runs == 3


# Whether to look


@pytest.mark.parametrize(
    ("policy", "seconds", "worth"),
    [
        ("on", 0.0, True),
        ("off", 1e9, False),
        ("auto", 0.0, False),
        ("auto", WORTH, False),
        ("auto", WORTH * 1.01, True),
        ("auto", 1e9, True),
    ],
)
def test_a_look_is_worth_it_if_the_policy_says_so_or_the_model_costs_more(
    policy: str, seconds: float, worth: bool, new_cache: Callable[..., PredictionCache]
) -> None:
    """`seconds`: of the model, as multiples of a round trip to Redis. The answer costs no round trip."""
    cache = new_cache()
    model = FakeModel(seconds=seconds * cache._store.seconds, cache=policy)
    assert cache.is_worth(cast(Model, model)) == worth


@pytest.mark.parametrize("policy", ["on", "auto", "off"])
def test_without_a_redis_no_model_is_worth_a_look(policy: str) -> None:
    cache = PredictionCache(Store(None, "none"), 60, 1 << 20, 1 << 20)
    assert not cache.is_worth(cast(Model, FakeModel(cache=policy)))


def test_what_is_not_worth_it_costs_redis_nothing(
    redis: RedisServer, new_cache: Callable[..., PredictionCache]
) -> None:
    """And its answer says nothing of a cache."""
    predictor, model = Predictor(new_cache()), FakeModel(seconds=0.0, cache="auto")
    assert [predict(predictor, question(model)).cache for _ in range(3)] == [""] * 3
    assert redis.calls("get", "set", "del", "client") == 0


def test_a_slow_hour_of_redis_does_not_end_the_cache_for_good(
    redis: RedisServer, new_cache: Callable[..., PredictionCache]
) -> None:
    """Once a look is not worth it, nobody looks; somebody must find that it has become worth it again."""
    with FaultProxy(redis.address) as proxy:
        cache = new_cache(url=proxy.url)
        predictor, model = Predictor(cache), FakeModel(cache="auto")
        model.run = lambda *_: FP32  # type: ignore[method-assign]

        def predict_once_more() -> str:
            model.seconds = 0.005
            return predict(predictor, question(model)).cache

        wait_until(lambda: predict_once_more() == "hit", "it is looked for, and found")
        proxy.set("delay", 0.02)
        wait_until(lambda: not predict_once_more(), "a look is not worth it")
        proxy.set("pass")
        wait_until(lambda: predict_once_more() == "hit", "it is found again", 5)


def test_whatever_redis_does_the_cache_raises_nothing(away: PredictionCache) -> None:
    """It has no answer, cannot keep one, and leaves who asks to compute."""
    assert away.get(KEY) is None
    assert away.put(KEY, FP32) is False
    assert away.wait_for_turn(KEY, 1, 1) == (None, None)
    away.give_up(Claim(KEY, time.monotonic() + 60))
    with pytest.raises(StoreAway):
        away._store.ask(lambda redis: redis.ping())
