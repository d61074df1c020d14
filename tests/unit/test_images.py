import contextlib
import io
import random
import re
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageDraw, PngImagePlugin

from inference_core.errors import InvalidInput, PayloadTooLarge
from inference_core.images import EXIF_ORIENTATION, FORMATS, MAX_SCANS, MEDIA_TYPES, decode_image
from inference_core.manifest import ImageInput
from inference_core.tensors import Tensor

SIZE = 16
SPEC = ImageInput("image", "p", SIZE, 1.0, (0.0, 0.0, 0.0), (255.0, 255.0, 255.0))
MAX_PIXELS = 1 << 20
# What JPEG and WEBP may change of a colour.
LOSSY = 0.04


def save(photo: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    photo.save(file, kind, **options)
    return file.getvalue()


def decode(body: bytes, spec: ImageInput = SPEC, max_pixels: int = MAX_PIXELS) -> Tensor:
    return decode_image(body, spec, max_pixels)


def colour(body: bytes) -> list[float]:
    """The one colour of a photo, as R, G and B."""
    tensor = decode(body)
    assert tensor.shape == (1, 3, SIZE, SIZE)
    assert tensor.dtype == np.float32
    np.testing.assert_allclose(tensor, tensor[:, :, :1, :1] * np.ones((1, 1, SIZE, SIZE)), atol=LOSSY)
    return [round(value, 2) for value in tensor[0, :, 0, 0].tolist()]


def quadrants(size: int = 32) -> Image.Image:
    """A photo that looks different however it is turned: red and green above, blue and white below."""
    photo = Image.new("RGB", (size, size), "white")
    half = size // 2
    for corner, fill in (((0, 0), "red"), ((half, 0), "lime"), ((0, half), "blue")):
        ImageDraw.Draw(photo).rectangle((*corner, corner[0] + half - 1, corner[1] + half - 1), fill)
    return photo


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, data in chunks:
        parts.append(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))
    return b"".join(parts)


def png_header(width: int, height: int, colours: int = 2) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colours, 0, 0, 0)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_decoded(kind: str) -> None:
    """The upper left is red, the lower right white, channels first, in every format that the server names."""
    tensor = decode(save(quadrants(), kind, quality=95))
    assert tensor.flags.c_contiguous
    np.testing.assert_allclose(tensor[0, :, 2, 2], [1, 0, 0], atol=0.15)
    np.testing.assert_allclose(tensor[0, :, 2, -3], [0, 1, 0], atol=0.15)
    np.testing.assert_allclose(tensor[0, :, -3, -3], [1, 1, 1], atol=0.15)


def test_media_types_are_those_of_the_formats() -> None:
    """What the API takes and what Pillow is let loose on are the same."""
    assert tuple(f"image/{kind.lower()}" for kind in FORMATS) == MEDIA_TYPES


# EXIF 2.32, tag Orientation: how the rows of an upright photo are stored, by where their first corner lies in it.
STORED: dict[int, Callable[[Tensor], Tensor]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: np.rot90,
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("orientation", STORED)
def test_orientation_is_undone(kind: str, orientation: int) -> None:
    """All eight EXIF orientations of a photo give the tensor of the upright one."""
    upright = quadrants(128)
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](np.asarray(upright))))
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation

    tensor = decode(save(stored, kind, exif=exif, quality=95))
    np.testing.assert_allclose(tensor, decode(save(upright)), atol=0.15)


def test_photos_are_cropped_in_the_centre() -> None:
    """A wide photo loses its sides, and `crop_fraction` of the shorter side is what is seen."""
    wide = Image.new("RGB", (48, 16), "red")
    wide.paste("lime", (16, 0, 32, 16))
    assert colour(save(wide)) == [0, 1, 0]
    framed = Image.new("RGB", (32, 32), "red")
    framed.paste("blue", (8, 8, 24, 24))
    spec = ImageInput("image", "p", SIZE, 0.5, SPEC.mean, SPEC.scale)
    np.testing.assert_array_equal(decode(save(framed), spec)[0, 2], np.ones((SIZE, SIZE)))


