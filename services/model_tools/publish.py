"""Publish a model: write its immutable package into the repository, whole or not at all.

A package that is there already stays as it is. Publishing the same thing again is no error, because a rebuild that
comes to the same model is the proof that the recipe is right; publishing another thing under its version is.
"""

import hashlib
import os
import platform
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from inference_core.errors import PackageRefused
from inference_core.manifest import MANIFEST_FILE, Manifest, ModelFile, Package, read_manifest, read_package
from inference_core.signatures import SIGNATURE_FILE


class Built(NamedTuple):
    """What there is to publish."""

    manifest: Manifest
    model: bytes


def publish_all(
    repository: Path, built: Sequence[Built], *, replace: bool = False, key: Ed25519PrivateKey | None = None
) -> list[Package]:
    """Publish each, or none of them if one is refused."""
    for manifest, model in built:
        _check(manifest)
        target = repository / manifest.name / manifest.version
        if target.exists() and not replace:
            _keep(target, manifest, model)
    return [publish(repository, manifest, model, replace=replace, key=key) for manifest, model in built]


def publish(
    repository: Path,
    manifest: Manifest,
    model: bytes,
    *,
    replace: bool = False,
    key: Ed25519PrivateKey | None = None,
) -> Package:
    """Write `<repository>/<name>/<version>/`, signed if there is a `key`, and return the package as it reads back.

    If the version exists with the same content, the existing package is returned untouched, measurements and all;
    with other content PackageRefused is raised, unless `replace` is set. PackageRefused is raised too for a manifest
    that the server would refuse.
    """
    _check(manifest)
    target = repository / manifest.name / manifest.version
    if target.exists() and not replace:
        package = _keep(target, manifest, model)
        if key:
            _sign(target, key)
        return package
    target.parent.mkdir(parents=True, exist_ok=True)
    # The dot keeps the staging folder from being taken for a version, and it is gone whatever happens.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".publish-") as staging:
        # NOTE: in staging the folder has its final name and parent, so that it can be verified before it is seen.
        staged = Path(staging) / manifest.name / manifest.version
        package = _write(staged, manifest, model)
        if key:
            _sign(staged, key)
        # NOTE: replacing takes two renames; a crash between them leaves the version missing, but never a mixture.
        if target.exists():
            target.rename(Path(staging) / "replaced")
        staged.rename(target)
        _sync(target.parent)
    return package


def describe(model: bytes) -> ModelFile:
    """What the manifest says of its model file."""
    return ModelFile(sha256=hashlib.sha256(model).hexdigest(), size_bytes=len(model))


def versions(tools: tuple[str, ...]) -> dict[str, str]:
    """What the manifest says of how it was built: Python and distributions."""
    names = dict.fromkeys((*tools, "numpy"))
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def in_memory(manifest: Manifest, model: bytes) -> Package:
    """The package as it would be published, for who wants to try it before that."""
    return Package(manifest, model, hashlib.sha256(_encode(manifest)).hexdigest())


def _encode(manifest: Manifest) -> bytes:
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def _check(manifest: Manifest) -> None:
    """SECURITY: msgspec checks types and patterns on decoding only, and name and version are about to become paths."""
    try:
        msgspec.convert(msgspec.to_builtins(manifest), Manifest)
    except msgspec.ValidationError as error:
        raise PackageRefused(f"{MANIFEST_FILE}: {error}") from None


def _keep(target: Path, manifest: Manifest, model: bytes) -> Package:
    existing, _ = read_manifest(target)
    if _content(existing) != _content(manifest):
        raise PackageRefused(f"{manifest.name}/{manifest.version}: exists already, and with other content")
    return read_package(target, len(model))


# What steps have found out, which is not to the last digit the same on another processor.
MEASURED = ("agreement_percent", "harm", "layers")


def _content(manifest: Manifest) -> tuple[Manifest, bool]:
    """The manifest without what is measured anew at every build, and whether it has passed a gate."""
    lineage = tuple(
        msgspec.structs.replace(
            step, options={name: value for name, value in step.options.items() if name not in MEASURED}
        )
        for step in manifest.lineage
    )
    unmeasured = msgspec.structs.replace(manifest, metrics={}, built={}, gate=None, lineage=lineage)
    return unmeasured, manifest.gate is not None


def _write(folder: Path, manifest: Manifest, model: bytes) -> Package:
    folder.mkdir(parents=True)
    _write_file(folder / manifest.model_file, model)
    _write_file(folder / MANIFEST_FILE, _encode(manifest))
    _sync(folder)
    return read_package(folder, len(model))


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """The key in a PEM file, as `openssl genpkey -algorithm ed25519` writes it; PackageRefused if it is none."""
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise PackageRefused(f"{path}: expected a private key (PEM, Ed25519): {error}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise PackageRefused(f"{path}: expected a private key of Ed25519, got one of another kind")
    return key


def _sign(folder: Path, key: Ed25519PrivateKey) -> None:
    """Ed25519 has no chance in it: signing again with the same key changes nothing."""
    signature = key.sign((folder / MANIFEST_FILE).read_bytes())
    unseen = folder / f".{SIGNATURE_FILE}"
    unseen.unlink(missing_ok=True)
    _write_file(unseen, signature)
    unseen.rename(folder / SIGNATURE_FILE)
    _sync(folder)


def _write_file(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Make the names in `folder` durable: fsync of a file does not cover its directory entry."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
