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

import msgspec

from deploy import broker
from deploy.broker import Broker, BrokerError
from streams.connection import Connection, Mechanism

VERSION = "4.3.1"
POM = Path(__file__).with_name("kafka-pom.xml")
HEAP = "512m"
TRIES = 3
STARTED = b"Kafka Server started"


class PortTaken(BrokerError):
    """Something else listens on one of its ports, and did not a moment ago: choose another --port, or 0."""


class Guard(msgspec.Struct, frozen=True, kw_only=True):
    """Whom a Kafka lets in: TLS with certificates made on the spot, and one user (none: the certificate is enough)."""

    user: str = ""
    password: str = ""
    mechanism: Mechanism = "SCRAM-SHA-512"

    def __repr__(self) -> str:
        return f"Guard({self.mechanism})"


class Kafka(Broker):
    """A Kafka that can be killed and started again on the same port with its data intact."""

    def __init__(
        self, process: subprocess.Popen[bytes], host: str, port: int, data: Path, guard: Guard | None = None
    ) -> None:
        super().__init__(process, host, port)
        self.data, self.guard = data, guard

    @property
    def connection(self) -> Connection:
        """How its clients reach it."""
        guard, tls = self.guard, self.data / "tls"
        if guard is None:
            return Connection(self.address)
        if not guard.user:
            cert, key = tls / "client.crt", tls / "client.key"
            return Connection(self.address, protocol="SSL", ca=tls / "ca.crt", cert=cert, key=key)
        return Connection(
            self.address, protocol="SASL_SSL", mechanism=guard.mechanism, user=guard.user, password=guard.password,
            ca=tls / "ca.crt",
        )  # fmt: skip

    def restart(self) -> None:
        """Start it again after `stop` or `kill`; returns when it is ready."""
        self.process = start(self.port, self.data, self.host, self.guard).process


def missing() -> str | None:
    """Why no real Kafka can be had on this machine, None where it can."""
    absent = [tool for tool in ("java", "mvn") if shutil.which(tool) is None]
    if absent == ["mvn"] and _jars_folder().is_dir():
        return None
    return f"{' and '.join(absent)} not found: install Java 17 or later and Maven" if absent else None


def start(port: int, data: Path, host: str = "127.0.0.1", guard: Guard | None = None) -> Kafka:
    """Start Kafka on `port` (0: a free one) with its data in `data`; returns when it is ready."""
    if reason := missing():
        raise BrokerError(f"a real Kafka cannot be started here: {reason}")
    for _ in range(0 if port else TRIES - 1):  # between looking and listening another may have taken a port
        try:
            return _start(broker.free_port(host), data, host, guard)
        except PortTaken:
            continue
    return _start(port or broker.free_port(host), data, host, guard)


def _start(port: int, data: Path, host: str, guard: Guard | None) -> Kafka:
    broker.require_free(host, port)
    folder = jars()
    data.mkdir(parents=True, exist_ok=True)
    properties = data / "server.properties"
    if guard is not None and not (data / "tls").is_dir():
        certificates(data / "tls", host)
    properties.touch(mode=0o600)  # with a guard it holds the password
    properties.write_text(_properties(host, port, data.resolve(), guard), encoding="utf-8")
    log = data / "kafka.log"
    if not (data / "log" / "meta.properties").exists():
        _format(folder, properties, guard)
    seen = log.stat().st_size if log.exists() else 0
    process = broker.spawn([*_java(folder), "kafka.Kafka", str(properties)], log)
    kafka = Kafka(process, host, port, data, guard)

    def ready() -> bool:
        return STARTED in _since(log, seen) and (guard is not None or broker.answers(host, port))

    try:
        return broker.wait_ready(kafka, ready)
    except BrokerError as error:
        said = _since(log, seen)
        kind = PortTaken if b"Address already in use" in said else BrokerError
        raise kind(f"{error}; the end of {log}:\n{said[-1500:].decode(errors='replace')}") from error


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


