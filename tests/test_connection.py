"""A guarded Kafka: TLS and a user through every client that the product opens, one sentence where they do not fit."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest

from deploy import kafka as real_kafka
from deploy import replay
from deploy.settings import BY_NAME, Settings, SettingsError
from streams import client, connection, control, topics
from streams.connection import BrokerUnreachable, Connection, NotLetIn

ROOT = Path(__file__).parents[1]


def test_parts_must_fit_together(tmp_path: Path) -> None:
    """A user without SASL, SASL without a user, certificates without TLS and a key alone are refused."""
    pem = tmp_path / "x.pem"
    pem.touch()
    for said, remedy in (
        ({"user": "ann", "password": "x"}, "set kafka.protocol to SASL_SSL"),
        ({"protocol": "SASL_SSL"}, "set kafka.user"),
        ({"ca": pem}, "set kafka.protocol to SSL"),
        ({"protocol": "SSL", "key": pem}, "set kafka.cert and kafka.key"),
        ({"protocol": "SSL", "ca": tmp_path / "none.pem"}, "is no file"),
    ):
        with pytest.raises(ValueError, match=remedy):
            Connection("localhost:9092", **said)
    with pytest.raises(ValueError, match="give PEM files"):
        Connection("localhost:9092", protocol="SSL", ca=pem).context()


def test_secret_is_nowhere_to_be_seen(tmp_path: Path) -> None:
    """A password is in no text, no argument and no error; it comes from the environment, a file of its own or TOML."""
    word = secrets.token_hex(8)
    said = {"kafka.protocol": "SASL_PLAINTEXT", "kafka.user": "ann"}
    settings = Settings.load(said, {"NEXTCLICK_KAFKA_PASSWORD": word})
    assert settings.kafka.password == word
    rows = {row["name"]: row["value"] for row in settings.table()}
    assert rows["kafka.password"] == "***"
    shown = [repr(settings.table()), str(settings.options()), repr(settings.kafka), str(settings.kafka)]
    assert [text for text in shown if word in text] == []
    assert settings.secrets() == {BY_NAME["kafka.password"].env: word}
    (tmp_path / "password").write_text(word + "\n")
    from_file = Settings.load(said | {"kafka.password.file": str(tmp_path / "password")})
    assert from_file.kafka == settings.kafka
    with pytest.raises(SettingsError, match="both set"):
        Settings.load(said | {"kafka.password.file": str(tmp_path / "password")}, {"NEXTCLICK_KAFKA_PASSWORD": word})
    with pytest.raises(SettingsError, match=r"did you mean kafka\.password") as misspelt:
        Settings.load({"kafka.passwort": word})
    assert word not in str(misspelt.value)


def test_silence_and_strange_answers_are_told_apart() -> None:
    """Nothing there, something that hangs up, and something that speaks no TLS are three sentences."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"

        def answer() -> None:
            for _ in range(2):
                line = server.accept()[0]
                line.recv(1000)
                line.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                line.close()

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(NotLetIn, match=r"kafka\.protocol"):
            connection.knock(address)
        with pytest.raises(NotLetIn, match=r"does not speak TLS.*kafka\.protocol"):
            connection.knock(Connection(address, protocol="SSL"))
        thread.join()
    with pytest.raises(BrokerUnreachable, match="no Kafka broker answers"):
        connection.knock(address)


# ---------------------------------------------------------------- a real one


@pytest.fixture(scope="module", params=["SCRAM-SHA-512", "PLAIN", "certificate"])
def kafka(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory,
          start_kafka: Callable[[Path, real_kafka.Guard], real_kafka.Kafka]) -> Iterator[real_kafka.Kafka]:  # fmt: skip
    """A Kafka behind TLS that asks for a user, or for a certificate."""
    guard = real_kafka.Guard()
    if request.param != "certificate":
        guard = real_kafka.Guard(user="ann", password=secrets.token_hex(12), mechanism=request.param)
    with start_kafka(tmp_path_factory.mktemp("guarded"), guard) as broker:
        yield broker


