import base64
import io
from typing import Any

import pytest
from app_client import Client
from PIL import Image

from inference_core.bodies import compress

PREDICT = "/v1/models/colour:predict"
COLOURS = {"red": [1, 0, 0], "green": [0, 1, 0], "blue": [0, 0, 1]}


def photo(colour: tuple[int, int, int] = (255, 0, 0), kind: str = "PNG", size: tuple[int, int] = (8, 8)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, kind)
    return file.getvalue()


def instance(body: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(body).decode()}


def labels(prediction: list[dict[str, Any]]) -> list[tuple[str, int, float]]:
    return [(label["label"], label["class_id"], round(label["score"], 2)) for label in prediction]


@pytest.mark.parametrize(
    ("media_type", "kind"),
    [("image/png", "PNG"), ("image/jpeg", "JPEG"), ("image/webp", "WEBP"), ("Image/PNG; x=y", "PNG")],
)
def test_a_photo_is_a_body(media_type: str, kind: str, client: Client) -> None:
    """The body is the file; the answer has its labels, best first, and who found them."""
    answer = client.post(PREDICT, photo((0, 102, 255), kind), Content_Type=media_type)
    assert answer.status_code == 200
    blue, green, red = labels(answer.json["predictions"])
    assert (blue[:2], green[:2], red[:2]) == (("blue", 2), ("green", 1), ("red", 0))
    assert (blue[2], green[2], red[2]) == (
        pytest.approx(1, abs=0.04),
        pytest.approx(0.4, abs=0.04),
        pytest.approx(0, abs=0.04),
    )
    assert answer.json["model"]["name"] == "colour"


def test_the_media_type_is_no_promise(client: Client) -> None:
    """What the file is decides, among the formats that are taken."""
    answer = client.post(PREDICT, photo((0, 255, 0), "WEBP"), Content_Type="image/jpeg")
    assert answer.json["predictions"][0]["label"] == "green"


def test_photos_are_instances(client: Client) -> None:
    """Base64 in JSON, several at once: one list of labels each, in order."""
    body = {"instances": [instance(photo((0, 0, 255))), instance(photo((255, 0, 0), "JPEG"))]}
    answer = client.post(f"{PREDICT}?top_k=1", body)
    assert [[label["label"] for label in prediction] for prediction in answer.json["predictions"]] == [
        ["blue"],
        ["red"],
    ]


def test_a_tensor_is_an_instance_too(client: Client) -> None:
    """A model of photos is a model of tensors, whose answer is its output."""
    tensor = [[[[0.5] * 8] * 8, [[0.25] * 8] * 8, [[0.0] * 8] * 8]]
    assert client.post(PREDICT, {"instances": tensor}).json["predictions"] == [[0.5, 0.25, 0]]


@pytest.mark.parametrize(
    ("query", "count"), [("", 3), ("?top_k=1", 1), ("?top_k=2", 2), ("?top_k=3", 3), ("?other=1", 3)]
)
def test_top_k_counts_the_labels(query: str, count: int, client: Client) -> None:
    """From one to all; by default five, or all if there are fewer. One more than all is refused in test_nasty_input."""
    for answer in (
        client.post(PREDICT + query, photo(), Content_Type="image/png"),
        client.post(PREDICT + query, {"instances": [instance(photo())]}),
    ):
        predictions = answer.json["predictions"]
        assert len(predictions if isinstance(predictions[0], dict) else predictions[0]) == count


@pytest.mark.parametrize(
    ("path", "media_type", "said"),
    [
        ("/v1/models/scale:predict", "image/png", "model scale expects application/json, got image/png"),
        (
            PREDICT,
            "image/gif",
            "model colour expects application/json or image/jpeg or image/png or image/webp, got image/gif",
        ),
        (PREDICT, "image/svg+xml", "got image/svg+xml"),
        (PREDICT, "image/", "got image/"),
        (PREDICT, "application/pdf", "image/jpeg or image/png or image/webp, got application/pdf"),
        (PREDICT, "multipart/form-data; boundary=a", "image/webp, got multipart/form-data"),
    ],
)
def test_other_media_types_are_refused(path: str, media_type: str, said: str, client: Client) -> None:
    """415 with what the model takes."""
    answer = client.post(path, photo(), Content_Type=media_type)
    assert client.refused(415, answer).endswith(said)
    assert "Accept-Encoding" not in answer.headers


@pytest.mark.parametrize("as_instance", [False, True])
@pytest.mark.parametrize(
    ("body", "status"),
    [
        pytest.param(photo(size=(64, 64)), 200, id="as many pixels as allowed"),
        pytest.param(photo(size=(65, 64)), 413, id="a column more"),
        pytest.param(photo(size=(4097, 1)), 413, id="a pixel more"),
        pytest.param(photo()[:50], 400, id="cut"),
        pytest.param(b"", 400, id="empty"),
        pytest.param(b"\xff\xd8\xff\xe0", 400, id="a JPEG's first bytes"),
        pytest.param(photo(kind="GIF"), 400, id="GIF"),
        pytest.param(photo(kind="TIFF"), 400, id="TIFF"),
        pytest.param(b"<svg/>", 400, id="SVG"),
    ],
)
def test_photos_are_bounded_and_sound(body: bytes, status: int, as_instance: bool, client: Client) -> None:
    """The same photo fares alike as the body and in JSON."""
    if as_instance:
        answer = client.post(PREDICT, {"instances": [instance(body)]})
    else:
        answer = client.post(PREDICT, body, Content_Type="image/png")
    assert answer.status_code == status
    if status != 200:
        assert client.refused(status, answer).startswith("image: ")


def test_a_photo_may_be_compressed_again(client: Client) -> None:
    """Content codings are for every body."""
    answer = client.post(PREDICT, compress(photo(), "gzip"), Content_Type="image/png", Content_Encoding="gzip")
    assert answer.json["predictions"][0]["label"] == "red"


def test_a_body_of_photos_is_bounded(client: Client) -> None:
    """Bytes beyond the bound are 413 before anything looks at them."""
    assert "expected at most" in client.refused(
        413, client.post(PREDICT, bytes((1 << 20) + 1), Content_Type="image/png")
    )
