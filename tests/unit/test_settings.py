import re
from pathlib import Path

import msgspec
import pytest

from inference_core.settings import Settings, SettingsError, read_settings, variable

ROOT = Path(__file__).parents[2]


def test_no_variables_mean_the_defaults() -> None:
    """An empty environment gives the defaults, and variables of other programs are none of our business."""
    assert read_settings({}) == read_settings({"PATH": "/bin", "NOT_TIERCEL_BIND": "x"}) == Settings()


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("TIERCEL_BIND", "0.0.0.0:80", "0.0.0.0:80"),
        ("TIERCEL_BIND", "localhost:65535", "localhost:65535"),
        ("TIERCEL_BIND", "[::1]:8000", "[::1]:8000"),
        ("TIERCEL_BIND", "unix:/run/app.sock", "unix:/run/app.sock"),
        ("TIERCEL_WORKER_CLASS", "meinheld", "meinheld"),
        ("TIERCEL_WORKERS", "3", 3),
        ("TIERCEL_POLL_SECONDS", "0.5", 0.5),
        ("TIERCEL_DRAIN_SECONDS", "86400", 86400),
        ("TIERCEL_MAX_JSON_DEPTH", "500", 500),
        ("TIERCEL_REQUEST_TIMEOUT_MS", "1", 1),
    ],
)
def test_a_variable_sets_its_setting(name: str, text: str, value: object) -> None:
    """A variable is converted to the type of its setting."""
    settings = read_settings({name: text})
    assert settings == msgspec.structs.replace(Settings(), **{name.removeprefix("TIERCEL_").lower(): value})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("TIERCEL_BIND", "8001"),
        ("TIERCEL_BIND", "127.0.0.1:65536"),
        ("TIERCEL_BIND", "localhost"),
        ("TIERCEL_BIND", ":8000"),
        ("TIERCEL_WORKER_CLASS", "gevent"),
        ("TIERCEL_WORKERS", "-1"),
        ("TIERCEL_WORKERS", "two"),
        ("TIERCEL_WORKERS", ""),
        ("TIERCEL_INTRA_OP_THREADS", "1.5"),
        ("TIERCEL_POLL_SECONDS", "-0.1"),
        ("TIERCEL_POLL_SECONDS", "nan"),
        ("TIERCEL_DRAIN_SECONDS", "inf"),
        ("TIERCEL_DRAIN_SECONDS", "86401"),
        ("TIERCEL_LOAD_TIMEOUT_SECONDS", "1e400"),
        ("TIERCEL_REQUEST_TIMEOUT_MS", "0"),
        ("TIERCEL_HANG_GRACE_MS", "0"),
        ("TIERCEL_MAX_BODY_BYTES", "8MB"),
        ("TIERCEL_MAX_IMAGE_PIXELS", "0"),
        ("TIERCEL_MAX_JSON_DEPTH", "501"),
        ("TIERCEL_MAX_JSON_DEPTH", "0"),
        ("TIERCEL_MAX_MODEL_BYTES", "0x10"),
        ("TIERCEL_LOG_LEVEL", "loud"),
    ],
)
def test_a_value_that_does_not_fit_is_named(name: str, text: str) -> None:
    """The message names the variable, what was expected and what it holds."""
    with pytest.raises(SettingsError) as refused:
        read_settings({name: text})
    message = str(refused.value)
    assert message.startswith(f"{name}: ")
    assert message.endswith(f", got {text!r}")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("TIERCEL_BIND", "8001", "expected HOST:PORT with a port up to 65535, or unix:/PATH"),
        ("TIERCEL_LOG_LEVEL", "loud", "expected debug or info or warning or error"),
        ("TIERCEL_WORKERS", "many", "expected a whole number"),
        ("TIERCEL_WORKERS", "-1", "expected int >= 0"),
        ("TIERCEL_POLL_SECONDS", "", "expected a number"),
    ],
)
def test_the_message_says_what_is_expected(name: str, text: str, expected: str) -> None:
    """In the words of who sets a variable."""
    with pytest.raises(SettingsError) as refused:
        read_settings({name: text})
    assert str(refused.value) == f"{name}: {expected}, got {text!r}"


def test_an_unknown_variable_is_named() -> None:
    """A misspelt variable stops the process rather than leave a default in force unseen."""
    with pytest.raises(SettingsError, match=r"^TIERCEL_WORKER: no such setting"):
        read_settings({"TIERCEL_WORKERS": "1", "TIERCEL_WORKER": "2"})


def test_settings_cannot_be_changed() -> None:
    """Settings are one frozen value."""
    with pytest.raises(AttributeError):
        Settings().workers = 2  # type: ignore[misc]


def test_the_example_lists_every_setting_with_its_default_and_meaning() -> None:
    """`.env.example` has each setting once, in order, under a line that says what it means, set to its default."""
    lines = (ROOT / ".env.example").read_text().splitlines()
    at = [i for i, line in enumerate(lines) if line and not line.startswith("#")]
    example = dict(lines[i].split("=", 1) for i in at)

    assert [line.split("=")[0] for line in map(lines.__getitem__, at)] == [
        variable(name) for name in Settings.__struct_fields__
    ]
    assert [lines[i] for i in at if not (i and lines[i - 1].startswith("# "))] == [], "without a meaning"
    assert read_settings(example) == Settings()


def test_the_sources_read_no_other_variables() -> None:
    """No module of the services names a TIERCEL_ variable that is no setting."""
    known = {variable(name) for name in Settings.__struct_fields__}
    for path in (ROOT / "services").rglob("*.py"):
        found = set(re.findall(r"TIERCEL_[A-Z_]*[A-Z]", path.read_text()))
        assert found <= known, path
