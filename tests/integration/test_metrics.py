"""What the application counts of the requests that it gets, in `/metrics` and in the statistics of models."""

import io
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from app_client import Client, start
from falcon.testing import TestClient, create_environ
from model_zoo import Zoo
from PIL import Image
from redis_server import RedisServer

from inference_api.app import create_app
from inference_api.observation.figures import NO_ROUTE
from inference_api.observation.observer import Observer
from observability.exposition import MEDIA_TYPE
from observability.metrics import OTHER, REGISTRY, Memory
from observability.tracing import NO_TRACES

SCALE, COLOUR = "/v1/models/scale:predict", "/v1/models/colour:predict"
PREDICT, INFER = "/v1/models/{model}:predict", "/v2/models/{model}/infer"
ROWS = {"instances": [[1, 2, 3], [4, 5, 6]]}
X = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}
SAMPLE = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

Labels = tuple[str, ...]


class Stage(Client):
    """The application, with numbers of its own."""

    def __init__(self, services: Any) -> None:
        super().__init__(services)
        self.observer = Observer(NO_TRACES)
        self.app = create_app(services, observer=self.observer)
        self._http = TestClient(self.app)

    def samples(self, name: str, **wanted: str) -> dict[Labels, float]:
        """The values of a metric by those of its labels that are not `wanted`, in their order."""
        self.observer.flush()
        found = {}
        for line in self.get("/metrics").text.splitlines():
            match = SAMPLE.fullmatch(line)
            if match and match[1] == f"tiercel_{name}":
                labels = dict(LABEL.findall(match[2] or ""))
                if wanted.items() <= labels.items():
                    found[tuple(value for key, value in labels.items() if key not in wanted)] = float(match[3])
        return found

    def requests(self) -> dict[Labels, float]:
        """Route, method, model, version, status; without those of this class."""
        return {
            labels: value
            for labels, value in self.samples("requests_total").items()
            if labels[0] not in ("/metrics", "/openapi.json")
        }

    def statistics(self, path: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.get(path).json["model_stats"]
        return found


@pytest.fixture(autouse=True)
def own_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """From zero, and with room for all series of a test, whatever others have counted in this process."""
    monkeypatch.setattr(REGISTRY, "memory", Memory())
    for family in REGISTRY.families.values():
        monkeypatch.setattr(family, "_series", {})


@pytest.fixture
def serve(zoo: Zoo, tmp_path: Path) -> Iterator[Callable[..., Stage]]:
    """Serve what is in the zoo, with these settings."""
    stages: list[Stage] = []

    def serve(**settings: Any) -> Stage:
        stages.append(Stage(start(zoo.root, tmp_path / "state", **settings)))
        return stages[-1]

    yield serve
    for stage in stages:
        stage.services.rollout.stop()
        if client := stage.services.predictor._cache._store._client:
            client.close()


@pytest.fixture
def stage(zoo: Zoo, serve: Callable[..., Stage]) -> Stage:
    zoo.scale()
    zoo.colour()
    return serve(max_image_pixels=64 * 64)


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


def photo() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (255, 0, 0)).save(file, "PNG")
    return file.getvalue()


def test_predictions_are_counted_by_what_they_are_about(stage: Stage) -> None:
    """Route, method, model, version and status; rows as many as there were."""
    for _ in range(3):
        assert stage.post(SCALE, ROWS).status_code == 200
    assert stage.post("/v1/models/scale/versions/1:predict", ROWS).status_code == 200
    assert stage.post("/v2/models/scale/infer", {"inputs": [X]}).status_code == 200
    assert stage.post("/v2/models/scale/versions/1/infer", {"inputs": [X]}).status_code == 200
    assert stage.post(COLOUR, photo(), Content_Type="image/png").status_code == 200
    assert stage.requests() == {
        (PREDICT, "POST", "scale", "1", "200"): 3,
        ("/v1/models/{model}/versions/{version}:predict", "POST", "scale", "1", "200"): 1,
        (INFER, "POST", "scale", "1", "200"): 1,
        ("/v2/models/{model}/versions/{version}/infer", "POST", "scale", "1", "200"): 1,
        (PREDICT, "POST", "colour", "1", "200"): 1,
    }
    assert stage.samples("prediction_rows_total") == {("scale", "1"): 10, ("colour", "1"): 1}
    for stage_name in ("input", "infer", "output"):
        counts = stage.samples(f"compute_{stage_name}_seconds_count")
        assert counts == {("scale", "1"): 6, ("colour", "1"): 1}, stage_name
    assert stage.samples("request_seconds_count", route=PREDICT) == {("scale",): 3, ("colour",): 1}
    assert stage.samples("cache_requests_total") == {}


