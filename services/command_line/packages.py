"""`tiercel inspect | verify | diff | benchmark | predict | report`: packages in folders, and models on a server.

A TARGET is a package's folder, such as models/digits/1, or a model's URL, such as https://localhost:8443/v1/models/digits;
for a server that wants it, TIERCEL_TOKEN has the access token.
"""

import argparse
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from command_line.build import in_words
from command_line.jobs import JobsError, Server
from inference_core.errors import TiercelError
from inference_core.manifest import Manifest, Package, read_package
from inference_core.settings import SettingsError, read_settings


def add_to(commands: Any) -> None:
    _command(commands, "inspect", _inspect, "what a package is, how it came about and what it was good for", "target")
    verify = _command(commands, "verify", _verify, "whether packages are whole, and answer", "folder", several=True)
    keys = os.environ.get("TIERCEL_STRICT_KEYS_FILE", "")
    verify.add_argument("--keys", default=keys, help="public keys: packages must be signed and have passed their gate")
    diff = _command(
        commands, "diff", _diff, "what differs between two; exit code 1 if anything does", "target", "other"
    )
    diff.add_argument("--rows", type=Path, help=".npz with an array for each input: how far answers are apart")
    benchmark = _command(commands, "benchmark", _benchmark, "latencies side by side", "target", several=True)
    benchmark.add_argument("--file", type=Path, help="what to ask, as for predict; packages else get a row of zeros")
    benchmark.add_argument("--rounds", type=int, default=300, help="default %(default)s")
    page = _command(commands, "report", _report, "an HTML page of what variants cost and keep", "folder", several=True)
    page.add_argument("--output", type=Path, default=Path("report.html"), help="default %(default)s")
    _command(commands, "predict", _predict, "what it says to a photo or to JSON instances", "target", "file")


def _command(commands: Any, name: str, action: Any, text: str, *arguments: str, several: bool = False) -> Any:
    parser = commands.add_parser(name, help=text, description=__doc__)
    for argument in arguments:
        parser.add_argument(argument, nargs="+" if several else None)
    parser.add_argument("--ca", help="file with the certificate that a server's is checked with")
    parser.set_defaults(run=lambda options: _run(action, options))
    return parser


def _run(action: Any, options: argparse.Namespace) -> str | int | None:
    try:
        return action(options)  # type: ignore[no-any-return]  # each returns an exit code, or nothing
    except (TiercelError, JobsError, SettingsError, OSError, ValueError) as error:
        return f"tiercel: {error}"  # sys.exit prints a string and exits with 1


def _inspect(options: argparse.Namespace) -> None:
    if _is_url(options.target):
        _print_table(_served(options.target, options).ask("GET", ""))
        return
    package = _read(options.target)
    _print_table({"digest": package.digest, "signed": _signed(options.target), **_short(package.manifest)})
    for step in package.manifest.lineage:
        print(f"  {step.name:34} {step.model.size_bytes:>12,} bytes  {_in_line(step.options)}")
    for check in package.manifest.gate.checks if package.manifest.gate else ():
        print(f"  {check.what:34} {in_words(check)}")


def _short(manifest: Manifest) -> dict[str, Any]:
    """The manifest for a screen: what has a table of its own, and lists of labels, are left out or counted."""
    fields: dict[str, Any] = msgspec.to_builtins(manifest)
    left_out = {"lineage", "gate", "labels", "statistics", "image"}
    short = {name: value for name, value in fields.items() if name not in left_out}
    short["labels"] = len(manifest.labels)
    short["gate"] = f"passed on {manifest.gate.rows} rows, {manifest.gate.processor}" if manifest.gate else "none"
    return short


def _verify(options: argparse.Namespace) -> None:
    # Heavy, and of no use to the other commands.
    from inference_core.manifest import verify_package  # noqa: PLC0415
    from inference_core.probe import try_package  # noqa: PLC0415

    settings = read_settings(os.environ)
    for folder in options.folder:
        try:
            verify_package(Path(folder).resolve(), settings.max_model_bytes, options.keys)
            try_package(Path(folder).resolve(), settings.max_model_bytes, settings.load_timeout_seconds, options.keys)
        except TiercelError as error:
            raise type(error)(f"{folder}: {error}") from None
        print(f"{folder}: whole{', signed and gated' if options.keys else ''}; answers")


