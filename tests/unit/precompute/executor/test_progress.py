"""What a person reads while a build runs."""

import io

import pytest

from siglip2_cache.formatting import format_bytes, format_seconds
from siglip2_cache.precompute.executor.progress import BuildProgress
from siglip2_cache.progress import make_display


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (185, "3 min 5 s"),
        (3_599.6, "1 h 0 min"),
        (7_800, "2 h 10 min"),
        (86_399, "23 h 59 min"),
        (273_600, "3 d 4 h"),
    ],
)
def test_a_duration_reads_in_its_two_largest_units(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1_000, "1.0 kB"),
        (38_220_000, "38.2 MB"),
        (2.3e9, "2.3 GB"),
        (12e12, "12.0 TB"),
        (12e15, "12,000.0 TB"),
    ],
)
def test_a_size_reads_in_powers_of_1000(num_bytes: float, text: str) -> None:
    assert format_bytes(num_bytes) == text


class Clock:
    """A clock that the test turns."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    turned = Clock()
    monkeypatch.setattr("time.monotonic", turned.monotonic)
    return turned


def test_a_plain_line_comes_every_ten_seconds_and_when_the_last_unit_is_committed(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = BuildProgress()
    plain.start({"image": 1_000, "text": 40}, {"image": 2, "text": 1})
    said: list[str] = []
    for _ in range(10):
        clock.now += 4
        plain.advance("image", 100, 1)
        said += capsys.readouterr().err.splitlines()
    assert said == [
        "images 300/1,000, units 0/2, 25.0 images/s, 3 rejected, 28 s left",
        "images 600/1,000, units 0/2, 25.0 images/s, 6 rejected, 16 s left",
        "images 900/1,000, units 0/2, 25.0 images/s, 9 rejected, 4 s left",
    ]
    plain.unit_done("image")
    assert capsys.readouterr().err == ""
    plain.unit_done("image")
    assert capsys.readouterr().err == (
        "images 1,000/1,000, units 2/2, 25.0 images/s, 10 rejected\n"
    )


def test_the_first_texts_took_time_too(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    plain = BuildProgress()
    plain.start({"image": 10, "text": 40}, {"image": 1, "text": 1})
    clock.now += 5
    plain.advance("image", 10, 3)  # rejected images are no rejected texts
    clock.now += 2
    plain.advance("text", 40, 0)
    plain.unit_done("text")
    assert capsys.readouterr().err == "texts 40/40, units 1/1, 20.0 texts/s, 0 rejected\n"


def test_plain_lines_go_where_stderr_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    rich = BuildProgress(make_display())
    rich.start({"image": 10, "text": 0}, {"image": 1, "text": 0})
    rich.say("[warning] a [line] with brackets")
    rich.advance("image", 10, 2)
    rich.unit_done("image")
    rich.stop()
    assert "[warning] a [line] with brackets" in terminal.getvalue()
    assert "images 10/10, units 1/1" in terminal.getvalue().replace("\n", " ")


def test_planning_is_shown_as_a_count(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    plain = BuildProgress()
    for _ in range(4):
        clock.now += 4
        plain.scanned(2_000)
    assert capsys.readouterr().err == "planning 6,000 samples, 500 samples/s\n"


def test_a_quiet_display_shows_warnings_alone(capsys: pytest.CaptureFixture[str]) -> None:
    quiet = BuildProgress(make_display(is_quiet=True))
    quiet.start({"image": 10, "text": 0}, {"image": 1, "text": 0})
    quiet.say("loading teacher")
    quiet.say("warning: worker 0 died")
    quiet.advance("image", 10, 2)
    quiet.unit_done("image")
    quiet.stop()
    assert capsys.readouterr().err == "warning: worker 0 died\n"
