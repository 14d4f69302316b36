"""What is broken on purpose is named, and what is sound is not."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import kafka as client
import pyarrow.parquet as pq
import pytest

from deploy import cli
from featurestore import verify
from featurestore.events import Event, Origin, Row
from featurestore.lake import Lake, LakeProgress, PartitionKey
from featurestore.segments import table
from featurestore.store import Batch, Progress, Store
from streams import topics

KEY = PartitionKey("shop@log1", 3)
SEGMENTS = ((0, 10), (10, 20), (20, 30))


def row(offset: int, key: PartitionKey = KEY, n: int = 0) -> Row:
    """A view at second `offset`."""
    event = Event(event_id=f"e{offset}.{n}", type="view", user_id=f"u{offset % 3}", ts_ms=offset * 1000, item_id="i")
    return Row(event, Origin(key.topic, key.partition, offset, n, offset * 1000), "s")


def said(nxt: int) -> LakeProgress:
    """Every offset below held one event that was stored, a duplicate at each tenth offset beside it."""
    return LakeProgress(next=nxt, watermark_ms=nxt * 1000, stored=nxt, duplicates=nxt // 10)


class House:
    """A shared folder with three segments of one partition, and a store that is five rows ahead."""

    def __init__(self, root: Path) -> None:
        self.shared, self.stores = root / "shared", root / "store"
        self.lake = Lake(self.shared, "w")
        for first, nxt in SEGMENTS:
            self.lake.write(KEY, first, nxt, table([row(o) for o in range(first, nxt)]), said(nxt))
        self.store = Store(self.stores / "w.duckdb")
        rows = [row(o) for o in range(15, 35)]
        self.store.commit(Batch(rows, {KEY: Progress(35, 35_000, 35, 3, 0)}))

    def path(self, first: int, nxt: int) -> Path:
        """Where a segment lies."""
        return self.shared / "events" / "t=shop@log1" / "p=3" / f"{first}-{nxt - 1}.parquet"

    def rewrite(self, first: int, nxt: int, rows: list[Row]) -> None:
        """Another content under the name of a segment."""
        old = pq.read_schema(self.path(first, nxt)).metadata
        pq.write_table(table(rows).replace_schema_metadata(old), self.path(first, nxt))

    def found(self) -> list[tuple[str, str]]:
        """Kind and text of every fault: the lake's, then the store's."""
        self.store.close()
        parts = {part.key: part for part in verify.lake_parts(self.shared)}
        found = [f for part in parts.values() for f in part.findings]
        found += verify.store_findings(self.stores / "w.duckdb", parts)[0]
        return [(f.kind, str(f)) for f in found if f.fault]


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path)
    yield made
    made.store.close()


def one(house: House, kind: str) -> str:
    """The one fault there is."""
    found = house.found()
    assert [k for k, _ in found] == [kind], found
    return found[0][1]


def test_sound_house_has_no_fault(house: House) -> None:
    """Segments that touch, counts that add up, a store that is ahead by what it holds."""
    assert house.found() == []


def test_flushed_twice_and_merged_is_sound(house: House) -> None:
    """What zombies and compaction leave behind is legal."""
    house.lake.write(KEY, 5, 20, table([row(o) for o in range(5, 20)]), said(20))
    house.lake.write(KEY, 0, 30, table([row(o) for o in range(30)]), said(30))
    assert house.found() == []


def test_truncated_segment(house: House) -> None:
    """A file that was cut off is named, and so is the hole that it leaves."""
    path = house.path(10, 20)
    path.write_bytes(path.read_bytes()[:-40])
    kinds = house.found()
    assert [k for k, _ in kinds[:2]] == ["unreadable", "gap"]
    assert "10-19.parquet: cannot be read" in kinds[0][1]
    assert "offset 10" in kinds[0][1]


def test_damaged_page_behind_a_sound_footer(house: House) -> None:
    """Every page is read, not the footer only."""
    path = house.path(10, 20)
    content = bytearray(path.read_bytes())
    content[60:120] = bytes(60)
    path.write_bytes(content)
    assert house.found()[0][0] == "unreadable"


def test_truncated_segment_that_others_hold(house: House) -> None:
    """Where other segments hold the same offsets, the file may go."""
    house.lake.write(KEY, 0, 30, table([row(o) for o in range(30)]), said(30))
    house.path(10, 20).write_bytes(b"PAR1 cut off")
    assert "remove the file: other segments hold its offsets" in one(house, "unreadable")


def test_missing_segment(house: House) -> None:
    """A hole is told with both its ends."""
    house.path(10, 20).unlink()
    kind, text = house.found()[0]
    assert kind == "gap"
    assert "ends at offset 10, the next segment begins at 20" in text


def test_missing_last_segment(house: House) -> None:
    """What progress.json speaks of must be there."""
    house.path(20, 30).unlink()
    assert "speaks of offsets up to 30, the segments end at 20" in one(house, "progress")


def test_foreign_segment(house: House) -> None:
    """Another partition's segment in this folder is told by its rows."""
    house.rewrite(20, 30, [row(o, PartitionKey("shop@log1", 4)) for o in range(20, 30)])
    kind, text = house.found()[0]
    assert kind == "foreign"
    assert "20-29.parquet: holds rows of another topic or partition: 4" in text


