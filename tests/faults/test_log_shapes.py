"""Logs that are not one run of offsets: transactions, compaction, retention ahead of us, gaps, more partitions."""

from __future__ import annotations

import asyncio
import signal
import time
import uuid
from pathlib import Path

import aiokafka
import pytest
from one_worker import Site, event

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(240)]


def names(*ranges: range) -> list[str]:
    """The ids of events."""
    return sorted(f"e{n}" for numbers in ranges for n in numbers)


async def in_transactions(site: Site, parts: list[tuple[range, bool]]) -> None:
    """One transaction each; those that are not kept are aborted. While the last is open nothing of it is read."""
    producer = aiokafka.AIOKafkaProducer(bootstrap_servers=site.address, transactional_id=uuid.uuid4().hex)
    await producer.start()
    for numbers, kept in parts:
        await producer.begin_transaction()
        for n in numbers:
            await producer.send(site.events, event(n), key=b"u", partition=0)
        await (producer.commit_transaction() if kept else producer.abort_transaction())
    await producer.begin_transaction()
    for n in range(900, 910):
        await producer.send(site.events, event(n), key=b"u", partition=0)
    await producer.flush()
    await asyncio.to_thread(site.settled, stored=sum(len(n) for n, kept in parts if kept))
    assert (site.answer("/ready"), site.answer("/live")) == (200, 200)
    await producer.commit_transaction()
    await producer.stop()


def test_aborted_records_are_never_stored(site: Site) -> None:
    """Committed ones once each; neither markers nor an open transaction are lag, and the worker stays ready."""
    site.start()
    parts = [(range(first, first + 20), first % 40 == 0) for first in range(0, 200, 20)]
    asyncio.run(in_transactions(site, parts))
    site.settled(stored=110, missing=0)
    assert site.stop() == 0
    wanted = names(*(numbers for numbers, kept in parts if kept), range(900, 910))
    assert site.ids() == wanted == sorted(r.value.split(b'"')[3].decode() for r in site.read(site.events))
    assert len(site.read(site.events, committed=False)) == 210
    code, told = site.check()
    assert code == 0, told


def test_retries_under_the_same_event_id_count_once(site: Site) -> None:
    """Whether they come in one poll, behind a worker that was killed, or behind one that begins from the lake alone."""
    site.send(event(1), event(1), event(2))
    site.start()
    site.settled(stored=2, duplicates=1)
    assert site.process is not None
    site.process.kill()
    site.process.wait()
    site.send(event(1), event(2))
    site.start()
    site.settled(stored=2, duplicates=3)
    assert site.stop() == 0
    for path in (site.folder / "store").glob("*.duckdb*"):
        path.unlink()
    site.send(event(2), event(3))
    site.start()
    site.settled(stored=3, duplicates=4)
    assert site.stop() == 0
    assert site.ids() == names(range(1, 4))


def test_compacted_topic_has_legal_holes(kafka: str, tmp_path: Path) -> None:
    """What compaction left is stored, what it took is neither a gap nor missing, before and after a restart.

    The broker goes on compacting while the worker starts: what is stored lies between what is left after and before.
    """
    eager = {"cleanup.policy": "compact", "segment.ms": "200", "min.cleanable.dirty.ratio": "0.01"}
    site = Site(kafka, tmp_path, events=eager)
    try:
        for n in range(60):
            user = "u" if n % 10 else f"keep{n}"
            site.send(event(n, user), user=user)
        end = time.monotonic() + 60
        while len(left := site.read(site.events)) > 30:  # the newest segment is never compacted
            assert time.monotonic() < end, len(left)
            time.sleep(0.5)
            site.send(event(f"more{time.monotonic()}", "u"))
        offsets = [r.offset for r in left]
        assert offsets != list(range(offsets[0], offsets[-1] + 1))
        site.start()
        site.until(lambda beat: max(beat["partitions"].values(), default=0) > offsets[-1] and beat["lag"] == 0)
        assert site.stop() == 0
        stored = {r[1] for r in site.rows("event_id")}
        assert {r.offset for r in site.read(site.events)} <= stored <= set(offsets)
        site.send(*map(event, range(100, 110)))
        site.start()
        site.until(lambda beat: beat["stored"] >= len(stored) + 10 and beat["lag"] == 0)
        assert site.beat["missing"] == 0
        assert site.stop() == 0
        assert len(site.ids()) == len(set(site.ids())) == len(stored) + 10
        assert not [word for word in ("gap", "no longer holds", "Traceback") if word in site.told()]
        code, told = site.check()
        assert code == 0, told
    finally:
        site.close()