def test_the_stages_of_a_request_are_within_it(stage: Stage) -> None:
    """Together with what is left they are the whole."""
    for _ in range(5):
        stage.post(SCALE, ROWS)
    [whole] = stage.samples("request_seconds_sum", route=PREDICT).values()
    names = ("compute_input", "compute_infer", "compute_output")
    parts = [next(iter(stage.samples(f"{name}_seconds_sum").values())) for name in names]
    [rest] = stage.samples("overhead_seconds_sum", route=PREDICT).values()
    assert min(*parts, rest) > 0
    assert sum(parts) + rest == pytest.approx(whole)


def test_each_version_counts_for_itself(zoo: Zoo, serve: Callable[..., Stage]) -> None:
    """The newest is asked unless one is named, and is what it says."""
    zoo.scale()
    zoo.scale(version=2)
    stage = serve()
    for path in (SCALE, "/v1/models/scale/versions/2:predict"):
        assert stage.post(path, ROWS).status_code == 200
    assert stage.samples("prediction_rows_total") == {("scale", "2"): 4}


def test_the_cache_is_counted(zoo: Zoo, redis: RedisServer, serve: Callable[..., Stage]) -> None:
    """How it took part; what was remembered is a prediction, and no inference."""
    redis.admin.flushall()
    (zoo.scale().parent / "model.toml").write_text('cache = "on"')
    stage = serve(cache_url=redis.url, redis_timeout_ms=5000)
    said = [
        stage.post(SCALE, ROWS, **headers).headers["Cache-Status"]
        for headers in ({}, {}, {}, {"Cache_Control": "no-cache"}, {"Cache_Control": "no-store"})
    ]
    assert Counter(said) == {
        "tiercel; fwd=miss; stored": 1,
        "tiercel; hit": 2,
        "tiercel; fwd=request; stored": 1,
        "tiercel; fwd=bypass": 1,
    }
    outcomes = {("miss",): 1, ("hit",): 2, ("refreshed",): 1, ("bypass",): 1}
    assert stage.samples("cache_requests_total", model="scale", version="1") == outcomes
    assert stage.samples("prediction_rows_total") == {("scale", "1"): 10}
    assert stage.samples("compute_infer_seconds_count") == {("scale", "1"): 3}
    assert stage.samples("cache_seconds_count") == {("scale", "1"): 5}
    [statistics] = stage.statistics("/v2/models/scale/stats")
    assert (statistics["inference_count"], statistics["execution_count"]) == (10, 3)
    assert statistics["inference_stats"]["success"]["count"] == 5


def test_what_is_wrong_is_counted_by_its_status(stage: Stage) -> None:
    """With its model if there is such a one; what was not predicted has no rows and no stages."""
    assert stage.post(SCALE, b"{").status_code == 400
    assert stage.post(SCALE, ROWS, Content_Type="text/plain").status_code == 415
    assert stage.get(SCALE).status_code == 405
    assert stage.requests() == {
        (PREDICT, "POST", "scale", "1", "400"): 1,
        (PREDICT, "POST", "scale", "1", "415"): 1,
        (PREDICT, "GET", "", "", "405"): 1,
    }
    assert stage.samples("prediction_rows_total") == {}
    assert stage.samples("compute_infer_seconds_count") == {}


@pytest.mark.parametrize("path", ["/v1/models/none:predict", "/v1/models/scale/versions/9:predict"])
def test_a_model_that_does_not_exist_is_no_label(path: str, stage: Stage) -> None:
    """Whoever asks for a thousand of them makes one series."""
    for number in range(20):
        asked = path.replace("none", f"none-{number}").replace("versions/9", f"versions/{number + 2}")
        assert stage.post(asked, ROWS).status_code == 404
    [(labels, count)] = stage.requests().items()
    assert (labels[1:], count) == (("POST", "", "", "404"), 20)
    assert "none-" not in stage.get("/metrics").text


def test_paths_without_a_route_are_one(stage: Stage) -> None:
    """No path that somebody tries is a label."""
    for number in range(20):
        assert stage.get(f"/secret-{number}/%7Bmodel%7D").status_code == 404
    assert stage.requests() == {(NO_ROUTE, "GET", "", "", "404"): 20}
    assert "secret-" not in stage.get("/metrics").text


def test_methods_that_somebody_has_made_up_are_one(stage: Stage) -> None:
    """They are refused, and no label."""
    for number in range(20):  # not by Falcon's client, which knows no such methods
        environ = create_environ(SCALE) | {"REQUEST_METHOD": f"MADE{number}"}
        stage.app(environ, lambda status, headers, error=None: None)
    [(labels, count)] = stage.requests().items()
    assert (labels[1:4], count) == ((OTHER, "", ""), 20)
    assert "MADE" not in stage.get("/metrics").text


