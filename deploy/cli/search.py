"""`nextclick tune`: which settings fit a shop, by its own old events."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploy import settings as dials
from deploy.cli import options


def tune(
    file: Annotated[Path, typer.Argument(help="A .jsonl or .jsonl.gz file of one event a line.")],
    for_: Annotated[str, typer.Option("--for", help="How long to try; a trial that has begun is ended.")] = "10m",
    out: Annotated[Path, typer.Option("--out", help="Where the best settings go, for --config.")] = Path("tuned.toml"),
    storage: Annotated[
        Path, typer.Option("--storage", help="What was tried; the same file goes on where it stopped.")
    ] = Path("tuned.journal"),
    config: options.Config = None, assigned: options.Set = None, json: options.Json = False,
) -> None:  # fmt: skip
    """Search settings of the network and, where `tune` is on, of the language model: each judged on what came next.

    Example: nextclick tune events.jsonl.gz
    """
    from deploy import replay as playing

    settings = options.settings_of(None, None, None, config, assigned)
    budget_ms = options.milliseconds(for_, "--for")
    if not budget_ms:
        raise dials.SettingsError(f"--for {for_!r} cannot be used: write a duration above zero, like 10m")
    playing.opened(file)
    from deploy import search

    found = search.run(settings, file, budget_ms, storage)
    out.write_text(search.fragment(found), encoding="utf-8")
    told = "\n".join(f"  {name} = {value}" for name, value in sorted(found["best"].items()))
    options.show(found | {"out": str(out)}, json, f"{found['log_loss']} nats (as the settings were: "
                 f"{found['as_they_are']}) after {found['trials']} trials\n{told}\nuse it: --config {out}")  # fmt: skip
