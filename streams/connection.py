"""How a Kafka is reached: addresses, TLS and who we are, as each client library wants it said."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

Protocol = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
Mechanism = Literal["SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN"]
CONNECT_S = 5.0
BOOTSTRAP_S = 10.0
STRICT = range(80, 94)  # OpenSSL's errors of X509_V_FLAG_X509_STRICT
PROTOCOLS: tuple[str, ...] = get_args(Protocol)
MECHANISMS: tuple[str, ...] = get_args(Mechanism)


class BrokerUnreachable(ConnectionError):
    """No Kafka broker answers there: start one (`nextclick up` or `nextclick broker`) or set --kafka HOST:PORT."""

    def __init__(self, kafka: object, why: object) -> None:
        super().__init__(
            f"no Kafka broker answers at {kafka} ({why}): "
            "start one (`nextclick up` or `nextclick broker`) or set --kafka HOST:PORT"
        )


class NotLetIn(ConnectionError):
    """A broker answers, and TLS, user or password do not fit it; the message names the setting to change."""


class Connection(msgspec.Struct, frozen=True):
    """Brokers as HOST:PORT[,HOST:PORT], and what is needed to be let in; as text the addresses alone."""

    bootstrap: str
    protocol: Protocol = "PLAINTEXT"
    mechanism: Mechanism = "SCRAM-SHA-512"
    user: str = ""
    password: str = ""
    ca: Path | None = None  # PEM of who signed the brokers' certificates; None: whom this system trusts
    cert: Path | None = None  # PEM by which a broker that asks for it knows us, with its key
    key: Path | None = None

    def __post_init__(self) -> None:
        """Raises ValueError, with the remedy, where the parts do not fit together."""
        if self.sasl and not (self.user and self.password):
            raise ValueError(f"{self.protocol} needs a user and a password: set kafka.user and kafka.password.file")
        if (self.user or self.password) and not self.sasl:
            raise ValueError(f"{self.protocol} sends no user or password: set kafka.protocol to SASL_SSL")
        if (self.ca or self.cert or self.key) and not self.tls:
            raise ValueError(f"{self.protocol} uses no certificates: set kafka.protocol to SSL or SASL_SSL")
        if (self.cert is None) != (self.key is None):
            raise ValueError("a certificate of ours needs its key: set kafka.cert and kafka.key, or neither")
        if missing := next((p for p in (self.ca, self.cert, self.key) if p and not p.is_file()), None):
            raise ValueError(f"{missing} is no file: name a PEM file")

    def __str__(self) -> str:
        return self.bootstrap

    def __repr__(self) -> str:
        return f"Connection({self.bootstrap!r}, {self.protocol})"  # no secret where it is printed by mistake

    @property
    def sasl(self) -> bool:
        """Whether we say who we are."""
        return self.protocol.startswith("SASL")

    @property
    def tls(self) -> bool:
        """Whether what is sent is encrypted."""
        return self.protocol.endswith("SSL")

    def context(self) -> ssl.SSLContext | None:
        """What TLS checks the brokers' certificates and names by, None without TLS; raises ValueError."""
        if not self.tls:
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca)
            if self.cert is not None:
                context.load_cert_chain(self.cert, self.key)
        except (ssl.SSLError, OSError) as error:
            raise ValueError(
                f"{', '.join(str(p) for p in (self.ca, self.cert, self.key) if p)} cannot be used for TLS ({error}): "
                "give PEM files, the key unencrypted and the certificate's own"
            ) from error
        return context

    def for_kafka_python(self) -> dict[str, Any]:
        """Keyword arguments of kafka-python's clients."""
        return {"bootstrap_servers": self.bootstrap.split(",")} | self._said()

    def for_aiokafka(self) -> dict[str, Any]:
        """Keyword arguments of aiokafka's clients."""
        return {"bootstrap_servers": self.bootstrap} | self._said()

    def _said(self) -> dict[str, Any]:
        said: dict[str, Any] = {"security_protocol": self.protocol} if self.protocol != "PLAINTEXT" else {}
        if self.tls:
            said["ssl_context"] = self.context()
        if self.sasl:
            said |= {"sasl_mechanism": self.mechanism, "sasl_plain_username": self.user}
            said["sasl_plain_password"] = self.password
        return said


def of(kafka: str | Connection) -> Connection:
    """A connection; plain addresses are one without TLS or user.

    >>> of("localhost:9092")
    Connection('localhost:9092', PLAINTEXT)
    """
    return kafka if isinstance(kafka, Connection) else Connection(kafka)


