import re
from pathlib import Path

import msgspec
import pytest
import yaml
from native.configuration import DEFAULTS, _places, read_environment

from inference_core.settings import (
    OF_CLIENTS,
    Settings,
    SettingsError,
    check_access,
    read_secret,
    read_settings,
    variable,
)

ROOT = Path(__file__).parents[2]


def _example() -> dict[str, tuple[str, bool]]:
    """What `.env.example` has: default, and whether a line above says what it means; for a group the first has it."""
    found: dict[str, tuple[str, bool]] = {}
    before = ""
    for line in (ROOT / ".env.example").read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.partition("=")
            assert name not in found, f"{name} is there twice"
            found[name] = (value, bool(before))
        before = line
    return found


EXAMPLE = _example()


def test_no_variables_mean_the_defaults() -> None:
    """An empty environment gives the defaults, and variables of other programs are none of our business."""
    assert read_settings({}) == read_settings({"PATH": "/bin", "NOT_TIERCEL_BIND": "x"}) == Settings()
    assert read_settings({"TIERCEL_URL": "https://localhost:8443", "TIERCEL_TOKEN": "x"}) == Settings(), "of clients"


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("TIERCEL_BIND", "0.0.0.0:80", "0.0.0.0:80"),
        ("TIERCEL_BIND", "localhost:65535", "localhost:65535"),
        ("TIERCEL_BIND", "[::1]:8000", "[::1]:8000"),
        ("TIERCEL_BIND", "unix:/run/app.sock", "unix:/run/app.sock"),
        ("TIERCEL_AUTH", "required", "required"),
        ("TIERCEL_AUTH_ALGORITHMS", "RS256", "RS256"),
        ("TIERCEL_AUTH_ALGORITHMS", "EdDSA,ES256", "EdDSA,ES256"),
        ("TIERCEL_AUTH_TOKEN_SECONDS", "60", 60),
        ("TIERCEL_AUTH_TOKEN_SECONDS", "86400", 86400),
        ("TIERCEL_WORKER_CLASS", "meinheld", "meinheld"),
        ("TIERCEL_WORKERS", "3", 3),
        ("TIERCEL_SPINNING", "true", True),
        ("TIERCEL_TUNED_FOR", "AMD-EPYC_2-CPUs", "AMD-EPYC_2-CPUs"),
        ("TIERCEL_POLL_SECONDS", "0.5", 0.5),
        ("TIERCEL_DRAIN_SECONDS", "86400", 86400),
        ("TIERCEL_MAX_JSON_DEPTH", "500", 500),
        ("TIERCEL_REQUEST_TIMEOUT_MS", "1", 1),
        ("TIERCEL_JOBS_DIR", "/var/lib/tiercel/jobs", "/var/lib/tiercel/jobs"),
        ("TIERCEL_MAX_JOB_BYTES", "1", 1),
        ("TIERCEL_MAX_JOB_ROWS", "1", 1),
        ("TIERCEL_MAX_JOBS", "1", 1),
        ("TIERCEL_MAX_JOBS_BYTES", "1", 1),
        ("TIERCEL_WEBHOOK_PRIVATE", "true", True),
        ("TIERCEL_JOBS_KEEP_SECONDS", "86400", 86400),
        ("TIERCEL_JOBS_KEEP_FAILED_SECONDS", "2592000", 2592000),
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
        ("TIERCEL_AUTH", "on"),
        ("TIERCEL_AUTH", ""),
        ("TIERCEL_AUTH_AUDIENCE", ""),
        ("TIERCEL_AUTH_ALGORITHMS", ""),
        ("TIERCEL_AUTH_ALGORITHMS", "none"),
        ("TIERCEL_AUTH_ALGORITHMS", "HS256"),
        ("TIERCEL_AUTH_ALGORITHMS", "ES256,"),
        ("TIERCEL_AUTH_ALGORITHMS", "ES256, RS256"),
        ("TIERCEL_AUTH_ALGORITHMS", "ES256\n"),
        ("TIERCEL_AUTH_TOKEN_SECONDS", "59"),
        ("TIERCEL_AUTH_TOKEN_SECONDS", "86401"),
        ("TIERCEL_WORKER_CLASS", "gevent"),
        ("TIERCEL_WORKERS", "-1"),
        ("TIERCEL_MAX_JOB_BYTES", "0"),
        ("TIERCEL_MAX_JOB_ROWS", "0"),
        ("TIERCEL_MAX_JOBS", "0"),
        ("TIERCEL_MAX_JOBS_BYTES", "0"),
        ("TIERCEL_WEBHOOK_PRIVATE", "maybe"),
        ("TIERCEL_JOBS_KEEP_SECONDS", "86401"),
        ("TIERCEL_JOBS_KEEP_SECONDS", "-1"),
        ("TIERCEL_JOBS_KEEP_FAILED_SECONDS", "2592001"),
        ("TIERCEL_WORKERS", "two"),
        ("TIERCEL_WORKERS", ""),
        ("TIERCEL_INTRA_OP_THREADS", "1.5"),
        ("TIERCEL_SPINNING", "sometimes"),
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
        ("TIERCEL_AUTH", "on", "expected off or required"),
        ("TIERCEL_AUTH_ALGORITHMS", "HS256", "expected ES256, EdDSA or RS256, or several with commas between them"),
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


