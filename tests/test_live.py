"""What `up` shows: a frame that fits its terminal, drawn over the last one, and plain lines elsewhere."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
from typing import Any

import msgspec
import pytest

from deploy import drawing, live
from streams import codec, interests, quality, waiting
from tests.test_client import prediction

COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def arm(name: str, share: float) -> dict[str, Any]:
    """A version's sums in an arm, as a beat tells them."""
    sums = {field: [40.0 * share] * waiting.GROUPS for field in interests.FIELDS}
    sums |= {"settled": [100.0] * waiting.GROUPS, "loss": [250.0 + g for g in range(waiting.GROUPS)]}
    return {"version": "v000003-3fa2c1", "arm": name, "sums": sums}


def recorded(**more: Any) -> live.Shown:
    """How a run stood: two arms, three verdicts, long names and names that take two columns a character."""
    items = codec.ranked_items([("i1", 0.41), ("i2", 0.12), ("i3", 0.0301)])
    latest = [
        msgspec.structs.replace(prediction(n), user_id=user, items=items, none_probability=0.18,
                                categories=codec.ranked_categories([("Sports > Shoes", 0.64)]))
        for n, user in enumerate(("u-7", "u" * 300, "u-9"))
    ]  # fmt: skip
    verdict = {"kind": "refresh", "accepted": True, "reason": "log loss is not worse", "n": 1_204, "cpu_seconds": 12.3,
               "metrics": {"candidate": {}}, "bounds": {"loss": {"mean": -0.0123}}}  # fmt: skip
    held = verdict | {"accepted": False, "reason": "log loss may be worse than the champion's by more than it may"}
    failed = {"kind": "tune", "accepted": False, "failed": True, "reason": "it took too long"}
    beat = {"outcomes": dict.fromkeys(quality.COUNTS, 9) | {"by": [arm("champion", 0.6), arm("holdback", 0.5)]}}
    fields: dict[str, Any] = {
        "kafka": "localhost:9092", "ran_ms": 192_400, "for_ms": 300_000, "events": [float(n % 17) for n in range(60)],
        "predictions": [1_234.5] * 9, "lag": 12_345, "open_sessions": 140, "dead_letters": 2, "duplicates": 17,
        "latency_ms": {"p50": 12.4, "p99": 140.0}, "workers": 1, "owned": 8, "partitions": 8,
        "champion": "v000003-3fa2c1", "swaps": 3, "next": "next retrain in 12 s", "verdicts": [failed, verdict, held],
        "live": quality.merged([beat]), "latest": latest,
        "titles": {"i1": "Kestrel light trail shoes teal " * 9, "i2": "靴と時計" * 30, "i3": "a\x1b[2Jb"},
    }  # fmt: skip
    return live.Shown(**fields | more)


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_frame_fits_its_terminal(width: int) -> None:
    """No line is wider than asked for, whatever the names; with colours it says the same; no name steers it."""
    lines = live.frame(recorded(), width=width)
    assert max(drawing.columns(text) for text in lines) <= width
    assert not any("\x1b" in text for text in lines)
    coloured = live.frame(recorded(), width=width, colours=drawing.COLOURS)
    assert [COLOUR.sub("", text) for text in coloured] == lines


def test_a_frame_tells_how_the_run_stands() -> None:
    """Rates with their course, lag, champion, verdicts with reasons, a line an arm, the newest prediction first."""
    text = "\n".join(live.frame(recorded()))
    for said in (
        "nextclick on localhost:9092 for 3m12s of 5m · 8 of 8 partitions · 1 worker",
        "lag 12,345, 140 open sessions", "p50 12 ms, p99 140 ms", "dead letters 2, duplicates 17",
        "champion v000003-3fa2c1 · 3 swaps · next retrain in 12 s", "refresh rejected: log loss may be worse",
        "refresh accepted: log loss is not worse (n=1,204, log loss -0.012, 12 CPU s)", "tune failed: it took too long",
        "champion   1,000  2.54", "holdback   1,000  2.54", " 41%  Kestrel light", " 12%  靴と時計",
    ):  # fmt: skip
        assert said in text, text
    assert text.index("u-9") < text.index("u-7")
    assert "▁▂" in text


def test_a_frame_without_anything_yet() -> None:
    """Before the first beat nothing is made up: no arm, no verdict, no latency."""
    lines = live.frame(live.Shown(kafka="h:1", ran_ms=0, partitions=8, next="the first retrain is due"))
    text = "\n".join(lines)
    assert "champion none yet: the memory answers · 0 swaps · the first retrain is due" in text
    assert "p50 –, p99 –" in text
    assert "came to" not in text