def test_pixels_are_normalised_per_channel() -> None:
    """(pixel - mean) / scale, each channel with its own."""
    spec = ImageInput("image", "p", SIZE, 1.0, (5.0, 10.0, 20.0), (5.0, 10.0, 100.0))
    tensor = decode(save(Image.new("RGB", (4, 4), (10, 40, 220))), spec)
    assert tensor[0, :, 3, 3].tolist() == [1, 3, 2]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(save(Image.new("L", (9, 9), 51)), [0.2] * 3, id="grey"),
        pytest.param(save(Image.new("L", (9, 9), 51), "JPEG"), [0.2] * 3, id="grey JPEG"),
        pytest.param(save(Image.fromarray(np.full((9, 9), 0x3333, np.uint16))), [0.2] * 3, id="16-bit grey"),
        pytest.param(save(Image.fromarray(np.full((9, 9), 0xFFFF, np.uint16))), [1] * 3, id="16-bit white"),
        pytest.param(save(Image.new("1", (9, 9), 1)), [1] * 3, id="1 bit, white"),
        pytest.param(save(Image.new("1", (9, 9), 0)), [0] * 3, id="1 bit, black"),
        pytest.param(save(Image.new("RGB", (9, 9), (51, 102, 153)).quantize(4)), [0.2, 0.4, 0.6], id="palette"),
        pytest.param(save(Image.new("P", (9, 9), 0), transparency=0), [1] * 3, id="palette, transparent"),
        pytest.param(
            save(Image.new("RGB", (9, 9), "red"), transparency=(255, 0, 0)), [1] * 3, id="a transparent colour"
        ),
        pytest.param(save(Image.new("L", (9, 9), 7), transparency=7), [1] * 3, id="a transparent grey"),
        pytest.param(save(Image.new("LA", (9, 9), (0, 0))), [1] * 3, id="grey and alpha, clear"),
        pytest.param(save(Image.new("LA", (9, 9), (51, 255))), [0.2] * 3, id="grey and alpha, opaque"),
        pytest.param(save(Image.new("RGBA", (9, 9), (255, 0, 0, 0))), [1] * 3, id="RGBA, clear"),
        pytest.param(save(Image.new("RGBA", (9, 9), (255, 0, 0, 255))), [1, 0, 0], id="RGBA, opaque"),
        pytest.param(save(Image.new("RGBA", (9, 9), (255, 0, 0, 128))), [1, 0.5, 0.5], id="RGBA, half clear"),
        pytest.param(save(Image.new("RGBA", (9, 9), (255, 0, 0, 0)), "WEBP", lossless=True), [1] * 3, id="WEBP, clear"),
        pytest.param(save(Image.new("CMYK", (9, 9), (0, 0, 0, 0)), "JPEG"), [1] * 3, id="CMYK, white"),
        pytest.param(save(Image.new("CMYK", (9, 9), (0, 255, 255, 0)), "JPEG"), [1, 0, 0], id="CMYK, red"),
        pytest.param(save(Image.new("RGB", (9, 9), "red"), "JPEG", progressive=True), [1, 0, 0], id="progressive JPEG"),
        pytest.param(save(Image.new("RGB", (1, 1), "blue")), [0, 0, 1], id="one pixel"),
        pytest.param(save(Image.new("RGB", (3000, 1), "blue")), [0, 0, 1], id="one pixel high"),
    ],
)
def test_every_colour_mode_ends_as_rgb(body: bytes, expected: list[float]) -> None:
    """Whatever the file stores, the tensor is what a person would see on white paper."""
    assert colour(body) == pytest.approx(expected, abs=LOSSY)


