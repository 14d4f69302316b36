"""What several fault tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from one_worker import Site


@pytest.fixture
def site(kafka: str, tmp_path: Path) -> Iterator[Site]:
    """A worker's site with topics of its own, on the Kafka that all tests share."""
    made = Site(kafka, tmp_path)
    yield made
    made.close()