def test_quotas_are_counted(zoo: Zoo, serve: Callable[..., Stage]) -> None:
    """Who was let in, and who was not: 429."""
    zoo.scale()
    stage = serve(quota_requests=2)
    assert [stage.post(SCALE, ROWS).status_code for _ in range(5)] == [200, 200, 429, 429, 429]
    assert stage.samples("quota_requests_total") == {("default", "allowed"): 2, ("default", "refused"): 3}
    assert stage.requests() == {
        (PREDICT, "POST", "scale", "1", "200"): 2,
        (PREDICT, "POST", "scale", "1", "429"): 3,
    }


def test_a_deadline_that_has_passed_is_counted(stage: Stage) -> None:
    """It is refused without an inference."""
    answer = stage.post(SCALE, ROWS, X_Request_Timeout_Ms="1", X_Request_Start="t=1")
    assert answer.status_code == 504
    assert stage.samples("shed_total") == {("deadline",): 1}
    assert stage.samples("compute_infer_seconds_count") == {}


def test_only_stamped_requests_have_waited(stage: Stage) -> None:
    """A queue is NGINX's."""
    stage.post(SCALE, ROWS)
    assert stage.samples("queue_seconds_count") == {}
    stage.post(SCALE, ROWS, X_Request_Start="t=1")
    assert stage.samples("queue_seconds_count") == {(): 1}


def test_metrics_are_text_for_prometheus(stage: Stage) -> None:
    """Valid, and with what is served; HEAD is GET without the body."""
    stage.post(SCALE, ROWS)
    answer = stage.get("/metrics")
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, MEDIA_TYPE)
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=answer.text, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    head = stage.request("HEAD", "/metrics")
    assert (head.status_code, head.headers["Content-Type"], head.content) == (200, MEDIA_TYPE, b"")
    assert stage.samples("ready") == {(): 1}
    assert stage.samples("workers") == {(): 1}
    digests = {name: stage.services.repository.get(name).digest for name in ("scale", "colour")}
    assert stage.samples("model_info") == {(name, "1", digest): 1 for name, digest in digests.items()}
    assert stage.samples("model_load_seconds").keys() == {("scale", "1"), ("colour", "1")}
    assert all(value > 1 << 20 for value in stage.samples("worker_resident_bytes").values())


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("address", ["192.0.2.1", ""])
def test_metrics_are_not_for_clients(method: str, address: str, stage: Stage) -> None:
    """What came through a proxy, as its field says, is told that there is no such route."""
    answer = stage.request(method, "/metrics", headers={"X-Forwarded-For": address})
    assert answer.status_code == 404
    if method == "GET":
        assert stage.refused(404, answer) == "no such route: /metrics is not for clients"


def test_the_statistics_of_a_model(stage: Stage) -> None:
    """Triton's: how many requests went well or did not, how many rows and inferences, and what the stages took."""
    for _ in range(3):
        stage.post(SCALE, ROWS)
    stage.post("/v2/models/scale/infer", {"inputs": [X]})
    stage.post("/v2/models/scale/infer", {"inputs": []})
    [found] = stage.statistics("/v2/models/scale/stats")
    assert (found["name"], found["version"]) == ("scale", "1")
    assert (found["inference_count"], found["execution_count"], found["batch_stats"]) == (7, 4, [])
    stats = found["inference_stats"]
    counts = {name: duration["count"] for name, duration in stats.items()}
    assert counts == {
        "success": 4,
        "fail": 1,
        "queue": 4,
        "compute_input": 4,
        "compute_infer": 4,
        "compute_output": 4,
    }
    stages = [stats[name]["ns"] for name in ("compute_input", "compute_infer", "compute_output")]
    assert min(stages) > 0
    assert stats["success"]["ns"] == sum(stages)
    assert stage.statistics("/v2/models/scale/versions/1/stats") == [found]


def test_statistics_of_all_models(stage: Stage) -> None:
    """Those that are served, whether they were asked or not."""
    stage.post(SCALE, ROWS)
    found = {each["name"]: each["inference_count"] for each in stage.statistics("/v2/models/stats")}
    assert found == {"scale": 2, "colour": 0}
    for path in ("/v2/models/none/stats", "/v2/models/scale/versions/9/stats"):
        stage.refused(404, stage.get(path))


def test_a_folder_is_asked_instead_of_this_process(zoo: Zoo, serve: Callable[..., Stage], tmp_path: Path) -> None:
    """Where workers count in files, an exposition is of those."""
    zoo.scale()
    (tmp_path / "metrics").mkdir()
    stage = serve(metrics_dir=str(tmp_path / "metrics"))
    stage.post(SCALE, ROWS)
    assert stage.requests() == {}
    assert stage.samples("workers") == {(): 0}
    [found] = stage.statistics("/v2/models/scale/stats")
    assert found["inference_count"] == 0
