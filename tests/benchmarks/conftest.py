"""Benchmarks run when they are asked for (`make bench`), never with the tests: they print and assert no figure."""

from __future__ import annotations

from pathlib import Path

import full_topic
import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Only where the command line names this folder."""
    asked = any("benchmarks" in str(argument) for argument in config.invocation_params.args)
    return None if asked else True


@pytest.fixture(scope="session")
def full(kafka: str) -> full_topic.Topic:
    """A full topic on a real Kafka."""
    return full_topic.fill(kafka)
