import gzip
import zlib

import pytest

from inference_core.bodies import CODINGS, check_nesting, compress, decode_json, decompress
from inference_core.errors import InvalidInput, PayloadTooLarge, UnsupportedCoding

LIMIT = 1000
DEPTH = 32


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("body", [b"", b"x", bytes(range(256)) * 3])
def test_what_is_compressed_decompresses(coding: str, body: bytes) -> None:
    """A coding and its undoing give the body back."""
    assert decompress(compress(body, coding), coding, LIMIT) == body


@pytest.mark.parametrize(("coding", "theirs"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_codings_are_the_standard_ones(coding: str, theirs: object) -> None:
    """gzip is RFC 1952; deflate is the zlib format of RFC 1950, not the raw one."""
    assert decompress(theirs(b"body"), coding, LIMIT) == b"body"  # type: ignore[operator]


@pytest.mark.parametrize("coding", CODINGS)
def test_a_body_of_the_limit_is_inflated(coding: str) -> None:
    """Exactly as many bytes as allowed are accepted."""
    assert decompress(compress(bytes(LIMIT), coding), coding, LIMIT) == bytes(LIMIT)


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("size", [LIMIT + 1, 50_000_000])
def test_a_bomb_is_refused(coding: str, size: int) -> None:
    """One byte over the limit is refused, and so is a bomb, of which no more than the limit is inflated."""
    with pytest.raises(
        PayloadTooLarge, match=rf"^body: expected at most 1000 bytes, got more once its {coding} coding is undone$"
    ):
        decompress(compress(bytes(size), coding), coding, LIMIT)


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda data: data[:-1], id="cut at the end"),
        pytest.param(lambda data: data[: len(data) // 2], id="cut in the middle"),
        pytest.param(lambda data: b"", id="empty"),
        pytest.param(lambda data: data + b"x", id="continued"),
        pytest.param(lambda data: data + data, id="twice"),
        pytest.param(lambda data: b"{}", id="not compressed"),
        pytest.param(lambda data: data[:-2] + b"xy", id="wrong checksum"),
    ],
)
def test_a_damaged_stream_is_refused(coding: str, spoil: object) -> None:
    """Only one whole stream of the coding is a body."""
    with pytest.raises(InvalidInput, match=rf"{coding} (data|stream)"):
        decompress(spoil(compress(b"body" * 20, coding)), coding, LIMIT)  # type: ignore[operator]


@pytest.mark.parametrize("coding", ["br", "zstd", "x-gzip", "gzip, gzip", "", "GZIP "])
def test_an_unknown_coding_is_refused(coding: str) -> None:
    """A coding that is not offered is named, and so are those that are."""
    with pytest.raises(UnsupportedCoding, match=rf"^Content-Encoding: expected gzip or deflate, got '{coding}'$"):
        decompress(b"", coding, LIMIT)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"[" * 32 + b"]" * 32, id="as deep as allowed"),
        pytest.param(b'{"a":' * 32 + b"1" + b"}" * 32, id="objects"),
        pytest.param(b'[{"a":' * 16 + b"1" + b"}]" * 16, id="both"),
        pytest.param(b"[" + b"[1]," * 100 + b"[1]]", id="wide, not deep"),
        pytest.param(b'"' + b"[{" * 100 + b'"', id="inside a string"),
        pytest.param(b'["' + b'\\"[' * 100 + b'"]', id="after escaped quotes"),
        pytest.param(b'["\\\\", "' + b"[" * 100 + b'"]', id="after an escaped backslash"),
        pytest.param(b'["\\\\\\"' + b"[" * 100 + b'"]', id="after both"),
        pytest.param(b'["\\n' + b"[" * 100 + b'", "\\u005b' + b"{" * 100 + b'"]', id="after other escapes"),
        pytest.param(b"", id="empty"),
    ],
)
def test_nesting_within_the_bound_passes(body: bytes) -> None:
    """Depth is counted, not brackets; what stands in strings is text."""
    check_nesting(body, DEPTH)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"[" * 33 + b"]" * 33, id="one too deep"),
        pytest.param(b'{"a":' * 33 + b"1" + b"}" * 33, id="objects"),
        pytest.param(b"[" * 100_000, id="100,000 deep and cut"),
        pytest.param(b'["\\\\",' + b"[" * 32 + b"]" * 33, id="after a string that ends in a backslash"),
        pytest.param(b'["\\"",' + b"[" * 32 + b"]" * 33, id="after a string that ends in a quote"),
        pytest.param(b'{"[]]]]":' * 33 + b"1" + b"}" * 33, id="with closing brackets in the names"),
    ],
)
def test_nesting_beyond_the_bound_is_refused(body: bytes) -> None:
    """One level over the bound is refused, before any parser has recursed into it."""
    with pytest.raises(InvalidInput, match=r"^body: expected JSON nested at most 32 deep, got more$"):
        check_nesting(body, DEPTH)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"a": "x"}', "expected int, got str at [...]"),
        (b"[1]", "expected object, got array"),
        (b'{"a": 1', "Input data was truncated"),
        (b'{"a": 1}}', "JSON is malformed"),
        (b'{"\xff": 1}', "expected text in UTF-8, got something else"),
    ],
)
def test_json_that_does_not_fit_is_explained(body: bytes, said: str) -> None:
    """What was expected, what came and where, without a parser's typography."""
    with pytest.raises(InvalidInput) as refused:
        decode_json(body, dict[str, int])
    assert str(refused.value).startswith("request: ")
    assert said in str(refused.value)
    assert "`" not in str(refused.value)