@pytest.mark.parametrize("name", ["notes.parquet", "30-20.parquet", "copy of 0-9.parquet"])
def test_foreign_file(house: House, name: str) -> None:
    """A file that has no segment's name."""
    (house.path(0, 10).parent / name).write_bytes(b"")
    assert "no segment's name" in one(house, "foreign")


def test_rows_outside_the_name(house: House) -> None:
    """A segment's name is its range."""
    house.rewrite(20, 30, [row(o) for o in range(21, 31)])
    kind, text = house.found()[0]
    assert kind == "range"
    assert "offsets 21 to 30" in text


def test_duplicate_rows(house: House) -> None:
    """A row twice in a segment; its count is wrong too."""
    house.rewrite(10, 20, [row(o) for o in range(10, 20)] + [row(13), row(14)])
    found = house.found()
    assert {k for k, _ in found} == {"duplicates", "counts"}
    assert "holds 2 rows more than once, at offsets 13, 14" in found[0][1]


def test_rows_lost_in_a_segment(house: House) -> None:
    """A segment with fewer rows than were stored; a name alone proves nothing."""
    house.rewrite(10, 20, [row(o) for o in range(10, 18)])
    found = house.found()
    assert [k for k, _ in found] == ["counts", "store"]
    assert "holds 8 rows where its counts say 10" in found[0][1]
    assert "holds 2 rows that the lake has not, at offsets 18, 19" in found[1][1]


def test_rows_of_the_forgotten_are_not_missed(house: House) -> None:
    """Erasure leaves fewer rows under the old counts."""
    house.lake.forget(["u1"])
    house.store.forget(["u1"])
    parts = list(verify.lake_parts(house.shared))
    assert [f for f in parts[0].findings if f.fault] == []
    assert (parts[0].rows, parts[0].erased) == (20, 10)


def test_segments_that_disagree(house: House) -> None:
    """Two segments that speak of the same offsets hold the same rows."""
    house.lake.write(KEY, 15, 20, table([row(o) for o in range(15, 20) if o != 17]), said(20))
    assert "differs from 10-19.parquet in rows at offsets 17" in one(house, "overlap")


def test_wrong_counts_in_progress(house: House) -> None:
    """progress.json and the last segment speak of the same offset and must say the same."""
    file = house.path(0, 10).parent / "progress.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"duplicates": 99}))
    assert "counts 30 stored, 99 duplicates" in one(house, "progress")


def test_unreadable_progress(house: House) -> None:
    """A progress.json that is no JSON."""
    (house.path(0, 10).parent / "progress.json").write_text("{")
    assert "cannot be read" in one(house, "progress")


def test_counts_that_go_back(house: House) -> None:
    """Counts grow from segment to segment."""
    house.lake.write(KEY, 30, 35, table([row(o) for o in range(30, 35)]), LakeProgress(next=35, stored=35))
    assert "30-34.parquet: goes back in watermark_ms, duplicates" in house.found()[0][1]


def test_store_lost_rows_that_were_not_flushed(house: House) -> None:
    """Above the lake's end the store is the only place."""
    house.store.connection.execute('DELETE FROM events WHERE "offset" = 32')
    assert "holds 4 rows above the lake's end 30 where the counts say 5" in one(house, "counts")


