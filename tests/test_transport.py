"""Whole polls: what Faust does by the partition is not done to them."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from faust.types import TP

from streams import transport


def test_no_partition_of_ours_is_paused_while_a_poll_waits() -> None:
    """A partition left out of a fetch holds up every other one of its broker, by aiokafka's back-off of 100 ms."""
    consumer = object.__new__(transport.Consumer)
    consumer.transport = SimpleNamespace(event_topics=frozenset({"events"}))
    consumer.app = SimpleNamespace(in_recovery=False)
    ours, other = TP("events", 0), TP("other", 0)
    consumer._active_partitions, consumer._buffered_partitions = {ours, other}, set()
    consumer.on_buffer_full(ours)
    consumer.on_buffer_full(other)
    assert consumer._active_partitions == {ours}


async def test_what_faust_cut_short_is_done_by_the_next_poll() -> None:
    """Restoring many sessions may take longer than Faust lets a seek take; no partition stays without a position."""
    consumer = object.__new__(transport.Consumer)
    consumer.app = SimpleNamespace(should_stop=False, consumer_generation_id=1)
    consumer._seeking = consumer._sought = consumer.revocations = 0
    consumer._unset, consumer.flow_active = False, True
    slow, done = asyncio.Event(), []

    async def seek_ours(still: object) -> None:
        await slow.wait()
        done.append(True)

    async def fetched(timeout: float) -> tuple[None, None]:
        return None, None

    consumer._seek_ours, consumer._fetched = seek_ours, fetched
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(consumer.perform_seek(), 0.01)
    slow.set()
    for _ in range(2):
        assert [polled async for polled in consumer.getmany(0.1)] == []
    assert done == [True]
