import base64
import json
from typing import Any

import pytest

from app_client import Client
from conftest import MODELS

PHOTOS = {
    "chelsea": {"tabby, tabby cat", "tiger cat", "Egyptian cat"},
    "coffee": {"espresso"},
    "rocket": {"missile", "projectile, missile"},
    "china": {"palace"},
    "flower": {"daisy"},
}
PREDICT = "/v1/models/efficientnet-lite0:predict"


def photo(name: str) -> bytes:
    return (MODELS / "efficientnet-lite0" / "examples" / f"{name}.jpg").read_bytes()


def best(prediction: list[dict[str, Any]]) -> str:
    return str(prediction[0]["label"])
