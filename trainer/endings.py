"""Whether anything more comes: a logistic regression that learns from each row as soon as its outcome is known."""

from __future__ import annotations

import itertools
import math
import zlib
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import numba
import numpy as np
from numpy.typing import NDArray

from featurestore.events import TYPES, Row
from featurestore.window import LENGTH

Floats = NDArray[np.float64]
Features = NDArray[np.float32]
FEATURES = (
    "bias", "rows", "items", "minutes", *TYPES, "at_item", "since_item", "carts", "bought", "checked_out",
    "hour_sin", "hour_cos",
)  # fmt: skip
WIDTH = len(FEATURES)
STOP_SHARE = 0.35  # of rows after which nothing more comes, before any outcome was known
PRIOR = np.array([1.0] + [0.02] * (WIDTH - 1))  # variance of each weight then
HORIZON_MS = 1_800_000
LATENESS_MS = 120_000
HALF_LIFE_MS = 24 * 3_600_000  # of what an outcome taught
FADE_MS = 60_000  # of event time between two fadings
IDLE_MS = 1_800_000  # after which a session is taken to be over
SESSIONS = 5_000  # learnt from at once; of more, as large a share as that is
UNANSWERED = 50  # rows of a session that wait at once
FARTHEST = 10  # rows since the last item that are told apart
DAY_MS = 86_400_000
ALL = 2**64
TYPE_AT = {name: 4 + place for place, name in enumerate(TYPES)}


class Cut(msgspec.Struct, gc=False):
    """A row that waits for its outcome."""

    at_ms: int
    session: int  # digest
    item: int  # that the session was at, 0: none
    x: Features
    came: bool = False  # a different item within the horizon


class Trail(msgspec.Struct):
    """What the features of an open session's next row need to know of those before it."""

    first_ms: int
    last_ms: int = 0
    rows: int = 0
    item: int = 0
    since: int = FARTHEST
    carts: int = 0
    bought: bool = False
    checked_out: bool = False
    items: set[int] = set()
    waiting: list[Cut] = []


class Queue(msgspec.Struct):
    """The cuts of a partition in order of arrival, and how far its event time has come."""

    cuts: deque[Cut]
    newest_ms: int = 0


def features(rows: list[Row], at_ms: int) -> Features:
    """What a session's rows say about what comes next, [FEATURES]; the last row's type is one of them."""
    types: list[str] = [row.event.type for row in rows]
    since = next((ago for ago, row in enumerate(reversed(rows)) if row.engages), None)
    return _features(
        len(rows), len({row.event.item_id for row in rows if row.event.item_id}), rows[0].event.ts_ms, at_ms,
        types[-1], since is not None, FARTHEST if since is None else since,
        types.count("cart"), "purchase" in types, "checkout" in types,
    )  # fmt: skip


def _features(
    rows: int, items: int, first_ms: int, at_ms: int, type_: str, at_item: bool, since: int, carts: int, bought: bool,
    checked_out: bool,
) -> Features:  # fmt: skip
    made = np.zeros(WIDTH, np.float32)
    hour = 2 * math.pi * (at_ms % DAY_MS) / DAY_MS
    made[0:4] = 1.0, math.log1p(rows), math.log1p(items), math.log1p(max(0, at_ms - first_ms) / 60_000)
    made[TYPE_AT[type_]] = 1.0
    made[4 + len(TYPES) :] = (
        at_item, math.log1p(min(since, FARTHEST)), math.log1p(carts), bought, checked_out,
        math.sin(hour), math.cos(hour),
    )  # fmt: skip
    return made


