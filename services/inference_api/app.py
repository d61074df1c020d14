"""The Falcon application: its routes and its middleware, each on one screen."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import falcon

from inference_api import jobs, metrics, openapi, v1, v2, v2_repository
from inference_api.authorisation import PUBLIC, Authorisation, Route
from inference_api.error_handlers import add_error_handlers
from inference_api.middleware import Compression
from inference_api.observation.observer import Observer
from inference_core.bootstrap import Services
from observability.tracing import NO_TRACES

if TYPE_CHECKING:
    from access_control.tokens import Verifier


def create_app(
    services: Services,
    verifier: "Verifier | None" = None,
    issuer: Sequence[Route] = (),
    observer: Observer | None = None,
) -> "App":
    """With a `verifier` every request needs a token that it finds good; `issuer` has the routes of who issues them."""
    table = [*routes(services), *issuer]
    table.append(Route("/openapi.json", openapi.OpenApiResource(table, needs_tokens=verifier is not None), PUBLIC))
    app = App(middleware=[observer or Observer(NO_TRACES), Compression()])
    if verifier:
        app.add_middleware(Authorisation(verifier, {route.path: route.scope for route in table}))
    app.req_options.strip_url_path_trailing_slash = True
    add_error_handlers(app)
    for route in table:
        app.add_route(route.path, route.resource)
    return app


def routes(services: Services) -> list[Route]:
    """Path, resource, and the scope that a token must have for it (see authorisation.py)."""
    infer = v2.InferResource(services)
    model, config, ready = (
        resource(services) for resource in (v2.ModelMetadataResource, v2.ModelConfigResource, v2.ModelReadyResource)
    )
    predict, statistics = v1.PredictResource(services), metrics.StatisticsResource(services)
    return [
        Route("/v2", v2.ServerMetadataResource(services), "models:read"),
        Route("/v2/health/live", v2.LiveResource(services), PUBLIC),
        Route("/v2/health/ready", v2.ReadyResource(services), PUBLIC),
        Route("/v2/models/stats", statistics, "models:read"),
        Route("/v2/models/{model}", model, "models:read"),
        Route("/v2/models/{model}/versions/{version}", model, "models:read"),
        Route("/v2/models/{model}/config", config, "models:read"),
        Route("/v2/models/{model}/versions/{version}/config", config, "models:read"),
        Route("/v2/models/{model}/ready", ready, "models:read"),
        Route("/v2/models/{model}/versions/{version}/ready", ready, "models:read"),
        Route("/v2/models/{model}/infer", infer, "predict"),
        Route("/v2/models/{model}/versions/{version}/infer", infer, "predict"),
        Route("/v2/models/{model}/stats", statistics, "models:read"),
        Route("/v2/models/{model}/versions/{version}/stats", statistics, "models:read"),
        Route("/v2/repository/index", v2_repository.RepositoryIndexResource(services), "models:read"),
        Route("/v2/repository/models/{model}/load", v2_repository.RepositoryLoadResource(services), "models:admin"),
        Route("/v2/repository/models/{model}/unload", v2_repository.RepositoryUnloadResource(services), "models:admin"),
        Route("/v1/models", v1.ModelListResource(services), "models:read"),
        Route("/v1/models/{model}", v1.ModelResource(services), "models:read"),
        Route("/v1/models/{model}:predict", predict, "predict"),
        Route("/v1/models/{model}/versions/{version}:predict", predict, "predict"),
        Route("/v1/jobs", jobs.JobsResource(services), "jobs:*"),
        Route("/v1/jobs/{job}", jobs.JobResource(services), "jobs:*"),
        Route("/v1/jobs/{job}/results", jobs.JobResultsResource(services), "jobs:*"),
        Route("/metrics", metrics.MetricsResource(services), PUBLIC),
    ]


class App(falcon.App[falcon.Request, falcon.Response]):
    """WSGI, and one thing more for workers that serve one request at a time."""

    @staticmethod
    def waits(environ: dict[str, Any]) -> bool:
        """Whether the request will wait, for other processes, a slow hash or a disk, and so must not hold up others."""
        path: str = environ["PATH_INFO"]
        return "respond-async" in environ.get("HTTP_PREFER", "").lower() or path.startswith(
            ("/v2/repository/models/", "/oauth2/token", "/v1/jobs", "/metrics")
        )
