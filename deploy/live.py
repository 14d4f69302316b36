"""What `up` shows while it runs: a frame of lines on a terminal, one plain line now and then without one."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TextIO

import msgspec

from deploy import drawing, notation, status, verdicts
from deploy.watching import Watch
from streams import control, quality
from streams.codec import Prediction

LINE_S = 5.0  # between two plain lines
FRAME_S = 1.0  # between two frames: workers beat once a second
RATE_S = 3  # a rate is that of so many seconds
KEPT = 60  # rates that are drawn
VERDICTS = 3


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """How a run stands, as plain values: what `line` and `frame` are functions of."""

    kafka: str
    ran_ms: int
    for_ms: int | None = None
    events: Sequence[float] = ()  # read by the workers, a second; newest last
    predictions: Sequence[float] = ()
    lag: int = 0
    open_sessions: int = 0
    dead_letters: int = 0
    duplicates: int = 0
    latency_ms: Mapping[str, float] | None = None  # p50 and p99 at lag 0
    workers: int = 0
    owned: int = 0
    partitions: int = 0
    champion: str | None = None
    swaps: int = 0
    next: str = ""  # what the trainer does now, or when it will
    verdicts: Sequence[dict[str, Any]] = ()  # newest last
    live: dict[str, Any] = {}  # as `quality.merged`
    latest: Sequence[Prediction] = ()
    titles: Mapping[str, str] = {}  # of the items in `latest`


class Rates:
    """Events and predictions a second, from counts that only grow; a worker that began again counts from 0."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._counts: deque[tuple[float, int, int]] = deque(maxlen=RATE_S + 1)
        self.events: deque[float] = deque(maxlen=KEPT)
        self.predictions: deque[float] = deque(maxlen=KEPT)

    def take(self, events: int, predictions: int) -> None:
        """The counts of now; once a second they become rates."""
        now = self._now()
        if self._counts and now - self._counts[-1][0] < FRAME_S:
            return
        if self._counts:
            at, events_then, predictions_then = self._counts[0]
            self.events.append(max(0.0, (events - events_then) / (now - at)))
            self.predictions.append(max(0.0, (predictions - predictions_then) / (now - at)))
        self._counts.append((now, events, predictions))


def seen(
    watch: Watch, state: control.ControlState, rates: Rates, *, ran_ms: int, for_ms: int | None, now_ms: int
) -> Shown:
    """What can be seen from outside now."""
    latest = tuple(watch.latest)
    named = {item.item_id for one in latest for item in one.items[: drawing.SHOWN]}
    cadence_ms = int(watch.settings.with_control(state.dials)[0]["cadence"])
    return Shown(
        kafka=str(watch.settings.kafka), ran_ms=ran_ms, for_ms=for_ms, events=tuple(rates.events),
        predictions=tuple(rates.predictions), lag=watch.total("lag"), open_sessions=watch.total("open_sessions"),
        dead_letters=watch.dead_letters, duplicates=watch.total("duplicates"), latency_ms=watch.latency_ms,
        workers=sum(now_ms - int(beat["at_ms"]) < status.GONE_MS for beat in watch.beats.values()), owned=watch.owned,
        partitions=watch.partitions, champion=state.champion, swaps=watch.total("swaps"),
        next=told_next(state, cadence_ms, now_ms), verdicts=state.verdicts[-VERDICTS:],
        live=quality.merged(watch.beats.values()), latest=latest,
        titles={item: title for item in named if (title := watch.title(item))},
    )  # fmt: skip


# ---------------------------------------------------------------- without a terminal


def line(shown: Shown) -> str:
    """How things stand, in one line, and the newest prediction in a second one.

    `12.0 events/s · 11.2 predictions/s · lag 0 · 140 open sessions · champion v000003-ab12cd · …`
    """
    parts = [
        f"{_newest(shown.events):,.0f} events/s", f"{_newest(shown.predictions):,.0f} predictions/s",
        f"lag {shown.lag:,}", f"{shown.open_sessions:,} open sessions",
        f"champion {shown.champion or 'none yet: the memory answers'}",
    ]  # fmt: skip
    if shown.verdicts:
        last = shown.verdicts[-1]
        told = f"{last.get('kind')} {verdicts.outcome(last)}"
        parts.append(f"last retrain: {told} ({last.get('reason')}, n={last.get('n', 0)})")
    parts.append(shown.next)
    return " · ".join(parts) + (f"\n    {told_prediction(shown)}" if shown.latest else "")


def told_next(state: control.ControlState, cadence_ms: int, now_ms: int) -> str:
    """What the trainer does now, or when it will: a cadence after it began last."""
    if state.running is not None:
        return f"{state.running.data.get('kind', 'retrain')} runs for {(now_ms - state.running.at_ms) // 1000} s"
    if state.pause is not None and state.pause.until_ms > now_ms:
        return f"retrains paused for {(state.pause.until_ms - now_ms) // 1000} s by {state.pause.by}"
    if not state.verdicts:
        return "the first retrain is due"
    begun_ms = int(state.verdicts[-1]["at_ms"]) - int(state.verdicts[-1].get("wall_ms", 0))
    wait_s = (begun_ms + cadence_ms - now_ms) // 1000
    return f"next retrain in {wait_s} s" if wait_s >= 0 else "the next retrain waits for events"


def told_prediction(shown: Shown) -> str:
    """The newest prediction with titles."""
    said = shown.latest[-1]
    items = [f"{shown.titles.get(i.item_id, i.item_id)} {i.probability:.0%}" for i in said.items[:3]]
    return f"{said.user_id} → {', '.join(items) or '–'}; nothing more {said.none_probability:.0%}"


def _newest(rates: Sequence[float]) -> float:
    return rates[-1] if rates else 0.0


