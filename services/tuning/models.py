"""Which models a server will serve."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from inference_core.manifest import read_manifest
from inference_core.model import load_model
from inference_core.repository import Repository
from inference_core.rollout import propose
from inference_core.settings import Settings


def digests(names: Iterable[str], settings: Settings) -> dict[str, str]:
    """The digest of each, by its name and version; TiercelError where there is no such model, or no sound version."""
    load = partial(load_model, intra_op_threads=1)
    repository = Repository(Path(settings.models_dir), load, settings.max_model_bytes, settings.strict_keys_file)
    served = propose(repository, settings.max_model_bytes).models
    found = {}
    for name in names:
        folder = repository.folder(name, served.get(name) or repository.choose(name))
        found[f"{name}/{folder.name}"] = read_manifest(folder, settings.strict_keys_file)[1]
    return found