@pytest.mark.parametrize(
    "url", ["cache", "redis://", "http://h:1", "redis://h:p", "redis://h:65536", "unix://", "redis://u:s3cret@h/a b"]
)
def test_a_url_that_does_not_fit_is_named_and_not_told(url: str) -> None:
    """SECURITY: there may be a password in it."""
    with pytest.raises(SettingsError) as refused:
        read_settings({"TIERCEL_CACHE_URL": url})
    assert str(refused.value).startswith("TIERCEL_CACHE_URL: expected redis://HOST:PORT")
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "redis://h",
        "redis://h:6379/0",
        "rediss://user@h:6379",
        "redis://u:p@h/1",
        "unix:///run/r.sock",
        "unix://u@/r",
    ],
)
def test_urls_that_fit(url: str) -> None:
    assert read_settings({"TIERCEL_QUEUE_URL": url}).queue_url == url


def test_a_file_with_a_secret_must_be_there_and_have_one(tmp_path: Path) -> None:
    """At the start, rather than in each worker."""
    name, path = "TIERCEL_CACHE_PASSWORD_FILE", tmp_path / "password"
    with pytest.raises(SettingsError, match=f"^{name}: expected a readable file.*password"):
        read_settings({name: str(path)})
    path.write_text("\n")
    with pytest.raises(SettingsError, match=f"^{name}: expected a file with a secret"):
        read_settings({name: str(path)})
    path.write_text("s3cret\n")
    assert read_secret(read_settings({name: str(path)}).cache_password_file) == "s3cret"


@pytest.mark.parametrize(
    "bind",
    ["127.0.0.1:8000", "127.255.0.9:80", "localhost:8000", "[::1]:8000", "unix:/run/api.sock", "unix:/run/a:8000"],
)
def test_tokens_may_be_off_where_nobody_else_is(bind: str) -> None:
    check_access(Settings(bind=bind))


@pytest.mark.parametrize(
    "bind",
    [
        "0.0.0.0:8000",
        "[::]:8000",
        "0:8000",
        "10.0.0.1:80",
        "126.0.0.1:80",
        "128.0.0.1:80",
        "127.0.0.1.example:80",
        "localhost.example:80",
        "[::7f00:1]:80",
        "[2001:db8::1]:80",
    ],
)
def test_tokens_may_not_be_off_where_others_are(bind: str) -> None:
    """SECURITY: who opens the server to others is told at the start, and it does not start."""
    with pytest.raises(SettingsError, match=f"^TIERCEL_AUTH: expected required.*TIERCEL_BIND={re.escape(bind)}, got"):
        check_access(Settings(bind=bind))


@pytest.mark.parametrize("bind", ["0.0.0.0:8000", "127.0.0.1:8000", "unix:/run/api.sock"])
def test_tokens_need_an_issuer(bind: str) -> None:
    required = Settings(bind=bind, auth="required")
    with pytest.raises(SettingsError, match="expected TIERCEL_AUTH_JWKS or TIERCEL_AUTH_DIR, got neither"):
        check_access(required)
    for issuer in ("auth_dir", "auth_jwks"):
        check_access(msgspec.structs.replace(required, **{issuer: "/somewhere"}))