def test_the_plain_line_says_the_same_in_one() -> None:
    """For a log: rates, lag, champion, the last verdict, and the newest prediction with titles below it."""
    first, second = live.line(recorded(titles={"i1": "Kestrel shoes"})).splitlines()
    assert first.startswith("8 events/s · 1,234 predictions/s · lag 12,345 · 140 open sessions · champion v000003")
    assert first.endswith(
        "(log loss may be worse than the champion's by more than it may, n=1204) · next retrain in 12 s"
    )
    assert second == "    u-9 → Kestrel shoes 41%, i2 12%, i3 3%; nothing more 18%"


def test_rates_are_those_of_the_last_seconds_and_never_negative() -> None:
    """A worker that was started again counts from 0; asked five times a second, a rate comes once a second."""
    clock = [0.0]
    rates = live.Rates(lambda: clock[0])
    for step in range(21):
        clock[0] = step / 5
        rates.take(step * 2, step)
    assert list(rates.events) == [10.0] * 4
    assert list(rates.predictions) == [5.0] * 4
    clock[0] = 5.0
    rates.take(0, 0)
    assert rates.events[-1] == 0.0


class Terminal:
    """As much of a terminal as a frame needs: lines, a cursor at the margin, up, and clear to the end."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.at = 0

    def write(self, text: str) -> None:
        """Take what a program writes."""
        for up, clear, said in re.findall(r"\x1b\[(\d+)F|(\x1b\[J)|([^\x1b]+|\x1b\[[0-9;]*m)", text):
            if up:
                self.at -= int(up)
                assert self.at >= 0
            elif clear:
                del self.lines[self.at :]
            else:
                for piece in COLOUR.sub("", said).splitlines(keepends=True):
                    if self.at == len(self.lines):
                        self.lines.append("")
                    self.lines[self.at] += piece.rstrip("\n")
                    self.at += piece.endswith("\n")

    def flush(self) -> None:
        """Nothing waits."""


def test_a_frame_is_drawn_over_the_last_one_and_sentences_stay_above() -> None:
    """However often it is drawn there is one frame, no taller than the terminal; what was said is said once."""
    terminal: Any = Terminal()
    screen = live.Screen(terminal, lambda: (80, 12), drawing.COLOURS)
    screen.say("worker and trainer are starting")
    for ran_ms in (1_000, 2_000, 3_000):
        screen.show(recorded(ran_ms=ran_ms))
        if ran_ms == 2_000:
            screen.say("worker ended with code 3;\nagain in 1 s.")
    text = "\n".join(terminal.lines)
    assert (text.count("nextclick on"), "for 3s of 5m" in text, len(terminal.lines)) == (1, True, 3 + 11)
    assert terminal.lines[:3] == ["worker and trainer are starting", "worker ended with code 3;", "again in 1 s."]
    screen.close()
    screen.say("the summary")
    assert terminal.lines[-1] == "the summary"
    assert text.count("nextclick on") == "\n".join(terminal.lines).count("nextclick on")


def test_without_a_terminal_there_are_lines() -> None:
    """A pipe, a file and a terminal that cannot move its cursor get no codes."""
    assert isinstance(live.chosen(io.StringIO(), {"TERM": "xterm"}), live.Lines)


def test_under_a_terminal_there_is_a_frame() -> None:
    """Where stdout is a terminal of 80 columns the frame is drawn as wide as that and no wider."""
    program = (
        "import sys; from deploy import live; from tests.test_live import recorded\n"
        "shows = live.chosen(sys.stdout); shows.say('hello'); shows.show(recorded()); shows.show(recorded())"
    )
    ours, theirs = pty.openpty()
    import fcntl
    import struct
    import termios

    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = os.environ | {"TERM": "xterm", "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", program], stdout=theirs, env=environment) as running:
        os.close(theirs)
        said = b""
        try:
            while piece := os.read(ours, 65_536):
                said += piece
        except OSError:  # the other end is closed
            pass
        assert running.wait() == 0
    os.close(ours)
    text = said.decode().replace("\r\n", "\n")
    assert text.count("nextclick on localhost") == 2
    assert "\x1b[23F" in text
    assert max(drawing.columns(re.sub(r"\x1b\[[0-9;]*[mFJ]", "", one)) for one in text.splitlines()) <= 80
