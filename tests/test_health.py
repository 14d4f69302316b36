"""What a process tells over HTTP: whether it lives, whether it is ready, its numbers; and to whom."""

from __future__ import annotations

import http.client
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from prometheus_client.parser import text_string_to_metric_families

from deploy import broker, health
from deploy.kafka import Kafka
from deploy.settings import Settings, SettingsError
from streams import client

ROOT = Path(__file__).parents[1]
STATUS = {
    "worker": "w", "events": 7, "predictions": 5, "swaps": 1, "version": "v1", "busy_s": {"fold": 0.5},
    "parts": [{"topic": "t@x", "partition": 3, "lag": 4, "watermark_seconds": 1.0, "open_sessions": 2, "stored": 6,
               "duplicates": 1, "rejected": 0}],
}  # fmt: skip


def get(at: tuple[str, int], path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of one request."""
    line = http.client.HTTPConnection(*at, timeout=10)
    line.request("GET", path, headers=headers)
    answer = line.getresponse()
    body = answer.read()
    line.close()
    return answer.status, dict(answer.getheaders()), body


@pytest.fixture
def at() -> tuple[str, int]:
    """A free address on loopback."""
    return "127.0.0.1", broker.free_port()


def served(at: tuple[str, int], **said: str) -> health.Health:
    """A health that is served there."""
    return health.serve(
        Settings.load({"http": f"{at[0]}:{at[1]}"} | {k.replace("__", "."): v for k, v in said.items()})
    )


def test_live_before_it_is_ready(at: tuple[str, int]) -> None:
    """A process that starts is live and not ready; with its first pulse it says what is missing, then nothing."""
    told = served(at)
    assert get(at, "/live")[0] == 200
    assert (get(at, "/ready")[0], orjson.loads(get(at, "/ready")[2])) == (503, {"reasons": ["it is starting"]})
    told.pulse(STATUS, ["no partition is assigned to this worker"])
    assert b"no partition" in get(at, "/ready")[2]
    told.pulse(STATUS, [])
    assert get(at, "/ready")[0] == 200
    status = orjson.loads(get(at, "/status")[2])
    assert status == STATUS | {"live": True, "unready": []}
    assert get(at, "/nothing")[0] == 404


def test_stuck_loop_and_standing_work_are_not_live(at: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """No pulse for long, or pulses while lag stays and nothing moves: 503 with the reason."""
    clock = [1_000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    told = health.Health()
    told.pulse(STATUS, [], done=1)
    assert told.unwell() == []
    clock[0] += health.PULSE_S + 1
    assert told.unwell() == ["the loop has not come round for 16 s"]
    told.pulse(STATUS, [], done=1)
    clock[0] += 50
    told.pulse(STATUS, [], done=1)
    assert told.unwell() == ["there is lag, and nothing was read or predicted for 66 s"]
    told.pulse(STATUS, [], done=2)
    assert told.unwell() == []


def test_metrics_are_prometheus_text(at: tuple[str, int]) -> None:
    """Counters, lag by partition, a latency histogram and the version parse as Prometheus reads them."""
    told = served(at)
    for ms in (1.0, 30.0, 30.0, 60_000.0):
        told.latencies.append(ms)
    told.pulse(STATUS, [])
    code, headers, body = get(at, "/metrics")
    assert (code, headers["Content-Type"].split(";")[0]) == (200, "text/plain")
    assert "Server" not in headers
    found = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }
    part = (("partition", "3"), ("topic", "t@x"))
    assert found["nextclick_events_total",] == 7
    assert found["nextclick_stored_total", *part] == 6
    assert found["nextclick_lag", *part] == 4
    assert found["nextclick_model_info", ("version", "v1")] == 1
    assert found["nextclick_latency_seconds_bucket", ("le", "0.05")] == 3
    assert found["nextclick_latency_seconds_count",] == 4
    assert found["process_resident_memory_bytes",] > 0


def test_token_is_asked_for(at: tuple[str, int], tmp_path: Path) -> None:
    """Numbers need the token; probes work without it and give no reasons away; the token may lie in a file."""
    token = secrets.token_urlsafe(16)
    (tmp_path / "token").write_text(token)
    told = served(at, http__token__file=str(tmp_path / "token"))
    told.pulse(STATUS, ["secret reason"])
    assert [get(at, path)[0] for path in ("/metrics", "/status", "/live", "/ready")] == [401, 401, 200, 503]
    assert b"secret reason" not in get(at, "/ready")[2]
    assert get(at, "/status", Authorization="Bearer wrong")[0] == 401
    assert get(at, "/status", Authorization="Bearer \xff")[0] == 401
    right = {"Authorization": f"Bearer {token}"}
    assert [get(at, path, **right)[0] for path in ("/metrics", "/status")] == [200, 200]
    assert b"secret reason" in get(at, "/ready", **right)[2]


def test_page_under_another_name_is_turned_away(at: tuple[str, int]) -> None:
    """Without a token only who asks for this machine by its name is told: a browser's page brings its own."""
    served(at).pulse(STATUS, [])
    assert get(at, "/status", Host="evil.example:8750")[0] == 401
    assert [get(at, "/status", Host=host)[0] for host in ("localhost:1", "127.0.0.1", "[::1]:8750")] == [200] * 3


def test_other_machines_need_a_token() -> None:
    """Not on loopback and no token: refused at the start with the remedy."""
    with pytest.raises(SettingsError, match=r"http\.token\.file.*127\.0\.0\.1"):
        Settings.load({"http": "0.0.0.0:8750"})
    assert Settings.load({"http": "0.0.0.0:8750", "http.token": "x"})["http"] == ("0.0.0.0", 8750)


def test_taken_port_is_said(at: tuple[str, int]) -> None:
    """A port that is taken is one sentence."""
    with socket.create_server(at), pytest.raises(SettingsError, match="cannot be listened on"):
        served(at)


def test_slow_and_strange_readers_hold_nobody_up(at: tuple[str, int]) -> None:
    """Readers that say nothing, more than there is room for, and one that speaks no HTTP: others are answered."""
    served(at).pulse(STATUS, [])
    silent = [socket.create_connection(at) for _ in range(health.READERS - 1)]
    with socket.create_connection(at) as strange:
        strange.sendall(b"\x16\x03\x01 no http at all\r\n\r\n")
        while strange.recv(1000):
            pass
    wait_for(lambda: get(at, "/live")[0] == 200, "")
    for line in silent:
        line.close()


def wait_for(done: Callable[[], bool], log: Path | str) -> None:
    """Wait, and show the log where it does not come."""
    end = time.monotonic() + 90
    while True:
        try:
            if done():
                return
        except OSError:
            pass
        assert time.monotonic() < end, log.read_text() if isinstance(log, Path) else log
        time.sleep(0.2)


@pytest.fixture(scope="module")
def embedded() -> Iterator[str]:
    """HOST:PORT of an embedded broker."""
    with broker.embedded(port=0) as running:
        yield running.address


@pytest.mark.parametrize("kind", ["worker", "trainer"])
def test_processes_tell(kind: str, embedded: str, at: tuple[str, int], tmp_path: Path) -> None:
    """A worker is ready when its partitions are restored and counts what it did; a trainer when it follows the log."""
    said = {"kafka": embedded, "encoder": "none", "worker": "w", "shared": str(tmp_path / "shared"),
            "store.folder": str(tmp_path / "store"), "http": f"{at[0]}:{at[1]}"}  # fmt: skip
    log = tmp_path / "log"
    with log.open("wb") as out:
        options = [a for k, v in said.items() for a in ("--set", f"{k}={v}")]
        command = [sys.executable, "-m", "deploy.cli", kind, *options]
        process = subprocess.Popen(command, stdout=out, stderr=out, cwd=ROOT)
    try:
        wait_for(lambda: get(at, "/ready")[0] == 200, log)
        assert get(at, "/live")[0] == 200
        if kind == "worker":
            with client.EventProducer(embedded) as producer:
                now_ms = int(time.time() * 1000)
                producer.send({"event_id": "e1", "type": "view", "user_id": "u", "ts": now_ms, "item_id": "i"})
            wait_for(lambda: status(at)["predictions"] == 1, log)
            wait_for(lambda: b"nextclick_predictions_total 1.0" in get(at, "/metrics")[2], log)
            assert len(status(at)["parts"]) == 8
        else:
            wait_for(lambda: status(at)["leading"], log)
            assert b"nextclick_leading 1.0" in get(at, "/metrics")[2]
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, log.read_text()


@pytest.mark.kafka
def test_frozen_broker_is_not_ready_and_live(own_kafka: Kafka, at: tuple[str, int], tmp_path: Path) -> None:
    """While the broker does not answer a worker is live and not ready, with the reason; then ready again."""
    said = {"kafka": own_kafka.address, "encoder": "none", "worker": "w", "shared": str(tmp_path / "shared"),
            "store.folder": str(tmp_path / "store"), "http": f"{at[0]}:{at[1]}"}  # fmt: skip
    log = tmp_path / "log"
    with log.open("wb") as out:
        options = [a for k, v in said.items() for a in ("--set", f"{k}={v}")]
        process = subprocess.Popen([sys.executable, "-m", "deploy.worker", *options], stdout=out, stderr=out)
    try:
        wait_for(lambda: get(at, "/ready")[0] == 200, log)
        own_kafka.process.send_signal(signal.SIGSTOP)
        wait_for(lambda: b"the broker has not answered for" in get(at, "/ready")[2], log)
        assert get(at, "/live")[0] == 200
        own_kafka.process.send_signal(signal.SIGCONT)
        wait_for(lambda: get(at, "/ready")[0] == 200, log)
    finally:
        own_kafka.process.send_signal(signal.SIGCONT)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, log.read_text()


def status(at: tuple[str, int]) -> dict[str, Any]:
    """What /status says."""
    said: dict[str, Any] = orjson.loads(get(at, "/status")[2])
    return said
