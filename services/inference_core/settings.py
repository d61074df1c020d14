"""Every setting of a Tiercel process: one frozen value, made from a mapping such as `os.environ`.

Each is read from the variable `TIERCEL_<NAME>`; `.env.example` lists them all. A value that does not fit, or a
variable that nobody knows, stops the process with its name.
"""

import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin, get_type_hints

import msgspec

from inference_core.errors import in_plain_words
from inference_core.policy import Quota

PREFIX = "TIERCEL_"
# Of who asks, see command_line/jobs.py: they may be set in the shell that a server is started from.
OF_CLIENTS = {"TIERCEL_URL", "TIERCEL_TOKEN"}
ALGORITHM = "(ES256|EdDSA|RS256)"

PORT = r"(6553[0-5]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[1-5][0-9]{4}|[0-9]{1,4})"
Bind = Annotated[str, msgspec.Meta(pattern=rf"^(unix:/.+|[^:/]+:{PORT}|\[[0-9a-fA-F:]+\]:{PORT})$")]
RedisUrl = Annotated[
    str, msgspec.Meta(pattern=rf"^(rediss?://([^/@ ]*@)?[^/@: ]+(:{PORT})?(/[0-9]*)?|unix://([^/@ ]*@)?/[^ ]+)?$")
]
WorkerClass = Literal["meinheld", "llhttp", "gthread"]
Count = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=86400)]
# The JSON parser itself gives up near 1000.
Depth = Annotated[int, msgspec.Meta(ge=1, le=500)]


class SettingsError(Exception):
    pass


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    bind: Bind = "127.0.0.1:8000"
    # Whether requests need an access token; off: only where nobody else can reach `bind`.
    auth: Literal["off", "required"] = "off"
    # The issuer's name, a URL, as in its tokens; and ours in them.
    auth_issuer: str = "https://localhost:8443"
    auth_audience: Annotated[str, msgspec.Meta(min_length=1)] = "tiercel"
    # Of ES256, EdDSA and RS256, those that an outside issuer may sign with, with commas between them.
    auth_algorithms: Annotated[str, msgspec.Meta(pattern=rf"^{ALGORITHM}(,{ALGORITHM})*\Z")] = "ES256"
    # The outside issuer's JSON Web Key Set: an https URL, or a file.
    auth_jwks: str = ""
    # The built-in issuer's folder: signing_keys/*.pem and clients.json; where there is no outside one.
    auth_dir: str = ""
    auth_token_seconds: Annotated[int, msgspec.Meta(ge=60, le=86400)] = 900
    worker_class: WorkerClass = "llhttp"
    # 0: as many as the CPUs that the cgroup grants; see thread_plan.
    workers: Count = 0
    intra_op_threads: Count = 0
    # Whether the threads of an inference stay awake for the next one, and so keep their CPUs busy.
    spinning: bool = False
    # Of which host `tiercel tune` has found these settings to be the best: see inference_core.host; empty: of none.
    tuned_for: str = ""
    models_dir: str = "models"
    # Where workers agree on what is served; empty: a private folder that ends with the server.
    state_dir: str = ""
    # How often to look for new version folders; 0: never, versions are loaded on request only.
    poll_seconds: Seconds = 0
    load_timeout_seconds: Seconds = 20
    # The public keys of who may publish: strict, packages must be signed with one of them and have passed their gate.
    strict_keys_file: str = ""
    # The Redis for what may be lost: cached predictions and quotas; empty: neither.
    cache_url: RedisUrl = ""
    cache_password_file: str = ""
    cache_ttl_seconds: Annotated[float, msgspec.Meta(gt=0, le=30 * 86400)] = 3600
    cache_max_entry_bytes: Positive = 1 << 20
    # In each worker, in front of Redis.
    cache_local_bytes: Count = 8 << 20
    # Predictions that a client may ask for in a time; 0: as many as it likes.
    quota_requests: Count = 0
    # Jobs, in the same time.
    quota_jobs: Count = 0
    quota_seconds: Annotated[int, msgspec.Meta(ge=1, le=86400)] = 60
    # How long a request waits for Redis at most, for each command.
    redis_timeout_ms: Positive = 50
    # The Redis that tells workers of batch jobs; empty: there are none.
    queue_url: RedisUrl = ""
    queue_password_file: str = ""
    # Where API and workers keep jobs; empty: there are none.
    jobs_dir: str = ""
    max_job_bytes: Positive = 32 << 20
    max_job_rows: Positive = 100_000
    # Of one client, those that have not ended.
    max_jobs: Positive = 100
    # Of all jobs together, on disk.
    max_jobs_bytes: Positive = 4 << 30
    # How a batch worker yields: see batch_worker.scheduling.
    batch_scheduling: Literal["idle", "short-turns"] = "idle"
    # Hosts that may be told of the end of a job, with commas between them; and what signs it.
    webhook_hosts: str = ""
    webhook_secret_file: str = ""
    # Whether these hosts may have addresses that are not public.
    webhook_private: bool = False
    jobs_keep_seconds: Seconds = 86400
    jobs_keep_failed_seconds: Annotated[float, msgspec.Meta(ge=0, le=30 * 86400)] = 7 * 86400
    request_timeout_ms: Positive = 5000
    # How long a request may wait for its turn, once more arrive than can be answered; llhttp only.
    max_queue_ms: Positive = 500
    # How long after its deadline an inference may go on before its worker is given up and replaced.
    hang_grace_ms: Positive = 1000
    drain_seconds: Seconds = 4
    max_body_bytes: Positive = 8 << 20
    max_image_pixels: Positive = 16_000_000
    max_json_depth: Depth = 32
    max_model_bytes: Positive = 1 << 30
    # Where workers keep what they count; empty: a private folder that ends with the server.
    metrics_dir: str = ""
    # Where a batch worker shows what it counts, for Prometheus; empty: nowhere.
    metrics_bind: Annotated[str, msgspec.Meta(pattern=rf"^([^:/]+:{PORT}|\[[0-9a-fA-F:]+\]:{PORT})?$")] = ""
    # Who takes traces, by OTLP over HTTP; empty: nobody.
    trace_endpoint: Annotated[str, msgspec.Meta(pattern=r"^(https?://[^/@ ]+/[^ ]*)?$")] = ""
    # Of the traces that begin here, how many are kept; besides those of requests that failed or took so long.
    trace_ratio: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.01
    trace_slow_ms: Count = 1000
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @property
    def largest_body_bytes(self) -> int:
        """What a worker must be able to take; each route has its own bound."""
        return max(self.max_body_bytes, self.max_job_bytes if self.jobs_dir else 0)

    @property
    def quota(self) -> Quota | None:
        return Quota(self.quota_requests, self.quota_seconds) if self.quota_requests else None

    @property
    def job_quota(self) -> Quota | None:
        return Quota(self.quota_jobs, self.quota_seconds) if self.quota_jobs else None