# ---------------------------------------------------------------- on a terminal


def frame(shown: Shown, *, width: int = drawing.WIDTH, colours: Mapping[str, str] = drawing.PLAIN) -> list[str]:
    """The same as lines of at most `width` columns, the most important first: what is too low for a terminal is cut."""
    lines: list[str] = []
    for part in (_head(shown), _rates(shown, width), _model(shown), _arms(shown)):
        made = [drawing.fitted(text, width) for text in part]
        lines += [f"{colours['user']}{made[0]}{colours['end']}", *made[1:], ""] if made else []
    for one in reversed(shown.latest):
        lines += drawing.prediction(one, shown.titles.get, width=width, colours=colours).splitlines()
    return lines


def _head(shown: Shown) -> Iterator[str]:
    ran = notation.written(shown.ran_ms // 1000 * 1000)
    until = f" of {notation.written(shown.for_ms)}" if shown.for_ms is not None else ""
    yield (f"nextclick on {shown.kafka} for {ran}{until} · {shown.owned} of {shown.partitions} partitions · "
           f"{shown.workers} worker{'s' * (shown.workers != 1)}")  # fmt: skip


def _rates(shown: Shown, width: int) -> Iterator[str]:
    p50, p99 = (f"{shown.latency_ms[p]:,.0f} ms" if shown.latency_ms else "–" for p in ("p50", "p99"))
    drawn = max(0, min(KEPT, width - 56))
    for name, rates, beside in (
        ("events/s", shown.events, f"lag {shown.lag:,}, {shown.open_sessions:,} open sessions"),
        ("predictions/s", shown.predictions, f"p50 {p50}, p99 {p99}"),
    ):
        yield f"{name:<13} {_newest(rates):>9,.1f} {drawing.sparkline(rates, drawn)}  {beside}"
    if shown.dead_letters or shown.duplicates:
        yield f"dead letters {shown.dead_letters:,}, duplicates {shown.duplicates:,}"


def _model(shown: Shown) -> Iterator[str]:
    champion = shown.champion or "none yet: the memory answers"
    yield f"champion {champion} · {shown.swaps} swap{'s' * (shown.swaps != 1)} · {shown.next}"
    for verdict in reversed(shown.verdicts):
        gain = (verdict.get("bounds") or {}).get("loss") or {}
        nats = f", log loss {gain['mean']:+.3f}" if gain.get("mean") is not None else ""
        yield (f"  {verdict.get('kind')} {verdicts.outcome(verdict)}: {verdict.get('reason')} "
               f"(n={verdict.get('n', 0):,}{nats}, {verdict.get('cpu_seconds', 0):.0f} CPU s)")  # fmt: skip


def _arms(shown: Shown) -> Iterator[str]:
    """What predictions came to whose horizon is over, a line an arm; nothing before there are any."""
    arms = shown.live.get("arms") or ()
    if arms:
        yield f"{'came to':<10}{'n':>8}  {'log loss':<22}{'R@20':<20}{'nothing more':<18}"
    for one in arms:
        loss, recall, nothing = quality.told(one["log_loss"], 2), quality.told(one["recall20"], 2), one["nothing_more"]
        said = f"said {nothing['said']:.0%}, came {nothing['came']:.0%}"
        yield f"  {one['arm']:<8}{one['n']:>8,}  {loss:<22}{recall:<20}{said}"


# ---------------------------------------------------------------- who shows it


class Shows(Protocol):
    """Where a run is told: sentences as they come, how it stands now and then."""

    every_s: float

    def say(self, text: str) -> None: ...
    def show(self, shown: Shown) -> None: ...
    def close(self) -> None: ...


class Lines:
    """Plain lines, for a file, a pipe or a log."""

    every_s = LINE_S

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def say(self, text: str) -> None:
        """A sentence on a line of its own."""
        print(text, file=self._out, flush=True)

    def show(self, shown: Shown) -> None:
        """One line, two where something was predicted."""
        self.say(line(shown))

    def close(self) -> None:
        """Nothing is left behind."""


class Screen:
    """A frame that is drawn over the last one; sentences stay above it."""

    every_s = FRAME_S

    def __init__(self, out: TextIO, size: Callable[[], tuple[int, int]], colours: Mapping[str, str]) -> None:
        self._out, self._size, self._colours = out, size, colours
        self._drawn = 0  # lines of the frame
        self._shown: Shown | None = None

    def say(self, text: str) -> None:
        """A sentence above the frame."""
        self._draw(text.splitlines(), stays=True)
        if self._shown is not None:
            self.show(self._shown)

    def show(self, shown: Shown) -> None:
        """Draw it in place of the last one, as much of it as the terminal has room for."""
        self._shown = shown
        columns, rows = self._size()
        self._draw(frame(shown, width=columns, colours=self._colours)[: rows - 1], stays=False)

    def close(self) -> None:
        """The last frame stays where it is."""
        self._drawn, self._shown = 0, None

    def _draw(self, lines: Sequence[str], *, stays: bool) -> None:
        up = f"\x1b[{self._drawn}F" if self._drawn else ""
        self._out.write(up + "\x1b[J" + "".join(f"{text}\n" for text in lines))
        self._out.flush()
        self._drawn = 0 if stays else len(lines)


def chosen(out: TextIO, environment: Mapping[str, str] = os.environ) -> Shows:
    """A frame where somebody looks at a terminal that can draw it, plain lines elsewhere."""
    if not out.isatty() or environment.get("TERM", "dumb") == "dumb":
        return Lines(out)
    colours = drawing.PLAIN if environment.get("NO_COLOR") else drawing.COLOURS
    return Screen(out, lambda: os.get_terminal_size(out.fileno()), colours)
