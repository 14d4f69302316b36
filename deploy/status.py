"""How everything is, from the beats and the control log: no worker and no trainer has to answer."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from deploy import notation, verdicts
from deploy.settings import Settings
from streams import control, quality

GONE_MS = 10_000  # a worker beats once a second
VERDICTS = 5
READ_S = 20.0


def beats(settings: Settings) -> dict[str, dict[str, Any]]:
    """The newest beat of each worker that ever beat; raises KafkaError where the topic cannot be read."""
    import kafka

    part = kafka.TopicPartition(settings["topics.state"], 0)
    consumer = kafka.KafkaConsumer(
        **settings.kafka.for_kafka_python(), group_id=None, enable_auto_commit=False, auto_offset_reset="earliest"
    )
    found: dict[str, dict[str, Any]] = {}
    try:
        consumer.assign([part])
        consumer.seek_to_beginning(part)
        until_s = time.monotonic() + READ_S
        while time.monotonic() < until_s:
            for record in consumer.poll(timeout_ms=250).get(part, []):
                beat = _beat(record.value)
                found[str(beat.get("worker"))] = beat
            end = consumer.highwater(part)  # None until a fetch was answered
            if end is not None and consumer.position(part) >= end:
                return {name: beat for name, beat in found.items() if "at_ms" in beat}
    finally:
        consumer.close()
    raise kafka.errors.KafkaTimeoutError(f"{settings['topics.state']} could not be read within {READ_S:.0f} s")


def _beat(value: bytes | None) -> dict[str, Any]:
    try:
        beat = orjson.loads(value or b"{}")
    except orjson.JSONDecodeError:
        return {}
    return beat if isinstance(beat, dict) else {}


def gather(
    said: Mapping[str, Mapping[str, Any]], state: control.ControlState, settings: Settings, now_ms: int
) -> dict[str, Any]:
    """All of it as plain values; `settings` with the control log's live ones on top."""
    alive = {name: beat for name, beat in said.items() if now_ms - int(beat["at_ms"]) <= GONE_MS}
    judged = list(state.verdicts)
    cadence_ms = cadence_of(judged, settings)
    last = next((v for v in reversed(judged) if v.get("version") == state.champion), None)
    paused = state.pause if state.pause is not None and state.pause.until_ms > now_ms else None
    return {
        "at_ms": now_ms,
        "workers": [_worker(beat, now_ms) for _, beat in sorted(said.items())],
        "lag": sum(int(beat.get("lag", 0)) for beat in alive.values()),
        "partitions_owned": len({p for beat in alive.values() for p in beat.get("partitions", ())}),
        "live": quality.merged(said.values()),
        "champion": state.champion,
        "champion_age_ms": now_ms - int(last["at_ms"]) if last else None,
        "pinned_by": state.pinned_by if state.pinned else None,
        "verdicts": judged[-VERDICTS:],
        "rejected_in_a_row": verdicts.rejected_in_a_row(judged),
        "running": {"by": begun.by, "since_ms": begun.at_ms, **begun.data} if (begun := state.running) else None,
        "next_retrain_ms": next_retrain_ms(state, cadence_ms),
        "paused": {"until_ms": paused.until_ms, "by": paused.by} if paused else None,
        "freshness_ms": freshness(judged, settings, _newest(said), cadence_ms),
    }


def _worker(beat: Mapping[str, Any], now_ms: int) -> dict[str, Any]:
    kept = ("worker", "lag", "watermark_ms", "open_sessions", "events", "predictions", "dead_letters", "version",
            "latency_ms", "bots", "catalogue")  # fmt: skip
    age_ms = now_ms - int(beat["at_ms"])
    told = {name: beat.get(name) for name in kept}
    return told | {"partitions": dict(beat.get("partitions", {})), "beat_age_ms": age_ms, "alive": age_ms <= GONE_MS}


def next_retrain_ms(state: control.ControlState, cadence_ms: int) -> int | None:
    """When the trainer will begin the next one, as far as the log tells; None: one runs, or none ever did."""
    if state.running is not None or not state.verdicts:
        return None
    last = state.verdicts[-1]
    due_ms = int(last["at_ms"]) - int(last.get("wall_ms", 0)) + cadence_ms
    return max(due_ms, state.pause.until_ms) if state.pause is not None else due_ms


def cadence_of(judged: list[dict[str, Any]], settings: Settings) -> int:
    """The cadence that the control log sets, else the trainer's own as its last verdict told it; milliseconds."""
    told = next((v["dials"]["cadence"]["value"] for v in reversed(judged) if "cadence" in v.get("dials", {})), None)
    own = told is None or settings.source("cadence") == "control"
    return int(settings["cadence"]) if own else notation.duration(str(told))


