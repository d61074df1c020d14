"""What every runtime has in common: how a loaded model is called, and how its signature is checked."""

from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from inference_core.errors import PackageRefused
from inference_core.manifest import TensorSpec
from inference_core.tensors import DATATYPES, Tensor


class Stop(Protocol):
    """`terminate` is set by another thread at the deadline."""

    terminate: bool


class Engine(NamedTuple):
    """A model that is loaded, and what its answers follow from besides itself and its input: `version`.

    `run` gives an array for each of the named outputs, in that order, for one per input. Told to stop it raises
    something: at once if the runtime can, else when it is through. `refusals` are what it raises at values that it does
    not take.
    """

    version: str
    run: Callable[[list[str], dict[str, Tensor], Stop], list[Tensor]]
    refusals: tuple[type[Exception], ...] = ()


def check_signature(kind: str, expected: tuple[TensorSpec, ...], got: Iterable[TensorSpec]) -> None:
    """Raise PackageRefused unless the file has the tensors that the manifest says: `kind` is "input" or "output"."""
    found = {spec.name: spec for spec in got}
    if found.keys() != {spec.name for spec in expected}:
        names = sorted(spec.name for spec in expected)
        raise PackageRefused(f"{kind}s: expected {names} as in the manifest, got {sorted(found)}")
    for spec in expected:
        datatype, shape = found[spec.name].datatype, found[spec.name].shape
        if spec.datatype not in DATATYPES or datatype != spec.datatype:
            raise PackageRefused(f"{kind} '{spec.name}': expected {spec.datatype} as in the manifest, got {datatype}")
        if not fits(shape, spec.shape):
            raise PackageRefused(
                f"{kind} '{spec.name}': expected shape {list(spec.shape)} as in the manifest, got {list(shape)}"
            )


def fits(general: tuple[int, ...], special: tuple[int, ...]) -> bool:
    """Whether `special` is `general` with some of its variable dimensions (-1) filled in."""
    return len(general) == len(special) and all(a in (-1, b) for a, b in zip(general, special, strict=True))


def in_short(error: Exception) -> str:
    return str(error).split("\n")[0][:300]
