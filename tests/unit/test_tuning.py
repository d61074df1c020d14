"""What `tiercel tune` tries and chooses, on machines that are made up: no server is started here."""

import random
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from inference_core.host import fingerprint
from inference_core.settings import Settings, read_settings
from inference_core.thread_plan import make_plan
from tuning.configuration import Configuration, grid
from tuning.load import Level
from tuning.mix import MAX_WEIGHT, read_mix, requests
from tuning.others import Others
from tuning.plot import frontier
from tuning.results import Result, write
from tuning.search import MAX_TRIALS, Measure, in_turn, most_trials, search, standings
from tuning.trial import STEPS, Trial, climb

CPUS = 16
GRID = grid(CPUS, ["llhttp"])
NO_GOAL = 1e9

Surface = Callable[[Configuration], tuple[float, float]]


def level(connections: int = 1, rate: float = 1.0, p99_ms: float = 1.0, refused: int = 0) -> Level:
    return Level(connections, rate, p99_ms / 2, p99_ms, refused)


def workers_are_best(each: Configuration) -> tuple[float, float]:
    """Threads divide the latency of an inference, but not by as many as they are."""
    return 100 * each.workers * each.intra_op_threads**0.5, 40 / each.intra_op_threads**0.5


def threads_are_best(each: Configuration) -> tuple[float, float]:
    """Workers push each other out of the cache."""
    rate = 100 * each.workers**0.5 * each.intra_op_threads**0.9 * (1.1 if each.spinning else 1)
    return rate, 40 / each.intra_op_threads


def the_middle_is_best(each: Configuration) -> tuple[float, float]:
    """Four workers with four threads that do not spin."""
    away = abs(each.workers - 4) / 16 + abs(each.intra_op_threads - 4) / 16 + 0.1 * each.spinning
    return 1000 * (1 - away / 2), 10 + 10 * away


SURFACES = [workers_are_best, threads_are_best, the_middle_is_best]


class Machine:
    """Measures `surface`, give or take `noise`, and counts."""

    def __init__(self, surface: Surface, noise: float = 0.0, seed: int = 0) -> None:
        self._surface = surface
        self._noise = noise
        self._random = random.Random(seed)  # noqa: S311
        self.measured: list[Configuration] = []

    def measure(self, configuration: Configuration) -> Trial:
        self.measured.append(configuration)
        rate, p99_ms = self._surface(configuration)
        return Trial(configuration, level(8, rate * self._random.gauss(1, self._noise), p99_ms))


def best_of(surface: Surface, goal_ms: float = NO_GOAL) -> float:
    return max(rate for rate, p99_ms in map(surface, GRID) if p99_ms <= goal_ms)


def test_the_grid_has_what_the_server_accepts_and_nothing_twice() -> None:
    """No plan is refused as oversubscription, and nobody spins alone."""
    for cpus in (1, 2, 5, 64):
        found = grid(cpus, ["llhttp"])
        assert len(set(found)) == len(found)
        assert found[0] == Configuration("llhttp", cpus, 1, spinning=False)
        assert (found[-1].workers, found[-1].intra_op_threads) == (1, cpus)
        for each in found:
            plan = make_plan(read_settings(each.variables()), cpus)
            assert (plan.workers, plan.intra_op_threads, plan.spinning) == (
                each.workers,
                each.intra_op_threads,
                each.spinning,
            )
            assert not (each.spinning and each.intra_op_threads == 1)
    assert list(map(str, grid(2, ["llhttp"]))) == [
        "llhttp, 2 x 1 threads",
        "llhttp, 1 x 1 threads",
        "llhttp, 1 x 2 threads",
        "llhttp, 1 x 2 threads, spinning",
    ]
    assert len(grid(2, ["llhttp", "gthread"])) == 8


@pytest.mark.parametrize("surface", SURFACES)
def test_the_best_is_found_in_thirty_trials(surface: Surface) -> None:
    """Of a grid that has more than those."""
    machine = Machine(surface)
    best = standings(search(GRID, machine.measure, NO_GOAL), NO_GOAL)[0]
    assert best.rate == best_of(surface)
    assert len(GRID) > MAX_TRIALS == len(machine.measured) == most_trials(GRID)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("surface", SURFACES)
