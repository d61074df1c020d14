import base64
import json
from collections import Counter
from typing import Any

import pytest
from app_client import MODELS, Client

PHOTOS = {
    "chelsea": {"tabby cat", "tiger cat", "Egyptian cat"},
    "coffee": {"espresso"},
    "rocket": {"missile"},
    "china": {"palace"},
    "flower": {"daisy"},
}
EXAMPLES = MODELS / "efficientnet-lite0" / "examples"
PREDICT = "/v1/models/efficientnet-lite0:predict"
CANCER = "/v1/models/breast-cancer:predict"
ROWS = json.loads((MODELS / "breast-cancer" / "examples" / "instances.json").read_text())["instances"]


def photo(name: str) -> bytes:
    return (EXAMPLES / f"{name}.jpg").read_bytes()


def test_every_example_is_tested() -> None:
    """The table of this file has every photo that ships."""
    assert {path.stem for path in EXAMPLES.glob("*.jpg")} == PHOTOS.keys()


def test_all_that_ships_is_served(shipped: Client) -> None:
    """Each folder in models/ that has a version is a model that is ready."""
    assert shipped.get("/v2/health/ready").status_code == 200
    folders = sorted(path.parent.parent.name for path in MODELS.glob("*/*/manifest.json"))
    assert [model["name"] for model in shipped.get("/v1/models").json["models"]] == folders


@pytest.mark.parametrize("name", PHOTOS)
def test_a_photo_is_recognised(name: str, shipped: Client) -> None:
    """The best of five labels is right, and the answer is the same whether the photo is the body or an instance."""
    answer = shipped.post(PREDICT, photo(name), Content_Type="image/jpeg")
    assert answer.status_code == 200
    labels = answer.json["predictions"]
    assert labels[0]["label"] in PHOTOS[name]
    assert len(labels) == 5
    assert [label["score"] for label in labels] == sorted((label["score"] for label in labels), reverse=True)

    encoded = {"instances": [{"b64": base64.b64encode(photo(name)).decode()}]}
    assert shipped.post(PREDICT, encoded).json["predictions"] == [labels]


def test_all_photos_at_once(shipped: Client) -> None:
    """A batch recognises what its photos alone do."""
    instances = [{"b64": base64.b64encode(photo(name)).decode()} for name in PHOTOS]
    predictions = shipped.post(f"{PREDICT}?top_k=1", {"instances": instances}).json["predictions"]
    assert all(best["label"] in PHOTOS[name] for name, [best] in zip(PHOTOS, predictions, strict=True))


def test_probabilities_add_up(shipped: Client) -> None:
    """All 1,000 labels have scores that sum to 1, as INT8 has it."""
    answer = shipped.post(f"{PREDICT}?top_k=1000", photo("coffee"), Content_Type="image/jpeg")
    assert sum(label["score"] for label in answer.json["predictions"]) == pytest.approx(1, abs=0.02)
    assert len({label["class_id"] for label in answer.json["predictions"]}) == 1000


def features(shipped: Client) -> list[str]:
    [spec] = shipped.get("/v1/models/breast-cancer").json["inputs"]
    return list(spec["features"])


@pytest.mark.parametrize("form", ["lists", "objects"])
def test_rows_are_classified(form: str, shipped: Client) -> None:
    """The examples are a malignant and a benign row, by position or by the names of their features."""
    names = features(shipped)
    rows: list[Any] = ROWS if form == "lists" else [dict(zip(names, row, strict=True)) for row in ROWS]
    predictions = shipped.post(CANCER, {"instances": rows}).json["predictions"]
    assert [prediction["class_id"] for prediction in predictions] == [0, 1]
    assert all(sum(prediction["probabilities"]) == pytest.approx(1) for prediction in predictions)


def test_the_most_rows_are_classified_and_one_more_refused(shipped: Client) -> None:
    """As many as the model says."""
    most = shipped.get("/v1/models/breast-cancer").json["max_batch_size"]
    predictions = shipped.post(CANCER, {"instances": ROWS[:1] * most}).json["predictions"]
    assert Counter(prediction["class_id"] for prediction in predictions) == {0: most}
    assert f"expected 1 to {most}" in shipped.refused(400, shipped.post(CANCER, {"instances": ROWS[:1] * (most + 1)}))
