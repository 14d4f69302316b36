"""How a process is, over HTTP: /live, /ready, /metrics, /status, from a thread that never touches the event loop."""

from __future__ import annotations

import bisect
import contextlib
import hmac
import itertools
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import orjson
import structlog

from deploy import settings as dials
from featurestore import bots
from streams import purchases

log = structlog.get_logger()

PULSE_S = 15.0  # a loop that has not come round for so long is stuck
STALLED_S = 60.0  # lag, and nothing read or predicted for so long
READERS = 16  # at once
ASKED_BYTES = 2 * 1024 * 1024
READ_S = 5.0  # a reader may take for its request
BUCKETS_MS = (2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000)
COUNTED = {
    "events": "Events in the messages read",
    "dead_letters": "Messages kept as dead letters",
    "predictions": "Predictions sent",
    "unkeyed": "Events whose record was not keyed by their user",
    "swaps": "Changes to another model version",
}
COUNTED_BY_PARTITION = {
    "stored": "Events stored, since the log began",
    "duplicates": "Events seen before, since the log began",
    "rejected": "Events that could not be taken, since the log began",
}
BY_REASON = {  # name: which of the status, what it tells
    "bot_rows": ("rows", "Events left out, since their session is no person's"),
    "bot_sessions": ("sessions", "Sessions that turned out to be no person's"),
}
Families = Mapping[str, tuple[str, str, Mapping[str, str]]]
OF_ARM: Families = {  # name: what it tells, its label, and what is summed for each of the label's values
    "outcomes": ("Predictions whose horizon is over", "", {"": "settled"}),
    "outcome_next": ("Those after which a different item followed", "", {"": "next"}),
    "outcome_loss": ("Their log loss summed, nats", "", {"": "loss"}),
    "outcome_reciprocal_rank": ("Reciprocal ranks of what followed summed, 0 beyond the first 20", "",
                                {"": "reciprocal"}),
    "outcome_hits": ("Those whose next item was among the first so many", "first",
                     {"1": "hit1", "5": "hit5", "20": "hit20"}),
    "outcome_categorised": ("Those whose next item told its category", "", {"": "categorised"}),
    "outcome_category_hits": ("Those whose next category was among the first so many", "first",
                              {"1": "category1", "5": "category5"}),
    "outcome_said": ("Probability said of nothing more, of the first item, of all listed ones, summed", "of",
                     {"none": "none_said", "first": "first_said", "listed": "listed_said"}),
}  # fmt: skip
OF_PURCHASES: Families = {  # the same of those that said how probable a purchase is
    "purchase_outcomes": ("Purchase probabilities whose horizon is over", "", {"": "settled"}),
    "purchase_outcome_loss": ("Their log loss summed, nats", "", {"": "loss"}),
    "purchase_outcome_said": ("Those probabilities summed", "", {"": "said"}),
    "purchase_outcome_bought": ("Those after which a purchase followed", "", {"": "bought"}),
}
BY_PARTITION = {
    "lag": "Records between what was read and the log's end",
    "watermark_seconds": "Event time up to which the partition was seen",
    "open_sessions": "Sessions that may still grow",
}
OF_TRAINER = {  # name: key of the status, what it tells, how many of its units are one of the metric's
    "verdict_timestamp_seconds": ("verdict_ms", "When a retrain was judged last", 1_000),
    "accepted_timestamp_seconds": ("accepted_ms", "When a version passed last", 1_000),
    "rejected_in_a_row": ("rejected_in_a_row", "Candidates kept out since one passed", 1),
    "cadence_seconds": ("cadence_ms", "Time between retrains, as set now", 1_000),
    "paused_until_timestamp_seconds": ("paused_until_ms", "Until when retrains are paused", 1_000),
}


class Latencies(deque[float]):
    """The newest latencies, and how many there ever were in each bucket."""

    def __init__(self) -> None:
        super().__init__(maxlen=20_000)
        self.counts = [0] * (len(BUCKETS_MS) + 1)
        self.sum_ms = 0.0

    def append(self, ms: float) -> None:
        """Take one more."""
        super().append(ms)
        self.counts[bisect.bisect_left(BUCKETS_MS, ms)] += 1
        self.sum_ms += ms


class Health:
    """What a process said of itself last; it says so once a second, readers only look."""

    def __init__(self) -> None:
        self.status: Mapping[str, Any] = {}
        self.unready: Sequence[str] = ("it is starting",)
        self.latencies = Latencies()
        self.rank: Callable[[bytes], Any] | None = None  # what a worker answers /rank with
        self._pulse_s = self._moved_s = 0.0
        self._done: object = None

    def pulse(self, status: Mapping[str, Any], unready: Sequence[str], done: object = None) -> None:
        """The loop came round: how it is and why it is not ready; `done` changes as long as work moves."""
        now = time.monotonic()
        if done is None or done != self._done:
            self._moved_s, self._done = now, done
        self.status, self.unready, self._pulse_s = status, unready, now

    def unwell(self) -> list[str]:
        """Why it should be started again; a process that has not begun its work yet is well."""
        now, reasons = time.monotonic(), []
        if self._pulse_s and now - self._pulse_s > PULSE_S:
            reasons.append(f"the loop has not come round for {now - self._pulse_s:.0f} s")
        elif self._pulse_s and now - self._moved_s > STALLED_S:
            reasons.append(f"there is lag, and nothing was read or predicted for {now - self._moved_s:.0f} s")
        return reasons


