"""What goes wrong, as it is told to people: one line with its remedy, whichever way a process was started."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable

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


def code_of(run: Callable[[], object]) -> int:
    """Run something to its end; the exit code is the one it returned, if it did.

    Known errors are one line on stderr and code 1, ctrl-C is code 130; anything else is Python's traceback and code 3.
    """
    try:
        code = run()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        code = 0
    except ImportError as error:
        print(f"nextclick: a part is not installed ({error}): pip install 'nextclick[all]'", file=sys.stderr)
        code = 1
    except Exception as error:
        code = _tell(error)
    return code if isinstance(code, int) else 0


def _tell(error: Exception) -> int:
    """One line for what people can mend; for anything else Python's traceback above it. The exit code."""
    name = type(error).__name__
    text = " ".join(str(error).split()) or name
    if name in REMEDIES:
        print(f"nextclick: {text}: {REMEDIES[name]}", file=sys.stderr)
        return 1
    if _expected(error):
        print(f"nextclick: {text}", file=sys.stderr)
        return 1
    traceback.print_exception(error)
    print(f"nextclick: stopped by what should not happen: {name}: {text}", file=sys.stderr)
    return 3


def _expected(error: BaseException) -> bool:
    """Whether the message alone tells people what to do."""
    return isinstance(error, OSError) or any(kind.__name__ in EXPECTED for kind in type(error).__mro__)
