"""`tiercel tune`: the workers, threads and spinning with which this machine serves a mix of models fastest.

Each trial starts a server, and sends it the examples of the models over ever more connections, for as long as 99 % of
the answers come in time. What is best is written to tuned.env, all that was measured to tuned.json and tuned.svg.
"""

import argparse
import itertools
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, get_args

import msgspec

from inference_core.errors import TiercelError
from inference_core.settings import SettingsError, WorkerClass, read_settings
from inference_core.thread_plan import granted_cpus
from tuning.configuration import Configuration, grid
from tuning.mix import read_mix, requests
from tuning.results import Result, in_words, write
from tuning.search import ROUNDS, Measure, in_turn, most_trials, search, standing
from tuning.trial import Trial, Trials

MAX_SECONDS = 600
# CPUs that others may take before it is said: about what an idle machine does for itself.
UNDISTURBED = 0.1
Seconds = Annotated[float, msgspec.Meta(gt=0, le=MAX_SECONDS)]


def add_to(commands: Any) -> None:
    parser = commands.add_parser("tune", help="find what serves models fastest on this machine", description=__doc__)
    parser.add_argument("--mix", type=_fits(read_mix), required=True, help="models and their shares, such as a=9,b=1")
    parser.add_argument("--p99", type=_fits(read_milliseconds), required=True, help="goal, such as 50ms or 0.5s")
    models = os.environ.get("TIERCEL_MODELS_DIR", "models")
    parser.add_argument("--models", type=Path, default=Path(models), help="the model repository; default %(default)s")
    seconds = "of each measurement; default %(default)s"
    parser.add_argument("--seconds", type=_fits(read_seconds), default=3.0, help=seconds)
    classes = ",".join(get_args(WorkerClass))
    parser.add_argument("--worker-class", type=_fits(read_classes), default=["llhttp"], help=f"some of {classes}")
    parser.add_argument("--output", type=Path, default=Path(), help="folder for tuned.*; default %(default)s")
    parser.add_argument("--exhaustive", action="store_true", help="try all there is three times, however long it takes")
    parser.set_defaults(run=_run)


def _fits(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """`read` as argparse wants it: what is wrong is then said with the option's name."""

    def fitting(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return fitting


def read_milliseconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s)", text)
    milliseconds = float(found[1]) * (1000 if found[2] == "s" else 1) if found else 0.0
    if not milliseconds:
        raise ValueError(f"expected a time such as 50ms or 0.5s, got {text!r}")
    return milliseconds


def read_seconds(text: str) -> float:
    try:
        return msgspec.convert(text, Seconds, strict=False)
    except msgspec.ValidationError:
        raise ValueError(f"expected seconds, more than 0 and at most {MAX_SECONDS}, got {text!r}") from None


def read_classes(text: str) -> list[WorkerClass]:
    try:
        return msgspec.convert(text.split(","), list[WorkerClass])
    except msgspec.ValidationError:
        raise ValueError(f"expected some of {','.join(get_args(WorkerClass))}, got {text!r}") from None


def _run(options: argparse.Namespace) -> str | None:
    from tuning.models import digests  # noqa: PLC0415  # heavy, and of no use to the other commands

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the server of a trial ends with us
    environ = os.environ | {"TIERCEL_MODELS_DIR": str(options.models)}
    try:
        models = digests(options.mix, read_settings(environ))
        trials = _try(options, environ)
    except (TiercelError, SettingsError, OSError, ValueError) as error:
        return f"tiercel: {error}"  # sys.exit prints a string and exits with 1
    except KeyboardInterrupt:
        return "tiercel: interrupted; nothing is written"
    command = shlex.join(["tiercel", *sys.argv[1:]])
    result = Result(command, f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", models, options.p99, trials)
    print("\n".join(map(in_words, result.standings)))
    if result.best.fault:
        return f"tiercel: no configuration could be measured: {result.best.fault}"
    print("written:", *write(options.output, result))
    if not result.is_met:
        return f"tiercel: nothing answers 99 % within {options.p99:g} ms; what comes closest is written"
    return None


def _try(options: argparse.Namespace, environ: Mapping[str, str]) -> list[Trial]:
    configurations = grid(granted_cpus(), options.worker_class)
    trials = Trials(requests(options.mix, options.models), environ, options.p99, options.seconds)
    if options.exhaustive:
        return in_turn(configurations, _shown(trials.measure, ROUNDS * len(configurations)))
    return search(configurations, _shown(trials.measure, most_trials(configurations)), options.p99)


def _shown(measure: Measure, most: int) -> Measure:
    """`measure`, with a line for each trial."""
    numbers = itertools.count(1)

    def shown(configuration: Configuration) -> Trial:
        trial = measure(configuration)
        disturbed = f"; others took {trial.others:.1f} CPUs" if trial.others > UNDISTURBED else ""
        print(f"{next(numbers):3}/{most}  {in_words(standing([trial]))}{disturbed}", file=sys.stderr, flush=True)
        return trial

    return shown
