"""`tiercel tune`, without servers; `tests/integration/test_tune.py` has them."""

import json
from pathlib import Path
from typing import Any

import pytest
from model_zoo import Zoo

from command_line.main import main
from command_line.tune import read_classes, read_milliseconds, read_seconds
from tuning.configuration import Configuration
from tuning.load import Level
from tuning.trial import Trial

ASKED = ["tune", "--mix", "scale", "--p99", "1s"]


@pytest.mark.parametrize(
    ("text", "milliseconds"), [("50ms", 50), ("0.5s", 500), ("1s", 1000), ("2.5ms", 2.5), ("0.001ms", 0.001)]
)
def test_a_goal_is_read(text: str, milliseconds: float) -> None:
    assert read_milliseconds(text) == milliseconds


def test_measurements_and_classes_are_read() -> None:
    assert [read_seconds(text) for text in ("0.1", "3", "600")] == [0.1, 3, 600]
    assert read_classes("llhttp,gthread") == ["llhttp", "gthread"]


@pytest.mark.parametrize(
    ("option", "text", "said"),
    [
        ("--mix", "a=0", "argument --mix: a: expected a share from 1 to 1000, got '0'"),
        ("--p99", "50", "argument --p99: expected a time such as 50ms or 0.5s, got '50'"),
        ("--p99", "0ms", "argument --p99: expected a time such as 50ms or 0.5s, got '0ms'"),
        ("--p99", "nans", "argument --p99: expected a time such as 50ms or 0.5s, got 'nans'"),
        ("--seconds", "0", "argument --seconds: expected seconds, more than 0 and at most 600, got '0'"),
        ("--seconds", "600.1", "argument --seconds: expected seconds, more than 0 and at most 600, got '600.1'"),
        ("--seconds", "nan", "argument --seconds: expected seconds, more than 0 and at most 600, got 'nan'"),
        ("--worker-class", "sync", "argument --worker-class: expected some of meinheld,llhttp,gthread, got 'sync'"),
    ],
)
def test_what_does_not_fit_is_explained(option: str, text: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*ASKED, option, text])
    assert capsys.readouterr().err.endswith(f"tiercel tune: error: {said}\n")


@pytest.mark.parametrize("left_out", ["--mix", "--p99"])
def test_there_is_no_mix_and_no_goal_unless_they_are_given(left_out: str, capsys: pytest.CaptureFixture[str]) -> None:
    at = ASKED.index(left_out)
    with pytest.raises(SystemExit, match="2"):
        main(ASKED[:at] + ASKED[at + 2 :])
    assert f"the following arguments are required: {left_out}" in capsys.readouterr().err


def test_what_cannot_be_served_is_said_before_anything_is_tried(zoo: Zoo, tmp_path: Path) -> None:
    """An unknown model, one without examples, one that is not whole."""
    asked = [*ASKED, "--models", str(zoo.root), "--output", str(tmp_path / "out")]
    zoo.scale("other")
    assert main(asked) == "tiercel: model 'scale': expected one of ['other']"
    folder = zoo.scale()
    assert str(main(asked)).startswith(f"tiercel: {zoo.root}/scale/examples: expected what to ask scale, ")
    (folder / "manifest.json").write_text("{}")
    assert str(main(asked)).startswith("tiercel: manifest.json: ")
    assert not (tmp_path / "out").exists()


def test_a_setting_that_does_not_fit_is_named(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIERCEL_MAX_QUEUE_MS", "long")
    said = main([*ASKED, "--models", str(zoo.root)])
    assert said == "tiercel: TIERCEL_MAX_QUEUE_MS: expected a whole number, got 'long'"


class SlowTrials:
    """In place of those that start servers: 100 requests a second, in 20 ms, for each worker."""

    fault = ""
    others = 0.1

    def __init__(self, *_: Any) -> None:
        pass

    def measure(self, configuration: Configuration) -> Trial:
        if self.fault:
            return Trial(configuration, fault=self.fault)
        return Trial(configuration, Level(2, 100.0 * configuration.workers, 10.0, 20.0), others=self.others)


@pytest.fixture
def asked(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What can be asked on four CPUs, with a goal that is just met."""
    zoo.scale()
    (zoo.root / "scale/examples").mkdir()
    (zoo.root / "scale/examples/rows.json").write_text("{}")
    monkeypatch.setattr("command_line.tune.granted_cpus", lambda: 4)
    monkeypatch.setattr("command_line.tune.Trials", SlowTrials)
    return ["tune", "--mix", "scale", "--p99", "20ms", "--models", str(zoo.root), "--output", str(tmp_path)]


def test_progress_is_shown_and_the_best_comes_first(
    asked: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what others took of the machine, where that is worth a word."""
    assert main([*asked, "--worker-class", "gthread"]) is None
    assert "others took" not in capsys.readouterr().err
    monkeypatch.setattr(SlowTrials, "others", 0.2)
    assert main(asked) is None
    captured = capsys.readouterr()
    progress = captured.err.splitlines()
    line = "1/30 llhttp, 4 x 1 threads 400.0 requests/s p99 20.00 ms 2 connections, best of 1; others took 0.2 CPUs"
    assert progress[0].split() == line.split()
    assert len(progress) == 30
    assert captured.out.startswith("llhttp, 4 x 1 threads ")


def test_all_may_be_tried_three_times(asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """However many trials that takes; with several worker classes it is more than a search has."""
    assert main([*asked, "--exhaustive", "--worker-class", "llhttp,gthread"]) is None
    tried = json.loads((tmp_path / "tuned.json").read_text())["standings"]
    assert [standing["trials"] for standing in tried] == [3] * 24
    assert len(capsys.readouterr().err.splitlines()) == 72


def test_a_goal_that_nothing_meets_is_an_error(asked: list[str], tmp_path: Path) -> None:
    """What comes closest is written all the same."""
    ended = main([*asked, "--p99", "19.9ms"])
    assert ended == "tiercel: nothing answers 99 % within 19.9 ms; what comes closest is written"
    assert ", beyond the goal of 19.9 ms" in (tmp_path / "tuned.env").read_text()


def test_trials_that_all_fail_are_an_error(
    asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which says why; nothing is written."""
    monkeypatch.setattr(SlowTrials, "fault", "out of memory")
    assert main(asked) == "tiercel: no configuration could be measured: out of memory"
    assert all(line.endswith(" failed: out of memory") for line in capsys.readouterr().err.splitlines())
    assert not (tmp_path / "tuned.env").exists()


def test_who_loses_patience_leaves_nothing_behind(
    asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> Trial:
        raise KeyboardInterrupt

    monkeypatch.setattr(SlowTrials, "measure", interrupted)
    assert main(asked) == "tiercel: interrupted; nothing is written"
    assert not (tmp_path / "tuned.env").exists()
