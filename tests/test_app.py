"""An exception in a step ends the process: what failed must not be passed over."""

from __future__ import annotations

import subprocess
import sys

import pytest

from streams import app, connection, topics

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


async def test_broker_that_hangs_up_on_its_way_down_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a topic is still the same is not known just then; another log's id is fail-stop."""
    settings = app.AppSettings(
        kafka="host:9092", worker="w", events=("events",), predictions="p", dead_letters="d", state="s"
    )
    why: list[Exception] = [connection.NotLetIn("hangs up"), connection.BrokerUnreachable("host:9092", "refused")]

    def log_ids(*_: object) -> dict[str, str]:
        if why:
            raise why.pop()
        return {"events": "another"}

    monkeypatch.setattr(topics, "log_ids", log_ids)
    assert not await app.same_logs(settings, {"events": "log"})
    assert not await app.same_logs(settings, {"events": "log"})
    with pytest.raises(app.LogMadeAnew):
        await app.same_logs(settings, {"events": "log"})
