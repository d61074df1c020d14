"""A prediction: from a question to the tensors that answer it, computed or remembered."""

import threading
import time

import msgspec

from inference_core.cache import Answer, PredictionCache, Question, patience
from inference_core.errors import DeadlineExceeded
from inference_core.watchdog import InFlight

# Of the newest prediction in the average of what one costs.
WEIGHT = 0.05


class Caching(msgspec.Struct, frozen=True):
    """What the caller says about remembered answers: whether one may be given, and whether this one may be kept."""

    read: bool = True
    write: bool = True


class Prediction(msgspec.Struct):
    """`cache` says how the cache took part, in the words of RFC 9211; empty if the model is not worth one."""

    answer: Answer
    cache: str = ""


AS_USUAL = Caching()


class Predictor:
    """One inference at a time in each process: the thread plan counts on it, and sharing makes no queue faster."""

    def __init__(self, cache: PredictionCache) -> None:
        self._cache = cache
        self._slot = threading.Lock()

    def predict(self, question: Question, call: InFlight, caching: Caching = AS_USUAL) -> Prediction:
        """The wanted outputs, or DeadlineExceeded once the deadline of `call` has passed."""
        if not self._cache.is_worth(question.model):
            return Prediction(self._compute(question, call))
        if not caching.write:
            return Prediction(self._compute(question, call), "fwd=bypass")
        key = question.key()
        if not caching.read:  # nor does it claim: others who compute go on
            answer = self._compute(question, call)
            return Prediction(answer, "fwd=request; stored" if self._cache.put(key, answer) else "fwd=request")
        if (found := self._cache.get(key)) is not None:
            return Prediction(found, "hit")
        found, claim = self._cache.wait_for_turn(key, min(patience(question.model), call.remaining()), call.remaining())
        if found is not None:
            return Prediction(found, "fwd=miss; collapsed")
        try:
            answer = self._compute(question, call)
        except Exception:
            if claim:
                self._cache.give_up(claim)
            raise
        return Prediction(answer, "fwd=miss; stored" if self._cache.put(key, answer, claim) else "fwd=miss")

    def _compute(self, question: Question, call: InFlight) -> Answer:
        model, began = question.model, time.perf_counter()
        feeds = question.feeds()
        waiting = time.perf_counter()
        if not self._slot.acquire(blocking=False) and not self._slot.acquire(timeout=max(0.0, call.remaining())):
            raise DeadlineExceeded(f"model {model.manifest.name}: its deadline passed while others were served")
        try:
            if call.remaining() <= 0:
                raise DeadlineExceeded(f"model {model.manifest.name}: its deadline passed before it could be served")
            running = time.perf_counter()
            answer = model.run(feeds, question.outputs, call.options)
        finally:
            self._slot.release()
        seconds = time.perf_counter() - running + waiting - began
        model.seconds += WEIGHT * (seconds - model.seconds)
        return answer
