"""`nextclick rank`: how well given items suit a person just now."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from deploy.cli import options

SHOWN = 20


def rank(
    user: Annotated[str, typer.Option("--user", help="The user_id of the events.")],
    candidates: Annotated[Path, typer.Option("--candidates", help="A file of one candidate a line: an item_id, a text, "
                          "or a JSON object of item_id, title, category, brand, price; - is stdin.")],
    url: Annotated[str | None, typer.Option("--url", help="Ask this worker (its setting `http`, like "
                   "http://127.0.0.1:8750); default: champion and lake of the shared folder.")] = None,
    kafka: options.Kafka = None, shared: options.Shared = None, config: options.Config = None,
    assigned: options.Set = None, json: options.Json = False,
) -> None:  # fmt: skip
    """Given items by the probability that each is the person's next one, items that nobody touched yet included.

    Example: nextclick rank --user u-7 --candidates candidates.txt --url http://127.0.0.1:8750
    """
    from deploy import replay

    settings = options.settings_of(kafka, shared, None, config, assigned)
    said = [candidate(raw) for _, raw in replay.raw_lines(candidates, "give one candidate a line")]
    if not said:
        raise options.NothingThere(f"{candidates} names no candidates: write one item_id or text a line")
    if url is not None:
        import msgspec

        from streams import ranking

        answer = msgspec.to_builtins(ranking.rank(url, user, said, token=settings.secret("http.token")))
    else:
        answer = _here(settings, user, said)
    options.show(answer, json, told(answer))


def _here(settings: Any, user: str, said: list[Any]) -> dict[str, Any]:
    """From the shared folder, with the champion that the control log names."""
    if not (settings.shared / "events").is_dir():
        raise options.NothingThere(f"there is no lake in {settings.shared}: set --shared, or ask a worker with --url")
    from deploy import ranking
    from deploy.cli import log

    champion = log.state(settings).champion
    body = orjson.dumps({"user_id": user, "candidates": said})
    return ranking.from_folder(settings, champion, *ranking.asked(body))


def candidate(raw: bytes) -> Any:
    """A line as a candidate: a JSON object or text as such, anything else an item_id or a text."""
    try:
        made = orjson.loads(raw)
    except orjson.JSONDecodeError:
        made = None
    return made if isinstance(made, dict | str) else raw.decode(errors="replace").strip()


def told(answer: dict[str, Any]) -> str:
    """The best candidates, one a line, after what answered."""
    none = answer["none_probability"]
    session = answer["session_id"]
    head = f"{answer['user_id']}: {answer['model_version']}, {answer['reason']}"
    head += f", session {session}" if session else ", no live session"
    head += f"; nothing more {none:.0%}" if none is not None else ""
    rows = [["", "probability", "match", "item", "text"]]
    for one in answer["ranked"][:SHOWN]:
        match = f"{one['match']:.2f}" if one["match"] is not None else ""
        name = (one["item_id"] or "") + ("" if one["known"] else " (new)")
        rows.append([str(one["rank"]), f"{one['probability']:.2%}", match, name.strip(), one["text"][:40]])
    return head + "\n" + options.table(rows)