class Collector:
    """The newest status in Prometheus' words."""

    def __init__(self, health: Health) -> None:
        self.health = health

    def collect(self) -> Iterator[Any]:
        """One family of metrics after the other."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        status = self.health.status
        yield GaugeMetricFamily("nextclick_ready", "Whether it is ready", value=not self.health.unready)
        for name in [n for n in COUNTED if n in status]:
            yield CounterMetricFamily(f"nextclick_{name}", COUNTED[name], value=status[name])
        parts = status.get("parts", ())
        for kind, names in ((CounterMetricFamily, COUNTED_BY_PARTITION), (GaugeMetricFamily, BY_PARTITION)):
            for name, told in names.items() if parts else ():
                family = kind(f"nextclick_{name}", told, labels=("topic", "partition"))
                for part in parts:
                    family.add_metric((part["topic"], str(part["partition"])), part[name])
                yield family
        for name, (key, told) in BY_REASON.items() if "bots" in status else ():
            counted = CounterMetricFamily(f"nextclick_{name}", told, labels=("reason",))
            for reason in bots.REASONS:
                counted.add_metric((reason,), status["bots"][key].get(reason, 0))
            yield counted
        if "catalogue" in status:
            stock = GaugeMetricFamily("nextclick_catalogue_items", "What the catalogue tells", labels=("state",))
            for state, items in status["catalogue"].items():
                stock.add_metric((state,), items)
            yield stock
        yield from outcomes(status.get("outcomes"))
        busy = CounterMetricFamily("nextclick_busy_seconds", "Where the time goes", labels=("stage",))
        for stage, seconds in status.get("busy_s", {}).items():
            busy.add_metric((stage,), seconds)
        yield busy
        if "version" in status or "champion" in status:
            version = str(status.get("version") or status.get("champion") or "")
            model = GaugeMetricFamily("nextclick_model_info", "The version in use", labels=("version",))
            model.add_metric((version,), 1)
            yield model
        if "retrains" in status:
            yield GaugeMetricFamily("nextclick_leading", "Whether this trainer leads", value=status["leading"])
            retrains = CounterMetricFamily("nextclick_retrains", "Retrains led to their end", labels=("outcome",))
            for outcome, count in status["retrains"].items():
                retrains.add_metric((outcome,), count)
            yield retrains
            for name, (key, told, unit) in OF_TRAINER.items():
                if status.get(key) is not None:
                    yield GaugeMetricFamily(f"nextclick_{name}", told, value=status[key] / unit)
            return
        counts = list(itertools.accumulate(self.health.latencies.counts))
        bounds = [*(str(ms / 1000) for ms in BUCKETS_MS), "+Inf"]
        yield HistogramMetricFamily(
            "nextclick_latency_seconds", "From a record's arrival to its acknowledged prediction, without lag",
            buckets=list(zip(bounds, counts, strict=True)), sum_value=self.health.latencies.sum_ms / 1000,
        )  # fmt: skip


def outcomes(told: Mapping[str, Any] | None) -> Iterator[Any]:
    """What predictions came to by arm, over all versions: a counter must not go when a version does."""
    if told is None:
        return
    yield from _outcomes("outcomes", OF_ARM, told, told["arms"])
    yield from _outcomes("purchase_outcomes", OF_PURCHASES, told["purchases"], purchases.totals(told["purchases"]))


def _outcomes(kind: str, families: Families, told: Mapping[str, int], arms: Mapping[str, Any]) -> Iterator[Any]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    yield GaugeMetricFamily(f"nextclick_{kind}_open", "Predictions that wait for their horizon", value=told["open"])
    yield CounterMetricFamily(f"nextclick_{kind}_passed_over", "Left out by sampling", value=told["passed_over"])
    for name, (said, label, sums) in families.items():
        family = CounterMetricFamily(f"nextclick_{name}", said, labels=("arm", label) if label else ("arm",))
        for arm, fields in arms.items():
            for value, field in sums.items():
                family.add_metric((arm, value) if label else (arm,), fields[field])
        yield family


class Server(HTTPServer):
    """Answers a few readers at once, each in a thread with a time limit."""

    request_queue_size = READERS

    def __init__(self, at: tuple[str, int], health: Health, token: str) -> None:
        from prometheus_client import CollectorRegistry, ProcessCollector

        self.health, self.token, self.open = health, token.encode(), not token
        self.address_family = socket.AF_INET6 if ":" in at[0] else socket.AF_INET
        self.registry = CollectorRegistry()
        self.registry.register(Collector(health))
        ProcessCollector(registry=self.registry)
        self._room = threading.BoundedSemaphore(READERS)
        super().__init__(at, Reader)

    def server_bind(self) -> None:
        """Bind without asking a name server who we are."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread, or hang up where too many are reading."""
        if self._room.acquire(blocking=False):
            threading.Thread(target=self._answer, args=(request, client_address), daemon=True, name="http").start()
        else:
            self.shutdown_request(request)

    def _answer(self, request: Any, client_address: Any) -> None:
        try:
            with contextlib.suppress(OSError):  # the reader left
                self.finish_request(request, client_address)
        finally:
            self.shutdown_request(request)
            self._room.release()


