"""What can be seen of a run from its topics: beats, predictions, dead letters, titles."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from typing import Any

import msgspec
import orjson

from deploy import titles
from deploy.settings import Settings
from streams import codec

LATEST = 3  # predictions that are shown
TITLES = 100_000


class Watch:
    """What can be seen from outside: beats, predictions, dead letters."""

    def __init__(self, settings: Settings, *, from_start: bool) -> None:
        self.settings, self.names, self.from_start = settings, settings.topics(), from_start
        self.beats: dict[str, dict[str, Any]] = {}
        self.predictions = self.dead_letters = 0
        self.newest: dict[str, tuple[int, int]] = {}  # user -> (partition, offset) of the newest trigger
        self.unanswered: dict[bytes, tuple[int, int]] = {}  # user -> the newest event that no prediction has met yet
        self.read = 0
        self.latest: deque[codec.Prediction] = deque(maxlen=LATEST)
        self.titles: dict[str, str] = {}
        self.elsewhere = titles.of(settings.shared)  # history, the catalogue, what came before the start
        self.latency_ms: dict[str, float] | None = None
        self.failed: Exception | None = None
        self.partitions = 0  # of the event topics
        self._stop, self._thread = threading.Event(), threading.Thread(target=self._run, daemon=True, name="watch")

    def start(self) -> None:
        """Follow what is written from now on (`from_start`: everything, on a broker that this run started)."""
        self._consumer = self._connected()
        self._thread.start()

    def _connected(self) -> Any:
        from kafka import KafkaConsumer, TopicPartition

        consumer = KafkaConsumer(
            **self.settings.kafka.for_kafka_python(), group_id=None, enable_auto_commit=False,
            auto_offset_reset="earliest", fetch_max_wait_ms=100,
        )  # fmt: skip
        watched = (self.names.state, self.names.predictions, self.names.dead_letters, *self.names.events)
        parts = [TopicPartition(t, p) for t in watched for p in consumer.partitions_for_topic(t) or ()]
        self.partitions = sum(part.topic in self.names.events for part in parts)
        consumer.assign(parts)
        if self.from_start:  # the embedded broker says a wrong latest offset
            consumer.seek_to_beginning(*parts)
            return consumer
        for part, end in consumer.end_offsets(parts).items():  # an older run's records are not this run's
            consumer.seek(part, end)
        return consumer

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                for part, records in self._consumer.poll(timeout_ms=200).items():
                    for record in records:
                        self._take(part.topic, record)
        except Exception as error:
            self.failed = error
        finally:
            self._consumer.close()

    def _take(self, topic: str, record: Any) -> None:
        if topic == self.names.dead_letters:
            self.dead_letters += 1
            self.unanswered.pop(record.key, None)
        elif record.value is None:
            return
        elif topic == self.names.state:
            self._beat(orjson.loads(record.value))
        elif topic == self.names.predictions:
            with contextlib.suppress(msgspec.MsgspecError):  # who else writes there is not this run's matter
                self._prediction(codec.decode_prediction(record.value))
        else:
            self.read += 1
            at = (record.partition, record.offset)
            if record.key is not None and self.newest.get(record.key.decode(errors="replace"), (-1, -1)) < at:
                self.unanswered[record.key] = at
            with contextlib.suppress(orjson.JSONDecodeError):
                self._title(orjson.loads(record.value))

    def _beat(self, beat: dict[str, Any]) -> None:
        self.beats = self.beats | {beat["worker"]: beat}  # others iterate over it
        if beat.get("lag") == 0 and beat.get("latency_ms"):
            self.latency_ms = beat["latency_ms"]

    def _prediction(self, said: codec.Prediction) -> None:
        self.predictions += 1
        self.latest.append(said)
        at, known = (said.trigger.partition, said.trigger.offset), self.newest.get(said.user_id)
        if known is None or known[0] != at[0] or known < at:
            self.newest[said.user_id] = at
        if self.unanswered.get(user := said.user_id.encode(), (at[0], at[1] + 1)) <= at:
            del self.unanswered[user]

    def _title(self, said: Any) -> None:
        for event in said if isinstance(said, list) else [said]:
            if (
                isinstance(event, dict)
                and isinstance(event.get("item_id"), str)
                and isinstance(event.get("title"), str)
            ):
                if len(self.titles) > TITLES:
                    self.titles.clear()
                self.titles[event["item_id"]] = event["title"]

    def title(self, item_id: str) -> str | None:
        """What an item is called: as an event told since the start, else as the shared folder knows it."""
        return self.titles.get(item_id) or self.elsewhere(item_id)

    def total(self, name: str) -> int:
        """A count over all workers' newest beats."""
        return sum(int(b.get(name) or 0) for b in self.beats.values())

    @property
    def owned(self) -> int:
        """Event partitions that have an owner that beats."""
        return len({p for b in self.beats.values() for p in b.get("partitions", ())})

    @property
    def ready(self) -> bool:
        """Whether all of them have."""
        return self.owned >= self.partitions

    def stop(self) -> None:
        """Stop following."""
        self._stop.set()
        self._thread.join(10)
