from pathlib import Path

import pytest
from recipes import RECIPE

from model_tools.passes.prune import Prune
from model_tools.passes.static_int8 import StaticInt8
from model_tools.recipe import MAX_RECIPE_BYTES, Recipe, RecipeError, line_of, read_recipe

# The line after the last of RECIPE, which begins with an empty one.
NEXT = RECIPE.count("\n") + 1
GATE = "[gate]\nmin_agreement = 90\n"


def read(folder: Path, text: str) -> Recipe:
    path = folder / "recipe.toml"
    path.write_text(text)
    return read_recipe(path)


def test_a_recipe_is_read(tmp_path: Path) -> None:
    """Passes come in the order of the file, with their options; the rest has defaults."""
    more = '[[passes]]\npass = "prune"\nsparsity = 0.5\n[[passes]]\npass = "static-int8"\nmethod = "entropy"\n'
    recipe = read(tmp_path, RECIPE + more + GATE)
    assert recipe.passes == (Prune(0.5), StaticInt8(method="entropy"))
    assert (recipe.source.origin, recipe.gate.min_agreement, recipe.gate.tolerance) == ("blobs.onnx", 90, 1e-4)


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ('[[passes]]\npass = "shrink"\n', NEXT + 1, r"passes\[0\]\.pass: invalid value 'shrink'"),
        (
            '[[passes]]\npass = "optimise"\n[[passes]]\npass = "prune"\nsparsity = 1\n',
            NEXT + 4,
            r"passes\[1\]\.sparsity: expected float < 1\.0",
        ),
        ('[[passes]]\npass = "prune"\n', NEXT, r"passes\[0\]: object missing required field sparsity"),
        (
            '[[passes]]\npass = "prune"\nsparsity = 0.5\nspeed = 1\n',
            NEXT + 3,
            r"passes\[0\]\.speed: object contains unknown field speed",
        ),
        ("[gate]\nmax_accuracy_loss = -1\n", NEXT + 1, r"gate\.max_accuracy_loss: expected float >= 0\.0"),
        ('[gate]\nmax_size_bytes = "small"\n', NEXT + 1, r"gate\.max_size_bytes: expected int \| null, got str"),
        ("[gates]\n", NEXT, "gates: object contains unknown field gates"),
        ('[[passes]]\npass = "prune"\nsparsity = 0.5\n', 1, "gate: expected max_accuracy_loss, min_agreement or "),
        (
            '[[passes]]\npass = "prune"\nsparsity = 0.5\n[gate]\nmax_size_bytes = 1\n',
            NEXT + 3,
            "gate: expected max_accuracy_loss, min_agreement or max_relative_error, because prune changes answers",
        ),
        (
            '[[passes]]\npass = "optimise"\n[[passes]]\npass = "fold-preprocessing"\nmean = [0.0]\nscale = [1.0]\n',
            NEXT + 2,
            r"passes\[1\]: expected fold-preprocessing as the first pass",
        ),
        (
            '[[passes]]\npass = "fold-preprocessing"\nmean = [0.0]\nscale = [1, 0]\n',
            NEXT + 3,
            r"passes\[0\]\.scale\[1\]: expected float > 0\.0",
        ),
    ],
)
def test_what_does_not_fit_is_named_with_its_line(tmp_path: Path, text: str, line: int, said: str) -> None:
    with pytest.raises(RecipeError, match=rf"(?i)^{tmp_path}/recipe\.toml:{line}: {said}"):
        read(tmp_path, RECIPE + text)


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ('name = "blobs"', 'name = "../blobs"', 2, "name: expected str matching regex"),
        ('version = "1"', 'version = "one"', 3, "version: expected str matching regex"),
        ("max_batch_size = 8", "max_batch_size = 0", 6, "max_batch_size: expected int >= 1"),
        ('output = "p"', "", 1, "object missing required field output"),
        ('version = "1"', 'version = "1"\nexports = ["tflite"]', 4, r"exports\[0\]: invalid (enum )?value 'tflite'"),
        (
            'version = "1"',
            'version = "1"\nexports = ["torchscript", "litert"]',
            4,
            "exports: expected a source of PyTorch, as only such are exported for litert and torchscript",
        ),
        ('kind = "onnx"', 'kind = "keras"', 10, r"source\.kind: invalid value 'keras'"),
        ('from = "blobs.onnx"', "", 9, "source: object missing required field from"),
    ],
)
def test_what_every_recipe_says_is_checked(tmp_path: Path, old: str, new: str, line: int, said: str) -> None:
    with pytest.raises(RecipeError, match=rf"(?i)^{tmp_path}/recipe\.toml:{line}: {said}"):
        read(tmp_path, RECIPE.replace(old, new))


