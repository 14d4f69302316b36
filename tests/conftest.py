"""What several tests share: a real Apache Kafka, started once a run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from deploy import kafka as real_kafka
from deploy.broker import BrokerError

torch.set_num_threads(1)  # as a worker and a training job have it


def _start(data: Path, guard: real_kafka.Guard | None = None) -> real_kafka.Kafka:
    """Start one, or skip with the reason; with NEXTCLICK_REQUIRE_KAFKA=1 fail instead."""
    try:
        return real_kafka.start(0, data, guard=guard)
    except BrokerError as error:
        if os.environ.get("NEXTCLICK_REQUIRE_KAFKA") == "1":
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """HOST:PORT of a real Kafka that the whole run shares; take topics of your own."""
    with _start(tmp_path_factory.mktemp("kafka")) as broker:
        yield broker.address


@pytest.fixture(scope="session")
def start_kafka() -> Callable[[Path, real_kafka.Guard], real_kafka.Kafka]:
    """Starts a real Kafka behind a guard, with its data in a folder."""
    return _start


@pytest.fixture
def own_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[real_kafka.Kafka]:
    """A real Kafka of the test's own, to be killed and restarted."""
    with _start(tmp_path_factory.mktemp("own-kafka")) as broker:
        yield broker
