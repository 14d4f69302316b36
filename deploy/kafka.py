"""A real Apache Kafka for tests, faults and benchmarks: one KRaft process whose jars Maven brings into a cache."""

from __future__ import annotations

import argparse
import base64
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import uuid
from pathlib import Path

from deploy import broker
from deploy.broker import Broker, BrokerError

VERSION = "4.3.1"
POM = Path(__file__).with_name("kafka-pom.xml")
HEAP = "512m"
STARTED = b"Kafka Server started"


class Kafka(Broker):
    """A Kafka that can be killed and started again on the same port with its data intact."""

    def __init__(self, process: subprocess.Popen[bytes], host: str, port: int, data: Path) -> None:
        super().__init__(process, host, port)
        self.data = data

    def restart(self) -> None:
        """Start it again after `stop` or `kill`; returns when it is ready."""
        self.process = start(self.port, self.data, self.host).process


def missing() -> str | None:
    """Why no real Kafka can be had on this machine, None where it can."""
    absent = [tool for tool in ("java", "mvn") if shutil.which(tool) is None]
    if absent == ["mvn"] and _jars_folder().is_dir():
        return None
    return f"{' and '.join(absent)} not found: install Java 17 or later and Maven" if absent else None


def start(port: int, data: Path, host: str = "127.0.0.1") -> Kafka:
    """Start Kafka on `port` (0: a free one) with its data in `data`; returns when it is ready."""
    if reason := missing():
        raise BrokerError(f"a real Kafka cannot be started here: {reason}")
    port = port or broker.free_port(host)
    broker.require_free(host, port)
    folder = jars()
    data.mkdir(parents=True, exist_ok=True)
    properties = data / "server.properties"
    properties.write_text(_properties(host, port, data.resolve()), encoding="utf-8")
    log = data / "kafka.log"
    if not (data / "log" / "meta.properties").exists():
        _format(folder, properties)
    seen = log.stat().st_size if log.exists() else 0
    process = broker.spawn([*_java(folder), "kafka.Kafka", str(properties)], log)
    kafka = Kafka(process, host, port, data)
    try:
        return broker.wait_ready(kafka, lambda: STARTED in _since(log, seen) and broker.answers(host, port))
    except BrokerError as error:
        tail = _since(log, seen)[-1500:].decode(errors="replace")
        raise BrokerError(f"{error}; the end of {log}:\n{tail}") from error


def jars() -> Path:
    """The folder with Kafka's jars; Maven fills it the first time (about 54 MB)."""
    folder = _jars_folder()
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".kafka-") as unfinished:
        target = Path(unfinished) / "jars"
        _run(
            ["mvn", "-B", "-q", "-f", str(POM), "dependency:copy-dependencies", f"-DoutputDirectory={target}"],
            "Maven could not bring Kafka's jars (is the network there?)",
        )
        try:
            target.rename(folder)
        except OSError:  # another process was first
            if not folder.is_dir():
                raise
    return folder


def _jars_folder() -> Path:
    cache = os.environ.get("NEXTCLICK_CACHE")
    return (Path(cache) if cache else Path.home() / ".cache" / "nextclick") / f"kafka-{VERSION}"


def _java(folder: Path) -> list[str]:
    quiet = ["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.log.kafka.server=info"]
    return ["java", f"-Xmx{HEAP}", "-XX:+UseSerialGC", *quiet, "-cp", f"{folder}/*"]


def _format(folder: Path, properties: Path) -> None:
    cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "A")
    _run(
        [*_java(folder), "kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(properties)],
        f"the storage beside {properties} could not be formatted",
    )


def _run(command: list[str], failed: str) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BrokerError(f"{failed}: {(done.stdout + done.stderr)[-1500:]}")


def _since(log: Path, position: int) -> bytes:
    with log.open("rb") as file:
        file.seek(position)
        return file.read()


def _properties(host: str, port: int, data: Path) -> str:
    controller = broker.free_port()
    settings = {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.quorum.voters": f"1@127.0.0.1:{controller}",
        "listeners": f"PLAINTEXT://{host}:{port},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": f"PLAINTEXT://{host}:{port}",
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "log.dirs": data / "log",
        "broker.heartbeat.interval.ms": 500,
        "broker.session.timeout.ms": 3_000,  # a killed broker is let in again when its last session is over
        "auto.create.topics.enable": "false",
        "group.initial.rebalance.delay.ms": 0,
        "offsets.topic.num.partitions": 4,
        "offsets.topic.replication.factor": 1,
        "transaction.state.log.num.partitions": 4,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "log.cleaner.dedupe.buffer.size": 16 * 1024 * 1024,
    }
    return "".join(f"{name}={value}\n" for name, value in settings.items())


def main() -> None:
    """Run one in the foreground until ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m deploy.kafka", description=__doc__)
    parser.add_argument("--port", type=int, default=9092)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--data", type=Path, default=Path("nextclick-data/kafka"))
    options = parser.parse_args()
    over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: over.set())
    try:
        kafka = start(options.port, options.data, options.host)
    except BrokerError as error:
        raise SystemExit(f"nextclick: {error}") from error
    with kafka:
        print(
            f"Apache Kafka {VERSION} listens on {kafka.address}, data in {options.data} (ctrl-C stops it)", flush=True
        )
        while not over.wait(0.5):
            if not kafka.running:
                raise SystemExit(f"nextclick: Kafka ended by itself, see {options.data / 'kafka.log'}")


if __name__ == "__main__":
    main()
