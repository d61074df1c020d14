"""The cache as clients see it, in `Cache-Status` and in what they get: the whole application with a real Redis."""

import base64
import gzip
import io
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from app_client import Client, start
from falcon.testing import Result
from model_zoo import HALF, STRING, Zoo
from PIL import Image
from redis_server import RedisServer

HIT, MISS = "tiercel; hit", "tiercel; fwd=miss; stored"
ANEW, BYPASS = "tiercel; fwd=request; stored", "tiercel; fwd=bypass"
SCALE, COLOUR = "/v1/models/scale:predict", "/v1/models/colour:predict"
ROWS = {"instances": [[1, 2, 3]]}


@pytest.fixture(scope="module")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis(shared_redis: RedisServer) -> RedisServer:
    shared_redis.admin.flushall()
    shared_redis.reset_calls()
    return shared_redis


@pytest.fixture(scope="module")
def shared_client(shared_redis: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("served")
    zoo = Zoo(folder / "models")
    for add in (zoo.scale, zoo.named, zoo.mixed, zoo.gather, zoo.colour):
        add()
    zoo.copy("text", STRING)
    zoo.copy("half", HALF)
    zoo.scale("cheap")
    zoo.scale("dear")
    for name in ("scale", "named", "mixed", "gather", "colour", "text", "half"):
        policy(zoo, 'cache = "on"', name)
    yield from client_of(zoo, folder / "state", shared_redis, cache_local_bytes=0)


@pytest.fixture
def client(shared_client: Client, redis: RedisServer) -> Client:
    """An application that finds nothing in Redis, and keeps nothing itself, for tests that change nothing."""
    return shared_client


@pytest.fixture
def own_client(zoo: Zoo, tmp_path: Path, redis: RedisServer) -> Iterator[Client]:
    """An application of this test's own, which serves what the test has put into `zoo` before it asks for this."""
    yield from client_of(zoo, tmp_path / "state", redis)


def client_of(zoo: Zoo, state: Path, redis: RedisServer, **settings: Any) -> Iterator[Client]:
    """With a long timeout for Redis, as others use these cores."""
    services = start(zoo.root, state, cache_url=redis.url, redis_timeout_ms=5000, **settings)
    yield Client(services)
    services.rollout.stop()
    store = services.predictor._cache._store
    assert store._client
    store._client.close()


def policy(zoo: Zoo, text: str, name: str = "scale") -> None:
    (zoo.root / name / "model.toml").write_text(text)


def status(answer: Result) -> str | None:
    assert answer.status_code == 200, answer.text
    return answer.headers.get("Cache-Status")


def photo(colour: tuple[int, int, int] = (255, 0, 0), kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(file, kind)
    return file.getvalue()


def infer(client: Client, model: str, **members: Any) -> Result:
    return client.post(f"/v2/models/{model}/infer", members)


def fp32(*values: float, name: str = "x", columns: int = 3) -> dict[str, Any]:
    return {"name": name, "datatype": "FP32", "shape": [len(values) // columns, columns], "data": list(values)}


def infer_binary(client: Client, model: str, inputs: dict[str, Any], data: bytes, **members: Any) -> Result:
    """`data` in the body, behind the JSON."""
    described = inputs | {"parameters": {"binary_data_size": len(data)}}
    head = json.dumps({"inputs": [described]} | members).encode()
    return client.post(
        f"/v2/models/{model}/infer",
        head + data,
        Content_Type="application/octet-stream",
        Inference_Header_Content_Length=str(len(head)),
    )


def binary(name: str) -> dict[str, Any]:
    return {"name": name, "parameters": {"binary_data": True}}


ASK: dict[str, Callable[[Client], Result]] = {
    "instances": lambda client: client.post(SCALE, ROWS),
    "instances, the version named": lambda client: client.post("/v1/models/scale/versions/1:predict", ROWS),
    "objects": lambda client: client.post(
        "/v1/models/mixed:predict", {"instances": [{"a": 1, "b": [1, 2]}, {"a": 2, "b": [3, 4]}]}
    ),
    "named features": lambda client: client.post(
        "/v1/models/named:predict", {"instances": [{"width": 1, "height": 2, "depth": -4}]}
    ),
    "texts": lambda client: client.post("/v1/models/text:predict", {"instances": [["ab", "\N{SNOWMAN}"], ["", "c"]]}),
    "a photo": lambda client: client.post(COLOUR, photo(), Content_Type="image/png"),
    "photos in JSON": lambda client: client.post(
        COLOUR, {"instances": [{"b64": base64.b64encode(photo((0, 0, 255))).decode()}]}
    ),
    "tensors": lambda client: infer(client, "scale", inputs=[fp32(1, 2, 3)]),
    "tensors, the version named": lambda client: client.post(
        "/v2/models/scale/versions/1/infer", {"inputs": [fp32(1, 2, 3)]}
    ),
    "several outputs": lambda client: infer(client, "named", inputs=[fp32(1, 2, 3)]),
    "binary tensors": lambda client: infer_binary(
        client, "half", {"name": "x", "datatype": "FP16", "shape": [1, 2]}, b"\0<\1~", outputs=[binary("y")]
    ),
}


@pytest.mark.parametrize("ask", ASK.values(), ids=ASK)
def test_what_was_asked_before_is_answered_from_the_cache(ask: Callable[[Client], Result], client: Client) -> None:
    """The same answer, byte for byte, and in its headers whence it came."""
    first, second, third = (ask(client) for _ in range(3))
    assert [status(answer) for answer in (first, second, third)] == [MISS, HIT, HIT]
    assert first.content == second.content == third.content
    assert first.headers["Content-Type"] == second.headers["Content-Type"]
    assert first.headers["X-Request-ID"] != second.headers["X-Request-ID"]


@pytest.mark.parametrize(
    ("directives", "said"),
    [
        ("no-cache", ANEW),
        ("No-Cache", ANEW),
        ("max-age=0, no-cache", ANEW),
        ("max-age=0 ,\tNO-CACHE ,", ANEW),
        ('no-cache="x"', ANEW),
        ("no-store", BYPASS),
        ("NO-STORE", BYPASS),
        ("no-cache, no-store", BYPASS),
        ("no-store,no-cache", BYPASS),
        ("no-store, max-age=60", BYPASS),
        ("", HIT),
        (",", HIT),
        ("=", HIT),
        ("max-age=0", HIT),
        ("max-stale=no-cache", HIT),
        ("only-if-cached", HIT),
        ("no-transform, private", HIT),
        ("nocache", HIT),
        ("no-cache-please", HIT),
        ("x-no-store", HIT),
        ("no cache", HIT),
    ],
)
@pytest.mark.parametrize("ask", [SCALE, "/v2/models/scale/infer"])
def test_a_client_can_have_it_new_or_not_kept(ask: str, directives: str, said: str, client: Client) -> None:
    """RFC 9111, section 5.2.1: in any case and among others, which are for caches of another kind."""
    body = ROWS if ask == SCALE else {"inputs": [fp32(1, 2, 3)]}
    usual = client.post(ask, body)
    assert status(usual) == MISS
    answer = client.post(ask, body, Cache_Control=directives)
    assert status(answer) == said
    assert answer.content == usual.content
    assert status(client.post(ask, body)) == HIT


def test_what_is_not_to_be_kept_is_not(client: Client, redis: RedisServer) -> None:
    for _ in range(2):
        assert status(client.post(SCALE, ROWS, Cache_Control="no-store")) == BYPASS
    assert redis.admin.keys("*") == []
    assert redis.calls("get", "set", "del") == 0


def test_what_was_computed_anew_is_for_all(client: Client, redis: RedisServer) -> None:
    """As a cache that was wrong could be set right with it."""
    assert client.post(SCALE, ROWS).json["predictions"] == [[2, 4, 6]]
    other = client.post(SCALE, {"instances": [[7, 8, 9]]})
    one, two = redis.admin.keys("*")
    wrong = {one: redis.admin.get(two), two: redis.admin.get(one)}
    redis.admin.mset(wrong)
    assert client.post(SCALE, ROWS).json == other.json, "this test can tell right from wrong"
    assert status(client.post(SCALE, ROWS, Cache_Control="no-cache")) == ANEW
    answer = client.post(SCALE, ROWS)
    assert (status(answer), answer.json["predictions"]) == (HIT, [[2, 4, 6]])


def test_a_photo_that_is_known_is_not_decoded_and_has_as_many_labels_as_asked(client: Client) -> None:
    """`top_k` chooses from the answer that is kept; what it may be is checked as ever."""
    for top_k, said in ((1, MISS), (3, HIT), (2, HIT), (1, HIT)):
        answer = client.post(f"{COLOUR}?top_k={top_k}", photo((0, 255, 0)), Content_Type="image/png")
        assert status(answer) == said
        assert len(answer.json["predictions"]) == top_k
        assert answer.json["predictions"][0]["label"] == "green"
    for top_k in ("0", "4", "x"):
        answer = client.post(f"{COLOUR}?top_k={top_k}", photo((0, 255, 0)), Content_Type="image/png")
        assert "top_k" in client.refused(400, answer)


def test_photos_are_told_apart(client: Client) -> None:
    """By their bytes, whatever they are said to be."""
    for colour, label in (((255, 0, 0), "red"), ((0, 0, 255), "blue")):
        for kind in ("PNG", "JPEG"):
            for said, media_type in ((MISS, "image/png"), (HIT, "image/jpeg")):
                answer = client.post(f"{COLOUR}?top_k=1", photo(colour, kind), Content_Type=media_type)
                assert status(answer) == said
                assert answer.json["predictions"][0]["label"] == label


def test_what_lies_around_the_question_is_no_part_of_it(client: Client) -> None:
    """Request ids, headers, the white space of JSON, the coding of the body, the id of a V2 request, its form."""
    assert status(client.post(SCALE, ROWS)) == MISS
    text = b' { "instances" :\n[ [1.0,2e0 , 3] ] } '
    for body, headers in (
        (text, {}),
        (gzip.compress(text), {"Content_Encoding": "gzip"}),
        (text, {"X_Request_Id": "one-of-mine", "User_Agent": "me", "Accept_Encoding": "gzip", "Cookie": "a=b"}),
        (text, {"Content_Type": "application/json; charset=utf-8"}),
        (text, {"X_Request_Timeout_Ms": "1000", "Authorization": "Bearer x"}),
    ):
        answer = client.post(SCALE, body, **headers)
        assert status(answer) == HIT
        assert answer.headers["X-Request-ID"] == headers.get("X_Request_Id", answer.headers["X-Request-ID"])
    assert status(infer(client, "scale", inputs=[fp32(1, 2, 3)], outputs=[{"name": "y"}])) == MISS
    data = np.array([1, 2, 3], "<f4").tobytes()
    described = {"name": "x", "datatype": "FP32", "shape": [1, 3]}
    for answer in (
        infer(client, "scale", inputs=[fp32(1, 2, 3)], id="me"),
        infer_binary(client, "scale", described, data, id="me"),
        infer_binary(client, "scale", described, data, id="me", outputs=[binary("y")]),
    ):
        assert status(answer) == HIT
        assert b'"id":"me"' in answer.content
        assert b'"data":[2.0,4.0,6.0]' in answer.content or answer.content.endswith(
            (2 * np.frombuffer(data, "<f4")).tobytes()
        )


def test_inputs_may_come_in_any_order(client: Client) -> None:
    a, b = {"name": "a", "datatype": "INT64", "shape": [1], "data": [7]}, fp32(1, 2, name="b", columns=2)
    assert [status(infer(client, "mixed", inputs=inputs)) for inputs in ([a, b], [b, a])] == [MISS, HIT]


def test_outputs_are_those_that_were_asked_for_in_their_order(client: Client) -> None:
    """Each choice of outputs is a question of its own."""
    for _ in range(2):
        for names in (["total"], ["positive"], ["total", "positive"], ["positive", "total"]):
            answer = infer(client, "named", inputs=[fp32(1, 2, 3)], outputs=[{"name": name} for name in names])
            data = {"total": [6.0], "positive": [True]}
            outputs = [(output["name"], output["data"]) for output in answer.json["outputs"]]
            assert outputs == [(name, data[name]) for name in names]


def test_questions_that_differ_a_little_have_answers_of_their_own(client: Client) -> None:
    """Asked twice in random order, each gets what its own values make."""
    questions = [[1, 2, 3], [1, 3, 2], [1, 2, 3.0000002], [-0.0, 0, 0], [0, 0, 0], [1e-45, 0, 0]]
    for rows in [*questions, *reversed(questions)]:
        answer = client.post(SCALE, {"instances": [rows]})
        assert (
            np.array(answer.json["predictions"], np.float32).tobytes() == (2 * np.array([rows], np.float32)).tobytes()
        )
    for batch in ([[1, 2, 3], [4, 5, 6]], [[4, 5, 6], [1, 2, 3]], [[1, 2, 3]]):
        doubled = [[2 * value for value in row] for row in batch]
        assert client.post(SCALE, {"instances": batch}).json["predictions"] == doubled


@pytest.mark.parametrize(
    ("path", "body", "headers"),
    [
        pytest.param(COLOUR, photo()[:50], {"Content_Type": "image/png"}, id="a photo that is cut"),
        pytest.param(COLOUR, b"GIF89a", {"Content_Type": "image/png"}, id="no photo"),
        pytest.param(
            "/v2/models/gather/infer",
            {"inputs": [{"name": "i", "datatype": "INT64", "shape": [1], "data": [9]}]},
            {},
            id="values that the model refuses",
        ),
        pytest.param(SCALE, {"instances": [[1, 2]]}, {}, id="another shape"),
        pytest.param(SCALE, b"{", {}, id="no JSON"),
    ],
)
@pytest.mark.parametrize("directives", ["max-age=1", "no-cache", "no-store"])
def test_what_is_refused_is_not_kept_and_not_waited_for(
    path: str, body: Any, headers: dict[str, str], directives: str, client: Client, redis: RedisServer
) -> None:
    """It is refused again for the same reason, and no claim is left for others to wait for."""
    answers = [client.post(path, body, Cache_Control=directives, **headers) for _ in range(2)]
    assert client.refused(400, answers[0]) == client.refused(400, answers[1])
    assert "Cache-Status" not in answers[0].headers
    assert redis.admin.keys("*") == []


def test_what_came_too_late_is_not_kept_and_not_waited_for(
    own_client_of: Callable[..., Client], zoo: Zoo, redis: RedisServer
) -> None:
    """504, and the next one computes."""
    zoo.endless()
    policy(zoo, 'cache = "on"', "endless")
    client = own_client_of()
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]}
    for _ in range(2):
        client.refused(504, client.post("/v2/models/endless/infer", body, X_Request_Timeout_Ms="50"))
        assert redis.admin.keys("*") == []


def test_a_broken_entry_is_replaced(client: Client, redis: RedisServer) -> None:
    answer = client.post(SCALE, ROWS)
    [key] = redis.admin.keys("*")
    text = redis.admin.get(key)
    assert isinstance(text, bytes)
    redis.admin.set(key, text[:-1])
    again = client.post(SCALE, ROWS)
    assert status(again) == MISS
    assert again.content == answer.content


# Policies


def test_a_cheap_model_asks_redis_nothing(client: Client, redis: RedisServer) -> None:
    """By default, a model that is quicker than Redis is not looked up, and its answers do not speak of a cache."""
    client.services.repository.get("cheap").seconds = 0.0
    for directives in ("max-age=1", "no-cache", "no-store"):
        for path, body in (
            ("/v1/models/cheap:predict", ROWS),
            ("/v2/models/cheap/infer", {"inputs": [fp32(1, 2, 3)]}),
        ):
            assert status(client.post(path, body, Cache_Control=directives)) is None
    assert redis.calls("get", "set", "del", "client", "ping") == 0


def test_a_dear_model_is_cached_by_default(client: Client) -> None:
    """What a prediction costs is measured."""
    said = []
    for _ in range(3):
        client.services.repository.get("dear").seconds = 1.0
        said.append(status(client.post("/v1/models/dear:predict", ROWS)))
    assert said == [MISS, HIT, HIT]


@pytest.fixture
def own_client_of(zoo: Zoo, tmp_path: Path, redis: RedisServer) -> Iterator[Callable[..., Client]]:
    """Start an application, with what is in `zoo` by then; several are several workers, on other machines."""
    clients, numbers = [], itertools.count()

    def start_client(**settings: Any) -> Client:
        clients.append(client_of(zoo, tmp_path / f"state-{next(numbers)}", redis, **settings))
        return next(clients[-1])

    yield start_client
    for client in clients:
        assert next(client, None) is None


def load(client: Client, model: str = "scale", **parameters: str) -> Result:
    return client.post(f"/v2/repository/models/{model}/load", {"parameters": parameters})


@pytest.mark.parametrize("parameters", [{}, {"version": "1"}])
def test_a_policy_is_read_when_the_model_is_loaded(
    parameters: dict[str, str], zoo: Zoo, request: pytest.FixtureRequest
) -> None:
    """The version that is served already stays, and what may be found of its answers."""
    zoo.scale()
    policy(zoo, 'cache = "off"')
    client: Client = request.getfixturevalue("own_client")
    for text, said in (
        ('cache = "off"', [None, None]),
        ('cache = "on"', [MISS, HIT]),
        ('cache = "off"', [None, None]),
        ('cache = "on"', [HIT, HIT]),
    ):
        policy(zoo, text)
        assert load(client, **parameters).status_code == 200
        assert [status(client.post(SCALE, ROWS)) for _ in range(2)] == said
    (zoo.root / "scale" / "model.toml").unlink()
    assert load(client, **parameters).status_code == 200
    assert client.services.repository.get("scale").policy.cache == "auto"


def test_a_policy_that_is_not_loaded_changes_nothing(zoo: Zoo, request: pytest.FixtureRequest) -> None:
    """A file that is being written must not take effect by itself."""
    zoo.scale()
    policy(zoo, 'cache = "on"')
    client: Client = request.getfixturevalue("own_client")
    policy(zoo, "cache = ")
    assert [status(client.post(SCALE, ROWS)) for _ in range(2)] == [MISS, HIT]


@pytest.mark.parametrize("parameters", [{}, {"version": "1"}])
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('cache = "always"', "Invalid enum value 'always' - at `$.cache`"),
        ("cache = true", "Expected `str`, got `bool` - at `$.cache`"),
        ('cache = "ON"', "Invalid enum value 'ON' - at `$.cache`"),
        ("[cache]\nttl = 1", "Expected `str`, got `object` - at `$.cache`"),
        ('caching = "on"', "Object contains unknown field `caching`"),
        ("cache = ", "Invalid value"),
    ],
)
def test_a_policy_that_says_what_it_may_not_is_refused(
    text: str, reason: str, parameters: dict[str, str], zoo: Zoo, request: pytest.FixtureRequest
) -> None:
    """With the reason. The model is served as before, and the server is ready."""
    zoo.scale()
    policy(zoo, 'cache = "on"')
    client: Client = request.getfixturevalue("own_client")
    assert status(client.post(SCALE, ROWS)) == MISS
    policy(zoo, text)
    said = client.refused(400, load(client, **parameters))
    assert "scale/model.toml: " in said
    assert reason in said
    assert status(client.post(SCALE, ROWS)) == HIT
    assert client.get("/v2/health/ready").status_code == 200


