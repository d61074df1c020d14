"""The model package: an immutable folder `models/<name>/<version>/` with `manifest.json` and the model, `model.onnx`.

The manifest says what the package is and pins the model file by SHA-256; the SHA-256 of the manifest itself
is the package's digest. `read_package` is the only way in, and everything that it returns has been verified.
"""

import hashlib
import re
from pathlib import Path
from typing import Annotated, Any

import msgspec

from inference_core.errors import PackageRefused

MANIFEST_FILE = "manifest.json"
# The model's file, by the runtime that it is for.
MODEL_FILES = {"onnx": "model.onnx", "torchscript": "model.pt", "litert": "model.tflite"}
MAX_MANIFEST_BYTES = 1 << 20

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
# A version is a decimal number, because clients of the Open Inference Protocol convert it to an integer.
VERSION_PATTERN = r"^[1-9][0-9]{0,8}$"

Name = Annotated[str, msgspec.Meta(pattern=NAME_PATTERN)]
Version = Annotated[str, msgspec.Meta(pattern=VERSION_PATTERN)]
Runtime = Annotated[str, msgspec.Meta(pattern=f"^({'|'.join(MODEL_FILES)})$")]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
Positive = Annotated[int, msgspec.Meta(ge=1)]
AboveZero = Annotated[float, msgspec.Meta(gt=0)]
Dimension = Annotated[int, msgspec.Meta(ge=-1)]


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A frozen part of the manifest that refuses unknown keys."""


class ModelFile(Record, frozen=True):
    sha256: Sha256
    size_bytes: Positive


class TensorSpec(Record, frozen=True):
    """A named tensor: `datatype` as in the Open Inference Protocol, `shape` with -1 for a variable dimension.

    When `max_batch_size` of the manifest is not 0, the first dimension is the batch and is -1.
    `features` names the columns of a `[-1, n]` input, so that a row can be sent as an object.
    """

    name: str
    datatype: str
    shape: tuple[Dimension, ...]
    features: tuple[str, ...] = ()


class ImageInput(Record, frozen=True):
    """How a photo becomes the tensor `input` (FP32, `[-1, 3, size, size]`, RGB): the centred square of
    `crop_fraction` of the shorter side, resized (bicubic), then `(pixel - mean) / scale`, pixels being 0..255.
    The class probabilities come out of `output` (FP32, `[-1, classes]`).
    """

    input: str
    output: str
    size: Positive
    crop_fraction: Annotated[float, msgspec.Meta(gt=0, le=1)]
    mean: tuple[float, float, float]
    scale: tuple[AboveZero, AboveZero, AboveZero]


class Check(Record, frozen=True):
    """A figure that was measured before publication, and the budget that it is within: at most, or at least, that."""

    what: str
    figure: float
    unit: str = ""
    at_most: float | None = None
    at_least: float | None = None

    @property
    def holds(self) -> bool:
        """NaN is within no budget."""
        return (self.at_most is None or self.figure <= self.at_most) and (
            self.at_least is None or self.figure >= self.at_least
        )


class Gate(Record, frozen=True):
    """What `tiercel build` asked of the model before it published it: `rows` are those that were held out."""

    checks: Annotated[tuple[Check, ...], msgspec.Meta(min_length=1)]
    rows: Positive
    processor: str


class Step(Record, frozen=True):
    """How the model came about: the source or a pass, with what it was told and found, and the model after it."""

    name: str
    options: dict[str, Any]
    model: ModelFile


class InputStatistics(Record, frozen=True):
    """An input over the rows of calibration: a figure for each column of a `[-1, n]` input, else one for all."""

    rows: Positive
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    minimum: tuple[float, ...]
    maximum: tuple[float, ...]


class Manifest(Record, frozen=True):
    name: Name
    version: Version
    description: str
    model: ModelFile
    inputs: Annotated[tuple[TensorSpec, ...], msgspec.Meta(min_length=1)]
    outputs: Annotated[tuple[TensorSpec, ...], msgspec.Meta(min_length=1)]
    # Rows that one request may carry; 0 means that the model has no batch dimension.
    max_batch_size: Annotated[int, msgspec.Meta(ge=0)]
    licence: str
    # Where weights and data come from, what was measured, and how the package was built: for people to read.
    source: dict[str, str]
    metrics: dict[str, Any]
    built: dict[str, str]
    # What the model is for, which also says how its file is called.
    runtime: Runtime = "onnx"
    image: ImageInput | None = None
    # Name of each class, by class id.
    labels: tuple[str, ...] = ()
    # Of a package that `tiercel build` made.
    gate: Gate | None = None
    lineage: tuple[Step, ...] = ()
    statistics: dict[str, InputStatistics] = {}

    @property
    def model_file(self) -> str:
        return MODEL_FILES[self.runtime]


class Package(msgspec.Struct, frozen=True):
    """A verified package, in memory. `digest` is the SHA-256 of the manifest in hexadecimal."""

    manifest: Manifest
    model: bytes
    digest: str


def read_package(folder: Path, max_bytes: int, keys_file: str = "") -> Package:
    """Read and verify the package in `folder`; raise PackageRefused with the reason if anything is off.

    With `keys_file` it must also have passed its gate, and be signed with a key in that file: strict mode.
    The model is returned as bytes: the runtime then has no base folder from which a hostile graph could
    read external data, and what was hashed is what is loaded.
    """
    manifest, digest = read_manifest(folder, keys_file)
    path = folder / manifest.model_file
    try:
        _check_size(path, manifest.model, max_bytes)
        model = path.read_bytes()
    except OSError as error:
        raise PackageRefused(f"{path.name}: {error.strerror}") from None
    _check_sha256(path, hashlib.sha256(model).hexdigest(), manifest.model)
    return Package(manifest, model, digest)


def verify_package(folder: Path, max_bytes: int, keys_file: str = "") -> None:
    """The same checks in constant memory, for who only wants to know."""
    manifest, _ = read_manifest(folder, keys_file)
    path = folder / manifest.model_file
    try:
        _check_size(path, manifest.model, max_bytes)
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise PackageRefused(f"{path.name}: {error.strerror}") from None
    _check_sha256(path, sha256, manifest.model)


def _check_size(path: Path, expected: ModelFile, max_bytes: int) -> None:
    size = path.stat().st_size if path.is_file() else 0
    if size > max_bytes:
        raise PackageRefused(f"{path.name}: expected at most {max_bytes} bytes, got {size}")
    if size != expected.size_bytes:
        raise PackageRefused(f"{path.name}: expected {expected.size_bytes} bytes as in the manifest, got {size}")


def _check_sha256(path: Path, got: str, expected: ModelFile) -> None:
    if got != expected.sha256:
        raise PackageRefused(f"{path.name}: expected SHA-256 {expected.sha256} as in the manifest, got {got}")


def read_manifest(folder: Path, keys_file: str = "") -> tuple[Manifest, str]:
    """The manifest in `folder` and its digest; the folder's own name and its parent's must agree with it."""
    path = folder / MANIFEST_FILE
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise PackageRefused(f"{MANIFEST_FILE}: {error.strerror}") from None
    if len(raw) > MAX_MANIFEST_BYTES:
        raise PackageRefused(f"{MANIFEST_FILE}: expected at most {MAX_MANIFEST_BYTES} bytes, got more")
    try:
        manifest = msgspec.json.decode(raw, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PackageRefused(f"{MANIFEST_FILE}: {error}") from None
    expected = f"{folder.parent.name}/{folder.name}"
    got = f"{manifest.name}/{manifest.version}"
    if got != expected:
        raise PackageRefused(f"{MANIFEST_FILE}: expected {expected} as the folder says, got {got}")
    for kind, specs in (("input", manifest.inputs), ("output", manifest.outputs)):
        _check_tensors(kind, specs, manifest.max_batch_size)
    if manifest.image:
        _check_image(manifest, manifest.image)
    if keys_file:
        _check_strictly(folder, raw, manifest, keys_file)
    return manifest, hashlib.sha256(raw).hexdigest()


def _check_strictly(folder: Path, raw: bytes, manifest: Manifest, keys_file: str) -> None:
    # PERF: the library for it costs a start 20 ms, which only those who are strict pay.
    from inference_core.signatures import check_signature  # noqa: PLC0415

    check_signature(folder, raw, keys_file)
    if manifest.gate is None:
        raise PackageRefused(f"{MANIFEST_FILE}: gate: expected what `tiercel build` measured, got nothing")
    for check in manifest.gate.checks:
        if not check.holds:
            raise PackageRefused(f"{MANIFEST_FILE}: gate: {check.what} of {check.figure:g} is not within its budget")


def is_name(text: str) -> bool:
    return re.fullmatch(NAME_PATTERN, text) is not None


def is_version(text: str) -> bool:
    return re.fullmatch(VERSION_PATTERN, text) is not None


def _check_tensors(kind: str, specs: tuple[TensorSpec, ...], max_batch_size: int) -> None:
    names = [spec.name for spec in specs]
    if len(set(names)) < len(names):
        raise PackageRefused(f"{MANIFEST_FILE}: {kind}s: expected each name once, got {names}")
    for spec in specs:
        shape, where = list(spec.shape), f"{MANIFEST_FILE}: {kind} '{spec.name}'"
        if 0 in shape:
            raise PackageRefused(f"{where}: expected dimensions of 1 and more, or -1, got {shape}")
        if max_batch_size and shape[:1] != [-1]:
            raise PackageRefused(f"{where}: expected the batch, -1, as the first dimension, got {shape}")
        if spec.features and shape != [-1, len(spec.features)]:
            raise PackageRefused(f"{where}: expected shape {[-1, len(spec.features)]} for its features, got {shape}")


def _check_image(manifest: Manifest, image: ImageInput) -> None:
    taken = TensorSpec(image.input, "FP32", (-1, 3, image.size, image.size))
    given = TensorSpec(image.output, "FP32", (-1, len(manifest.labels)))
    if not manifest.max_batch_size or manifest.inputs != (taken,) or given not in manifest.outputs:
        raise PackageRefused(
            f"{MANIFEST_FILE}: image: expected rows, the one input '{taken.name}' of FP32 {list(taken.shape)} and an "
            f"output '{given.name}' of FP32 {list(given.shape)}, one probability per label, got something else"
        )