def _newest(said: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    return max(said.values(), key=lambda beat: int(beat["at_ms"]), default={})


def freshness(
    judged: list[dict[str, Any]], settings: Settings, beat: Mapping[str, Any], cadence_ms: int
) -> dict[str, int]:
    """How long after an event a version that learnt from it may be expected: each link, and their sum.

    Horizon and lateness are those that the newest beat tells: the worker's own, whatever this command was started with.
    """
    took = [int(v["wall_ms"]) for v in judged if v.get("wall_ms") and v.get("kind") == "refresh"]
    chain = {
        "horizon": int(beat.get("horizon_ms") or settings["horizon.next"]),
        "lateness": int(beat.get("lateness_ms", settings["session.lateness"])),
        "cadence": cadence_ms,
        "training": int(statistics.median(took[-10:])) if took else 0,
    }
    return chain | {"total": sum(chain.values())}


def plain(told: dict[str, Any]) -> Iterator[str]:
    """The same for people, a line a fact."""
    now_ms = told["at_ms"]
    for worker in told["workers"]:
        if not worker["alive"]:
            yield f"worker {worker['worker']}: no beat for {_about(worker['beat_age_ms'])}"
            continue
        behind = _about(max(0, now_ms - worker["watermark_ms"])) if worker["watermark_ms"] else "nothing seen yet"
        yield (f"worker {worker['worker']}: {len(worker['partitions'])} partitions, lag {worker['lag']:,}, watermark "
               f"{behind} behind now, {worker['open_sessions']:,} open sessions, answers with {worker['version']}"
               )  # fmt: skip
    yield from _left_out(told["workers"])
    if not any(worker["alive"] for worker in told["workers"]):
        yield "no worker beats: start one with `nextclick worker`"
    age = "" if told["champion_age_ms"] is None else f", judged {_about(told['champion_age_ms'])} ago"
    pinned = f", pinned by {told['pinned_by']}" if told["pinned_by"] else ""
    yield f"champion {told['champion'] or 'none yet: the memory answers'}{age}{pinned}"
    yield from quality.plain(told["live"])
    for verdict in reversed(told["verdicts"]):
        came, n = verdicts.outcome(verdict), verdict.get("n", 0)
        yield f"  {verdict.get('kind')} {came}: {verdict.get('reason')} (n={n:,})"
    if told["rejected_in_a_row"]:
        yield f"{told['rejected_in_a_row']} candidates in a row were kept out"
    if told["paused"]:
        yield f"retrains paused by {told['paused']['by']} for {_about(told['paused']['until_ms'] - now_ms)} more"
    elif told["running"]:
        yield f"{told['running'].get('kind', 'retrain')} running for {_about(now_ms - told['running']['since_ms'])}"
    elif told["next_retrain_ms"] is None:
        yield "no retrain yet: start a trainer with `nextclick trainer`"
    else:
        wait_ms = told["next_retrain_ms"] - now_ms
        yield (
            f"next retrain in {_about(wait_ms)}"
            if wait_ms > 0
            else (f"a retrain is due since {_about(-wait_ms)}: it waits for events, or no trainer leads")
        )
    chain = told["freshness_ms"]
    links = " + ".join(f"{name} {_about(ms)}" for name, ms in chain.items() if name != "total")
    yield f"from event to a version that learnt from it: {links} = {_about(chain['total'])}"


def _left_out(workers: list[dict[str, Any]]) -> Iterator[str]:
    """What is not learnt from, and what the catalogue tells: all workers follow the same one."""
    counts: Counter[str] = Counter()
    sessions = 0
    for worker in workers:
        bots = worker["bots"] or {"rows": {}, "sessions": {}}
        counts.update(bots["rows"])
        sessions += sum(bots["sessions"].values())
    if counts:
        reasons = ", ".join(f"{reason} {n:,}" for reason, n in counts.most_common())
        yield f"left out: {counts.total():,} events of {sessions:,} sessions that no person makes ({reasons})"
    stock = next((w["catalogue"] for w in workers if w["alive"] and w["catalogue"]), None)
    if stock is not None and any(stock.values()):
        yield (f"catalogue: {stock['items']:,} items, {stock['withdrawn']:,} withdrawn, {stock['waiting']:,} not taken "
               f"yet, {stock['refused']:,} refused")  # fmt: skip


def _about(ms: int) -> str:
    return notation.written(ms // 1000 * 1000)
