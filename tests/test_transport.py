"""Whole polls: what Faust does by the partition is not done to them."""

from __future__ import annotations

from types import SimpleNamespace

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
