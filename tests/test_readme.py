"""The README's programs run as they stand there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import msgspec
from kafka import KafkaConsumer, KafkaProducer

from deploy import broker
from streams import codec, topics
from tests.test_client import prediction

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def program(name: str, address: str) -> str:
    """The program that uses this class, for another broker."""
    (found,) = [text for text in PROGRAMS if name in text]
    return str(found).replace("localhost:9092", address)


def test_programs_of_producer_and_consumer() -> None:
    """The event arrives under its user's key; of each user's predictions the newest is printed, with its version."""
    with broker.embedded(port=0) as embedded:
        names = topics.Topics()
        topics.ensure(embedded.address, names)
        subprocess.run([sys.executable, "-c", program("EventProducer", embedded.address)], check=True, timeout=60)
        reader = KafkaConsumer(names.events[0], bootstrap_servers=embedded.address, auto_offset_reset="earliest")
        record = next(reader)
        reader.close()
        (event,) = codec.decode(record.value)
        assert (record.key, event.user_id, event.item_id) == (b"u-7", "u-7", "sku-10001")

        raw = KafkaProducer(bootstrap_servers=embedded.address)
        for offset, share in ((5, 0.6), (4, 0.9), (6, 0.7)):
            items = codec.ranked_items([("sku-1", share)])
            made = msgspec.structs.replace(prediction(offset), items=items, none_probability=0.1)
            raw.send(names.predictions, key=b"u1", value=codec.encode_prediction(made))
        raw.close()
        text = program("PredictionConsumer", embedded.address)
        assert len(text.strip().splitlines()) <= 10
        command = [sys.executable, "-u", "-c", text]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reading:
            assert reading.stdout is not None
            said = [reading.stdout.readline().strip() for _ in range(2)]
            reading.kill()
        assert said == ["u1 sku-1 60% v1", "u1 sku-1 70% v1"]