def _diff(options: argparse.Namespace) -> int:
    from model_tools.compare import compare_answers, differences  # noqa: PLC0415  # as above
    from model_tools.objects import read_rows  # noqa: PLC0415

    one, other = (_description(target, options) for target in (options.target, options.other))
    if _is_url(options.target) or _is_url(options.other):
        one, other = (_as_served(side, one.keys() & other.keys()) for side in (one, other))
    found = list(differences(one, other))
    for key, was, now in found:
        print(f"{key:40} {was} -> {now}")
    if options.rows:
        rows, _ = read_rows(options.rows.name, options.rows.resolve().parent)
        for what, figure in compare_answers(_read(options.target), _read(options.other), rows).items():
            print(f"{what:40} {figure}")
    return 1 if found else 0


def _as_served(description: dict[str, Any], both: set[str]) -> dict[str, Any]:
    """What a server and a package both say, in the server's words: it counts labels."""
    labels = description["labels"] if "labels" in both else 0
    common = {name: value for name, value in description.items() if name in both}
    return common | {"labels": len(labels) if isinstance(labels, list) else labels}


def _description(target: str, options: argparse.Namespace) -> dict[str, Any]:
    if _is_url(target):
        return dict(_served(target, options).ask("GET", ""))
    package = _read(target)
    as_a_server_says_it: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(package.manifest))
    return as_a_server_says_it | {"digest": package.digest}


def _benchmark(options: argparse.Namespace) -> None:
    from model_tools.benchmark import latencies, processor  # noqa: PLC0415  # as above

    body = options.file.read_bytes() if options.file else None
    calls = {target: _caller(target, body, options) for target in options.target}
    for call in calls.values():
        call()
    print(f"{'':40} {'p50 ms':>9} {'p90 ms':>9} {'p99 ms':>9}   {processor()}")
    for target, seconds in latencies(calls, max(2, options.rounds)).items():
        cuts = statistics.quantiles(seconds, n=100, method="inclusive")
        print(f"{target:40} {1000 * cuts[49]:9.3f} {1000 * cuts[89]:9.3f} {1000 * cuts[98]:9.3f}")


def _caller(target: str, body: bytes | None, options: argparse.Namespace) -> Callable[[], object]:
    """What asks `target` once: a server as its clients would, a package as the runtime alone is asked."""
    if _is_url(target):
        if body is None:
            raise ValueError(f"{target}: expected --file, what to ask a server, got none")
        return lambda: _ask(target, body, options)
    from inference_core.model import RunOptions, example, load_model  # noqa: PLC0415  # as above
    from model_tools.predict import predict  # noqa: PLC0415

    model = load_model(_read(target), intra_op_threads=1)
    feeds = {spec.name: example(spec) for spec in model.manifest.inputs}
    return (lambda: model.run(feeds, None, RunOptions())) if body is None else (lambda: predict(model, body))


def _report(options: argparse.Namespace) -> None:
    from model_tools.report import report  # noqa: PLC0415  # as above

    options.output.write_text(report([_read(folder).manifest for folder in options.folder]))
    print(options.output)


def _predict(options: argparse.Namespace) -> None:
    from inference_core.model import load_model  # noqa: PLC0415  # as above
    from model_tools.predict import predict, to_text  # noqa: PLC0415

    body = Path(options.file).read_bytes()
    if _is_url(options.target):
        print(to_text(_ask(options.target, body, options)))
    else:
        print(to_text(predict(load_model(_read(options.target), intra_op_threads=1), body)))


def _ask(url: str, body: bytes, options: argparse.Namespace) -> Any:
    from model_tools.predict import media_type  # noqa: PLC0415  # as above

    return _served(url, options).ask("POST", ":predict", body, Content_Type=media_type(body))


def _served(url: str, options: argparse.Namespace) -> Server:
    """The token comes from the environment: what stands in a command, others can read."""
    return Server(url, os.environ.get("TIERCEL_TOKEN", ""), options.ca)


def _is_url(target: str) -> bool:
    return "://" in target


def _read(folder: str) -> Package:
    return read_package(Path(folder).resolve(), read_settings(os.environ).max_model_bytes)


def _signed(folder: str) -> str:
    from inference_core.signatures import SIGNATURE_FILE  # noqa: PLC0415  # as above

    return "yes; `tiercel verify --keys` says by whom" if (Path(folder) / SIGNATURE_FILE).exists() else "no"


def _print_table(fields: dict[str, Any]) -> None:
    for name, value in fields.items():
        print(f"{name:16} {_in_line(value)}")


def _in_line(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
