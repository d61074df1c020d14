"""A recipe, `recipe.toml`: from which source by which passes a package is made, and what it must be good for.

SECURITY: a recipe names Python functions and pickles, and building it runs them. Build what you would run.
"""

import re
import tomllib
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import msgspec

from inference_core.errors import in_plain_words
from inference_core.manifest import ImageInput, Name, Positive, Version
from model_tools.artifact import LossyPass
from model_tools.gate import Budget
from model_tools.passes import AnyPass
from model_tools.passes.fold_preprocessing import FoldPreprocessing
from model_tools.sources import AnySource, TorchSource

MAX_RECIPE_BYTES = 1 << 20
# A table's header, or a key with its value; keys of recipes need no quotes.
HEADER = re.compile(r"\s*(\[\[?)\s*([\w.-]+)\s*\]")
KEY = re.compile(r"\s*([\w.-]+)\s*=")
UNKNOWN_FIELD = re.compile(r"unknown field `([^`]+)`")


class RecipeError(Exception):
    pass


class Data(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where rows come from, as clients will send them: a `.npz` file with an array for each input, or `module:function`
    that returns such a dict. `held_out` may also have `labels`, one class id per row, by which accuracy is judged.
    """

    calibration: str
    held_out: str


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: Name
    version: Version
    description: str
    licence: str
    # Rows that one request may carry.
    max_batch_size: Positive
    # The output by which the model is judged: scores of classes, class ids, or numbers.
    output: str
    source: AnySource
    data: Data
    passes: Annotated[tuple[AnyPass, ...], msgspec.Meta(max_length=32)] = ()
    gate: Budget = Budget()
    # For which other runtimes there is to be a package too.
    exports: frozenset[Literal["torchscript", "litert"]] = frozenset()
    # Names of the classes, by class id; or `module:function` that returns them.
    labels: tuple[str, ...] | str = ()
    # Names of the columns of the input, where rows may be sent as objects.
    features: tuple[str, ...] = ()
    # For models that take photos.
    image: ImageInput | None = None
    # Where weights and data come from, and their licences: for people to read.
    origin: dict[str, str] = {}

    @property
    def preprocessing(self) -> FoldPreprocessing | None:
        first = self.passes[0] if self.passes else None
        return first if isinstance(first, FoldPreprocessing) else None


def read_recipe(path: Path) -> Recipe:
    """The recipe in the file; RecipeError with the line and the key that does not fit."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_RECIPE_BYTES + 1)
        if len(raw) > MAX_RECIPE_BYTES:
            raise RecipeError(f"{path}: expected at most {MAX_RECIPE_BYTES} bytes, got more")
        text = raw.decode()
        recipe = msgspec.convert(tomllib.loads(text), Recipe)
        _check(recipe)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"{path}: {error}") from None
    except msgspec.ValidationError as error:
        problem = _problem(str(error))
        raise RecipeError(f"{path}:{line_of(text, problem.key)}: {problem}") from None
    return recipe


def _check(recipe: Recipe) -> None:
    """What types cannot say."""
    for index, step in enumerate(recipe.passes):
        if isinstance(step, FoldPreprocessing) and index:
            raise msgspec.ValidationError(
                f"Expected {step.name} as the first pass, as data are then what clients send - at `$.passes[{index}]`"
            )
    if recipe.exports and not isinstance(recipe.source, TorchSource):
        raise msgspec.ValidationError(
            f"Expected a source of PyTorch, as only such are exported for {' and '.join(sorted(recipe.exports))} "
            "- at `$.exports`"
        )
    lossy = [step.name for step in recipe.passes if isinstance(step, LossyPass)]
    if lossy and not recipe.gate.has_quality:
        raise msgspec.ValidationError(
            f"Expected max_accuracy_loss, min_agreement or max_relative_error, because {lossy[0]} changes answers, "
            "got none - at `$.gate`"
        )


class _Problem(NamedTuple):
    key: str
    what: str

    def __str__(self) -> str:
        return f"{self.key}: {self.what}" if self.key else self.what


def _problem(message: str) -> _Problem:
    """What msgspec says, as the key and what is wrong with it."""
    what, _, place = message.partition(" - at `$")
    key = place.rstrip("`").lstrip(".")
    unknown = UNKNOWN_FIELD.search(what)
    if unknown:
        key = f"{key}.{unknown[1]}".lstrip(".")
    return _Problem(key, in_plain_words(msgspec.ValidationError(what)))


def line_of(text: str, key: str) -> int:
    """The line of `key`, such as `passes[1].percentile`, or of the table that it is missing in; 1 if nothing is there.

    NOTE: it reads TOML by its lines; a text of several lines that looks like a header would mislead it, and no more.
    """
    lines = {"": 1}
    table = ""
    counts: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if header := HEADER.match(line):
            table = header[2]
            if header[1] == "[[":
                counts[table] = counts.get(table, -1) + 1
                table = f"{table}[{counts[table]}]"
            lines.setdefault(table, number)
        elif found := KEY.match(line):
            lines.setdefault(f"{table}.{found[1]}".lstrip("."), number)
    while key not in lines:
        key = key[: max(key.rfind("."), key.rfind("["), 0)]
    return lines[key]
