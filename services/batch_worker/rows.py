"""The rows of a job's input, from any of them on: lines of JSON, or photos in a ZIP file."""

import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO

import msgspec

from inference_core.bodies import check_nesting
from inference_core.errors import InvalidInput, in_plain_words
from inference_core.jobs import Kind, photos_in


class Row(msgspec.Struct, frozen=True):
    """`data` reads it, and is where a row that cannot be read fails: InvalidInput."""

    index: int
    name: str | None
    data: Callable[[], bytes]


@contextmanager
def read_rows(path: Path, kind: Kind, max_json_depth: int) -> Iterator[Callable[[int], Iterator[Row]]]:
    """A function that yields the rows from a given one on."""
    if kind == "photos":
        with zipfile.ZipFile(path) as archive:
            yield lambda start: _photos(archive, start)
    else:
        with path.open("rb") as lines:
            yield lambda start: _instances(lines, start, max_json_depth)


def _instances(lines: IO[bytes], start: int, max_depth: int) -> Iterator[Row]:
    for index, line in enumerate(islice(lines, start, None), start):
        yield Row(index, None, lambda line=line: _checked(line, max_depth))  # type: ignore[misc]  # mypy #15459


def _checked(line: bytes, max_depth: int) -> bytes:
    """One JSON value, so that what is put between commas is what it was."""
    check_nesting(line, max_depth)
    try:
        msgspec.json.decode(line, type=msgspec.Raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"row: {in_plain_words(error)}") from None
    return line


def _photos(archive: zipfile.ZipFile, start: int) -> Iterator[Row]:
    for index, entry in enumerate(islice(photos_in(archive), start, None), start):
        yield Row(index, entry.filename, lambda entry=entry: _read(archive, entry))  # type: ignore[misc]  # the same


def _read(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    try:
        with archive.open(entry) as file:
            data = file.read(entry.file_size + 1)
    except Exception as error:  # zipfile, zlib, lzma and struct have each their own, for damage of each kind
        raise InvalidInput(f"file: cannot be read from the ZIP: {error}") from None
    # SECURITY: what the directory says of the size is a claim, and was what limits were checked by.
    if len(data) > entry.file_size:
        raise InvalidInput(f"file: expected {entry.file_size} bytes as in the ZIP's directory, got more")
    return data
