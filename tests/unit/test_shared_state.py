import subprocess
import sys
from pathlib import Path

import pytest

from inference_core.errors import Unavailable
from inference_core.shared_state import Desired, Progress, SharedState


@pytest.fixture
def state(tmp_path: Path) -> SharedState:
    return SharedState(tmp_path / "state")


def never(seconds: float) -> None:
    raise AssertionError("nothing to wait for")


def test_nothing_is_desired_at_first(state: SharedState) -> None:
    """Before anything was decided the state is empty, and has a stamp of its own."""
    assert state.read() == Desired()
    assert state.stamp() == (0, 0)


def test_what_is_written_is_read_by_all(state: SharedState, tmp_path: Path) -> None:
    """Another process over the same folder reads the same, and the stamp tells that there is news."""
    desired = Desired(3, {"a": "1", "b": None}, {"a": "2"}, {"a/2": "no good"})
    state.write(desired)
    other = SharedState(tmp_path / "state")
    assert other.read() == desired
    assert other.stamp() == state.stamp() != (0, 0)


def test_the_stamp_changes_with_every_write(state: SharedState) -> None:
    """The same content, written again at once, is news too."""
    stamps = set()
    for generation in range(1, 3):
        state.write(Desired(generation))
        stamps.add(state.stamp())
    assert len(stamps) == 2


def test_one_change_at_a_time(state: SharedState) -> None:
    """Who wants to change something while another does waits for it, and gives up after its time."""
    with (
        state.exclusive(1),
        pytest.raises(Unavailable, match=r"^model repository: another change is under way$"),
        state.exclusive(0.05),
    ):
        pass
    with state.exclusive(0):
        pass


def test_the_right_to_change_ends_with_an_error(state: SharedState) -> None:
    """A change that fails does not block the next."""
    with pytest.raises(ZeroDivisionError), state.exclusive(1):
        raise ZeroDivisionError
    with state.exclusive(0):
        pass


def test_members_report_their_progress(state: SharedState) -> None:
    """Each member is seen from the moment it joins until it leaves, with what it reported last, shorter or longer."""
    first, second = state.join(), state.join()
    assert state.progress() == [Progress(), Progress()]
    for progress in (Progress(10, {"a": "a long reason"}), Progress(11)):
        first.report(progress)
        assert sorted(state.progress(), key=lambda p: p.generation) == [Progress(), progress]
    first.leave()
    assert state.progress() == [Progress()]
    second.leave()
    assert state.progress() == []


def test_a_member_that_left_cannot_write_into_the_file_of_another(state: SharedState, tmp_path: Path) -> None:
    """The number of its closed file may have become that of any other."""
    member = state.join()
    member.leave()
    with (tmp_path / "precious").open("w+b") as precious:
        precious.write(b"precious")
        precious.flush()
        with pytest.raises(ValueError, match=r"closed file"):
            member.report(Progress(1))
        assert (tmp_path / "precious").read_bytes() == b"precious"
    member.leave()


def test_a_half_written_report_is_no_progress(state: SharedState, tmp_path: Path) -> None:
    """What is read in the middle of a write counts as not there yet."""
    member = state.join()
    [file] = (tmp_path / "state" / "members").glob("*.json")
    file.write_bytes(b'{"generation":1')
    assert state.progress() == [Progress()]
    member.report(Progress(2))
    assert state.progress() == [Progress(2)]
    member.leave()


def test_a_dead_member_is_forgotten(state: SharedState, tmp_path: Path) -> None:
    """A process that was killed leaves a file, which the next look removes."""
    program = (
        "import sys, pathlib, inference_core.shared_state as s\n"
        "member = s.SharedState(pathlib.Path(sys.argv[1])).join()\n"
        "print('joined', flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "state")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"joined\n"
        assert state.progress() == [Progress()]
        process.kill()
    assert len(list((tmp_path / "state" / "members").iterdir())) == 1
    assert state.progress() == []
    assert list((tmp_path / "state" / "members").iterdir()) == []
