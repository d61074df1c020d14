"""Values that unit tests need and do not care about, but for what they name."""

from typing import Any

from inference_core.manifest import ImageInput, Manifest, ModelFile, TensorSpec

IMAGE = ImageInput("image", "p", size=8, crop_fraction=1.0, mean=(0.0, 0.0, 0.0), scale=(255.0, 255.0, 255.0))


def tensor(datatype: str = "FP32", *shape: int, name: str = "x", features: tuple[str, ...] = ()) -> TensorSpec:
    return TensorSpec(name, datatype, shape, features)


def manifest(inputs: list[TensorSpec], outputs: list[TensorSpec] | None = None, rows: int = 4, **more: Any) -> Manifest:
    """A model "m", version 7, that takes `inputs` and answers `outputs` (default: FP32 [-1, 2])."""
    return Manifest(
        name="m",
        version="7",
        description="",
        model=ModelFile("0" * 64, 1),
        inputs=tuple(inputs),
        outputs=tuple(outputs or [tensor("FP32", -1, 2, name="y")]),
        max_batch_size=rows,
        licence="Apache-2.0",
        source={},
        metrics={},
        built={},
        **more,
    )


def image_manifest(rows: int = 4) -> Manifest:
    """A model of photos of 8 x 8, with the labels red, green and blue."""
    inputs, outputs = [tensor("FP32", -1, 3, 8, 8, name="image")], [tensor("FP32", -1, 3, name="p")]
    return manifest(inputs, outputs, rows, image=IMAGE, labels=("red", "green", "blue"))
