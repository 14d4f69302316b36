"""`nextclick doctor`: whether it is safe to start on these topics."""

from __future__ import annotations

import functools
import importlib.util
import sys
from typing import Any

import msgspec
import typer

from deploy.cli import options


def doctor(
    kafka: options.Kafka = None, config: options.Config = None, assigned: options.Set = None,
    json: options.Json = False,
) -> None:  # fmt: skip
    """Look at the brokers, the topics and their newest events; 1 is the code where something stands in the way.

    Nothing is written, nothing is made, and no consumer group is joined: what may be done is asked of the brokers.

    Example: nextclick doctor --kafka localhost:9092 --set topics.events=shop.clicks
    """
    settings = options.settings_of(kafka, None, None, config, assigned)
    from deploy import doctor as looking

    encoder = settings.encoder() if importlib.util.find_spec("transformers") else None
    tokenizer = functools.partial(_tokenizer, encoder) if encoder is not None else None
    found = looking.examine(settings.kafka, settings.topics(), tokenizer, settings["group"], settings.sessions())
    faults = sum(f.level == "fault" for f in found)
    plain = "\n".join(
        f"{f.level.upper() if f.level == 'fault' else f.level:<7} {f.check}: {f.text}"
        + (f"\n        → {f.remedy}" if f.remedy else "")
        for f in found
    )
    plain += f"\n{faults} fault{'s' * (faults != 1)}: do not start yet" if faults else "\nsafe to start"
    options.show({"safe": not faults, "findings": msgspec.to_builtins(found)}, json, plain)
    sys.stdout.flush()
    if faults:
        raise typer.Exit(1)


def _tokenizer(encoder: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(encoder)