@pytest.mark.parametrize("jwks", ["http://issuer.example/jwks", "file:///jwks.json", "ftp://a", "://", "HTTP://a"])
def test_keys_of_an_issuer_do_not_come_in_clear_text(jwks: str) -> None:
    """SECURITY: who can change them on their way can make tokens. Nor is a misspelt URL taken for a file."""
    with pytest.raises(SettingsError, match=r"^TIERCEL_AUTH_JWKS: expected an https URL or a file, got "):
        check_access(Settings(auth="required", auth_jwks=jwks))
    check_access(Settings(auth="required", auth_jwks="https://issuer.example/jwks"))


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
    assert [name for name in EXAMPLE if name.startswith("TIERCEL_")] == [
        variable(name) for name in Settings.__struct_fields__
    ]
    assert [name for name, (_, meaning) in EXAMPLE.items() if not meaning] == []
    assert read_settings({name: value for name, (value, _) in EXAMPLE.items()}) == Settings()


def test_variables_of_the_stack_have_the_defaults_that_the_example_says() -> None:
    used = compose_defaults()
    assert {name: EXAMPLE[name][0] for name in used} == used
    from_native = {name: value for name, value in DEFAULTS.items() if not name.startswith("TIERCEL_")}
    assert {name: EXAMPLE[name][0] for name in from_native} == from_native
    assert {name for name in EXAMPLE if not name.startswith("TIERCEL_")} <= used.keys() | from_native.keys()
    assert set(re.findall(r"\$\{(\w+)", (ROOT / "compose.yaml").read_text())) == used.keys(), "one without a default"


def compose_defaults() -> dict[str, str]:
    """Of each variable in compose.yaml, of which one may be in the default of another: the inner ones first."""
    found: dict[str, str] = {}

    def fill_in(variable: re.Match[str]) -> str:
        name, default = variable.groups()
        assert found.setdefault(name, default) == default, f"{name} has two defaults"
        return default

    text, count = (ROOT / "compose.yaml").read_text(), 1
    while count:
        text, count = re.subn(r"\$\{(\w+):-([^{}]*)}", fill_in, text)
    return found


def test_the_stack_requires_tokens_whatever_is_set() -> None:
    """SECURITY: in Compose what stands in `environment` goes before what `.env` says."""
    api = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["api"]
    assert api["environment"]["TIERCEL_AUTH"] == "required"
    assert _places(read_environment({"TIERCEL_AUTH": "off"}), Path("/a"), Path("/b"))["TIERCEL_AUTH"] == "required"


def test_the_edge_has_the_same_defaults() -> None:
    """`nginx/start.sh` bounds what the application bounds."""
    script = (ROOT / "nginx/start.sh").read_text()
    defaults = dict(re.findall(r"\$\{(\w+):=([^}]*)}", script))
    shared = defaults.keys() & EXAMPLE.keys()
    assert {"TIERCEL_MAX_BODY_BYTES", "TIERCEL_REQUEST_TIMEOUT_MS", "EDGE_CONNECTIONS"} <= shared
    assert {name: EXAMPLE[name][0] for name in shared} == {name: defaults[name] for name in shared}


def test_the_sources_read_no_other_variables() -> None:
    """No module of the services names a TIERCEL_ variable that is no setting."""
    known = {variable(name) for name in Settings.__struct_fields__} | OF_CLIENTS
    for path in (ROOT / "services").rglob("*.py"):
        found = set(re.findall(r"TIERCEL_[A-Z_]*[A-Z]", path.read_text()))
        assert found <= known, path


@pytest.mark.parametrize(
    ("settings", "largest"),
    [
        (Settings(max_body_bytes=2, max_job_bytes=3), 2),
        (Settings(max_body_bytes=2, max_job_bytes=3, jobs_dir="jobs"), 3),
        (Settings(max_body_bytes=4, max_job_bytes=3, jobs_dir="jobs"), 4),
    ],
)
def test_a_worker_takes_what_the_most_generous_route_does(settings: Settings, largest: int) -> None:
    """No more where there are no jobs."""
    assert settings.largest_body_bytes == largest