def test_a_bad_policy_of_one_model_is_no_concern_of_another(zoo: Zoo, request: pytest.FixtureRequest) -> None:
    """The other is loaded; and the server, which serves both, is ready."""
    zoo.scale()
    zoo.scale("other")
    client: Client = request.getfixturevalue("own_client")
    policy(zoo, "cache = ")
    zoo.scale("other", version=2, factor=3.0)
    assert load(client, "other").status_code == 200
    assert client.post("/v1/models/other:predict", ROWS).json["predictions"] == [[3, 6, 9]]
    assert client.post(SCALE, ROWS).json["predictions"] == [[2, 4, 6]]
    assert client.get("/v2/health/ready").json == {"ready": True, "reasons": {}}


# Versions


def test_a_version_is_never_answered_for_by_another(zoo: Zoo, request: pytest.FixtureRequest) -> None:
    """After a change, there is nothing of the new one yet; after the way back, everything of the old one still."""
    zoo.scale(version=1, factor=2)
    zoo.scale(version=2, factor=3)
    policy(zoo, 'cache = "on"')
    client: Client = request.getfixturevalue("own_client")

    def ask() -> list[tuple[str | None, Any]]:
        one = client.post(SCALE, ROWS)
        two = infer(client, "scale", inputs=[fp32(4, 5, 6)])
        return [(status(one), one.json["predictions"][0]), (status(two), two.json["outputs"][0]["data"])]

    assert ask() == [(MISS, [3, 6, 9]), (MISS, [12, 15, 18])]
    assert ask() == [(HIT, [3, 6, 9]), (HIT, [12, 15, 18])]
    assert load(client, version="1").status_code == 200
    assert ask() == [(MISS, [2, 4, 6]), (MISS, [8, 10, 12])]
    assert ask() == [(HIT, [2, 4, 6]), (HIT, [8, 10, 12])]
    assert load(client, version="2").status_code == 200
    assert ask() == [(HIT, [3, 6, 9]), (HIT, [12, 15, 18])]


