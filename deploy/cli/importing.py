"""`nextclick import`: files of old events straight into the lake."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from deploy.cli import check, options


def import_(
    files: Annotated[list[Path], typer.Argument(help="One event a line, oldest first; other systems' and CSV too.")],
    dialect: check.Dialect = None,
    sort: Annotated[bool, typer.Option("--sort", help="The lines are in no order of time: sort them first.")] = False,
    shared: options.Shared = None, config: options.Config = None, assigned: options.Set = None,
    json: options.Json = False,
) -> None:  # fmt: skip
    """Write history into the lake, where the next retrain finds it; stopped, the same command goes on.

    A file is known by what it holds and imported once; one in no order of time is refused without --sort. Rows older
    than `lake.keep` are expired like all others.

    Example: nextclick import 2025.jsonl.gz 2026.jsonl.gz --shared ./nextclick-data
    """
    from deploy import history, replay

    settings = options.settings_of(None, shared, None, config, assigned)
    named = check.named(dialect)
    for file in files:
        if not file.is_file():
            raise replay.UnreadableFile(f"{file} is no file: give files of one event a line")
        replay.opened(file, named)
    made = [history.bring(f, settings.shared, settings.sessions(), dialect=named, sort=sort,
                          keep=settings["personal.keep"], tell=_progress) for f in files]  # fmt: skip
    options.show([msgspec.to_builtins(one) for one in made], json, "\n".join(map(_told, made)))


def _progress(state: Any) -> None:
    if sys.stderr.isatty():
        print(f"\r{state.file}: {state.messages:,} messages, {state.stored:,} rows", end="", file=sys.stderr)


def _told(one: Any) -> str:
    """A file's counts, then what could not be used, with examples."""
    bad = ", ".join(f"{reason} {count:,}" for reason, count in one.unusable.items()) or "none"
    lines = [
        f"{one.file}: {one.stored:,} rows stored of {one.messages:,} messages, {one.late:,} of them late, "
        f"{one.duplicates:,} duplicates, {one.nothing:,} with nothing to store; could not be used: {bad}"
    ]
    return "\n".join(lines + [f"  {example}" for example in one.examples])
