"""Triton's extension "Model repository": what there is, and loading and unloading it in every worker.

Models are never uploaded over the network: a version is a folder that somebody put into the repository.
"""

from typing import Annotated, TypeVar

import falcon
import msgspec
import structlog

from inference_api.authorisation import subject
from inference_api.openapi import Operation
from inference_api.requests import read_json_body
from inference_api.v2 import Resource, send
from inference_core import bodies
from inference_core.errors import UnsupportedFeature
from inference_core.manifest import Version
from inference_core.rollout import VersionState

T = TypeVar("T")

log = structlog.get_logger()


class IndexRequest(msgspec.Struct, forbid_unknown_fields=True):
    ready: bool = False


class RepositoryParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`version` picks the version to load; `config` is Triton's way to say it, the JSON of a ModelConfig that has
    nothing but `{"version_policy": {"specific": {"versions": [N]}}}`.
    """

    version: Version | None = None
    config: str | None = None
    unload_dependents: bool = False


class RepositoryRequest(msgspec.Struct, forbid_unknown_fields=True):
    parameters: RepositoryParameters = RepositoryParameters()


class Empty(msgspec.Struct):
    pass


class SpecificVersions(msgspec.Struct, forbid_unknown_fields=True):
    versions: Annotated[list[int], msgspec.Meta(min_length=1, max_length=1)]


class VersionPolicy(msgspec.Struct, forbid_unknown_fields=True):
    specific: SpecificVersions


class ConfigOverride(msgspec.Struct, forbid_unknown_fields=True):
    version_policy: VersionPolicy


class RepositoryResource(Resource):
    def _decode(self, req: falcon.Request, kind: type[T]) -> T:
        """The request, of which everything is optional: clients also send no body at all."""
        return bodies.decode_json(read_json_body(req, self._services) or b"{}", kind)

    def _audit(self, event: str, req: falcon.Request, model: str, version: str | None) -> None:
        log.info(event, request_id=req.context.request_id, subject=subject(req.env), model=model, version=version)


class RepositoryIndexResource(RepositoryResource):
    """Every version on disk and its state."""

    operation = Operation(request=IndexRequest, response=list[VersionState], errors=(413, 415))

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        wanted = self._decode(req, IndexRequest)
        index = self._services.rollout.index()
        send(resp, [entry for entry in index if not wanted.ready or entry.state == "READY"])


class RepositoryLoadResource(RepositoryResource):
    """Load a version in every worker, or in none."""

    operation = Operation(request=RepositoryRequest, response=Empty, errors=(404, 413, 415, 501, 503))

    def on_post(self, req: falcon.Request, resp: falcon.Response, model: str) -> None:
        parameters = self._decode(req, RepositoryRequest).parameters
        version = wanted_version(parameters)
        self._services.rollout.load(model, version)
        self._audit("model loaded on request", req, model, version)
        send(resp, Empty())


class RepositoryUnloadResource(RepositoryResource):
    """Unload a model in every worker."""

    operation = Operation(request=RepositoryRequest, response=Empty, errors=(404, 413, 415, 503))

    def on_post(self, req: falcon.Request, resp: falcon.Response, model: str) -> None:
        self._decode(req, RepositoryRequest)
        self._services.rollout.unload(model)
        self._audit("model unloaded on request", req, model, None)
        send(resp, Empty())


def wanted_version(parameters: RepositoryParameters) -> str | None:
    if parameters.config is None:
        return parameters.version
    try:
        override = msgspec.json.decode(parameters.config, type=ConfigOverride)
    except msgspec.DecodeError as error:
        raise UnsupportedFeature(f"parameter 'config': expected nothing but a version_policy: {error}") from None
    return str(override.version_policy.specific.versions[0])
