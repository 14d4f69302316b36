"""The command `nextclick`: what people type, and one line where something is wrong."""

from __future__ import annotations

import sys
import traceback
from typing import Any, cast

import typer

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

# Errors whose message is meant for people, by name: their modules stay unimported until a command needs them.
EXPECTED = frozenset({
    "SettingsError", "BrokerError", "BrokerUnreachable", "UnreadableFile", "NotReady", "NotSent", "CorruptVersion",
    "TopicUnusable", "NotLetIn", "NotDelivered", "BadEvent", "LogBehindProgress", "StoreFromNewerVersion",
    "NothingThere", "KafkaError", "UnreadableStore", "UnreadableSegment", "NotRanked", "Unrankable",
    "NotInstalled", "NothingToJudge", "WrongKeys", "NotInOrder", "UnknownBaseline", "Undrawable",
})  # fmt: skip
REMEDIES = {  # errors of other people's making whose message lacks what to do
    "IOException": "a store file belongs to one worker: give each a name of its own with --worker NAME, or remove a "
    "damaged file (it comes back from the lake)",
}

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
    """Run one command; known errors are one line on stderr and code 1, mistyped ones code 2, ctrl-C is code 130."""
    try:
        code = app(args=sys.argv[1:] if arguments is None else arguments, prog_name="nextclick", standalone_mode=False)
    except Mistyped as error:
        code = _mistyped(error)
    except (typer.Abort, KeyboardInterrupt):
        print("stopped", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        code = 0
    except ImportError as error:
        print(f"nextclick: a part is not installed ({error}): pip install 'nextclick[all]'", file=sys.stderr)
        code = 1
    except Exception as error:
        code = _tell(error)
    sys.exit(code if isinstance(code, int) else 0)


def _mistyped(error: typer.BadParameter) -> int:
    """What is not known or missing, and where to look it up; a group alone shows its help. The exit code."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return error.exit_code
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "nextclick"
    print(f"nextclick: {error.format_message().rstrip('.')}: see `{command} --help`", file=sys.stderr)
    return error.exit_code


def _tell(error: Exception) -> int:
    """One line for what people can mend; for anything else Python's traceback above it. The exit code."""
    name = type(error).__name__
    text = " ".join(str(error).split()) or name
    if name in REMEDIES:
        print(f"nextclick: {text}: {REMEDIES[name]}", file=sys.stderr)
        return 1
    if expected(error):
        print(f"nextclick: {text}", file=sys.stderr)
        return 1
    traceback.print_exception(error)
    print(f"nextclick: stopped by what should not happen: {name}: {text}", file=sys.stderr)
    return 3


def expected(error: BaseException) -> bool:
    """Whether the message alone tells people what to do."""
    return isinstance(error, OSError) or any(kind.__name__ in EXPECTED for kind in type(error).__mro__)
