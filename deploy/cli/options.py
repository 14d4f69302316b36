"""The options that many commands share, and the settings they make."""

from __future__ import annotations

import getpass
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from deploy import settings as dials

Kafka = Annotated[str | None, typer.Option("--kafka", help="The brokers, HOST:PORT.")]
Shared = Annotated[str | None, typer.Option("--shared", help="The shared folder.")]
Worker = Annotated[str | None, typer.Option("--worker", help="This worker's name.")]
Config = Annotated[Path | None, typer.Option("--config", help="A TOML file of settings.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="Any setting: NAME=VALUE; `nextclick config show` lists them.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


class NothingThere(LookupError):
    """What was asked for is not there; the message says what is."""

    def __str__(self) -> str:
        return str(self.args[0])


def settings_of(
    kafka: str | None = None, shared: str | None = None, worker: str | None = None, config: Path | None = None,
    assigned: list[str] | None = None, preset: dict[str, str] | None = None,
) -> dials.Settings:  # fmt: skip
    """The settings as a command's options, the environment and the file say; a preset gives way to all options."""
    named = {"kafka": kafka, "shared": shared, "worker": worker}
    options = (preset or {}) | dials.pairs(assigned or []) | {k: v for k, v in named.items() if v is not None}
    config = config or (Path(os.environ["NEXTCLICK_CONFIG"]) if os.environ.get("NEXTCLICK_CONFIG") else None)
    settings = dials.Settings.load(options, os.environ, config)
    for name in settings.unknown_env:
        print(f"nextclick: the environment variable {name} names no setting and is not used", file=sys.stderr)
    return settings


def milliseconds(text: str | None, option: str) -> int | None:
    """A duration given to an option."""
    try:
        return None if text is None else dials.duration(text)
    except ValueError as error:
        raise dials.SettingsError(f"{option} {text!r} cannot be used: {error}") from error


def show(result: Any, as_json: bool, plain: str) -> None:
    """Print a result for people or for programs."""
    print(orjson.dumps(result, option=orjson.OPT_INDENT_2, default=str).decode() if as_json else plain)


def table(rows: list[list[str]]) -> str:
    """Columns side by side.

    >>> table([["a", "bb"], ["ccc", "d"]])
    'a    bb\\nccc  d'
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)] if rows else []
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows)


def me() -> str:
    """Who is at the keyboard, as far as the machine knows."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "somebody"