def test_retention_ahead_of_us(site: Site) -> None:
    """Before the first start, under a running worker and between two runs: what is gone is said and counted."""
    site.send(*map(event, range(10)))
    site.delete_below(5)
    site.start()
    site.settled(stored=5, missing=0)
    assert "This log does not begin at 0" in site.told()
    assert site.process is not None
    site.process.send_signal(signal.SIGSTOP)
    site.send(*map(event, range(10, 12)))  # answers the fetch that is on its way
    site.send(*map(event, range(12, 60)))
    site.delete_below(40)
    site.process.send_signal(signal.SIGCONT)
    site.until(lambda beat: beat["lag"] == 0 and beat["stored"] + beat["missing"] == 55)
    gone = site.beat["missing"]
    assert 0 < gone <= 30
    assert site.stop() == 0
    site.send(*map(event, range(60, 80)))
    site.delete_below(70)
    site.start()
    site.settled(stored=65 - gone, missing=10)
    assert site.told().count("Kafka no longer holds records that are needed") == 2
    assert site.stop() == 0
    assert site.ids() == names(range(5, 40 - gone), range(40, 60), range(70, 80))
    code, told = site.check()
    assert code == 0, told


def test_gap_in_the_cover_is_filled_from_kafka_or_passed_over(site: Site) -> None:
    """A segment and the store file are lost: it is named and read again; where Kafka has it no more it is counted."""
    for first in range(0, 30, 10):  # three runs leave a segment of ten events each
        site.send(*map(event, range(first, first + 10)))
        site.start()
        site.settled(stored=first + 10)
        assert site.stop() == 0
    lose(site, "10-19")
    code, told = site.check()
    assert code == 1
    assert "the cover ends at offset 10, the next segment begins at 20" in told
    site.start()
    site.settled(stored=30, missing=0)
    assert "The lake has a gap." in site.told()
    assert site.stop() == 0
    assert site.ids() == names(range(30))
    code, told = site.check()
    assert code == 0, told

    lose(site, "10-29")  # what was read again, past what lay behind the gap
    site.delete_below(25)
    site.send(*map(event, range(30, 35)))
    site.start()
    site.settled(stored=35, missing=10)
    assert "Kafka no longer holds what lay in it" in site.told()
    assert site.stop() == 0
    assert site.ids() == names(range(10), range(20, 35))


def lose(site: Site, segment: str) -> None:
    """A segment and the store file go."""
    next(site.shared.glob(f"events/*/p=0/{segment}.parquet")).unlink()
    (site.folder / "store" / "w.duckdb").unlink()


def test_partition_added_while_running(site: Site) -> None:
    """It is found and read from its first record; the others lose nothing by it."""
    site.start()
    site.send(*map(event, range(10)))
    site.settled(stored=10)
    site.admin.create_partitions({site.events: 9})
    end = time.monotonic() + 30
    while True:  # until the producer knows it too
        try:
            site.send(*[event(n, "v") for n in range(10, 20)], user="v", partition=8)
            break
        except ValueError:
            assert time.monotonic() < end
            time.sleep(0.5)
    site.until(lambda beat: len(beat["partitions"]) == 9)
    site.send(*map(event, range(20, 30)))
    site.settled(stored=30, missing=0)
    assert site.stop() == 0
    assert site.ids() == names(range(30))
