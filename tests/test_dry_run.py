"""A dry run: what a worker would publish is told, and nothing of it is anywhere afterwards."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kafka
import pytest

from deploy import broker
from deploy.settings import Settings
from featurestore import lake
from featurestore.events import Event, Origin, Row
from streams import control, topics
from tests.conftest import Run
from tests.test_cli import run as run_

NOW_MS = 1_760_000_000_000


@pytest.fixture(params=["embedded", pytest.param("real", marks=pytest.mark.kafka)])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Settings]:
    """A broker with topics of its own that hold 40 events, the first 10 of partition 0 in the lake already."""
    tag = uuid.uuid4().hex[:8]
    said = {f"topics.{n}": f"{n}-{tag}" for n in ("events", "items", "dead_letters", "predictions", "control", "state")}
    said |= {
        "encoder": "none",
        "shared": f"{tmp_path}/shared",
        "store.folder": f"{tmp_path}/store",
        "group": f"g-{tag}",
    }
    with broker.embedded(port=0) if request.param == "embedded" else _nothing() as running:
        address = running.address if request.param == "embedded" else request.getfixturevalue("kafka")
        made = Settings.load(said | {"kafka": address})
        topics.ensure(address, made.topics())
        send(made, 0, 40)
        log_id = topics.log_ids(address, made.topics().events)[made.topics().events[0]]
        key = lake.PartitionKey(f"{made.topics().events[0]}@{log_id}", 0)
        rows = [Row(event(n), Origin(*key, n, 0, NOW_MS + n), "s") for n in range(10)]
        progress = lake.LakeProgress(next=10, watermark_ms=NOW_MS, stored=10)
        lake.Lake(made.shared, "w").write_rows(key, 0, rows, progress)
        yield made


class _nothing:
    """No broker of the test's own."""

    def __enter__(self) -> Any:
        return None

    def __exit__(self, *_: object) -> None:
        return None


def event(n: int) -> Event:
    """A view by one of four people."""
    return Event(event_id=f"e{n}", type="view", user_id=f"u{n % 4}", ts_ms=NOW_MS + n * 1_000, item_id=f"i{n % 7}",
                 title=f"Lamp {n % 7}", category="Home > Lamps")  # fmt: skip


def send(settings: Settings, begin: int, end: int) -> None:
    """Events into partition 0, one of them no JSON; the workers' group stands at 3."""
    name = settings.topics().events[0]
    producer = kafka.KafkaProducer(**settings.kafka.for_kafka_python())
    for n in range(begin, end):
        one = event(n)
        said = {"event_id": one.event_id, "type": one.type, "user_id": one.user_id, "ts": one.ts_ms,
                "item_id": one.item_id, "title": one.title, "category": one.category}  # fmt: skip
        value = b"{" if n == 30 else json.dumps(said).encode()
        producer.send(name, key=one.user_id.encode(), value=value, partition=0, timestamp_ms=one.ts_ms).get(20)
    producer.close()
    consumer = kafka.KafkaConsumer(**settings.kafka.for_kafka_python(), group_id=settings["group"],
                                   enable_auto_commit=False)  # fmt: skip
    part = kafka.TopicPartition(name, 0)
    consumer.assign([part])
    consumer.commit({part: kafka.OffsetAndMetadata(3, "", -1)})
    consumer.close()


def standing(settings: Settings, folder: Path) -> dict[str, Any]:
    """All that somebody else can see: topics with their ends (but Kafka's own), the group's offsets, every file."""
    with topics.admin_of(settings.kafka) as admin:
        names = sorted(name for name in admin.list_topics() if not name.startswith("__"))
        offsets = {
            str(part): at.offset for part, at in admin.list_group_offsets(settings["group"])[settings["group"]].items()
        }
    consumer = kafka.KafkaConsumer(**settings.kafka.for_kafka_python())
    parts = [kafka.TopicPartition(name, p) for name in names for p in consumer.partitions_for_topic(name) or ()]
    ends = {str(part): end for part, end in consumer.end_offsets(parts).items()}
    consumer.close()
    files = {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}
    folders = sorted(str(path) for path in folder.rglob("*") if path.is_dir())
    return {"topics": names, "offsets": offsets, "ends": ends, "files": files, "folders": folders}


def groups(settings: Settings) -> set[str]:
    """All groups; those of tests before this one may vanish meanwhile."""
    with topics.admin_of(settings.kafka) as admin:
        return {group["group_id"] for group in admin.list_groups()}


def test_a_dry_run_tells_what_it_would_do_and_does_nothing(
    settings: Settings, tmp_path: Path, typed: Callable[[Settings], Run]
) -> None:
    """It begins where the lake ends; the broker's topics, groups and offsets and all files are as they were."""
    run = typed(settings)
    before, joined = standing(settings, tmp_path), groups(settings)
    told = run("worker", "--dry-run", "--for", "3s", "--json")
    assert (told["events"], told["stored"], told["rejected"], told["lag"]) == (30, 29, 1, 0)
    assert told["dead_letters"] == {"bad-json": 1}
    assert told["predictions"] >= 4
    assert {one["user_id"] for one in told["sample"]} <= {"u0", "u1", "u2", "u3"}
    assert told["sample"][0]["items"][0]["item_id"] in {f"i{n}" for n in range(7)}
    assert told["version"] == "memory"
    assert standing(settings, tmp_path) == before
    out = run("worker", "--dry-run", "--for", "1s")
    assert out.strip().splitlines()[-1] == "nothing was published, nothing was committed"
    assert standing(settings, tmp_path) == before
    assert groups(settings) <= joined


def test_before_anything_was_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The events' topic is all that is needed: no topic of ours is made, and without that one it says so."""
    monkeypatch.chdir(tmp_path)
    with broker.embedded(port=0) as running:
        asked = ["worker", "--dry-run", "--for", "1s", "--kafka", running.address, "--set", "encoder=none"]
        code, _, err = run_(capsys, *asked)
        assert (code, "topic clickstream.events is not at" in err, len(err.strip().splitlines())) == (1, True, 1)
        with topics.admin_of(running.address) as admin:
            admin.create_topics({"clickstream.events": {"num_partitions": 2, "replication_factor": 1}})
        code, out, _ = run_(capsys, *asked, "--json")
        assert (code, json.loads(out)["predictions"]) == (0, 0)
        with topics.admin_of(running.address) as admin:
            assert admin.list_topics() == ["clickstream.events"]
    assert list(tmp_path.iterdir()) == []


def test_follows_the_champion_only_to_read(settings: Settings) -> None:
    """A champion that cannot be had is passed over as a worker does; nobody is told."""
    writer = control.ControlWriter(settings.kafka, settings["topics.control"])
    writer.append("champion.changed", {"version": "v9", "predecessor": None}, by="t")
    writer.close()
    from deploy import dry_run

    looked = dry_run.run(settings, for_ms=500)
    assert looked.version == "memory"
