"""`nextclick forget`: a person's events and predictions go."""

from __future__ import annotations

from typing import Annotated

import typer

from deploy.cli import options


def forget(
    user_id: Annotated[str, typer.Argument(help="The user_id of the events.")],
    kafka: options.Kafka = None, config: options.Config = None, assigned: options.Set = None,
    json: options.Json = False,
) -> None:  # fmt: skip
    """Forget a user: every process filters from now on, files are rewritten, the prediction gets a tombstone.

    Example: nextclick forget u-7 --kafka localhost:9092
    """
    from deploy import replay
    from deploy.cli import log

    settings = options.settings_of(kafka, None, None, config, assigned)
    entry = log.append(settings, "forget", {"user_id": user_id})
    producer = replay.producer(settings.kafka, settings["topics.predictions"])
    producer.send(settings["topics.predictions"], value=None, key=user_id.encode()).get(timeout=20)
    producer.close(timeout=5)
    kept = ", ".join(settings["topics.events"])
    options.show(
        entry, json, f"{user_id} is forgotten; Kafka keeps the events of {kept} until those topics' retention ends"
    )
