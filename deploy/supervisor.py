"""Child processes that are restarted with back-off when they end, and stopped together."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from deploy import broker

BACK_OFF_S = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
HEALTHY_S = 60.0  # up this long: the next restart is prompt again
STOP_S = 9.0
HOPELESS = 5  # failures in a row
WORDS = 600  # characters of a last line that are repeated
LEAKS = re.compile(r"nanobind: | - |See https://nanobind")  # what DuckDB's binding says behind the reason
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")  # what colours and hides on a terminal


class Child(msgspec.Struct, kw_only=True):
    """One process to keep running; its output goes to `output`."""

    name: str
    command: Sequence[str]
    output: Path
    environment: Mapping[str, str] = {}  # beside this process's: what must not stand among the arguments
    process: subprocess.Popen[bytes] | None = None
    started_s: float = 0.0
    failures: int = 0
    restarts: int = 0
    again_s: float = 0.0  # when to start it again


class Supervisor:
    """Keeps children running; call `step` now and then from the thread that made it (children end with it)."""

    def __init__(self, say: Callable[[str], None], now: Callable[[], float] = time.monotonic) -> None:
        self.children: list[Child] = []
        self._say, self._now = say, now

    def start(self, child: Child) -> None:
        """Run it from now on."""
        child.output.parent.mkdir(parents=True, exist_ok=True)
        self.children.append(child)
        self._run(child)

    def _run(self, child: Child) -> None:
        child.process = broker.spawn(child.command, child.output, child.environment)
        child.started_s = self._now()

    def step(self) -> None:
        """Restart what has ended, each after its back-off."""
        for child in self.children:
            if child.process is None:
                if self._now() >= child.again_s:
                    child.restarts += 1
                    self._run(child)
            elif (code := child.process.poll()) is not None:
                child.process = None
                child.failures = 0 if self._now() - child.started_s > HEALTHY_S else child.failures
                wait = BACK_OFF_S[min(child.failures, len(BACK_OFF_S) - 1)]
                child.failures += 1
                child.again_s = self._now() + wait
                self._say(f"{child.name} ended with code {code}; again in {wait:g} s. {last_words(child.output)}")

    def hopeless(self) -> str | None:
        """Of a child that failed again and again, its name and its last words."""
        child = next((c for c in self.children if c.failures >= HOPELESS), None)
        return (
            None
            if child is None
            else f"{child.name} failed {child.failures} times in a row. {last_words(child.output)}"
        )

    @property
    def restarts(self) -> int:
        """How often anything was started again."""
        return sum(c.restarts for c in self.children)

    def stop(self, within_s: float = STOP_S) -> bool:
        """Ask all to end and insist after `within_s`; whether all ended by themselves."""
        alive = [c for c in self.children if c.process is not None and c.process.poll() is None]
        for child in alive:
            _signal(child, signal.SIGTERM)
        end, clean = time.monotonic() + within_s, True
        for child in alive:
            assert child.process is not None
            try:
                child.process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                self._say(f"{child.name} did not stop within {within_s:g} s and was killed")
                clean = False
                child.process.kill()
                child.process.wait()
        self.children.clear()
        return clean


def _signal(child: Child, number: signal.Signals) -> None:
    assert child.process is not None
    try:
        child.process.send_signal(number)
    except ProcessLookupError:
        return


def last_words(output: Path) -> str:
    """The last line a process wrote, for a one-line message."""
    try:
        text = ESCAPES.sub("", output.read_bytes()[-4096:].decode(errors="replace"))
    except OSError:
        return ""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not LEAKS.match(line)]
    return f"Its last words: {lines[-1][:WORDS]} ({output})" if lines else ""
