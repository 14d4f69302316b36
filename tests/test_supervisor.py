"""Children come back after they end, and go when they are asked."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from deploy.supervisor import Child, Supervisor, last_words


def test_child_is_restarted_with_growing_back_off(tmp_path: Path) -> None:
    """A process that ends at once is started again after 1 s, then 2 s, and its last words are told."""
    clock, said = [0.0], list[str]()
    supervisor = Supervisor(said.append, now=lambda: clock[0])
    child = Child(
        name="worker",
        command=[sys.executable, "-S", "-c", "print('no luck');raise SystemExit(3)"],
        output=tmp_path / "w",
    )
    supervisor.start(child)
    for wait in (1, 2):
        assert child.process is not None
        child.process.wait(20)
        supervisor.step()
        clock[0] += wait - 0.1
        supervisor.step()
        assert child.process is None
        clock[0] += 0.2
        supervisor.step()
        assert supervisor.hopeless() is None
    assert (child.restarts, len(said)) == (2, 2)
    assert "ended with code 3; again in 1 s. Its last words: no luck" in said[0]
    for wait in (4, 8, 15):
        assert child.process is not None
        child.process.wait(20)
        supervisor.step()
        clock[0] += wait
        supervisor.step()
    assert "worker failed 5 times in a row. Its last words: no luck" in (supervisor.hopeless() or "")
    supervisor.stop()


def test_stop_asks_then_insists(tmp_path: Path) -> None:
    """A process that ignores SIGTERM is killed after the time it was given."""
    code = "import signal,time;signal.signal(15,signal.SIG_IGN);print(1,flush=True);time.sleep(60)"
    said = list[str]()
    supervisor = Supervisor(said.append)
    for name, text in (("stubborn", code), ("polite", "print(1,flush=True);import time;time.sleep(60)")):
        supervisor.start(Child(name=name, command=[sys.executable, "-S", "-c", text], output=tmp_path / name))
    while not all((tmp_path / n).read_bytes() for n in ("stubborn", "polite")):
        time.sleep(0.02)
    assert not supervisor.stop(within_s=0.5)
    assert said == ["stubborn did not stop within 0.5 s and was killed"]


def test_last_words_are_the_reason_not_what_a_binding_says_behind_it(tmp_path: Path) -> None:
    """A crash in Python is followed by a list of what DuckDB's binding leaked."""
    output = tmp_path / "worker"
    said = ["Traceback", "BrokerUnreachable: nobody answers", "nanobind: leaked 1 instances!", ' - leaked type "X"',
            " - ... skipped remainder", "See https://nanobind.readthedocs.io/en/latest/refleaks.html"]  # fmt: skip
    output.write_text("\n".join(said))
    assert "BrokerUnreachable: nobody answers" in last_words(output)
