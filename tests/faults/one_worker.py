"""A worker's process on topics of its own, driven and counted from outside. Shares no code with what it counts."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import kafka as client
import pytest
from kafka.admin import KafkaAdminClient

from deploy.broker import free_port

ROOT = Path(__file__).parents[2]
PARTITIONS = 8


def event(n: Any, user: str = "u", **more: Any) -> bytes:
    """A view by a user."""
    said = {"event_id": f"e{n}", "type": "view", "user_id": user, "item_id": f"i{n}", "ts": int(time.time() * 1000)}
    return json.dumps(said | more).encode()


class Site:
    """A worker, its topics, its folders and its beats."""

    def __init__(self, address: str, folder: Path, events: dict[str, str] | None = None, **more: str) -> None:
        """`events`: configs of the event topic; `more`: settings, dots as double underscores."""
        tag = uuid.uuid4().hex[:8]
        named = ("events", "items", "dead_letters", "predictions", "control", "state")
        self.said = {f"topics.{name}": f"{name}-{tag}" for name in named} | {"kafka": address, "encoder": "none"}
        self.said["bots.pace"] = "0s"  # its users are faster than people
        self.said |= {"shared": str(folder / "shared"), "store.folder": str(folder / "store"), "worker": "w"}
        self.said |= {name.replace("__", "."): value for name, value in more.items()}
        self.http = f"127.0.0.1:{free_port()}"
        self.shared = Path(self.said["shared"])
        self.address, self.folder, self.output = address, folder, folder / "w.log"
        self.events, self.dead_letters = self.said["topics.events"], self.said["topics.dead_letters"]
        self.admin = KafkaAdminClient(bootstrap_servers=address)
        shape = {"num_partitions": PARTITIONS, "replication_factor": 1, "configs": events or {}}
        self.admin.create_topics({self.events: shape}, wait_for_metadata=True)
        shape = {"num_partitions": 1, "replication_factor": 1, "configs": {"cleanup.policy": "compact"}}
        self.admin.create_topics({self.said["topics.state"]: shape}, wait_for_metadata=True)
        self.producer = client.KafkaProducer(
            bootstrap_servers=address, acks="all", linger_ms=5, metadata_max_age_ms=1_000
        )
        self.process: subprocess.Popen[bytes] | None = None
        self.beat: dict[str, Any] = {}
        self.consumer = client.KafkaConsumer(
            self.said["topics.state"], bootstrap_servers=address, auto_offset_reset="earliest"
        )

    def send(self, *values: bytes | None, user: str = "u", partition: int = 0) -> None:
        """Send to one partition; returns when the broker has all of it."""
        sent = [self.producer.send(self.events, key=user.encode(), value=v, partition=partition) for v in values]
        for one in sent:
            one.get(30)

    def options(self, *but: str) -> list[str]:
        """The settings as arguments, but for some."""
        return [a for k, v in self.said.items() if k not in but for a in ("--set", f"{k}={v}")]

    def start(self) -> None:
        """Start the worker; what it said before does not count as a beat of this one."""
        self.consumer.poll(timeout_ms=500)
        self.beat = {}
        self._spawn()
        self.until(lambda beat: len(beat["partitions"]) >= PARTITIONS)

    def start_only(self) -> int:
        """Start a worker that is to end by itself, and wait for its code."""
        return self._spawn().wait(90)

    def _spawn(self) -> subprocess.Popen[bytes]:
        with self.output.open("ab") as log:
            command = [sys.executable, "-m", "deploy.cli", "worker", *self.options(), "--set", f"http={self.http}"]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)
        return self.process

    def until(self, true: Callable[[dict[str, Any]], Any], seconds: float = 90) -> dict[str, Any]:
        """The first beat of which something is true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for records in self.consumer.poll(timeout_ms=500).values():
                self.beat = json.loads(records[-1].value)
            if self.beat and true(self.beat):
                return self.beat
        pytest.fail(f"{self.beat}\n{self.told()[-3000:]}")

    def settled(self, **counts: int) -> None:
        """Wait until the beat says so and there is no lag."""
        self.until(lambda beat: beat["lag"] == 0 and all(beat[name] == n for name, n in counts.items()))

    def told(self) -> str:
        """The worker's log."""
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    def answer(self, path: str) -> int:
        """The status that the worker's port answers with."""
        try:
            with urllib.request.urlopen(f"http://{self.http}{path}", timeout=10) as found:
                return int(found.status)
        except urllib.error.HTTPError as error:
            return error.code

    def stop(self) -> int:
        """End the worker cleanly: what it holds is in the lake then."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(30)

    def delete_below(self, offset: int, partition: int = 0) -> None:
        """Delete the records below an offset, as retention does."""
        self.admin.delete_records({client.TopicPartition(self.events, partition): offset})

    def rows(self, columns: str) -> list[tuple[Any, ...]]:
        """Partition, offset, n and some columns of every row, by the readers' rule: by (first, −last), read above."""
        parts = defaultdict(list)
        for path in self.shared.glob(f"events/t={self.events}*/p=*/*.parquet"):
            first, last = path.stem.split(".")[0].split("-")
            parts[path.parent].append((int(first), -int(last), path))
        rows: list[tuple[Any, ...]] = []
        for folder, segments in parts.items():
            upto = min(segments)[0] - 1
            for first, last, path in sorted(segments):
                assert first <= upto + 1, f"{folder}: a gap before {path.name}"
                if -last > upto:
                    files = f"read_parquet('{path}', hive_partitioning=false)"
                    found = f'SELECT "partition", "offset", n, {columns} FROM {files} WHERE "offset" > {upto}'
                    rows += duckdb.sql(found).fetchall()
                    upto = -last
        return rows

    def ids(self) -> list[str]:
        """The event ids in the lake, each as often as it is there."""
        return sorted(r[-1] for r in self.rows("event_id"))

    def counts(self) -> dict[str, int]:
        """The counts beside the lake's segments, added up."""
        total: dict[str, int] = defaultdict(int)
        for file in self.shared.glob("events/t=*/p=*/progress.json"):
            for name, count in json.loads(file.read_text()).items():
                total[name] += count
        return total

    def read(self, topic: str, *, committed: bool = True) -> list[Any]:
        """Every record of a topic, each partition in its order."""
        return list(self.each(topic, committed=committed))

    def each(self, topic: str, *, committed: bool = True) -> Iterator[Any]:
        """The same, where they are too many to be held."""
        level = "read_committed" if committed else "read_uncommitted"
        consumer = client.KafkaConsumer(
            bootstrap_servers=self.address, enable_auto_commit=False, isolation_level=level,
            max_partition_fetch_bytes=2**23,
        )  # fmt: skip
        parts = [client.TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic)]
        consumer.assign(parts)
        consumer.seek_to_beginning(*parts)
        ends = consumer.end_offsets(parts)
        while any(consumer.position(p) < ends[p] for p in parts):
            for records in consumer.poll(500).values():
                yield from records
        consumer.close()

    def check(self, seconds: float = 120) -> tuple[int, str]:
        """`nextclick store check` against Kafka: its exit code and what it said."""
        command = [sys.executable, "-m", "deploy.cli", "store", "check", *self.options(), "--kafka", self.address]
        done = subprocess.run([*command, "--json"], cwd=ROOT, capture_output=True, text=True, timeout=seconds)
        return done.returncode, done.stdout + done.stderr

    def close(self) -> None:
        """End everything, whatever state it is in."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.producer.close(5)
        self.consumer.close()
        self.admin.close()
