"""Publish a model: write its immutable package into the repository, whole or not at all.

A package that is there already stays as it is. Publishing the same thing again is no error, because a rebuild that
comes to the same model is the proof that the recipe is right; publishing another thing under its version is.
"""

import hashlib
import os
import tempfile
from pathlib import Path

import msgspec

from inference_core.errors import PackageRefused
from inference_core.manifest import MANIFEST_FILE, MODEL_FILE, Manifest, ModelFile, Package, read_package


def publish(repository: Path, manifest: Manifest, model: bytes, *, replace: bool = False) -> Package:
    """Write `<repository>/<name>/<version>/` and return the package as it reads back.

    If the version exists with the same content, the existing package is returned untouched, measurements and all;
    with other content PackageRefused is raised, unless `replace` is set. PackageRefused is raised too for a manifest
    that the server would refuse.
    """
    _check(manifest)
    target = repository / manifest.name / manifest.version
    if target.exists() and not replace:
        return _keep(target, manifest, model)
    target.parent.mkdir(parents=True, exist_ok=True)
    # The dot keeps the staging folder from being taken for a version, and it is gone whatever happens.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".publish-") as staging:
        # NOTE: in staging the folder has its final name and parent, so that it can be verified before it is seen.
        staged = Path(staging) / manifest.name / manifest.version
        package = _write(staged, manifest, model)
        # NOTE: replacing takes two renames; a crash between them leaves the version missing, but never a mixture.
        if target.exists():
            target.rename(Path(staging) / "replaced")
        staged.rename(target)
        _sync(target.parent)
    return package


def describe(model: bytes) -> ModelFile:
    """What the manifest says of its model file."""
    return ModelFile(sha256=hashlib.sha256(model).hexdigest(), size_bytes=len(model))


def _check(manifest: Manifest) -> None:
    """SECURITY: msgspec checks types and patterns on decoding only, and name and version are about to become paths."""
    try:
        msgspec.convert(msgspec.to_builtins(manifest), Manifest)
    except msgspec.ValidationError as error:
        raise PackageRefused(f"{MANIFEST_FILE}: {error}") from None


def _keep(target: Path, manifest: Manifest, model: bytes) -> Package:
    existing = read_package(target, len(model))
    if _content(existing.manifest) != _content(manifest):
        raise PackageRefused(f"{manifest.name}/{manifest.version}: exists already, and with other content")
    return existing


def _content(manifest: Manifest) -> Manifest:
    """The manifest without what is measured anew at every build."""
    return msgspec.structs.replace(manifest, metrics={}, built={})


def _write(folder: Path, manifest: Manifest, model: bytes) -> Package:
    folder.mkdir(parents=True)
    _write_file(folder / MODEL_FILE, model)
    _write_file(folder / MANIFEST_FILE, msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
    _sync(folder)
    return read_package(folder, len(model))


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
