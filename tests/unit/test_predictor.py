import threading
from typing import Any, cast

import numpy as np
import pytest
from builders import manifest, tensor
from servers import wait_until

from inference_core.cache import PredictionCache, Question
from inference_core.errors import DeadlineExceeded, InferenceFailed
from inference_core.model import Model, RunOptions
from inference_core.predictor import Predictor
from inference_core.store import Store
from inference_core.tensors import Tensor
from inference_core.watchdog import InFlight

NO_CACHE = PredictionCache(Store(None, "none"), 60, 1 << 20, 1 << 20)
FEEDS = {"x": np.zeros((1, 2), np.float32)}


class FakeModel:
    """Remembers its runs; `run` waits for `resume`, and counts how many runs there are at once."""

    def __init__(self) -> None:
        self.manifest = manifest([tensor("FP32", -1, 2)])
        self.seconds = 0.0
        self.runs: list[tuple[Any, ...]] = []
        self.resume = threading.Event()
        self.resume.set()
        self.at_once = self.most_at_once = 0

    def run(self, feeds: dict[str, Tensor], outputs: list[str] | None, options: RunOptions) -> list[Tensor]:
        self.runs.append((feeds, outputs, options))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        assert self.resume.wait(20)
        self.at_once -= 1
        return [np.ones(1)]


class FakeCall:
    """A request with `seconds` left for ever."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.options = RunOptions()

    def remaining(self) -> float:
        return self.seconds


def predict(
    predictor: Predictor, model: FakeModel, seconds: float = 20, outputs: list[str] | None = None
) -> list[Tensor]:
    question = Question(cast(Model, model), lambda: FEEDS, outputs)
    return predictor.predict(question, cast(InFlight, FakeCall(seconds))).answer


def test_a_prediction_is_a_run_of_the_model() -> None:
    """The model gets the arrays, the names of the wanted outputs and the options by which it can be stopped."""
    model = FakeModel()
    [answer] = predict(Predictor(NO_CACHE), model, outputs=["y"])
    assert answer.tolist() == [1]
    [(feeds, outputs, options)] = model.runs
    assert feeds is FEEDS
    assert outputs == ["y"]
    assert isinstance(options, RunOptions)


def test_one_prediction_at_a_time() -> None:
    """The thread plan counts on it."""
    model, predictor = FakeModel(), Predictor(NO_CACHE)
    model.resume.clear()
    threads = [threading.Thread(target=predict, args=(predictor, model)) for _ in range(4)]
    for thread in threads:
        thread.start()
    wait_until(lambda: model.runs, "one runs")
    model.resume.set()
    for thread in threads:
        thread.join(20)
    assert len(model.runs) == 4
    assert model.most_at_once == 1


def test_who_waits_beyond_the_deadline_is_not_served() -> None:
    """While another runs, a request waits no longer than it has time."""
    model, predictor = FakeModel(), Predictor(NO_CACHE)
    model.resume.clear()
    thread = threading.Thread(target=predict, args=(predictor, model))
    thread.start()
    wait_until(lambda: model.runs, "one runs")
    with pytest.raises(DeadlineExceeded, match=r"^model m: its deadline passed while others were served$"):
        predict(predictor, model, 0.01)
    model.resume.set()
    thread.join(20)
    assert len(model.runs) == 1


@pytest.mark.parametrize("seconds", [0, -1])
def test_who_comes_after_the_deadline_is_not_served(seconds: float) -> None:
    """A request whose time is over costs no inference, and leaves the way free for the next."""
    model, predictor = FakeModel(), Predictor(NO_CACHE)
    with pytest.raises(DeadlineExceeded, match=r"^model m: its deadline passed before it could be served$"):
        predict(predictor, model, seconds)
    assert not model.runs
    predict(predictor, model)


def test_a_failure_leaves_the_way_free() -> None:
    """A model that fails does not block the next request."""
    model, predictor = FakeModel(), Predictor(NO_CACHE)
    model.run = lambda *_: _raise(InferenceFailed("no"))  # type: ignore[method-assign]
    with pytest.raises(InferenceFailed):
        predict(predictor, model)
    predict(predictor, FakeModel())


def _raise(error: Exception) -> list[Tensor]:
    raise error