def test_noise_does_not_lead_far_away(surface: Surface, seed: int) -> None:
    """What is chosen is truly within 5 % of the best, if figures are wrong by 2 %."""
    chosen = standings(search(GRID, Machine(surface, 0.02, seed).measure, NO_GOAL), NO_GOAL)[0].configuration
    assert surface(chosen)[0] >= 0.95 * best_of(surface)


@pytest.mark.parametrize("surface", SURFACES)
def test_the_goal_goes_before_the_rate(surface: Surface) -> None:
    """The highest rate of those whose answers come in time, and exactly in time is in time."""
    goal_ms = sorted({surface(each)[1] for each in GRID})[1]
    best = standings(search(GRID, Machine(surface).measure, goal_ms), goal_ms)[0]
    assert best.is_within(goal_ms)
    assert best.rate == best_of(surface, goal_ms)
    assert not best.is_within(best.p99_ms - 0.001)


def test_without_any_in_time_the_soonest_is_the_best() -> None:
    best = standings(search(GRID, Machine(threads_are_best).measure, 0.001), 0.001)[0]
    assert not best.is_within(0.001)
    assert best.p99_ms == min(threads_are_best(each)[1] for each in GRID)


@pytest.mark.parametrize("size", [1, 2, 7, 8, 12, 20, 21, 22, 30, 31, len(GRID)])
def test_trials_are_counted(size: int) -> None:
    """Never more than thirty, and all of a small grid; of the best as many as there is room for come again."""
    machine = Machine(workers_are_best)
    search(GRID[:size], machine.measure, NO_GOAL)
    assert len(machine.measured) == most_trials(GRID[:size]) <= MAX_TRIALS
    assert len(set(machine.measured)) == min(size, 21)
    again = [machine.measured.count(each) for each in GRID[:size] if machine.measured.count(each) > 1]
    assert again == [4] * min(size, (30 - min(size, 21)) // 3)


def test_rounds_begin_with_another_one_each() -> None:
    machine = Machine(workers_are_best)
    in_turn(GRID[:3], machine.measure)
    a, b, c = GRID[:3]
    assert machine.measured == [a, b, c, c, a, b, b, c, a]


def test_disturbances_do_not_decide() -> None:
    """They only ever slow down, so the best rate does; but one that is in time once in a while is not in time."""
    one, other = GRID[:2]
    trials = [Trial(one, level(rate=rate)) for rate in (10, 100, 10)] + [Trial(other, level(rate=90))]
    assert [standing.configuration for standing in standings(trials, NO_GOAL)] == [one, other]
    late = [Trial(one, level(rate=100, p99_ms=p99_ms)) for p99_ms in (9, 11, 12)]
    assert [standing.configuration for standing in standings([*late, trials[-1]], 10)] == [other, one]


def test_what_others_take_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's busy time, idle and waiting not counted, less our own."""
    monkeypatch.setattr("tuning.others.STAT", tmp_path / "stat")
    (tmp_path / "stat").write_text("cpu  1000 0 1000 5 5 0 0 0 0 0\ncpu0 1 2 3\n")
    others = Others()
    (tmp_path / "stat").write_text("cpu  1000 0 1000 999999 999999 0 0 0 0 0\ncpu0 1 2 3\n")
    assert others.cpus() == 0
    (tmp_path / "stat").write_text("cpu  500000 0 1000 5 5 0 0 0 0 0\ncpu0 1 2 3\n")
    assert others.cpus() > 0


def test_what_has_failed_once_comes_last() -> None:
    """However well it did before; whatever it might do next."""
    failing, late = GRID[:2]
    trials = [Trial(failing, level(rate=100)), Trial(failing, fault="out of memory"), Trial(late, level(p99_ms=99))]
    assert [(each.configuration, each.fault) for each in standings(trials, 1)] == [
        (late, ""),
        (failing, "out of memory"),
    ]


class Queue:
    """Two workers that take 10 ms each; `limit`: beyond so many connections requests are refused."""

    def __init__(self, limit: int = 1000) -> None:
        self._limit = limit
        self.runs: list[tuple[int, float]] = []

    def run(self, connections: int, seconds: float) -> Level:
        self.runs.append((connections, seconds))
        rate = 100.0 * min(connections, 2) + 0.01 * connections
        return level(connections, rate, 5.0 * max(connections, 2), max(0, connections - self._limit))


def test_the_load_rises_until_it_brings_no_more() -> None:
    """What is measured in the end is the fewest connections that keep the server busy."""
    queue = Queue()
    measured, looks = climb(queue.run, NO_GOAL, 10.0)
    assert [look.connections for look in looks] == [1, 2, 3, 4]
    assert queue.runs == [(1, 2.0), (2, 2.0), (3, 2.0), (4, 2.0), (2, 10.0)]
    assert measured.connections == 2


@pytest.mark.parametrize(("goal_ms", "connections"), [(10, 2), (9.99, 1), (1, 1)])
def test_the_load_rises_as_far_as_answers_come_in_time(goal_ms: float, connections: int) -> None:
    measured, _ = climb(lambda n, _: level(n, 100 * n, 5.0 * n), goal_ms, 10.0)
    assert measured.connections == connections


def test_what_a_short_look_missed_is_taken_back() -> None:
    """Down to the load at which answers come in time for the whole measurement."""

    def run(connections: int, seconds: float) -> Level:
        return level(connections, 100.0 * connections, connections * seconds)

    measured, looks = climb(run, 60, 10.0)
    assert [look.connections for look in looks[-3:]] == [24, 32, 48]
    assert (measured.connections, measured.p99_ms) == (6, 60)


def test_what_is_refused_is_too_much() -> None:
    """However quickly: 503 is no answer."""
    measured, looks = climb(Queue(limit=1).run, NO_GOAL, 10.0)
    assert [look.connections for look in looks] == [1, 2, 3]
    assert measured.connections == 1


def test_one_look_that_was_disturbed_does_not_end_the_climb() -> None:
    def run(connections: int, seconds: float) -> Level:
        return level(connections, 100.0 * connections, 99 if connections in (1, 4, 12, 16) else 10)

    measured, looks = climb(run, 50, 10.0)
    assert (looks[-1].connections, measured.connections) == (16, 8)


def test_a_load_has_an_end() -> None:
    measured, looks = climb(lambda n, _: level(n, 100.0 * n), NO_GOAL, 1.0)
    assert measured.connections == looks[-1].connections == STEPS[-1]


@pytest.mark.parametrize(
    ("text", "mix"),
    [
        ("a", {"a": 1}),
        ("a=9,b=1", {"a": 9, "b": 1}),
        ("a,b-2.c=1", {"a": 1, "b-2.c": 1}),
        (f"a={MAX_WEIGHT}", {"a": MAX_WEIGHT}),
    ],
)
def test_a_mix_is_read(text: str, mix: dict[str, int]) -> None:
    assert read_mix(text) == mix


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected models with their shares, such as a=9,b=1, each of them once, got ''"),
        ("a=1,", "expected models with their shares, such as a=9,b=1, each of them once, got 'a=1,'"),
        ("a=1,a=2", "expected models with their shares, such as a=9,b=1, each of them once, got 'a=1,a=2'"),
        ("../a", "expected models with their shares, such as a=9,b=1, each of them once, got '../a'"),
        ("a=0", "a: expected a share from 1 to 1000, got '0'"),
        (f"a={MAX_WEIGHT + 1}", "a: expected a share from 1 to 1000, got '1001'"),
        ("a=-1", "a: expected a share from 1 to 1000, got '-1'"),
        ("a=1.5", "a: expected a share from 1 to 1000, got '1.5'"),
        ("a=1=2", "a: expected a share from 1 to 1000, got '1=2'"),
    ],
)
def test_a_mix_that_is_none_is_explained(text: str, said: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011  # its text is compared
        read_mix(text)
    assert str(refused.value) == said


def write_examples(models: Path, name: str, *files: str) -> None:
    (models / name / "examples").mkdir(parents=True)
    for file in files:
        (models / name / "examples" / file).write_text(f"body of {file}")


def test_each_model_has_its_share_and_each_example_its_part_of_it(tmp_path: Path) -> None:
    write_examples(tmp_path, "photos", "a.jpg", "b.png", "c.webp", "README.md")
    write_examples(tmp_path, "rows", "one.json", "two.json")
    sent = requests({"photos": 1, "rows": 9}, tmp_path)
    of_photos = [request for request in sent if request.startswith(b"POST /v1/models/photos:predict HTTP/1.1\r\n")]
    assert len(sent) == 10 * len(of_photos) == 60
    assert {sent.count(request) for request in of_photos} == {2}
    assert sent == requests({"photos": 1, "rows": 9}, tmp_path)
    [png] = {request for request in of_photos if b"b.png" in request}
    assert png.endswith(b"\r\nContent-Type: image/png\r\nContent-Length: 13\r\n\r\nbody of b.png")


def test_a_model_without_examples_is_named(tmp_path: Path) -> None:
    write_examples(tmp_path, "rows", "README.md")
    with pytest.raises(ValueError, match=r"rows/examples: expected what to ask rows, \.json, .* files, found none"):
        requests({"rows": 1}, tmp_path)


def result_of(measure: Measure, goal_ms: float = NO_GOAL) -> Result:
    command = "tiercel tune --mix rows\n--p99 1s"
    return Result(command, "2026-11-29 16:00 UTC", {"rows/1": "0" * 64}, goal_ms, search(GRID, measure, goal_ms))


def variables_of(text: str) -> dict[str, str]:
    """As Compose and a shell read them."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def test_the_settings_are_those_of_the_best(tmp_path: Path) -> None:
    """The server accepts them, and they say for which host they are."""
    write(tmp_path / "new", result_of(Machine(the_middle_is_best).measure))
    text = (tmp_path / "new/tuned.env").read_text()
    expected = Settings(workers=4, intra_op_threads=4, tuned_for=fingerprint())
    assert read_settings(variables_of(text)) == expected
    assert "# tiercel tune --mix rows --p99 1s, 2026-11-29 16:00 UTC\n" in text
    assert "# others took 0.0 CPUs meanwhile\n" in text
    assert f"# rows/1 sha256:{'0' * 64}\n" in text
    assert "# llhttp, 4 x 4 threads 1,000.0 requests/s p99 10.00 ms 8 connections, best of 4\n" in text


def test_the_settings_say_when_the_goal_is_not_met(tmp_path: Path) -> None:
    write(tmp_path, result_of(Machine(the_middle_is_best).measure, 5))
    assert ", beyond the goal of 5 ms\n" in (tmp_path / "tuned.env").read_text()


def test_everything_that_was_measured_is_kept(tmp_path: Path) -> None:
    result = result_of(Machine(threads_are_best).measure)
    write(tmp_path, result)
    kept = msgspec.json.decode((tmp_path / "tuned.json").read_bytes())
    assert msgspec.convert(kept["trials"], list[Trial]) == result.trials
    assert kept["fingerprint"] == fingerprint()
    assert kept["standings"][0]["rate"] == best_of(threads_are_best)


def test_what_was_chosen_stands_out(tmp_path: Path) -> None:
    """A circle for each trial; those of the best in another colour, above the others."""
    write(tmp_path, result_of(Machine(the_middle_is_best).measure, 25))
    circles = list(ET.fromstring((tmp_path / "tuned.svg").read_text()).iter("{http://www.w3.org/2000/svg}circle"))  # noqa: S314  # our own
    assert len(circles) == MAX_TRIALS
    chosen = [circle for circle in circles if circle.attrib["fill"] == "#c0392b"]
    assert len(chosen) == 4
    assert min(circles, key=lambda circle: float(circle.attrib["cy"])) in chosen
    assert {circle[0].text for circle in chosen} == {"llhttp, 4 x 4 threads: 1,000/s, p99 10 ms with 8 connections"}


def test_the_frontier_is_what_nothing_beats() -> None:
    slow, late, best, soon = level(rate=1, p99_ms=5), level(rate=9, p99_ms=9), level(rate=5, p99_ms=5), level(rate=1)
    assert frontier([slow, late, best, soon]) == [soon, best, late]
