"""Predictions, shares and rates as characters on a terminal; every line fits the width that it is given."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streams.codec import Prediction

SHOWN = 3  # items of a prediction
BAR = 10  # characters
WIDTH = 80
COLOURS = {"user": "\x1b[1m", "bar": "\x1b[36m", "dim": "\x1b[2m", "end": "\x1b[0m"}
PLAIN = dict.fromkeys(COLOURS, "")

Titles = Callable[[str], str | None]


def prediction(made: Prediction, titles: Titles, *, width: int = WIDTH, colours: Mapping[str, str] = PLAIN) -> str:
    """A prediction as people read it: who, what they may do next, how probable each is."""
    head = f"{made.event_ts:%H:%M:%S} {made.user_id}"
    facts = [f"nothing more {made.none_probability:.0%}"]
    if made.purchase_probability is not None:
        facts.append(f"buys {made.purchase_probability:.0%}")
    facts.append(made.model_version if made.reason == "model" else f"{made.model_version} (fallback)")
    tail = " · ".join(facts)
    first = f"{fitted(head, max(8, width - len(tail) - 2))}  "
    lines = [f"{colours['user']}{first}{colours['end']}{colours['dim']}{tail}{colours['end']}"]
    rows = [(titles(i.item_id) or i.item_id, i.probability) for i in made.items[:SHOWN]]
    rows += [(f"in {c.category}", c.probability) for c in made.categories[:1]]
    room = width - BAR - 10
    for name, probability in rows or [("nothing is known to be near", 0.0)]:
        lines.append(f"  {colours['bar']}{bar(probability)}{colours['end']} {probability:>4.0%}  {fitted(name, room)}")
    return "\n".join(lines)


def bar(share: float) -> str:
    """A share of one as a bar of `BAR` characters.

    >>> bar(0.25)
    '██▌       '
    """
    eighths = round(min(max(share, 0.0), 1.0) * BAR * 8)
    drawn = "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()
    return drawn.ljust(BAR)


def sparkline(values: Sequence[float], width: int) -> str:
    """The newest `width` values, each as high as its share of the largest; the newest on the right.

    >>> sparkline([0, 1, 2, 4], 5)
    ' ▁▃▅█'
    """
    shown = values[-width:]
    most = max(shown, default=0)
    steps = [round(7 * value / most) if most > 0 else 0 for value in shown]
    return "".join("▁▂▃▄▅▆▇█"[max(0, step)] for step in steps).rjust(width)


def fitted(text: str, room: int) -> str:
    """A text in at most so many columns of a terminal; Chinese, Japanese and Korean take two a character.

    What would steer the terminal is shown as a dot: titles come from outside.

    >>> fitted("Kestrel shoes", 8), fitted("靴と時計", 5), fitted("a\\x1b[2J", 9)
    ('Kestrel…', '靴と…', 'a·[2J')
    """
    text = "".join(character if character.isprintable() else "·" for character in text)
    if columns(text) <= room:
        return text
    kept, used = [], 1
    for character in text:
        used += columns(character)
        if used > room:
            break
        kept.append(character)
    return "".join(kept) + "…"


def columns(text: str) -> int:
    """How many columns of a terminal a text takes."""
    return sum(
        0 if unicodedata.combining(character) else 1 + (unicodedata.east_asian_width(character) in "WF")
        for character in text
    )
