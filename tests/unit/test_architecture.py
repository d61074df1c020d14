"""What may import what, read from the sources."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SERVICES = Path(__file__).parents[2] / "services"
MODULES = sorted(SERVICES.rglob("*.py"))
# Whose business the environment is: the entry points, workers that Gunicorn calls, and one switch of ONNX Runtime.
READS_ENVIRONMENT = (
    "inference_api/main.py",
    "batch_worker/main.py",
    "inference_api/gunicorn_conf.py",
    "inference_api/listener.py",
    "inference_api/serve.py",
    "inference_api/workers/",
)
SETS_ENVIRONMENT = ("inference_core/model.py", "model_tools/__init__.py")
CORE_MAY_NOT = {"falcon", "gunicorn", "meinheld", "httptools", "inference_api", "batch_worker", "model_tools"}
API_MAY_NOT = {"model_tools", "batch_worker"}


def name(path: Path) -> str:
    return path.relative_to(SERVICES).as_posix()


def nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text(), name(path)))


def imported(path: Path) -> set[str]:
    """The packages that a module imports, wherever in it."""
    found = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


def uses_environment(path: Path) -> bool:
    return any(
        (isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "environb", "putenv"))
        or (isinstance(node, ast.ImportFrom) and node.module == "os")
        for node in nodes(path)
    )


def test_the_sources_are_found() -> None:
    """The rules below are about something."""
    assert {"inference_core/model.py", "inference_api/app.py"} <= {name(path) for path in MODULES}
    assert "falcon" in imported(SERVICES / "inference_api" / "app.py")
    assert "onnxruntime" in imported(SERVICES / "inference_core" / "model.py")


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_dependencies_point_to_the_core(path: Path) -> None:
    """inference_core knows no web framework and nobody who uses it; the server knows no model tools."""
    package = name(path).split("/")[0]
    forbidden = {"inference_core": CORE_MAY_NOT, "inference_api": API_MAY_NOT}.get(package, set())
    assert imported(path) & forbidden == set()


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_the_runtime_is_imported_in_one_module(path: Path) -> None:
    """onnxruntime is model.py's, so that its telemetry is off before; model_tools has its own reasons."""
    if "onnxruntime" in imported(path):
        assert name(path) == "inference_core/model.py" or name(path).startswith("model_tools/")


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_the_environment_is_read_at_the_entry_only(path: Path) -> None:
    """Everything else gets its settings as a value."""
    if uses_environment(path):
        assert name(path).startswith(READS_ENVIRONMENT + SETS_ENVIRONMENT)
