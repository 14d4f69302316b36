"""Records as a fetch brings them: small, and with the position that they were read from.

Half of aiokafka's cost, and nothing for the garbage collector to walk. Seams of aiokafka 0.14: `Fetcher._records` holds
the fetched, `FetchResult` hands it out, `PartitionRecords` makes records of a partition's batches.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from functools import partial
from typing import Any

import msgspec
from aiokafka.consumer import fetcher


class Record(msgspec.Struct, gc=False):
    """A record with what Faust and a dead letter ask of it."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    timestamp_type: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    checksum: int | None = None
    serialized_key_size: int = -1
    serialized_value_size: int = -1


class Lean(fetcher.PartitionRecords):  # type: ignore[misc]
    """A partition's batches, checked and filtered as aiokafka does it, as small records."""

    def __iter__(self) -> Iterator[Record]:
        return self._records_iterator  # type: ignore[no-any-return]

    def _consumer_record(self, tp: Any, record: Any) -> Record:
        return Record(
            tp[0], tp[1], record.offset, record.timestamp, record.timestamp_type, record.key, record.value,
            tuple(record.headers),
        )  # fmt: skip


class Records(list[Record]):
    """What a poll brings of a partition, read from position `start`: nothing for us lay before the first of them."""

    start: int


class Fetched(OrderedDict[Any, Any]):
    """What was fetched and not polled, by partition: comes in as batches, is read as `Lean`, leaves as `Records`."""

    def __init__(self, fetched: OrderedDict[Any, Any]) -> None:
        self.passed: dict[Any, tuple[int, int]] = {}  # by partition: behind its last record, and how far it was read
        super().__init__(fetched)

    def __setitem__(self, tp: Any, result: Any) -> None:
        if type(result) is fetcher.FetchResult:  # else an error, to be raised by the poll
            result._partition_records.__class__ = Lean  # nothing of it was read yet
            result.getall = partial(self._handed_out, tp, result)  # aiokafka asks for exactly its own class
        super().__setitem__(tp, result)

    def _handed_out(self, tp: Any, result: Any, max_records: int | None = None) -> list[Record]:
        """The next records; `start` lies before what held none for us (markers, aborted, compacted) since the last."""
        if not result.has_more() or not result.check_assignment(tp):
            return []
        batches = result._partition_records
        at = batches.next_fetch_offset
        behind, to = self.passed.get(tp, (at, at))
        records = Records(fetcher.FetchResult.getall(result, max_records))
        records.start = behind if to == at else at
        self.passed[tp] = (records[-1].offset + 1 if records else records.start, batches.next_fetch_offset)
        return records


def make_small(consumer: Any) -> None:
    """From its next fetch on a started consumer polls small records."""
    fetched = consumer._fetcher
    fetched._records = Fetched(fetched._records)
