"""Whole polls: what Faust does by the partition is not done to them."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import errors
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


def consumer() -> Any:
    """A consumer that owns partitions, without Faust's machinery; each poll brings one record of another topic."""
    made: Any = object.__new__(transport.Consumer)
    made._stopped = made._crashed = asyncio.Event()
    made.app = SimpleNamespace(should_stop=False, consumer_generation_id=1)
    made._seeking = made._sought = made.revocations = 0
    made._unset, made.flow_active = False, True
    made.transport = SimpleNamespace(event_topics=frozenset())
    made.assignment = set[TP]

    async def fetched(timeout: float) -> tuple[dict[TP, list[str]], None]:
        return {TP("other", 0): ["record"]}, None

    made._fetched, made._to_message = fetched, lambda tp, record: record
    return made


@pytest.mark.parametrize("passing", [errors.IllegalStateError("No current assignment"), errors.NodeNotReadyError()])
async def test_what_could_not_be_sought_is_sought_again(passing: errors.KafkaError) -> None:
    """aiokafka knows of a revoke before anybody is told, and brokers go: nothing is read until positions are set."""
    reader, tries = consumer(), []

    async def seek_ours(still: object) -> None:
        tries.append(True)
        if len(tries) < 3:
            raise passing

    reader._seek_ours = seek_ours
    await reader.perform_seek()
    polls = [[polled async for polled in reader.getmany(0.1)] for _ in range(2)]
    assert polls == [[], [(TP("other", 0), "record")]]


async def test_what_nobody_may_seek_ends_the_worker() -> None:
    """A right that is missing does not come by waiting."""
    reader = consumer()

    async def seek_ours(still: object) -> None:
        raise errors.GroupAuthorizationFailedError

    reader._seek_ours = seek_ours
    with pytest.raises(errors.GroupAuthorizationFailedError):
        await reader.perform_seek()


async def test_what_faust_cut_short_is_done_by_the_next_poll() -> None:
    """Restoring many sessions may take longer than Faust lets a seek take; no partition stays without a position."""
    reader = consumer()
    slow, done = asyncio.Event(), []

    async def seek_ours(still: object) -> None:
        await slow.wait()
        done.append(True)

    reader._seek_ours = seek_ours
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.perform_seek(), 0.01)
    slow.set()
    for _ in range(2):
        assert [polled async for polled in reader.getmany(0.1)] == [(TP("other", 0), "record")]
    assert done == [True]
