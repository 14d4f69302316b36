"""The model card of a version: what it is for, what it was trained on, how it was judged, where it ends."""

from __future__ import annotations

import datetime
from typing import Any

import msgspec

METRICS = {
    "log_loss": "log loss (nats)", "recall20": "R@20", "mrr20": "MRR@20", "category_recall1": "category R@1",
    "category_recall5": "category R@5", "category_log_loss": "category log loss (nats)",
}  # fmt: skip
FRONT = """---
library_name: nextclick
tags: [session-based-recommendation, clickstream]
---
"""
LIMITS = (
    "It predicts within one session and its horizon; it knows nothing of a person beyond the session.",
    "The figures hold for the judged slice of this shop, the newest at that time; another shop or season is another.",
    "What nobody saw in the past is not shown to anyone: figures from logs say nothing of what a prediction causes.",
)


def text(meta: dict[str, Any]) -> str:
    """A Hugging Face model card in Markdown; `meta` is what was said of the version when it was published."""
    meta = msgspec.to_builtins(meta)
    said = [FRONT, "# nextclick model version", "", "Predicts what a shopper engages with next within the session.", ""]
    said += ["## Data", "", *_data(meta), ""]
    if meta.get("metrics"):
        said += ["## Judged", "", *_judged(meta), ""]
    said += ["## Limits", "", *(f"- {line}" for line in (*meta.get("limits", ()), *LIMITS)), ""]
    said += ["## Use", "", "```python", "from trainer import predictor, texts  # whole: Predictor.load(folder, …)"]
    said += ["from transformers import AutoModel, AutoTokenizer  # its encoder, where it has one"]
    said += ['AutoModel.from_pretrained(f"{folder}/encoder"), AutoTokenizer.from_pretrained(f"{folder}/encoder")']
    return "\n".join([*said, "```", ""])


def _data(meta: dict[str, Any]) -> list[str]:
    at = datetime.datetime.fromtimestamp(meta.get("made_ms", 0) / 1000, datetime.UTC)
    lines = [f"- made {at:%Y-%m-%d %H:%M} UTC by a {meta.get('kind', 'retrain')}, after {meta.get('champion')}"]
    lines += [
        f"- {meta.get('n_train', 0):,} labelled cuts to learn from, {meta.get('n', 0):,} held out, newer than all"
    ]
    lines += [f"- {meta['items']:,} items known"] if "items" in meta else []
    if until := meta.get("data_offsets"):
        lines += [f"- read up to offset {offset:,} of `{part}`" for part, offset in sorted(until.items())]
    if encoder := meta.get("encoder"):
        lines += [f"- text vectors by encoder `{encoder}`"]
    return lines


def _judged(meta: dict[str, Any]) -> list[str]:
    """One row a metric, one column an arm: the mean with its session-bootstrap 95 % interval and n."""
    arms: dict[str, Any] = meta["metrics"]
    lines = ["| | " + " | ".join(arms) + " |", "|---" * (len(arms) + 1) + "|"]
    for slice_ in ("", "cold item", "category switch", "first row"):
        for name, called in METRICS.items():
            cells = [(arm.get(slice_, {}) if slice_ else arm).get(name) for arm in arms.values()]
            if any(isinstance(cell, dict) and cell.get("mean") is not None for cell in cells):
                head = f"{called}, {slice_}" if slice_ else called
                lines.append(f"| {head} | " + " | ".join(map(_cell, cells)) + " |")
    ece = [arm.get("ece") for arm in arms.values()]
    if all(isinstance(value, float) for value in ece):
        lines.append("| calibration error (ECE) | " + " | ".join(f"{value:.3f}" for value in ece) + " |")
    return lines


def _cell(value: Any) -> str:
    if not isinstance(value, dict) or value.get("mean") is None:
        return "—"
    return f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}], n = {value['n']:,}"
