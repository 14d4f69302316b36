"""The command `nextclick`: what people type, and one line where something is wrong."""

from __future__ import annotations

import sys
from typing import Any, cast

import typer

from deploy import errors, logs
from deploy.cli import (
    bench,
    cadence,
    check,
    config,
    dead_letters,
    doctor,
    erasure,
    feed,
    importing,
    models,
    operate,
    processes,
    rank,
    rekey,
    search,
    send,
    store,
    watch,
)

# The base of click's exceptions, or of those of the copy of click that newer versions of typer carry.
Mistyped: type[typer.BadParameter] = cast(
    Any, next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
)

app = typer.Typer(
    name="nextclick", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Knows what a shopper is about to want: Kafka in, calibrated predictions out, retrained every minute.",
)  # fmt: skip
app.add_typer(config.app, name="config")
app.add_typer(models.app, name="models")
app.add_typer(cadence.app, name="cadence")
app.add_typer(store.app, name="store")
app.add_typer(bench.app, name="bench")
app.add_typer(dead_letters.app, name="dead-letters")
for command in (
    processes.up, processes.broker, processes.worker, processes.trainer, feed.replay, feed.simulate, feed.backtest,
    search.tune, erasure.forget, check.check, operate.status, operate.sql, send.send, watch.watch, rank.rank,
    doctor.doctor, rekey.rekey,
):  # fmt: skip
    app.command()(command)
app.command("import")(importing.import_)


def main(arguments: list[str] | None = None) -> None:
    """Run one command as `errors.code_of` does; mistyped ones are one line on stderr and code 2."""

    def command() -> Any:
        try:
            return app(
                args=sys.argv[1:] if arguments is None else arguments, prog_name="nextclick", standalone_mode=False
            )
        except Mistyped as error:
            return _mistyped(error)
        except typer.Abort as stopped:
            raise KeyboardInterrupt from stopped

    logs.configure(libraries=False)
    sys.exit(errors.code_of(command))


def _mistyped(error: typer.BadParameter) -> int:
    """What is not known or missing, and where to look it up; a group alone shows its help. The exit code."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return error.exit_code
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "nextclick"
    print(f"nextclick: {error.format_message().rstrip('.')}: see `{command} --help`", file=sys.stderr)
    return error.exit_code
