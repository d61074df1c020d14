"""The Falcon application: its routes and its middleware, each on one screen."""

from typing import Any

import falcon

from inference_api import openapi, v1, v2, v2_repository
from inference_api.error_handlers import add_error_handlers
from inference_api.middleware import Compression, RequestId
from inference_core.bootstrap import Services


def create_app(services: Services) -> "App":
    app = App(middleware=[RequestId(), Compression()])
    app.req_options.strip_url_path_trailing_slash = True
    add_error_handlers(app)
    table = routes(services)
    for path, resource in [*table, ("/openapi.json", openapi.OpenApiResource(table))]:
        app.add_route(path, resource)
    return app


def routes(services: Services) -> list[tuple[str, v2.Resource]]:
    infer = v2.InferResource(services)
    model, config, ready = (
        resource(services) for resource in (v2.ModelMetadataResource, v2.ModelConfigResource, v2.ModelReadyResource)
    )
    predict = v1.PredictResource(services)
    return [
        ("/v2", v2.ServerMetadataResource(services)),
        ("/v2/health/live", v2.LiveResource(services)),
        ("/v2/health/ready", v2.ReadyResource(services)),
        ("/v2/models/{model}", model),
        ("/v2/models/{model}/versions/{version}", model),
        ("/v2/models/{model}/config", config),
        ("/v2/models/{model}/versions/{version}/config", config),
        ("/v2/models/{model}/ready", ready),
        ("/v2/models/{model}/versions/{version}/ready", ready),
        ("/v2/models/{model}/infer", infer),
        ("/v2/models/{model}/versions/{version}/infer", infer),
        ("/v2/repository/index", v2_repository.RepositoryIndexResource(services)),
        ("/v2/repository/models/{model}/load", v2_repository.RepositoryLoadResource(services)),
        ("/v2/repository/models/{model}/unload", v2_repository.RepositoryUnloadResource(services)),
        ("/v1/models", v1.ModelListResource(services)),
        ("/v1/models/{model}", v1.ModelResource(services)),
        ("/v1/models/{model}:predict", predict),
        ("/v1/models/{model}/versions/{version}:predict", predict),
    ]


class App(falcon.App[falcon.Request, falcon.Response]):
    """WSGI, and one thing more for workers that serve one request at a time."""

    @staticmethod
    def waits(environ: dict[str, Any]) -> bool:
        """Whether the request will wait for other processes rather than compute, so that it must not hold up others."""
        path: str = environ["PATH_INFO"]
        return path.startswith("/v2/repository/models/")