def read_settings(environ: Mapping[str, str]) -> Settings:
    """The settings in `environ`; SettingsError names a variable that is unknown or whose value does not fit."""
    ours = {key for key in environ if key.startswith(PREFIX)} - OF_CLIENTS
    values = {key.removeprefix(PREFIX).lower(): environ[key] for key in ours}
    unknown = values.keys() - set(Settings.__struct_fields__)
    if unknown:
        raise SettingsError(f"{variable(min(unknown))}: no such setting; .env.example lists them all")
    for name, value in values.items():
        try:
            msgspec.convert({name: value}, Settings, strict=False)
        except msgspec.ValidationError as error:
            # SECURITY: a URL may have a password in it.
            got = "" if name.endswith("_url") else f", got {value!r}"
            raise SettingsError(f"{variable(name)}: {_expected(name, error)}{got}") from None
        if name.endswith("_password_file"):
            check_readable(name, value)
    return msgspec.convert(values, Settings, strict=False)


def check_access(settings: Settings) -> None:
    """SettingsError unless it is settled who may ask: by tokens, or because nobody else can."""
    if settings.auth == "off":
        host = settings.bind.rpartition(":")[0].strip("[]")
        if not settings.bind.startswith("unix:") and not _is_loopback(host):
            raise SettingsError(
                f"TIERCEL_AUTH: expected required, as others can reach TIERCEL_BIND={settings.bind}, got off; "
                "off is for 127.0.0.1 and sockets"
            )
    elif settings.auth_jwks:
        if "://" in settings.auth_jwks and not settings.auth_jwks.startswith("https://"):
            raise SettingsError(f"TIERCEL_AUTH_JWKS: expected an https URL or a file, got {settings.auth_jwks!r}")
    elif not settings.auth_dir:
        raise SettingsError("TIERCEL_AUTH: required, so expected TIERCEL_AUTH_JWKS or TIERCEL_AUTH_DIR, got neither")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_secret(path: str) -> str:
    """What the file says, without the end of its line; empty without a file."""
    return Path(path).read_text().strip() if path else ""


def check_readable(name: str, path: str) -> None:
    """SettingsError unless the file that a setting names has a secret in it; no file needs none."""
    try:
        if path and not read_secret(path):
            raise SettingsError(f"{variable(name)}: expected a file with a secret, and {path} is empty")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{variable(name)}: expected a readable file: {error}") from None


def _expected(name: str, error: msgspec.ValidationError) -> str:
    """What a value of the setting `name` must be, in the words of who sets it."""
    kind = get_type_hints(Settings, include_extras=True)[name]
    if get_origin(kind) is Literal:
        return f"expected {' or '.join(get_args(kind))}"
    if name == "auth_algorithms":
        return "expected ES256, EdDSA or RS256, or several with commas between them"
    if kind == RedisUrl:
        return "expected redis://HOST:PORT, rediss://HOST:PORT or unix:///PATH, with USER@ if need be"
    if kind == Bind:
        return "expected HOST:PORT with a port up to 65535, or unix:/PATH"
    if "got `str`" in str(error):
        return "expected a number" if kind == Seconds else "expected a whole number"
    return in_plain_words(error).split(" at ")[0]


def variable(name: str) -> str:
    return PREFIX + name.upper()
