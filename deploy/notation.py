"""What people write as a setting's value and what the code makes of it; a ValueError names the remedy."""

from __future__ import annotations

import datetime
import ipaddress
import re
import socket
from collections.abc import Callable
from pathlib import Path

UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def instant(ms: int) -> str:
    """An instant in UTC as people read it, to the second."""
    return datetime.datetime.fromtimestamp(ms // 1000, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def duration(text: str) -> int:
    """Milliseconds of a duration as people write it.

    >>> duration("30m"), duration("1h30m"), duration("500ms")
    (1800000, 5400000, 500)
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", text)
    if not parts or "".join(n + u for n, u in parts) != text.replace(" ", ""):
        raise ValueError("write a duration with its unit, like 500ms, 60s, 30m, 24h or 14d")
    return round(sum(float(n) * UNITS_MS[u] for n, u in parts))


def written(ms: int) -> str:
    """A duration as people write it.

    >>> written(5_400_000), written(500), written(0)
    ('1h30m', '500ms', '0s')
    """
    out = ""
    for unit in ("d", "h", "m", "s", "ms"):
        n, ms = divmod(ms, UNITS_MS[unit])
        out += f"{n}{unit}" if n else ""
    return out or "0s"


def positive(text: str) -> int:
    """A duration above zero, in milliseconds."""
    if (ms := duration(text)) <= 0:
        raise ValueError("write a duration above zero, like 60s")
    return ms


def count(text: str) -> int:
    """A whole number of at least 1."""
    digits = text.replace("_", "").replace(",", "")
    if not digits.isdigit() or int(digits) < 1:
        raise ValueError("write a whole number of at least 1, like 200000")
    return int(digits)


def replicas(text: str) -> int:
    """How many brokers hold a topic; -1 where the broker is to say."""
    return -1 if text == "broker" else count(text)


def number(low: float, high: float, like: str) -> Callable[[str], float]:
    """A parser of numbers between two, both allowed."""

    def read(text: str) -> float:
        try:
            made = float(text)
        except ValueError:
            made = float("nan")
        if not low <= made <= high:
            raise ValueError(f"write a number from {low:g} to {high:g}, like {like}")
        return made

    return read


def number_or_auto(low: float, high: float, like: str) -> Callable[[str], float | None]:
    """The same, or `auto` for None."""
    return lambda text: None if text == "auto" else number(low, high, like)(text)


def whole(low: int, high: int, like: str) -> Callable[[str], int]:
    """A parser of whole numbers between two, both allowed."""

    def read(text: str) -> int:
        if not (text.isdigit() and low <= int(text) <= high):
            raise ValueError(f"write a whole number from {low} to {high}, like {like}")
        return int(text)

    return read


def folder(text: str) -> str:
    """A folder, absolute; nothing for none."""
    return str(Path(text).expanduser().absolute()) if text else ""


def listen(text: str) -> tuple[str, int] | None:
    """Where to listen; None for nowhere."""
    if not text:
        return None
    host, _, port = text.rpartition(":")
    if not (host and port.isdigit() and int(port) < 65_536):
        raise ValueError("write HOST:PORT, like 127.0.0.1:8750 (port 0: a free one), or nothing for none")
    return host.strip("[]"), int(port)


def loopback(host: str) -> bool:
    """Whether only this machine can reach a listener there.

    >>> loopback("127.0.0.1"), loopback("0.0.0.0")
    (True, False)
    """
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def one_of(words: tuple[str, ...]) -> Callable[[str], str]:
    """A parser that takes these words only."""

    def word(text: str) -> str:
        if text not in words:
            raise ValueError(f"write one of {', '.join(words)}")
        return text

    return word


def file(text: str) -> Path | None:
    """A file that is there; None for none."""
    if not text:
        return None
    if not (path := Path(text).expanduser().absolute()).is_file():
        raise ValueError("there is no such file: name one that this process can read")
    return path


def brokers(text: str) -> str:
    """Brokers, comma separated."""
    for server in text.split(","):
        host, colon, port = server.strip().rpartition(":")
        if not (colon and host and port.isdigit() and 0 < int(port) < 65_536):
            raise ValueError("write HOST:PORT, several separated by commas, like 127.0.0.1:9092")
    return ",".join(s.strip() for s in text.split(","))


def topic(text: str) -> str:
    """A topic's name."""
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,249}", text):
        raise ValueError("write a topic's name of letters, digits, dots, underscores and dashes")
    return text


def topics(text: str) -> tuple[str, ...]:
    """Topics' names, comma separated."""
    return tuple(topic(t.strip()) for t in text.split(","))


def words(text: str) -> tuple[str, ...]:
    """Words, comma separated."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def name(text: str) -> str:
    """A name that may name a file."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", text):
        raise ValueError("write a name of letters, digits, dots, underscores and dashes: it names a file")
    return text


def path(text: str) -> Path:
    """A folder, absolute."""
    if not text.strip() or "\0" in text:
        raise ValueError("write the path of a folder")
    return Path(text).expanduser().absolute()


def every(text: str) -> int | None:
    """A duration in milliseconds, None for `auto`."""
    return None if text == "auto" else positive(text)


def plain(text: str) -> str:
    """Text as it is."""
    return text


def host_name() -> str:
    """This machine's name, as a worker's name may be written."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname()).lstrip(".-_") or "worker"
