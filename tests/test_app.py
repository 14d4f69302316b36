"""An exception in a step ends the process: what failed must not be passed over."""

from __future__ import annotations

import subprocess
import sys

import pytest

STEP = """
import asyncio
from streams import app, ingest

@app.fail_stop
async def take(poll):
    raise {error}("what went wrong")

async def agent():
    try:
        await take(None)
    finally:
        print("passed over")

asyncio.run(agent())
"""


@pytest.mark.parametrize(("error", "traced"), [("ZeroDivisionError", True), ("ingest.WrongKeys", False)])
def test_step_that_raises_ends_the_process_with_a_code_and_its_reason(error: str, traced: bool) -> None:
    """At once, before anything behind it runs; what is expected is told in a line, without a traceback."""
    done = subprocess.run([sys.executable, "-c", STEP.format(error=error)], capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert "passed over" not in done.stdout
    assert "what went wrong" in done.stdout + done.stderr
    assert ("Traceback" in done.stderr) == traced
