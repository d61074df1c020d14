"""A model's policy, `models/<name>/model.toml`: what may change without a new version. Loading a model reads it."""

import tomllib
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from inference_core.errors import PackageRefused
from inference_core.manifest import Version

POLICY_FILE = "model.toml"


class Quota(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """So many requests of one client in so many seconds."""

    requests: Annotated[int, msgspec.Meta(ge=1)]
    seconds: Annotated[int, msgspec.Meta(ge=1, le=86400)] = 60


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    # Serve this version instead of the newest.
    version: Version | None = None
    # Whether predictions that were made before are given again; auto: if the model costs clearly more than looking.
    # Off for a model that does not answer the same question in the same way.
    cache: Literal["auto", "on", "off"] = "auto"
    # auto: predictions that wait for the same turn are run as one, if the model gains by that, which is measured when a
    # version is loaded; for gthread alone. Only for models whose rows do not depend on each other.
    batching: Literal["auto", "off"] = "off"
    # For predictions of this model, instead of the server's own.
    quota: Quota | None = None


def read_policy(folder: Path) -> Policy:
    """The policy in a model's folder, or the default; PackageRefused if it says what it may not."""
    path = folder / POLICY_FILE
    if not path.exists():
        return Policy()
    try:
        return msgspec.convert(tomllib.loads(path.read_text()), Policy)
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise PackageRefused(f"{folder.name}/{POLICY_FILE}: {error}") from None