@pytest.mark.parametrize("size", [(32, 32), (1024, 1), (1, 1024)])
def test_as_many_pixels_as_allowed(size: tuple[int, int]) -> None:
    """Exactly the bound is accepted; one row or column more is not."""
    width, height = size
    decode(save(Image.new("RGB", size)), max_pixels=1024)
    for larger in ((width + 1, height), (width, height + 1)):
        with pytest.raises(
            PayloadTooLarge, match=rf"^image: expected at most 1024 pixels, got {larger[0]} x {larger[1]}$"
        ):
            decode(save(Image.new("RGB", larger)), max_pixels=1024)


@pytest.mark.parametrize("size", [(30_000, 30_000), (10_000, 10_000), (2**31 - 1, 2**31 - 1), (1025, 1024)])
def test_a_header_that_claims_too_much_is_refused(size: tuple[int, int]) -> None:
    """The size is judged by the header, before any pixel is decoded: this file has none."""
    with pytest.raises(PayloadTooLarge, match=rf"^image: expected at most {MAX_PIXELS} pixels, got"):
        decode(png(png_header(*size), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")))


def test_a_webp_that_claims_too_much_is_refused() -> None:
    """The largest WEBP there can be, 16383 x 16383, has few bytes and takes no memory."""
    body = bytearray(save(Image.new("RGB", (1, 1)), "WEBP", lossless=True))
    at = body.index(b"VP8L") + 9
    body[at : at + 4] = struct.pack("<I", 16382 | 16382 << 14)
    with pytest.raises(InvalidInput, match=r"^image: "):
        decode(bytes(body))


def with_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan is repeated until there are `count`."""
    body = save(Image.new("RGB", (64, 64), "red"), "JPEG", progressive=True)
    scans = [found.start() for found in re.finditer(b"\xff\xda", body)]
    last = body[scans[-1] : -2]
    return body[:-2] + last * (count - len(scans)) + body[-2:]


def test_as_many_scans_as_allowed() -> None:
    """A JPEG is decoded once per scan, so that a file of few bytes could keep a worker busy for minutes."""
    assert colour(with_scans(MAX_SCANS)) == pytest.approx([1, 0, 0], abs=LOSSY)
    with pytest.raises(InvalidInput, match=rf"^image: expected at most {MAX_SCANS} scans, got {MAX_SCANS + 1}$"):
        decode(with_scans(MAX_SCANS + 1))


@pytest.mark.parametrize(
    "hide",
    [
        pytest.param(b"\xff\x01", id="a marker without a length"),
        pytest.param(b"\xff" * 9, id="fill bytes"),
        pytest.param(b"\xff\xfe\x00\x04\xff\xd9", id="the end of the image in a comment"),
        pytest.param(b"\xff\xfe\x00\x00", id="a comment without the bytes of its length"),
    ],
)
def test_scans_cannot_be_hidden(hide: bytes) -> None:
    """Segments are walked as the decoder does, whatever stands between two scans."""
    body = with_scans(MAX_SCANS + 1)
    first = body.index(b"\xff\xda") + 2
    with pytest.raises(InvalidInput, match="scans, got"):
        decode(body[:first] + body[first:].replace(b"\xff\xda", hide + b"\xff\xda"))


def test_what_only_looks_like_scans_is_no_scan() -> None:
    """Thumbnails, profiles and the films that phones append may contain anything."""
    body = save(Image.new("RGB", (64, 64), "red"), "JPEG", comment=b"\xff\xda" * 100)
    assert colour(body + b"\xff\xda" * 100) == pytest.approx([1, 0, 0], abs=LOSSY)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_animations_are_refused(kind: str) -> None:
    """An animation has no one meaning."""
    frames = [Image.new("RGB", (9, 9), fill) for fill in ("red", "lime", "blue")]
    body = save(frames[0], kind, save_all=True, append_images=frames[1:], duration=100)
    with pytest.raises(InvalidInput, match=r"^image: expected a single frame, got 3$"):
        decode(body)


def test_a_photo_with_a_preview_is_one_photo() -> None:
    """Cameras add a preview to a JPEG (MPO); the first picture is the photo."""
    body = save(
        Image.new("RGB", (64, 64), "red"), "MPO", save_all=True, append_images=[Image.new("RGB", (32, 32), "blue")]
    )
    assert Image.open(io.BytesIO(body)).format == "MPO"
    assert colour(body) == pytest.approx([1, 0, 0], abs=LOSSY)


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
OTHERS = [
    save(Image.new("RGB", (9, 9)), kind) for kind in ("GIF", "TIFF", "BMP", "ICO", "PPM", "TGA", "PDF", "JPEG2000")
]


@pytest.mark.parametrize(
    "body", [*OTHERS, SVG, b"", b"\x00", b"JFIF", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP", b"\x89PNG\r\n\x1a\n"]
)
def test_other_formats_are_refused(body: bytes) -> None:
    """Only the three formats are parsed at all."""
    with pytest.raises(
        InvalidInput, match=r"^image: (expected JPEG, PNG or WEBP, got something else|cannot be decoded: )"
    ):
        decode(body)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_truncated_photos_are_refused(kind: str, kept: float) -> None:
    """Half a photo is not guessed at."""
    body = save(Image.effect_noise((64, 64), 100).convert("RGB"), kind)
    with pytest.raises(InvalidInput, match=r"^image: "):
        decode(body[: int(len(body) * kept)])


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("seed", range(20))
def test_damaged_photos_are_refused_or_decoded(kind: str, seed: int) -> None:
    """Whatever is wrong with a file, the answer is a tensor or InvalidInput."""
    chance = random.Random(seed)  # noqa: S311  # the same damage every time
    body = bytearray(save(quadrants(), kind))
    for _ in range(8):
        body[chance.randrange(len(body))] = chance.randrange(256)
    with contextlib.suppress(InvalidInput):
        assert decode(bytes(body)).shape == (1, 3, SIZE, SIZE)


@pytest.mark.parametrize("start", [b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"RIFF\x00\x10\x00\x00WEBPVP8 "])
def test_random_bytes_are_refused(start: bytes) -> None:
    """Noise behind any format's magic number is no photo."""
    with pytest.raises(InvalidInput, match=r"^image: "):
        decode(start + random.Random(1).randbytes(4096))  # noqa: S311  # the same noise every time


@pytest.mark.parametrize("count", [1, 100])
def test_text_chunks_do_not_inflate(count: int) -> None:
    """Compressed text in a PNG is bounded by the decoder, in one chunk and in all."""
    text = b"k\x00\x00" + zlib.compress(bytes(2 << 20) if count == 1 else bytes(900_000))
    pixels = zlib.compress(b"\x00\xff\x00\x00")
    body = png(png_header(1, 1), *[(b"zTXt", text)] * count, (b"IDAT", pixels), (b"IEND", b""))
    assert len(body) < 200_000
    with pytest.raises(InvalidInput, match=r"^image: cannot be decoded: "):
        decode(body)


def test_ordinary_text_chunks_pass() -> None:
    """A PNG may say who made it."""
    info = PngImagePlugin.PngInfo()
    info.add_text("Author", "somebody", zip=True)
    assert colour(save(Image.new("RGB", (9, 9), "red"), pnginfo=info)) == [1, 0, 0]


@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_exif_does_not_matter(kind: str) -> None:
    """EXIF that cannot be read says nothing of the orientation."""
    exif = b"Exif\x00\x00MM\xff\x2a\x00\x00\x00\x08"
    assert colour(save(Image.new("RGB", (64, 64), "red"), kind, exif=exif)) == pytest.approx([1, 0, 0], abs=LOSSY)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_unknown_orientations_mean_upright(orientation: int) -> None:
    """A number that EXIF does not define turns nothing."""
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    np.testing.assert_array_equal(decode(save(quadrants(), exif=exif)), decode(save(quadrants())))