class Endings:
    """A part of the memory: a fold over rows, which forgets, so that it is as calibrated as its last day.

    Online Bayesian logistic regression (Spiegelhalter and Lauritzen, Networks 1990) with exponential forgetting. A
    row's outcome counts once event time in its partition has passed its whole horizon, whatever came, so that what
    comes soon is not counted before what never comes. An outcome is one of the same session: a person whose next item
    lies in another session within the horizon is taken to have ended.
    """

    def __init__(self, horizon_ms: int = HORIZON_MS, lateness_ms: int = LATENESS_MS) -> None:
        self.horizon_ms, self.lateness_ms = horizon_ms, lateness_ms  # a row that is later is no outcome
        self.weights: Floats = np.zeros(WIDTH)
        self.weights[0] = math.log(STOP_SHARE / (1 - STOP_SHARE))
        self.spread: Floats = np.diag(PRIOR)  # covariance of the weights
        self.as_of_ms = 0
        self.below = ALL  # sessions whose digest is below it are learnt from
        self.changed_ms = 0
        self.trails: dict[int, Trail] = {}  # by digest, the longest idle first
        self.queues: dict[tuple[str, int], Queue] = {}

    def of(self, x: Features) -> float:
        """The probability that nothing more comes."""
        return 1 / (1 + math.exp(-min(max(float(x @ self.weights), -6.0), 6.0)))

    def asked(self, rows: list[Row], at_ms: int) -> tuple[Features, float]:
        """What the newest rows of a session say, [FEATURES], and the probability that nothing more comes."""
        x = features(rows[-LENGTH:], at_ms)
        return x, self.of(x)

    def take(self, session: int, row: Row) -> None:
        """Fold one row: it may be the outcome of those before it, and waits for its own."""
        event = row.event
        queue = self.queues.get((row.origin.topic, row.origin.partition))
        if queue is None:
            queue = self.queues[row.origin.topic, row.origin.partition] = Queue(deque())
        if event.ts_ms > queue.newest_ms:
            queue.newest_ms = event.ts_ms
            self._settle(queue)
        self._bound(queue.newest_ms)
        if session >= self.below:
            return
        trail = self.trails.pop(session, None)
        if trail is None:
            trail = Trail(event.ts_ms, items=set(), waiting=[])
        self.trails[session] = trail
        item = zlib.crc32(event.item_id.encode()) | 1 << 32 if event.item_id else 0  # never 0
        trail.since += 1
        if item:
            trail.items.add(item)
            if row.engages:
                self._answer(trail, item, event.ts_ms)
                trail.item, trail.since = item, 0
        trail.rows += 1
        trail.last_ms = event.ts_ms
        trail.carts += event.type == "cart"
        trail.bought |= event.type == "purchase"
        trail.checked_out |= event.type == "checkout"
        if not row.late and len(trail.waiting) < UNANSWERED:
            x = _features(
                min(trail.rows, LENGTH), len(trail.items), trail.first_ms, event.ts_ms, event.type, trail.item > 0,
                trail.since, trail.carts, trail.bought, trail.checked_out,
            )  # fmt: skip
            cut = Cut(event.ts_ms, session, trail.item, x)
            trail.waiting.append(cut)
            queue.cuts.append(cut)

    def _answer(self, trail: Trail, item: int, at_ms: int) -> None:
        """A different item within the horizon is what the rows that wait were waiting for."""
        left = []
        for cut in trail.waiting:
            cut.came = item != cut.item and cut.at_ms < at_ms <= cut.at_ms + self.horizon_ms
            if not cut.came:
                left.append(cut)
        trail.waiting = left

    def _settle(self, queue: Queue) -> None:
        """Learn from the cuts whose whole horizon has passed."""
        known_ms = queue.newest_ms - self.horizon_ms - self.lateness_ms
        while queue.cuts and queue.cuts[0].at_ms < known_ms:
            cut = queue.cuts.popleft()
            trail = self.trails.get(cut.session)
            if trail is not None and trail.waiting and trail.waiting[0] is cut:
                del trail.waiting[0]
            if cut.at_ms - self.as_of_ms >= FADE_MS:
                if self.as_of_ms:
                    _fade(self.spread, PRIOR, 2.0 ** ((cut.at_ms - self.as_of_ms) / HALF_LIFE_MS))
                self.as_of_ms = cut.at_ms
            _learn(cut.x, not cut.came, self.weights, self.spread)

    def _bound(self, now_ms: int) -> None:
        """Let go of sessions that are over; of too many, learn from half, and from all again when they are few."""
        over_ms = now_ms - max(IDLE_MS, self.horizon_ms)
        for _ in range(2):  # more than a row can add
            oldest = next(iter(self.trails), None)
            if oldest is None or self.trails[oldest].last_ms >= over_ms:
                break
            del self.trails[oldest]
        if len(self.trails) > SESSIONS:
            self.below, self.changed_ms = self.below // 2, now_ms
            self.trails = {session: trail for session, trail in self.trails.items() if session < self.below}
        elif self.below < ALL and 4 * len(self.trails) < SESSIONS and now_ms > self.changed_ms + IDLE_MS:
            self.below, self.changed_ms = self.below * 2, now_ms

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """All of it as plain values and as arrays, for a version; `read` makes it anew."""
        trails, cuts = self.trails, [cut for queue in self.queues.values() for cut in queue.cuts]
        plain = {
            "features": FEATURES, "horizon_ms": self.horizon_ms, "lateness_ms": self.lateness_ms,
            "as_of_ms": self.as_of_ms, "below": str(self.below), "changed_ms": self.changed_ms,
            "queues": [[t, p, queue.newest_ms, len(queue.cuts)] for (t, p), queue in self.queues.items()],
        }  # fmt: skip
        whole = [
            (t.first_ms, t.last_ms, t.rows, t.item, t.since, t.carts, t.bought, t.checked_out, len(t.items))
            for t in trails.values()
        ]
        told = [(cut.at_ms, cut.item, cut.came) for cut in cuts]
        return plain, {
            "weights": self.weights, "spread": self.spread, "trail": _ints(whole, 9),
            "session": np.fromiter(trails, np.uint64, len(trails)),
            "items": np.array([item for trail in trails.values() for item in sorted(trail.items)], np.int64),
            "cut": _ints(told, 3), "cut_session": np.array([cut.session for cut in cuts], np.uint64),
            "x": np.array([cut.x for cut in cuts], np.float32).reshape(len(cuts), WIDTH),
        }  # fmt: skip

    @classmethod
    def read(cls, plain: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Endings:
        """What `state` told; where it is of other features, nothing is known yet."""
        made = cls(plain["horizon_ms"], plain.get("lateness_ms", LATENESS_MS))  # versions before it do not tell it
        if tuple(plain["features"]) != FEATURES:
            return made
        made.weights, made.spread = arrays["weights"].copy(), arrays["spread"].copy()
        made.as_of_ms, made.below, made.changed_ms = plain["as_of_ms"], int(plain["below"]), plain["changed_ms"]
        items = iter(arrays["items"].tolist())
        for session, (first, last, rows, item, since, carts, bought, out, many) in zip(
            arrays["session"].tolist(), arrays["trail"].tolist(), strict=True
        ):
            seen = set(itertools.islice(items, many))
            made.trails[session] = Trail(first, last, rows, item, since, carts, bool(bought), bool(out), seen, [])
        cuts = iter(_cuts(arrays))
        for topic, partition, newest_ms, many in plain["queues"]:
            queue = made.queues[topic, partition] = Queue(deque(itertools.islice(cuts, many)), newest_ms)
            for cut in queue.cuts:
                if not cut.came and (trail := made.trails.get(cut.session)) is not None:
                    trail.waiting.append(cut)
        return made


def _cuts(arrays: dict[str, NDArray[Any]]) -> Iterable[Cut]:
    for session, (at_ms, item, came), x in zip(
        arrays["cut_session"].tolist(), arrays["cut"].tolist(), arrays["x"], strict=True
    ):
        yield Cut(at_ms, session, item, x.copy(), bool(came))


def _ints(rows: Sequence[tuple[int, ...]], width: int) -> NDArray[np.int64]:
    return np.array(rows, np.int64).reshape(len(rows), width)


@numba.njit(cache=True)
def _fade(spread, prior, wider):  # type: ignore[no-untyped-def] # pragma: no cover
    """Widen the spread of the weights, no variance above its prior."""
    spread *= wider
    for k in range(len(spread)):
        if spread[k, k] > prior[k]:
            narrower = np.sqrt(prior[k] / spread[k, k])
            spread[k, :] *= narrower
            spread[:, k] *= narrower


@numba.njit(cache=True)
def _learn(x, ended, weights, spread):  # type: ignore[no-untyped-def] # pragma: no cover
    """One outcome: the spread by its curvature, the weights by its gradient."""
    n, z = len(x), 0.0
    towards = np.zeros(n)
    for k in range(n):
        z += x[k] * weights[k]
        for j in range(n):
            towards[k] += spread[k, j] * x[j]
    share = 1 / (1 + np.exp(-z))
    curve, along = share * (1 - share), 0.0
    for k in range(n):
        along += x[k] * towards[k]
    less = curve / (1 + curve * along)
    for k in range(n):
        for j in range(n):
            spread[k, j] -= less * towards[k] * towards[j]
    step = (ended - share) / (1 + curve * along)  # towards · step is the new spread times the gradient
    for k in range(n):
        weights[k] += towards[k] * step
