"""What the rows of a job are, lines or photos, however they are written and whoever tampered with them."""

import io
import json
import random
import struct
import zipfile
from functools import partial
from pathlib import Path

import pytest
from batch import lines, zipped

from batch_worker.rows import Row, read_rows
from inference_core.errors import InvalidInput
from inference_core.jobs import Kind, photos_in

MAX_DEPTH = 32
FILES = {"a.png": b"first" * 100, "b/c.jpg": b"second" * 100}
NESTED = b"[" * 40 + b"1" + b"]" * 40


def read(path: Path, content: bytes, kind: Kind = "instances", start: int = 0) -> list[Row]:
    """The rows, each of which has been read once, or could not be."""
    path.write_bytes(content)
    with read_rows(path, kind, MAX_DEPTH) as rows:
        return [Row(row.index, row.name, partial(bytes, outcome(row))) for row in rows(start)]


def outcome(row: Row) -> bytes:
    """What the row is, or after a question mark what is wrong with it."""
    try:
        return row.data()
    except InvalidInput as error:
        return f"? {error}".encode()


def values(rows: list[Row]) -> list[bytes]:
    return [row.data() for row in rows]


@pytest.mark.parametrize("start", [0, 1, 2, 3, 4])
def test_lines_are_rows_from_any_of_them_on(tmp_path: Path, start: int) -> None:
    """Each knows its place in the whole."""
    rows = read(tmp_path / "input", b"".join(lines([[1], {"a": 2}, "3"])), start=start)
    assert [row.index for row in rows] == [0, 1, 2][start:]
    assert [json.loads(value) for value in values(rows)] == [[1], {"a": 2}, "3"][start:]
    assert {row.name for row in rows} <= {None}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"1],[2", "trailing characters"),
        (b"1,2", "trailing characters"),
        (b"[1],[2]", "trailing characters"),
        (b"[1]}", "trailing characters"),
        (b"1]}{", "trailing characters"),
        (b"[1", "truncated"),
        (b'"a', "malformed"),
        (b"nan", "invalid character"),
        (b"[1,]", "malformed"),
        (b"{a:1}", "malformed"),
        (b"// 1", "malformed"),
        (b"\xff", "invalid character"),
        (b"\xef\xbb\xbf1", "invalid character"),
        (NESTED, "expected JSON nested at most 32 deep, got more"),
    ],
)
def test_a_line_that_is_not_one_value_says_so(tmp_path: Path, line: bytes, said: str) -> None:
    """And no other does: what is in it is put between commas, and must be what it was there too."""
    before, wrong, after = values(read(tmp_path / "input", b"[1]\n" + line + b"\n[2]\n"))
    assert (before, after) == (b"[1]\n", b"[2]\n")
    assert wrong.startswith(b"? ")
    assert said in wrong.decode()


@pytest.mark.parametrize(("depth", "is_taken"), [(MAX_DEPTH, True), (MAX_DEPTH + 1, False)])
def test_a_line_nests_as_deep_as_it_may_and_no_deeper(tmp_path: Path, depth: int, is_taken: bool) -> None:
    line = b"[" * depth + b"]" * depth + b"\n"
    [row] = read(tmp_path / "input", line)
    assert (row.data() == line) == is_taken


@pytest.mark.parametrize("seed", range(20))
def test_no_line_says_something_about_another(tmp_path: Path, seed: int) -> None:
    """Whatever brackets, commas and quotes it has: those that are taken are, put together, as many values."""
    generator = random.Random(seed)  # noqa: S311  # a test is the same each time
    written = [
        "".join(generator.choices('[]{},:"\\ 1a', k=generator.randrange(1, 9))).encode() + b"\n" for _ in range(500)
    ]
    written += lines([[1, 2], {"a": [3]}, "],["])
    taken = [value for value in values(read(tmp_path / "input", b"".join(written))) if not value.startswith(b"? ")]
    assert json.loads(b"[" + b",".join(taken) + b"]") == [json.loads(value) for value in taken]
    assert len(taken) >= 3


# Photos.


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("start", [0, 1, 2, 3])
def test_files_are_rows_from_any_of_them_on(tmp_path: Path, start: int, compression: int) -> None:
    rows = read(tmp_path / "input", zipped(FILES, compression), "photos", start)
    assert [(row.index, row.name, row.data()) for row in rows] == [
        (0, "a.png", FILES["a.png"]),
        (1, "b/c.jpg", FILES["b/c.jpg"]),
    ][start:]


def test_folders_and_what_macos_adds_are_no_rows(tmp_path: Path) -> None:
    content = zipped({"b/": b"", "__MACOSX/": b"", "__MACOSX/._a.png": b"x", "__MACOSX/b/._c.jpg": b"x"} | FILES)
    assert [row.name for row in read(tmp_path / "input", content, "photos")] == list(FILES)


def test_a_file_that_is_there_twice_is_two_rows(tmp_path: Path) -> None:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        archive.writestr("a.png", b"1")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a.png", b"2")
    assert values(read(tmp_path / "input", memory.getvalue(), "photos")) == [b"1", b"2"]


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_file_says_so_and_no_other_does(tmp_path: Path, compression: int) -> None:
    """Whichever way it was compressed."""
    content = bytearray(zipped(FILES, compression))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        second = archive.getinfo("b/c.jpg")
    at = second.header_offset + 30 + len(second.filename)
    content[at : at + second.compress_size] = b"\xaa" * second.compress_size
    first, damaged = values(read(tmp_path / "input", bytes(content), "photos"))
    assert first == FILES["a.png"]
    assert damaged.startswith(b"? file: cannot be read from the ZIP: ")


@pytest.mark.parametrize("claimed", [0, 1, 599])
def test_a_file_that_is_larger_than_claimed_is_not_read_further(tmp_path: Path, claimed: int) -> None:
    """The bounds were checked by the claim, as with a bomb."""
    content = bytearray(zipped(FILES, zipfile.ZIP_DEFLATED))
    directory = content.rindex(b"PK\x01\x02")
    content[directory + 24 : directory + 28] = struct.pack("<I", claimed)
    first, lying = values(read(tmp_path / "input", bytes(content), "photos"))
    assert first == FILES["a.png"]
    assert lying.startswith(b"? file: ")


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_file_that_was_tampered_with_is_read_or_refused(tmp_path: Path, compression: int, seed: int) -> None:
    """Whichever bytes of a ZIP are changed: as far as it still is one, each row is something or says what is wrong."""
    generator, good = random.Random(seed), zipped(FILES, compression)  # noqa: S311  # the same
    still = 0
    for _ in range(100):
        content = bytearray(good)
        for _ in range(generator.randrange(1, 4)):
            content[generator.randrange(len(content))] = generator.randrange(256)
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                names = [entry.filename for entry in photos_in(archive)]
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError):
            continue  # it would not have been accepted
        still += 1
        assert [row.name for row in read(tmp_path / "input", bytes(content), "photos")] == names
    assert still > 10