def certificates(folder: Path, host: str) -> None:
    """An authority of its own and what it signed for the broker at `host` and for a client, by openssl."""
    folder.mkdir(parents=True)
    names = folder / "names"
    names.write_text(
        f"subjectAltName=IP:127.0.0.1,DNS:localhost,{'IP' if host[0].isdigit() else 'DNS'}:{host}\n"
        "authorityKeyIdentifier=keyid\n"
    )
    key = ["-newkey", "rsa:2048", "-nodes"]
    ca = ["-CA", str(folder / "ca.crt"), "-CAkey", str(folder / "ca.key"), "-CAcreateserial", "-days", "30"]
    _openssl(folder, "req", "-x509", *key, "-subj", "/CN=ca", "-days", "30", "-keyout", "ca.key", "-out", "ca.crt",
             "-addext", "keyUsage=critical,keyCertSign,cRLSign")  # Python 3.13 asks for it  # fmt: skip
    for name in ("broker", "client"):
        _openssl(folder, "req", *key, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        _openssl(folder, "x509", "-req", "-in", f"{name}.csr", *ca, "-extfile", str(names), "-out", f"{name}.crt")
    both = [(folder / f"broker.{end}").read_text(encoding="utf-8") for end in ("key", "crt")]
    (folder / "broker.pem").write_text("".join(both), encoding="utf-8")


def _openssl(folder: Path, *arguments: str) -> None:
    _run(["openssl", *arguments], "the certificates could not be made (is openssl there?)", folder)


def _format(folder: Path, properties: Path, guard: Guard | None) -> None:
    cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "A")
    known = []
    if guard is not None and guard.mechanism != "PLAIN" and guard.user:
        known = ["--add-scram", f"{guard.mechanism}=[name={guard.user},password={guard.password}]"]
    _run(
        [*_java(folder), "kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(properties), *known],
        f"the storage beside {properties} could not be formatted",
    )


def _run(command: list[str], failed: str, folder: Path | None = None) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode:
        raise BrokerError(f"{failed}: {(done.stdout + done.stderr)[-1500:]}")


def _since(log: Path, position: int) -> bytes:
    with log.open("rb") as file:
        file.seek(position)
        return file.read()


def _properties(host: str, port: int, data: Path, guard: Guard | None) -> str:
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
        "log.cleaner.backoff.ms": 500,
    }
    if guard is not None:
        settings |= _guarded(f"{host}:{port}", f"127.0.0.1:{controller}", data / "tls", guard)
    return "".join(f"{name}={value}\n" for name, value in settings.items())


def _guarded(address: str, controller: str, tls: Path, guard: Guard) -> dict[str, object]:
    """The listener for clients behind the guard; what the broker says to itself stays plain and on loopback."""
    inner = f"127.0.0.1:{broker.free_port()}"
    protocol = "SASL_SSL" if guard.user else "SSL"
    settings: dict[str, object] = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",  # the broker itself, on the plain listeners
        "allow.everyone.if.no.acl.found": "true",
        "listeners": f"CLIENTS://{address},INNER://{inner},CONTROLLER://{controller}",
        "advertised.listeners": f"CLIENTS://{address},INNER://{inner}",
        "inter.broker.listener.name": "INNER",
        "listener.security.protocol.map": f"CLIENTS:{protocol},INNER:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": tls / "broker.pem",
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": tls / "ca.crt",
    }
    if not guard.user:
        return settings | {"ssl.client.auth": "required"}
    listener = f"listener.name.clients.{guard.mechanism.lower()}.sasl.jaas.config"
    module = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
    if guard.mechanism == "PLAIN":
        module = (
            f'org.apache.kafka.common.security.plain.PlainLoginModule required user_{guard.user}="{guard.password}";'
        )
    return settings | {"sasl.enabled.mechanisms": guard.mechanism, listener: module}


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