def test_a_model_is_never_answered_for_by_another(own_client_of: Callable[..., Client], zoo: Zoo) -> None:
    """Of the same inputs, outputs and version; here or in another process with the same Redis."""
    for name, factor in (("scale", 2), ("other", 3)):
        zoo.scale(name, factor=factor)
        policy(zoo, 'cache = "on"', name)
    first, second = own_client_of(), own_client_of()
    for client, said in ((first, MISS), (first, HIT), (second, HIT)):
        for name, factor in (("scale", 2), ("other", 3)):
            answer = client.post(f"/v1/models/{name}:predict", ROWS)
            assert status(answer) == said
            assert answer.json["predictions"] == [[factor, 2 * factor, 3 * factor]]


def test_an_answer_over_the_limit_is_not_kept(
    own_client_of: Callable[..., Client], zoo: Zoo, redis: RedisServer
) -> None:
    """`TIERCEL_CACHE_MAX_ENTRY_BYTES`: at the limit it is, a byte above it not."""
    zoo.scale()
    policy(zoo, 'cache = "on"')
    assert status(own_client_of().post(SCALE, ROWS)) == MISS
    [key] = redis.admin.keys("*")
    size = redis.admin.strlen(key)
    redis.admin.flushall()
    small = own_client_of(cache_max_entry_bytes=size - 1)
    for _ in range(2):
        assert status(small.post(SCALE, ROWS)) == "tiercel; fwd=miss"
    assert redis.admin.keys("c:*") == []
    assert status(own_client_of(cache_max_entry_bytes=size).post(SCALE, ROWS)) == MISS


