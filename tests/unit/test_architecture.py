"""What may import what, read from the sources."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

SERVICES = Path(__file__).parents[2] / "services"
MODULES = sorted(SERVICES.rglob("*.py"))
# Whose business the environment is: the entry points, workers that Gunicorn calls, and one switch of ONNX Runtime.
READS_ENVIRONMENT = (
    "inference_api/main.py",
    "batch_worker/main.py",
    "command_line/",
    "inference_api/gunicorn_conf.py",
    "inference_api/listener.py",
    "inference_api/serve.py",
    "inference_api/workers/",
)
SETS_ENVIRONMENT = ("inference_core/runtimes/onnx.py", "model_tools/__init__.py")
RUNTIMES = {"onnxruntime": "onnx", "torch": "torchscript", "ai_edge_litert": "litert"}
OURS = {path.parent.name for path in SERVICES.glob("*/__init__.py")}
WEB = {"falcon", "gunicorn", "meinheld", "httptools"}
# Of ours, besides itself, and of what serves HTTP.
MAY_IMPORT = {
    "observability": set(),
    "inference_core": {"observability"},
    "access_control": {"inference_core"},
    "batch_worker": {"inference_core", "observability"},
    "inference_api": {"inference_core", "access_control", "observability", *WEB},
    "model_tools": {"inference_core"},
    "tuning": {"inference_core"},
    "command_line": OURS,
}


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
    assert "onnxruntime" in imported(SERVICES / "inference_core" / "runtimes" / "onnx.py")


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_dependencies_point_to_the_core(path: Path) -> None:
    """inference_core knows nobody who uses it; only the server knows HTTP, and it knows neither tools nor commands."""
    package = name(path).split("/")[0]
    assert imported(path) & (OURS | WEB) <= MAY_IMPORT[package] | {package}


def test_every_package_has_its_place() -> None:
    """In the rules, in the layout that ARCHITECTURE.md draws, and in what is installed."""
    layout = (SERVICES.parent / "ARCHITECTURE.md").read_text()
    drawn = set(re.findall(r"^  (\w+)/ ", layout.partition("\nservices/\n")[2].partition("\n```")[0], re.MULTILINE))
    project = tomllib.loads((SERVICES.parent / "pyproject.toml").read_text())
    installed = {Path(package).name for package in project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]}
    assert OURS == MAY_IMPORT.keys() == drawn == installed


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_each_runtime_is_imported_in_one_module(path: Path) -> None:
    """So that ONNX Runtime's telemetry is off before, and the others are optional; model_tools has its own reasons."""
    for library, module in RUNTIMES.items():
        if library in imported(path):
            assert name(path) == f"inference_core/runtimes/{module}.py" or name(path).startswith("model_tools/")


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_the_environment_is_read_at_the_entry_only(path: Path) -> None:
    """Everything else gets its settings as a value."""
    if uses_environment(path):
        assert name(path).startswith(READS_ENVIRONMENT + SETS_ENVIRONMENT)