class Shop:
    """Settings of a run of its own, as people write them, and its processes; the password is in a file alone."""

    def __init__(self, broker: real_kafka.Kafka, folder: Path) -> None:
        self.folder, self.connection, tag = folder, broker.connection, uuid.uuid4().hex[:8]
        said = {
            f"topics.{n}": f"{n}-{tag}" for n in ("events", "items", "dead_letters", "predictions", "control", "state")
        }
        said |= {"encoder": "none", "worker": "w", "shared": f"{folder}/shared", "store.folder": f"{folder}/store"}
        parts: dict[str, Any] = msgspec.structs.asdict(self.connection)
        said["kafka"], password = parts.pop("bootstrap"), parts.pop("password")
        said |= {f"kafka.{name}": str(value) for name, value in parts.items() if value}
        if password:
            (folder / "password").write_text(f"{password}\n")
            said["kafka.password.file"] = str(folder / "password")
        self.said, self.settings = said, Settings.load(said)

    def command(self, *words: str, **changed: str) -> list[str]:
        """The command line of one of our commands."""
        options = [a for k, v in (self.said | changed).items() for a in ("--set", f"{k}={v}")]
        return [sys.executable, "-m", "deploy.cli", *words, *options]

    def start(self, name: str) -> subprocess.Popen[bytes]:
        """A process of the product; its words go to NAME.log."""
        with (self.folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen(self.command(name), stdout=log, stderr=log, cwd=ROOT)

    def words(self) -> str:
        """All that the processes said."""
        return "".join(path.read_text() for path in self.folder.glob("*.log"))


@pytest.fixture
def shop(kafka: real_kafka.Kafka, tmp_path: Path) -> Shop:
    """A run of its own on the guarded Kafka."""
    return Shop(kafka, tmp_path)


def until(done: Callable[[], bool], told: Callable[[], str]) -> None:
    """Wait, and say what was seen where it does not come."""
    end = time.monotonic() + 90
    while not done():
        assert time.monotonic() < end, told()
        time.sleep(0.2)


@pytest.mark.kafka
@pytest.mark.timeout(240)
def test_everything_passes_the_guard(shop: Shop) -> None:
    """Events, worker, trainer, predictions, control log, replay and the comparison with Kafka go through it."""
    settings, names = shop.settings, shop.settings.topics()
    topics.ensure(settings.kafka, names)
    processes = [shop.start(name) for name in ("worker", "trainer")]
    try:
        with (
            client.EventProducer(shop.connection, names.events[0]) as producer,
            client.PredictionConsumer(shop.connection, names.predictions, from_start=True) as consumer,
        ):
            producer.send({"event_id": "e1", "type": "view", "user_id": "u1", "ts": int(time.time() * 1000),
                           "item_id": "i1"})  # fmt: skip
            producer.flush(20)
            assert next(iter(consumer)).user_id == "u1"
        playing = replay.producer(settings.kafka, names.events[0])
        playing.close()
        done = subprocess.run(shop.command("cadence", "show", "--json"), capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        writer = control.ControlWriter(settings.kafka, names.control)
        writer.append("retrain.now", by="test")
        writer.close()
        log = control.ControlLog(settings.kafka, topic=names.control)
        log.start()
        until(lambda: bool(log.state.verdicts), shop.words)
        log.close()
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        codes = [process.wait(60) for process in processes]
    assert codes == [0, 0], shop.words()
    checked = subprocess.run(shop.command("store", "check", "--json"), capture_output=True, text=True, cwd=ROOT)
    report = orjson.loads(checked.stdout)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert sum(part["compared_with_kafka"] or 0 for part in report["partitions"]) == 1
    assert "Traceback" not in shop.words()
    if word := shop.connection.password:
        assert word not in shop.words()


def test_an_authority_without_key_usage_is_told_as_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.13 is strict by default, and another `kafka.ca` would not help."""
    openssl, left_out = real_kafka._openssl, ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
    monkeypatch.setattr(
        real_kafka, "_openssl", lambda folder, *said: openssl(folder, *(one for one in said if one not in left_out))
    )
    real_kafka.certificates(tmp_path / "tls", "127.0.0.1")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "tls" / "broker.pem")
    strict = ssl.create_default_context(cafile=str(tmp_path / "tls" / "ca.crt"))
    strict.verify_flags |= ssl.VERIFY_X509_STRICT
    ours, theirs = socket.socketpair()

    def serve() -> None:
        with contextlib.suppress(ssl.SSLError, OSError):
            server.wrap_socket(theirs, server_side=True).close()

    serving = threading.Thread(target=serve)
    serving.start()
    with pytest.raises(NotLetIn, match="have it signed anew with that extension"):
        connection._encrypted(ours, strict, "127.0.0.1", "127.0.0.1:9093")
    ours.close()
    serving.join()


@pytest.mark.kafka
@pytest.mark.timeout(240)
def test_what_does_not_fit_is_one_line(shop: Shop, tmp_path: Path) -> None:
    """Wrong password, wrong mechanism, wrong authority, no TLS, no certificate: one line, its remedy, no secret."""
    real_kafka.certificates(tmp_path / "other", "127.0.0.1")
    wrong = secrets.token_hex(8)
    (tmp_path / "wrong").write_text(wrong)
    cases = [({"kafka.ca": str(tmp_path / "other" / "ca.crt")}, "set kafka.ca")]
    if shop.connection.sasl:
        other = "SCRAM-SHA-512" if shop.connection.mechanism == "PLAIN" else "PLAIN"
        cases += [({"kafka.password.file": str(tmp_path / "wrong")}, "check kafka.user and kafka.password")]
        cases += [({"kafka.mechanism": other}, "set kafka.mechanism")]
        cases += [({"kafka.protocol": "SASL_PLAINTEXT", "kafka.ca": ""}, "set kafka.protocol")]
    else:
        cases += [({"kafka.cert": "", "kafka.key": ""}, "kafka.cert, kafka.key to what it asks for")]
        cases += [
            ({"kafka.cert": "", "kafka.key": "", "kafka.ca": "", "kafka.protocol": "PLAINTEXT"}, "kafka.protocol")
        ]
    for changed, remedy in cases:
        done = subprocess.run(
            shop.command("worker", **changed), capture_output=True, text=True, cwd=ROOT, env=os.environ
        )
        said = done.stdout + done.stderr
        assert done.returncode == 1, said
        assert remedy in said, said
        assert len(said.strip().splitlines()) == 1, said
        assert wrong not in said
        assert not shop.connection.password or shop.connection.password not in said
