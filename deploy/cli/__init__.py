"""The command `nextclick`: what people type, and one line where something is wrong."""

from __future__ import annotations

import sys

import click
import typer

from deploy.cli import cadence, config, erasure, feed, models, processes

# Errors whose message is meant for people, by name: their modules stay unimported until a command needs them.
EXPECTED = frozenset({
    "SettingsError", "BrokerError", "BrokerUnreachable", "UnreadableFile", "NotReady", "CorruptVersion",
    "TopicUnusable", "LogBehindProgress", "NothingThere", "NoBrokersAvailable", "KafkaTimeoutError",
    "KafkaConnectionError",
})  # fmt: skip

app = typer.Typer(
    name="nextclick", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Knows what a shopper is about to want: Kafka in, calibrated predictions out, retrained every minute.",
)  # fmt: skip
app.add_typer(config.app, name="config")
app.add_typer(models.app, name="models")
app.add_typer(cadence.app, name="cadence")
for command in (
    processes.up, processes.broker, processes.worker, processes.trainer, feed.replay, feed.simulate, feed.backtest,
    erasure.forget,
):  # fmt: skip
    app.command()(command)


def main(arguments: list[str] | None = None) -> None:
    """Run one command; known errors are one line on stderr and code 1, ctrl-C is code 130."""
    try:
        code = app(args=sys.argv[1:] if arguments is None else arguments, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        print("stopped", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        code = 0
    except ImportError as error:
        print(f"nextclick: a part is not installed ({error}): pip install 'nextclick[all]'", file=sys.stderr)
        code = 1
    except Exception as error:
        if not expected(error):
            raise
        print(f"nextclick: {error or type(error).__name__}", file=sys.stderr)
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


def expected(error: BaseException) -> bool:
    """Whether the message alone tells people what to do."""
    return isinstance(error, OSError) or any(kind.__name__ in EXPECTED for kind in type(error).__mro__)