def test_an_answer_lives_as_long_as_the_settings_say(
    own_client_of: Callable[..., Client], zoo: Zoo, redis: RedisServer
) -> None:
    """`TIERCEL_CACHE_TTL_SECONDS`, give or take a tenth."""
    zoo.scale()
    policy(zoo, 'cache = "on"')
    own_client_of(cache_ttl_seconds=1000).post(SCALE, ROWS)
    [key] = redis.admin.keys("*")
    assert 890_000 < redis.admin.pttl(key) <= 1_100_000


def test_a_redis_that_is_not_there_changes_no_answer(zoo: Zoo, tmp_path: Path, redis: RedisServer) -> None:
    """Nor does one that goes while it is needed: what this process remembers, it still has."""
    zoo.scale()
    policy(zoo, 'cache = "on"')
    services = start(zoo.root, tmp_path / "state", cache_url="redis://127.0.0.1:1")
    client = Client(services)
    try:
        answers = [client.post(SCALE, ROWS) for _ in range(5)]
        assert [status(answer) for answer in answers] == ["tiercel; fwd=miss", HIT, HIT, HIT, HIT]
        assert {answer.content for answer in answers} == {answers[0].content}
        anew = [client.post(SCALE, ROWS, Cache_Control="no-cache") for _ in range(5)]
        assert [status(answer) for answer in anew] == ["tiercel; fwd=request"] * 5
    finally:
        services.rollout.stop()
        services.predictor._cache._store._is_back = lambda: True  # its thread ends


def test_without_a_redis_there_is_no_cache(zoo: Zoo, tmp_path: Path) -> None:
    """Whatever the policy, and nobody is told of one."""
    zoo.scale()
    policy(zoo, 'cache = "on"')
    services = start(zoo.root, tmp_path / "state")
    try:
        assert [status(Client(services).post(SCALE, ROWS)) for _ in range(2)] == [None, None]
    finally:
        services.rollout.stop()
