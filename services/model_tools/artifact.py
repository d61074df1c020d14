"""What one pass hands to the next: a model, the rows that it may be calibrated on, and how it came about."""

from typing import Any

import msgspec
from numpy.typing import NDArray

from inference_core.manifest import Step
from model_tools.publish import describe

# An array per input, whose first dimension is the rows.
Feed = dict[str, NDArray[Any]]


class Artifact(msgspec.Struct, frozen=True):
    """`output` is the one by which the model is judged."""

    model: bytes
    calibration: Feed
    output: str
    lineage: tuple[Step, ...] = ()

    def then(self, name: str, model: bytes, options: dict[str, Any]) -> "Artifact":
        """With `model` in the place of this one, which the source or pass `name` made of it."""
        as_read_back = msgspec.json.decode(msgspec.json.encode(options))
        step = Step(name, as_read_back, describe(model))
        return msgspec.structs.replace(self, model=model, lineage=(*self.lineage, step))


class Pass(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="pass"):
    """A `[[passes]]` of a recipe: its fields are what the recipe may say, `apply` is what it does."""

    @property
    def name(self) -> str:
        return str(type(self).__struct_config__.tag)

    def apply(self, artifact: Artifact) -> Artifact:
        """The artifact after this pass; PackageRefused if the model is not one for it."""
        raise NotImplementedError

    def _made(self, artifact: Artifact, model: bytes, **found: Any) -> Artifact:
        """`artifact` with the `model` that this pass made of it, and what it found out."""
        return artifact.then(self.name, model, {**msgspec.to_builtins(self), **found})


class LossyPass(Pass, frozen=True):
    """One after which answers are not quite the same, so that the gate must have a budget for that."""


class QuantisingPass(LossyPass, frozen=True):
    """One that is there for speed, so that the gate refuses a model that has become slower."""


def rows_of(feed: Feed) -> int:
    return len(next(iter(feed.values())))


def slice_rows(feed: Feed, start: int, stop: int) -> Feed:
    return {name: array[start:stop] for name, array in feed.items()}
