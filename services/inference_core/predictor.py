"""A prediction: from a question to the tensors that answer it, computed or remembered."""

import threading
import time

import msgspec

from inference_core.batching import Turns
from inference_core.cache import Answer, Claim, PredictionCache, Question, patience
from inference_core.errors import DeadlineExceeded
from inference_core.watchdog import InFlight
from observability.families import BATCHED

# Of the newest prediction in the average of what one costs.
WEIGHT = 0.05


class Caching(msgspec.Struct, frozen=True):
    """What the caller says about remembered answers: whether one may be given, and whether this one may be kept."""

    read: bool = True
    write: bool = True


class Prediction(msgspec.Struct):
    """`cache` says how the cache took part, in the words of RFC 9211; empty if the model is not worth one.

    It `began` at a time of `time.perf_counter`; making the input, the inference and the cache took seconds.
    """

    answer: Answer
    began: float
    input_seconds: float = 0.0
    infer_seconds: float = 0.0
    cache: str = ""
    cache_seconds: float = 0.0
    # How many examples it is about.
    rows: int = 1


AS_USUAL = Caching()


class Predictor:
    """One inference at a time in each process: the thread plan counts on it, and sharing makes no queue faster.

    `turns`, where threads share the process: some of those that wait become one inference. PERF: elsewhere a lock does,
    as hardly anybody ever waits.
    """

    def __init__(self, cache: PredictionCache, turns: Turns | None = None) -> None:
        self._cache = cache
        self._turns = turns
        self._slot = threading.Lock()

    def predict(self, question: Question, call: InFlight, caching: Caching = AS_USUAL) -> Prediction:
        """The wanted outputs, or DeadlineExceeded once the deadline of `call` has passed."""
        if self._cache.is_worth(question.model):
            began = time.perf_counter()
            prediction = self._remembered(question, call, caching)
            took = time.perf_counter() - began
            prediction.began = began
            prediction.cache_seconds = took - prediction.input_seconds - prediction.infer_seconds
        else:
            prediction = self._compute(question, call)
        if question.model.manifest.max_batch_size:
            prediction.rows = len(prediction.answer[0])
        return prediction

    def _remembered(self, question: Question, call: InFlight, caching: Caching) -> Prediction:
        if not caching.write:
            return self._compute(question, call, "fwd=bypass")
        key = question.key()
        if not caching.read:  # nor does it claim: others who compute go on
            prediction = self._compute(question, call, "fwd=request")
            return self._keep(key, prediction)
        if (found := self._cache.get(key)) is not None:
            return Prediction(found, 0.0, cache="hit")
        found, claim = self._cache.wait_for_turn(key, min(patience(question.model), call.remaining()), call.remaining())
        if found is not None:
            return Prediction(found, 0.0, cache="fwd=miss; collapsed")
        try:
            prediction = self._compute(question, call, "fwd=miss")
        except Exception:
            if claim:
                self._cache.give_up(claim)
            raise
        return self._keep(key, prediction, claim)

    def _keep(self, key: bytes, prediction: Prediction, claim: Claim | None = None) -> Prediction:
        if self._cache.put(key, prediction.answer, claim):
            prediction.cache += "; stored"
        return prediction

    def _compute(self, question: Question, call: InFlight, cache: str = "") -> Prediction:
        model, began = question.model, time.perf_counter()
        feeds = question.feeds()
        waiting = time.perf_counter()
        if self._turns:
            answer, infer_seconds, shared_by = self._turns.run(question, feeds, call)
            if shared_by > 1:
                BATCHED.of(model.manifest.name, model.manifest.version).add()
        else:
            self._wait_for_turn(model.manifest.name, call)
            running = time.perf_counter()
            try:
                answer = model.run(feeds, question.outputs, call.options)
            finally:
                self._slot.release()
            infer_seconds, shared_by = time.perf_counter() - running, 1
        seconds = infer_seconds / shared_by + waiting - began
        model.seconds += WEIGHT * (seconds - model.seconds)
        return Prediction(answer, began, waiting - began, infer_seconds, cache)

    def _wait_for_turn(self, name: str, call: InFlight) -> None:
        if not self._slot.acquire(blocking=False) and not self._slot.acquire(timeout=max(0.0, call.remaining())):
            raise DeadlineExceeded(f"model {name}: its deadline passed while others were served")
        if call.remaining() <= 0:
            self._slot.release()
            raise DeadlineExceeded(f"model {name}: its deadline passed before it could be served")