class Reader(BaseHTTPRequestHandler):
    """One request; without the token, where one is set, only whether it is live and ready."""

    server: Server
    timeout = READ_S

    def do_GET(self) -> None:
        """Answer by path."""
        health, path = self.server.health, self.path.partition("?")[0]
        known = self._known()
        if path in ("/live", "/ready"):
            reasons = health.unwell() if path == "/live" else [*health.unwell(), *health.unready]
            self._say(503 if reasons else 200, {"reasons": reasons if known else ["ask with the token"]} if reasons
                      else {"reasons": []})  # fmt: skip
        elif path not in ("/metrics", "/status"):
            self._say(404, {"error": "there are /live, /ready, /metrics and /status"})
        elif not known:
            self._say(401, {"error": "show the token: Authorization: Bearer TOKEN"})
        elif path == "/status":
            self._say(200, {**health.status, "live": not health.unwell(), "unready": list(health.unready)})
        else:
            from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

            self._write(200, generate_latest(self.server.registry), CONTENT_TYPE_LATEST)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        """Given items ranked for a person; the same token as for reading."""
        rank, length = self.server.health.rank, self.headers.get("Content-Length", "")
        if self.path.partition("?")[0] != "/rank":
            self._say(404, {"error": "there is POST /rank"})
        elif not self._known():
            self._say(401, {"error": "show the token: Authorization: Bearer TOKEN"})
        elif self.headers.get_content_type() != "application/json":  # a page in a browser may not send that unasked
            self._say(415, {"error": "send JSON: Content-Type: application/json"})
        elif not length.isdigit() or int(length) > ASKED_BYTES:
            self._say(413, {"error": f"send a Content-Length of at most {ASKED_BYTES:,} bytes"})
        elif rank is None:
            self._say(503, {"error": "this process ranks nothing (yet): ask a worker that is ready"})
        else:
            try:
                self._say(200, rank(self.rfile.read(int(length))))
            except ValueError as error:
                self._say(400, {"error": str(error)})
            except TimeoutError:
                self._say(503, {"error": "the worker is busy: ask again"})

    def _known(self) -> bool:
        """Whether the reader showed the token; where there is none, whether it asked for this machine by its name.

        A page in a browser reaches loopback under a name of its own: that is turned away.
        """
        if self.server.open:
            host = self.headers.get("Host", "localhost")
            name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
            return dials.loopback(name)
        kind, _, shown = self.headers.get("Authorization", "").partition(" ")
        return kind.lower() == "bearer" and hmac.compare_digest(shown.strip().encode(), self.server.token)

    def _say(self, code: int, what: Any) -> None:
        self._write(code, orjson.dumps(what), "application/json")

    def _write(self, code: int, body: bytes, kind: str) -> None:
        self.send_response_only(code)  # without who serves it in which version
        if code == 401:
            self.send_header("WWW-Authenticate", "Bearer")
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What is no request of ours."""
        self.close_connection = True
        self._write(code, b"", "text/plain")

    def log_message(self, *_: Any) -> None:
        """Reading is not worth a line."""


def serve(settings: dials.Settings) -> Health:
    """Answer from now on, where the settings say so; raises SettingsError where the address cannot be had."""
    health = Health()
    if settings["http"] is None:
        return health
    try:
        server = Server(settings["http"], health, settings.secret("http.token"))
    except OSError as error:
        raise dials.SettingsError(
            f"http = {settings.text('http')} cannot be listened on ({error.strerror or error}): choose another"
        ) from error
    threading.Thread(target=server.serve_forever, name="http", daemon=True).start()
    host, port = server.server_address[:2]
    log.info("Tells how it is.", http=url((str(host), int(port))), paths="/live /ready /metrics /status")
    return health


def url(at: tuple[str, int]) -> str:
    """An address as a browser takes it.

    >>> url(("::1", 8750))
    'http://[::1]:8750'
    """
    return f"http://[{at[0]}]:{at[1]}" if ":" in at[0] else f"http://{at[0]}:{at[1]}"


def beside(settings: dials.Settings) -> dials.Settings:
    """The settings of a second process on the same machine: its port is the next one."""
    if settings["http"] is None or not settings["http"][1]:
        return settings
    host, port = settings["http"]
    return settings.changed(http=url((host, port + 1)).removeprefix("http://"))
