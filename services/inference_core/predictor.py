"""A prediction: from tensors that fit the model to the tensors that it answers."""

import threading

from inference_core.errors import DeadlineExceeded
from inference_core.model import Model
from inference_core.tensors import Tensor
from inference_core.watchdog import InFlight


class Predictor:
    """One inference at a time in each process: the thread plan counts on it, and sharing makes no queue faster."""

    def __init__(self) -> None:
        self._slot = threading.Lock()

    def predict(
        self, model: Model, feeds: dict[str, Tensor], outputs: list[str] | None, call: InFlight
    ) -> list[Tensor]:
        """The wanted `outputs` (None: all) of `model`, or DeadlineExceeded once the deadline of `call` has passed."""
        if not self._slot.acquire(blocking=False) and not self._slot.acquire(timeout=max(0.0, call.remaining())):
            raise DeadlineExceeded(f"model {model.manifest.name}: its deadline passed while others were served")
        try:
            if call.remaining() <= 0:
                raise DeadlineExceeded(f"model {model.manifest.name}: its deadline passed before it could be served")
            return model.run(feeds, outputs, call.options)
        finally:
            self._slot.release()
