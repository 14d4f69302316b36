"""What a run did: counted in the lake's cover, the topics and the control log, and told in lines."""

from __future__ import annotations

from collections import Counter
from typing import Any

from deploy import feeding, verdicts, watching
from deploy.settings import Settings
from featurestore import database, lake
from streams import control, quality


def counted(
    settings: Settings, watch: watching.Watch, feed: feeding.Input, state: control.ControlState
) -> dict[str, Any]:
    """What this run did, counted in the lake's cover, the topics and the control log."""
    cover = lake.Lake(settings.shared, "summary").cover()
    counts: Counter[str] = Counter()
    for key, progress in cover.progress.items():
        if not key.topic.startswith("~"):
            for name in ("stored", "duplicates", "rejected"):
                counts[name] += getattr(progress, name)
    latency = watch.latency_ms or {}
    return {
        "events_sent": feed.sent.events - feed.sent.failed,
        "stored": counts["stored"],
        "duplicates": counts["duplicates"],
        "rejected": counts["rejected"],
        "dead_letters": watch.dead_letters,
        "predictions": watch.predictions,
        "stale_users": stale_users(cover, watch.newest),
        "versions": list(state.versions),
        "swaps": watch.total("swaps"),
        "verdicts": list(state.verdicts),
        "champion": state.champion,
        "latency_ms": {"p50": latency.get("p50"), "p99": latency.get("p99")},
        "live": quality.merged(watch.beats.values()),
    }


def told(result: dict[str, Any]) -> str:
    """The summary in plain lines: what came in, what went out, and each verdict with its n and bounds."""
    latency = result["latency_ms"]
    p50, p99 = (f"{latency[p]:,.0f} ms" if latency[p] is not None else "not timed" for p in ("p50", "p99"))
    sent = f"{result['events_sent']:,} events sent" if result["events_sent"] else "events of others"
    lines = [
        f"{sent}: {result['stored']:,} stored, {result['duplicates']:,} duplicates, "
        f"{result['rejected']:,} rejected, {result['dead_letters']:,} dead letters",
        f"{result['predictions']:,} predictions, p50 {p50}, p99 {p99}; users without one for their newest event: "
        f"{result['stale_users']:,}",
        f"{len(result['versions'])} versions, {result['swaps']} swaps, champion {result['champion'] or 'none'}",
    ]
    return "\n".join([*lines, *map(told_verdict, result["verdicts"]), *quality.plain(result["live"])])


def told_verdict(verdict: dict[str, Any]) -> str:
    """One verdict in a line."""
    bounds = [
        f"{name} {b['mean']:+.3f} [{b['low']:+.3f}, {b['high']:+.3f}]"
        for name, b in verdict.get("bounds", {}).items()  # one that failed tells its reason only
        if b["mean"] is not None
    ]
    numbers = [f"n={verdict.get('n', 0):,}", *bounds, f"{verdict.get('cpu_seconds', 0):.0f} CPU s"]
    version = f" as {verdict['version']}" if verdict["accepted"] else ""
    return f"  {verdict['kind']} {verdicts.outcome(verdict)}{version}: {verdict['reason']} ({', '.join(numbers)})"


def stale_users(cover: lake.Cover, newest: dict[str, tuple[int, int]]) -> int:
    """Users with a scorable row whose newest prediction's trigger is not their newest scorable row."""
    with database.connect() as con:
        where = "consent AND NOT late AND bot IS NULL AND topic NOT LIKE '~%'"
        relation = cover.relation(["user_id", "partition", "offset"], where=where)
        rows = con.execute(f'SELECT user_id, partition, max("offset") FROM ({relation}) GROUP BY ALL').fetchall()
    last = {(user, part): offset for user, part, offset in rows}
    users = {user for user, _ in last}
    return sum(user not in newest or last.get((user, newest[user][0])) != newest[user][1] for user in users)