def test_what_is_no_toml_is_named_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=rf"^{tmp_path}/recipe\.toml: .*at line {NEXT}, column"):
        read(tmp_path, RECIPE + "what = \n")


@pytest.mark.parametrize(("count", "refused"), [(32, False), (33, True)])
def test_passes_are_bounded(tmp_path: Path, count: int, refused: bool) -> None:
    text = RECIPE + count * '[[passes]]\npass = "optimise"\n'
    if refused:
        with pytest.raises(RecipeError, match="passes: expected array of length <= 32"):
            read(tmp_path, text)
    else:
        assert len(read(tmp_path, text).passes) == count


def test_a_recipe_is_bounded(tmp_path: Path) -> None:
    """A file of the most bytes is read, and one of one more is not."""
    text = RECIPE + "#" * (MAX_RECIPE_BYTES - len(RECIPE))
    assert read(tmp_path, text).name == "blobs"
    with pytest.raises(RecipeError, match=f"expected at most {MAX_RECIPE_BYTES} bytes, got more"):
        read(tmp_path, text + "#")


def test_a_recipe_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"nowhere\.toml"):
        read_recipe(tmp_path / "nowhere.toml")


@pytest.mark.parametrize(
    ("key", "line"), [("", 1), ("b", 3), ("b.c", 4), ("b.c[2]", 4), ("b.x", 3), ("d[1]", 6), ("d[1].e", 7), ("z", 1)]
)
def test_a_key_has_a_line(key: str, line: int) -> None:
    """Its own, else that of the table that it belongs to, else the first."""
    assert line_of("a = 1\n\n[b]\nc = 1\n[[d]]\n[[d]]\ne = 1\n", key) == line


@pytest.mark.parametrize(
    ("option", "most", "beyond"),
    [
        ("max_rows = {}", 10_000, 10_001),
        ("max_left = {}", 64, 65),
        ("percentile = {}", 100, 100.1),
        ("min_agreement = {}", 100, 100.1),
    ],
)
def test_options_of_passes_are_bounded(tmp_path: Path, option: str, most: float, beyond: float) -> None:
    text = f'{RECIPE}[[passes]]\npass = "static-int8"\n{option}\n{GATE}'
    read(tmp_path, text.format(most))
    with pytest.raises(RecipeError, match=rf":{NEXT + 2}: passes\[0\]\.\w+: expected (int|float) <= {most}"):
        read(tmp_path, text.format(beyond))


@pytest.mark.parametrize("key", ["mean", "scale"])
def test_numbers_of_preprocessing_are_bounded(tmp_path: Path, key: str) -> None:
    def text(count: int) -> str:
        counts = {"mean": 1, "scale": 1} | {key: count}
        values = [f"{name} = {[1] * many}" for name, many in counts.items()]
        return "\n".join((RECIPE, "[[passes]]", 'pass = "fold-preprocessing"', *values))

    assert read(tmp_path, text(4096)).preprocessing is not None
    with pytest.raises(RecipeError, match=rf"passes\[0\]\.{key}: expected array of length .*4096"):
        read(tmp_path, text(4097))
