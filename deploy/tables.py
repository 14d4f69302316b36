"""A backtest's result as lines for a terminal."""

from __future__ import annotations

from typing import Any

from streams import quality

COLUMNS = {
    "item": ("item.r1", "item.r5", "item.r10", "item.r20", "item.mrr20", "item.ndcg20", "item.log_loss"),
    "category": ("category.r1", "category.r5", "category.r10", "category.log_loss"),
    "purchase": ("purchase.auc", "purchase.log_loss"),
}


def told(result: dict[str, Any]) -> str:
    """The result as lines: a table with intervals, slices, calibration, gains and the recommendation."""
    columns = COLUMNS[result["target"]]
    arms = {name: arm for name, arm in result["arms"].items() if any(c in arm["metrics"] for c in columns)}
    lines = [f"{result['events']:,} events, {result['cuts']:,} cuts tested, encoder {result['encoder']}", ""]
    lines += _table(arms, columns, lambda arm: arm["metrics"], cost=True)
    few = {"item": ("item.r20", "item.mrr20"), "category": ("category.r1", "category.r5"), "purchase": ()}
    for name in next(iter(arms.values()), {"slices": {}})["slices"] if few[result["target"]] else ():
        lines += ["", f"{name}:"]
        lines += _table(arms, few[result["target"]], lambda arm, name=name: arm["slices"][name], cost=False)
    lines += ["", "calibration and what else was published:"]
    more = ("ece.given_some", "ece.published", "ece.none", "ece.category", "ece.purchase", "none.log_loss",
            "outcome.log_loss")  # fmt: skip
    cadences = {name: arm for name, arm in arms.items() if arm["kind"] == "cadence"}
    lines += [
        f"  {name:<8} {figure:<18} {quality.told(arm['metrics'][figure], 4)}  n={arm['metrics'][figure]['n']:,}"
        for name, arm in cadences.items() for figure in more if figure in arm["metrics"]
    ]  # fmt: skip
    if result["gains"]:
        lines += ["", f"gains of {result['decides']}, paired by cut:"]
    for one in result["gains"]:
        if one["mean"] is not None:
            cost = f"{one['cpu_seconds']:+.0f} CPU s"
            cost += f", {one['per_1000_cpu_seconds']:+.3f} a 1,000" if one["per_1000_cpu_seconds"] is not None else ""
            lines.append(f"  {one['cadence']} over {one['over']}: {quality.told(one, 4)}  {cost}")
    not_beaten = [name for name, one in result["against"].items() if not one["beaten"]]
    if not_beaten:
        lines += ["", f"not beaten with the interval apart from 0: {', '.join(not_beaten)}"]
    if result["recommended"] is not None:
        lines += ["", result["recommended"]["reason"]]
    return "\n".join(lines)


def _table(arms: dict[str, Any], columns: tuple[str, ...], part: Any, *, cost: bool) -> list[str]:
    used = [c for c in columns if any(c in part(arm) for arm in arms.values())]
    if not used:
        return ["  no case"]
    wide = max(len(name) for name in arms)
    lines = [
        f"  {'':<{wide}} " + " ".join(f"{c.partition('.')[2]:<20}" for c in used) + (" train CPU s" if cost else "")
    ]
    for name, arm in arms.items():
        cells = [f"{quality.told(part(arm)[c]) if c in part(arm) else '-':<20}" for c in used]
        n = next((part(arm)[c]["n"] for c in used if c in part(arm)), 0)
        lines.append(
            f"  {name:<{wide}} {' '.join(cells)}"
            + (f" {arm['train_cpu_seconds']:>8.1f}" if cost else "")
            + f"  n={n:,}"
        )
    return lines
