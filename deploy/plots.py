"""A backtest drawn: quality against what it cost, with the same figures as the text and the JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deploy.tables import COLUMNS
from trainer import extras


class Undrawable(ValueError):
    """A file that nothing can be drawn into; the message says why."""


def ready(file: Path) -> None:
    """Raises `NotInstalled` or `Undrawable` before anything long has begun."""
    extras.need("matplotlib", asked=f"--plot {file}", extra="plots")
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    known = FigureCanvasAgg.get_supported_filetypes()
    if file.suffix.removeprefix(".") not in known:
        raise Undrawable(f"--plot {file}: a picture ends in .png, .svg or .pdf")
    if not file.resolve().parent.is_dir():
        raise Undrawable(f"--plot {file}: there is no folder {file.resolve().parent}")


def points(result: dict[str, Any], figure: str) -> dict[str, tuple[float, float, float, float]]:
    """What is drawn: arm → CPU seconds of training, mean, low, high."""
    return {
        name: (arm["train_cpu_seconds"], bound["mean"], bound["low"], bound["high"])
        for name, arm in result["arms"].items()
        if (bound := arm["metrics"].get(figure)) is not None
    }


def draw(result: dict[str, Any], file: Path) -> None:
    """Write a picture; its kind is the file's ending. One panel a figure, bars are 95 % intervals over sessions."""
    ready(file)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figures = [f for f in COLUMNS[result["target"]] if points(result, f)]
    wide, high = min(3, len(figures)), -(-len(figures) // 3)
    canvas = FigureCanvasAgg(Figure(figsize=(5 * wide, 4.2 * high), layout="constrained"))
    for n, figure in enumerate(figures, 1):
        axes = canvas.figure.add_subplot(high, wide, n)
        for name, (cpu, mean, least, most) in points(result, figure).items():
            ours = result["arms"][name]["kind"] == "cadence"
            axes.errorbar(
                max(cpu, 0.1), mean, yerr=[[max(0.0, mean - least)], [max(0.0, most - mean)]], fmt="o" if ours else "x",
                color="tab:blue" if ours else "tab:gray", capsize=2,
            )  # fmt: skip
            axes.annotate(name, (max(cpu, 0.1), mean), xytext=(4, 4), textcoords="offset points", fontsize=7)
        axes.set(title=figure, xscale="log", xlabel="CPU seconds of training")
    told = result["recommended"]["reason"] if result["recommended"] else ""
    canvas.figure.suptitle(f"{result['events']:,} events, {result['cuts']:,} cuts. {told}", fontsize=8, wrap=True)
    canvas.figure.savefig(file, dpi=120)
