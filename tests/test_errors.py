"""What goes wrong is told in one line, whichever way the process was started."""

from __future__ import annotations

import subprocess
import sys

import pytest

from deploy import errors
from deploy.broker import free_port
from deploy.settings import SettingsError


@pytest.mark.parametrize("kind", ["worker", "trainer"])
def test_a_process_started_as_a_module_tells_a_broker_that_is_away_in_one_line(kind: str) -> None:
    """The same line and code as `nextclick worker`."""
    command = [sys.executable, "-m", f"deploy.{kind}", "--kafka", f"127.0.0.1:{free_port()}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert done.stderr.startswith("nextclick: no Kafka broker answers at 127.0.0.1:")


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (SettingsError("cadence = 'soon'\ncannot be used"), 1, "nextclick: cadence = 'soon' cannot be used\n"),
        (OSError(28, "No space left on device"), 1, "nextclick: [Errno 28] No space left on device\n"),
        (ImportError("No module named 'faust'"), 1, "nextclick: a part is not installed (No module named 'faust'): "
         "pip install 'nextclick[all]'\n"),
        (KeyboardInterrupt(), 130, "stopped\n"),
        (BrokenPipeError(), 0, ""),
    ],
)  # fmt: skip
def test_what_is_expected_is_one_line(
    raised: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its message, and the code that a shell reads."""

    def run() -> None:
        raise raised

    assert (errors.code_of(run), capsys.readouterr().err) == (code, said)


def test_what_should_not_happen_shows_where(capsys: pytest.CaptureFixture[str]) -> None:
    """A traceback above the line, and a code of its own; who says a code ends with it."""
    assert errors.code_of(lambda: 1 // 0) == 3
    told = capsys.readouterr().err.splitlines()
    assert (told[0], told[-1]) == (
        "Traceback (most recent call last):",
        "nextclick: stopped by what should not happen: ZeroDivisionError: integer division or modulo by zero",
    )
    assert [errors.code_of(lambda said=said: said) for said in (2, None, "text")] == [2, 0, 0]  # type: ignore[misc]
