"""From the bytes of a photo to a tensor: `decode_image`, the one way, used by the server and by calibration.

The photo is turned as its EXIF orientation says, transparent pixels show white, and every colour mode ends as RGB.
"""

import io
import re
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from inference_core.errors import InvalidInput, PayloadTooLarge
from inference_core.manifest import ImageInput

# SECURITY: the allow-list keeps Pillow's many other parsers out of reach.
FORMATS = ("JPEG", "PNG", "WEBP")
MEDIA_TYPES = ("image/jpeg", "image/png", "image/webp")
# SECURITY: a JPEG is decoded as often as it has scans, of which one needs 30 bytes; cameras and editors make about ten.
MAX_SCANS = 64
# ISO/IEC 10918-1, annex B: in compressed data 0xFF stands before 0 or a restart marker only.
MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")
START_OF_SCAN, END_OF_IMAGE = 0xDA, 0xD9
LENGTHLESS = (0x01, 0xD8)
EXIF_ORIENTATION = 0x0112
WHITE = (255, 255, 255, 255)
# EXIF 2.32, tag Orientation: what brings the stored rows upright.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_image(body: bytes, spec: ImageInput, max_pixels: int) -> NDArray[np.float32]:
    """The tensor `[1, 3, size, size]` of the photo in `body`; InvalidInput or PayloadTooLarge if it has none."""
    try:
        with Image.open(io.BytesIO(body), formats=FORMATS) as photo:
            _check(photo, max_pixels)
            if photo.format not in ("PNG", "WEBP"):
                _check_scans(body)
            square = _crop_and_resize(photo, spec)
    except InvalidInput:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise PayloadTooLarge(f"image: expected at most {max_pixels} pixels, got many more") from None
    except UnidentifiedImageError:
        raise InvalidInput(f"image: expected {', '.join(FORMATS[:-1])} or {FORMATS[-1]}, got something else") from None
    except Exception as error:  # Pillow's decoders raise whatever a damaged file makes them trip over
        raise InvalidInput(f"image: cannot be decoded: {error}") from None
    return normalise(square, spec)


def normalise(square: Image.Image, spec: ImageInput) -> NDArray[np.float32]:
    """`(pixel - mean) / scale` of an RGB image that has the right size, as `[1, 3, size, size]`."""
    channels = np.asarray(square).transpose(2, 0, 1)
    mean, scale = (np.array(values, np.float32).reshape(3, 1, 1) for values in (spec.mean, spec.scale))
    tensor = np.empty((1, *channels.shape), np.float32)
    np.subtract(channels, mean, out=tensor[0])
    tensor /= scale
    return tensor


def _check(photo: Image.Image, max_pixels: int) -> None:
    width, height = photo.size
    if width * height > max_pixels:
        raise PayloadTooLarge(f"image: expected at most {max_pixels} pixels, got {width} x {height}")
    frames = getattr(photo, "n_frames", 1)
    if frames > 1 and photo.format != "MPO":  # cameras add previews to a JPEG; an animation has no one meaning
        raise InvalidInput(f"image: expected a single frame, got {frames}")


def _check_scans(body: bytes) -> None:
    # PERF: no photo has more scans than pairs of bytes that look like the start of one; counting these is quick.
    if body.count(bytes((0xFF, START_OF_SCAN))) <= MAX_SCANS:
        return
    scans = sum(marker == START_OF_SCAN for marker in _jpeg_markers(body))
    if scans > MAX_SCANS:
        raise InvalidInput(f"image: expected at most {MAX_SCANS} scans, got {scans}")


def _jpeg_markers(body: bytes) -> Iterator[int]:
    at = 0
    while (found := MARKER.search(body, at)) and found[0][-1] != END_OF_IMAGE:
        yield found[0][-1]
        at = found.end()
        if found[0][-1] not in LENGTHLESS:
            at += int.from_bytes(body[at : at + 2], "big")


def _crop_and_resize(photo: Image.Image, spec: ImageInput) -> Image.Image:
    # PERF: a JPEG is decoded at the smallest scale (1/2, 1/4, 1/8) that still has twice the pixels needed.
    photo.draft(None, (2 * spec.size, 2 * spec.size))
    square = _to_rgb(photo.crop(_centred_square(photo.size, spec.crop_fraction)))
    square = square.resize((spec.size, spec.size), Image.Resampling.BICUBIC, reducing_gap=2.0)
    # PERF: a centred square may be turned after it was made small: the outcome is the same.
    turn = _turn(photo)
    return square if turn is None else square.transpose(turn)


def _turn(photo: Image.Image) -> Image.Transpose | None:
    try:
        return TURNS.get(photo.getexif().get(EXIF_ORIENTATION, 1))
    except Exception:  # damaged metadata, which takes nothing from the photo
        return None


def _centred_square(size: tuple[int, int], fraction: float) -> tuple[int, int, int, int]:
    width, height = size
    side = max(1, round(min(width, height) * fraction))
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def _to_rgb(photo: Image.Image) -> Image.Image:
    if photo.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip at 255 rather than scale
        photo = Image.fromarray((np.asarray(photo) >> 8).astype(np.uint8))
    if photo.has_transparency_data:
        photo = photo.convert("RGBA")
        photo = Image.alpha_composite(Image.new("RGBA", photo.size, WHITE), photo)
    return photo if photo.mode == "RGB" else photo.convert("RGB")
