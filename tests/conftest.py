"""What several tests share: a real Apache Kafka, started once a run, and an operator at the keyboard."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
import torch

from deploy import cli
from deploy import kafka as real_kafka
from deploy.broker import BrokerError
from deploy.settings import Settings

Run = Callable[..., Any]

torch.set_num_threads(1)  # as a worker and a training job have it


def _start(data: Path, guard: real_kafka.Guard | None = None) -> real_kafka.Kafka:
    """Start one, or skip with the reason; with NEXTCLICK_REQUIRE_KAFKA=1 fail instead."""
    try:
        return real_kafka.start(0, data, guard=guard)
    except BrokerError as error:
        if os.environ.get("NEXTCLICK_REQUIRE_KAFKA") == "1":
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """A command that is run in a test sets up how it logs: the next test begins without."""
    yield
    structlog.reset_defaults()


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


@pytest.fixture
def typed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[[Settings], Run]:
    """Commands typed where the environment holds these settings: text, or JSON; for another code, all that is said."""

    def at(settings: Settings) -> Run:
        for name, value in settings.values.items():
            if value.source == "option":
                monkeypatch.setenv("NEXTCLICK_" + name.replace(".", "_").upper(), settings.text(name))

        def run(*arguments: str, code: int = 0) -> Any:
            with pytest.raises(SystemExit) as ended:
                cli.main(list(arguments))
            out = capsys.readouterr()
            assert (ended.value.code or 0) == code, out.err
            if code:
                return out.out + out.err
            return json.loads(out.out) if "--json" in arguments else out.out

        return run

    return at