def client(kind: Callable[..., Any], kafka: str | Connection, options: dict[str, Any], *topic: str) -> Any:
    """A client of kafka-python; raises like `knock` where no broker lets it in."""
    from kafka.errors import KafkaError

    knock(kafka)
    defaults = {"bootstrap_timeout_ms": int(BOOTSTRAP_S * 1000)}
    try:
        return kind(*topic, **(defaults | of(kafka).for_kafka_python() | options))
    except KafkaError as error:
        raise BrokerUnreachable(kafka, type(error).__name__) from error


# ---------------------------------------------------------------- whether the door opens


def knock(kafka: str | Connection) -> None:
    """Say at once, and in one sentence, what the client libraries find out after many tries, if at all.

    Raises `BrokerUnreachable` where nothing answers, `NotLetIn` where TLS, user or password do not fit.
    """
    connection = of(kafka)
    context = connection.context()
    why: object = "no address"
    for address in connection.bootstrap.split(","):
        host, _, port = address.strip().rpartition(":")
        host = host.strip("[]")
        try:
            with contextlib.closing(socket.create_connection((host, int(port)), timeout=CONNECT_S)) as plain:
                with contextlib.closing(_encrypted(plain, context, host, address)) as line:
                    _greeted(line, address, connection)
                return
        except NotLetIn:
            raise
        except (OSError, ValueError, OverflowError) as error:
            why = error
    raise BrokerUnreachable(connection, why)


def _encrypted(plain: socket.socket, context: ssl.SSLContext | None, host: str, address: str) -> socket.socket:
    if context is None:
        return plain
    try:
        return context.wrap_socket(plain, server_hostname=host)
    except ssl.SSLCertVerificationError as error:
        remedy = "set kafka.ca to the PEM file of who signed it, and --kafka to a name it was made for"
        if error.verify_code in STRICT:
            remedy = "have it signed anew with that extension, which Python asks for from 3.13 on"
        raise NotLetIn(f"the certificate of {address} cannot be trusted ({error.verify_message}): {remedy}") from error
    except ssl.SSLError as error:
        raise NotLetIn(
            f"{address} does not speak TLS ({error.reason}): set kafka.protocol to what it speaks"
        ) from error


def _greeted(line: socket.socket, address: str, connection: Connection) -> None:
    """One request that every broker answers; with a user the whole log-in."""
    hint = f"{address} hangs up: set kafka.protocol to what it speaks (now {connection.protocol})"
    hint += " and kafka.cert, kafka.key to what it asks for" if connection.tls else ""
    try:
        if not connection.sasl:
            _asked(line, 18, 0, b"")  # ApiVersions
            return
        said = struct.unpack(">h", _asked(line, 17, 1, _text(connection.mechanism))[:2])[0]  # SaslHandshake
    except (EOFError, ssl.SSLError, ConnectionResetError, BrokenPipeError) as error:
        raise NotLetIn(hint) from error
    if said:
        raise NotLetIn(f"{address} does not take {connection.mechanism}: set kafka.mechanism to one of its own")
    _log_in(line, address, connection)


def _log_in(line: socket.socket, address: str, connection: Connection) -> None:
    from kafka.net.sasl import get_sasl_mechanism

    refused = f"{address} refuses user {connection.user} or its password: check kafka.user and kafka.password"
    way = get_sasl_mechanism(connection.mechanism)(**connection._said())
    try:
        while not way.is_done():
            token = way.auth_bytes()
            answer = _asked(line, 36, 0, struct.pack(">i", len(token)) + token)  # SaslAuthenticate
            error, length = struct.unpack(">hh", answer[:4])
            if error:
                raise NotLetIn(refused)
            way.receive(answer[4 + max(0, length) + 4 :])
    except (EOFError, ConnectionResetError, BrokenPipeError, ssl.SSLError) as error:
        raise NotLetIn(refused) from error


def _text(value: str) -> bytes:
    return struct.pack(">h", len(value)) + value.encode()


def _asked(line: socket.socket, key: int, version: int, body: bytes) -> bytes:
    """The body of a broker's answer to one request."""
    request = struct.pack(">hhi", key, version, 1) + _text("nextclick") + body
    line.sendall(struct.pack(">i", len(request)) + request)
    size, number = struct.unpack(">ii", _exactly(line, 8))
    if number != 1 or not 4 <= size <= 1 << 20:
        raise EOFError("no Kafka answer")
    return _exactly(line, size - 4)


def _exactly(line: socket.socket, count: int) -> bytes:
    got = b""
    while len(got) < count:
        more = line.recv(count - len(got))
        if not more:
            raise EOFError("the broker hung up")
        got += more
    return got
