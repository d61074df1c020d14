"""The mix of models that is served: who is asked how often, and what, which each model's `examples` folder says."""

import math
import random
from collections.abc import Mapping
from pathlib import Path

from inference_core.manifest import is_name

MEDIA_TYPES = {
    ".json": "application/json",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
}
MAX_WEIGHT = 1000

Mix = Mapping[str, int]


def read_mix(text: str) -> Mix:
    """`a=9,b=1`: of ten requests nine are for a; without a number a model has one. ValueError says what is wrong."""
    mix: dict[str, int] = {}
    for part in text.split(","):
        name, _, weight = part.partition("=")
        if not is_name(name) or name in mix:
            raise ValueError(f"expected models with their shares, such as a=9,b=1, each of them once, got {text!r}")
        if not (weight or "1").isdecimal() or not 1 <= int(weight or 1) <= MAX_WEIGHT:
            raise ValueError(f"{name}: expected a share from 1 to {MAX_WEIGHT}, got {weight!r}")
        mix[name] = int(weight or 1)
    return mix


def requests(mix: Mix, models: Path) -> list[bytes]:
    """In the order in which they are to be sent, again and again; ValueError if a model has no examples.

    Each model has exactly its share, and each of its examples the same part of that: a photo more or less would be
    some percent of a short measurement.
    """
    examples = {name: _examples(name, models) for name in mix}
    rounds = math.lcm(*(len(found) // math.gcd(len(found), mix[name]) for name, found in examples.items()))
    ordered = [request for name, found in examples.items() for request in found * (rounds * mix[name] // len(found))]
    random.Random(0).shuffle(ordered)  # noqa: S311  # the same order in each trial
    return ordered


def _examples(name: str, models: Path) -> list[bytes]:
    folder = models / name / "examples"
    found = sorted(path for path in folder.glob("*") if path.suffix in MEDIA_TYPES)
    if not found:
        raise ValueError(f"{folder}: expected what to ask {name}, {', '.join(MEDIA_TYPES)} files, found none")
    return [_post(name, MEDIA_TYPES[path.suffix], path.read_bytes()) for path in found]


def _post(name: str, media_type: str, body: bytes) -> bytes:
    head = (
        f"POST /v1/models/{name}:predict HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Type: {media_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
