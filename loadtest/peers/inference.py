"""What the bare servers share: sessions, a photo to a tensor, probabilities to labels. None of it is Tiercel's code."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from PIL import Image

MODELS = Path(__file__).resolve().parents[2] / "models"
TABULAR, PHOTOS = "breast-cancer", "efficientnet-lite0"
SIZE = 224
CROP_FRACTION = 0.875
MEAN, SCALE = np.float32(127), np.float32(128)
TOP_K = 5


def open_session(name: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(MODELS / name / "1/model.onnx", options, providers=["CPUExecutionProvider"])


def read_labels() -> list[str]:
    labels: list[str] = json.loads((MODELS / PHOTOS / "1/manifest.json").read_text())["labels"]
    return labels


def classify(session: ort.InferenceSession, labels: list[str], photo: bytes) -> list[dict[str, Any]]:
    """The five most probable labels of a JPEG file, best first."""
    [probabilities] = session.run(["probabilities"], {"image": to_tensor(photo)})
    best = np.argsort(-probabilities[0], kind="stable")[:TOP_K]
    return [{"label": labels[i], "class_id": int(i), "score": float(probabilities[0, i])} for i in best]


def to_tensor(photo: bytes) -> np.ndarray[Any, np.dtype[np.float32]]:
    with Image.open(io.BytesIO(photo)) as image:
        image.draft("RGB", (2 * SIZE, 2 * SIZE))
        width, height = image.size
        side = round(min(width, height) * CROP_FRACTION)
        left, top = (width - side) // 2, (height - side) // 2
        square = image.crop((left, top, left + side, top + side)).convert("RGB")
        square = square.resize((SIZE, SIZE), Image.Resampling.BICUBIC, reducing_gap=2.0)
    pixels = np.asarray(square, np.float32).transpose(2, 0, 1)[np.newaxis]
    return (pixels - MEAN) / SCALE