def test_store_holds_a_row_beyond_its_progress(house: House) -> None:
    """Rows and progress move in one transaction."""
    house.store.connection.execute("UPDATE progress SET next = 33, stored = 33")
    assert "holds a row at offset 34, its progress stands at 33" in one(house, "store")


def test_store_behind_the_lake_is_a_notice(house: House) -> None:
    """Another worker took over: the store is restored at its next assignment."""
    house.lake.write(KEY, 30, 40, table([row(o) for o in range(30, 40)]), said(40))
    assert house.found() == []


def test_damaged_store(house: House) -> None:
    """A store file that is none."""
    house.store.close()
    (house.stores / "w.duckdb").write_bytes(b"no database" * 400)
    assert "cannot be opened" in one(house, "unreadable")


def run(capsys: pytest.CaptureFixture[str], house: House, *more: str) -> tuple[int, dict[str, object]]:
    """`nextclick store check --json` in this house."""
    where = ["--shared", str(house.shared), "--set", f"store.folder={house.stores}", "--json", *more]
    with pytest.raises(SystemExit) as ended:
        cli.main(["store", "check", *where])
    return int(ended.value.code or 0), json.loads(capsys.readouterr().out)


def test_command_ends_with_a_code(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    """0 where all is sound, 1 where there is a fault."""
    house.store.close()
    code, told = run(capsys, house)
    assert (code, told["faults"], told["stores"]) == (0, 0, ["w.duckdb"])
    house.path(10, 20).unlink()
    code, told = run(capsys, house)
    assert (code, told["stores"]) == (1, ["w.duckdb"])
    assert told["faults"]


def test_running_workers_file_is_left_alone(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody opens another process's store: it is named, and the lake is checked all the same."""
    house.store.close()
    hold = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('held', flush=True); sys.stdin.read()"
    file = str(house.stores / "w.duckdb")
    with subprocess.Popen([sys.executable, "-c", hold, file], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        worker.stdout.readline()
        code, told = run(capsys, house)
        worker.kill()
    assert (code, told["stores"]) == (0, [])
    assert "w.duckdb: a worker runs on it; stop the worker" in str(told["skipped"])


@pytest.mark.kafka
def test_against_kafka(kafka: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Events in the log = rows + duplicates + rejected; what differs is told with its offsets."""
    name = f"check-{uuid.uuid4().hex[:8]}"
    names = topics.Topics(events=(name,), control=f"{name}-control")
    topics.ensure(kafka, names)
    log = topics.log_ids(kafka, [name])[name]
    key = PartitionKey(f"{name}@{log}", 0)
    producer = client.KafkaProducer(bootstrap_servers=kafka)
    wire = [{"event_id": f"e{o}.0", "type": "view", "user_id": "u", "ts": 1, "item_id": "i"} for o in range(20)]
    for o in range(20):
        value = b"no json" if o == 3 else json.dumps([wire[o], wire[o]] if o == 4 else wire[o]).encode()
        producer.send(name, value=value, partition=0).get(20)
    producer.close()
    house = House(tmp_path)
    house.store.close()
    good = [row(o, key) for o in range(20) if o != 3]
    house.lake.write(key, 0, 20, table(good), LakeProgress(next=20, stored=19, duplicates=1, rejected=1))
    where = ["--kafka", kafka, "--set", f"topics.events={name}", "--set", f"topics.control={name}-control"]
    code, told = run(capsys, house, *where)
    assert (code, told["faults"]) == (0, 0), told["findings"]
    compared = {p["topic"]: p["compared_with_kafka"] for p in told["partitions"]}  # type: ignore[attr-defined]
    assert compared == {key.topic: 21, KEY.topic: 0}
    bad = [row(o, key, n=int(o == 7)) for o in range(20) if o != 3]
    path = house.lake.write(key, 0, 20, table(bad), LakeProgress(next=20, stored=19, duplicates=1, rejected=1))
    assert path is not None
    code, told = run(capsys, house, *where)
    assert code == 1
    assert "holds 1 rows that Kafka has not, at offsets 7" in str(told["findings"])
    house.lake.write(key, 20, 30, table([row(o, key) for o in range(20, 30)]), LakeProgress(next=30, stored=29))
    code, told = run(capsys, house, *where)
    assert "the lake ends at offset 30, Kafka's log at 20" in str(told["findings"])
