"""A worker that stands still while there is work ends itself."""

from __future__ import annotations

from streams.watchdog import Watchdog


def test_lag_without_progress_is_a_stall_only_after_the_limit() -> None:
    """Work that moves, or no lag, begins the count anew."""
    dog = Watchdog(limit=3)
    assert not any(dog.stalled(done=n, lag=True) for n in range(20))  # it moves
    assert not any(dog.stalled(done=19, lag=False) for _ in range(20))  # nothing to do
    assert not any(dog.stalled(done=19, lag=True) for _ in range(3))
    assert not dog.stalled(done=20, lag=True)  # just in time
    assert [dog.stalled(done=20, lag=True) for _ in range(4)] == [False, False, False, True]
