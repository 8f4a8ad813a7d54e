"""Loss curves as PNG: `loss.png` of a run, and several runs in one picture for `compare --plot`.

Drawn with matplotlib's Agg canvas, without touching its global state. No text of the data gets into a picture:
the fonts that ship with matplotlib hold no Chinese.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Records = Sequence[Mapping[str, Any]]

INK, MUTED, GRID = "#1f2933", "#7b8794", "#e4e7eb"
TRAINING, VALIDATION, RATE = "#2f6fde", "#d9480f", "#12805c"
RUN_COLOURS = ("#2f6fde", "#d9480f", "#12805c", "#8e44ad", "#b7791f", "#0b7285", "#c2255c", "#495057")


def plot_run(metrics: Records, path: Path) -> None:
    """Draw `metrics` (records of metrics.jsonl) to `path`: training loss raw and smoothed, validation loss, rate."""
    figure = _figure(7.2, 5.0)
    loss_axes, rate_axes = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    steps, losses = _series(metrics, "loss")
    loss_axes.plot(steps, losses, color=TRAINING, alpha=0.28, linewidth=0.9)
    loss_axes.plot(
        steps, smooth(losses), color=TRAINING, linewidth=2.0, marker=_dot(steps), label="training (smoothed)"
    )
    at, validation = _series(metrics, "validation_loss")
    if len(at):
        loss_axes.plot(
            at, validation, color=VALIDATION, linewidth=1.3, marker="o", markersize=5,
            markerfacecolor="white", markeredgewidth=1.6, label="validation",
        )  # fmt: skip
        _note_last(loss_axes, at, validation, VALIDATION)
    _frame(loss_axes, "loss per token (nats)", losses, validation)
    loss_axes.legend(frameon=False, labelcolor=INK, loc="upper right")
    rate_axes.plot(*_series(metrics, "learning_rate"), color=RATE, linewidth=1.5)
    _style(rate_axes, "learning rate")
    rate_axes.set_ylim(bottom=0)
    rate_axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 3), useMathText=True)
    rate_axes.set_xlabel("step", color=INK)
    figure.align_ylabels()
    _save(figure, path)


def plot_runs(runs: Mapping[str, Records], path: Path) -> None:
    """Draw the loss curves of several runs, by name, over each other: training smoothed, validation as points."""
    figure = _figure(7.6, 4.6)
    axes = figure.subplots()
    every_loss: list[np.ndarray] = []
    for index, (name, metrics) in enumerate(runs.items()):
        colour = RUN_COLOURS[index % len(RUN_COLOURS)]
        # a name the font cannot draw would come out as empty boxes
        label = name if name.isascii() else f"run {index + 1}"
        steps, losses = _series(metrics, "loss")
        axes.plot(steps, smooth(losses), color=colour, linewidth=1.8, marker=_dot(steps), label=label)
        at, validation = _series(metrics, "validation_loss")
        axes.plot(
            at, validation, color=colour, linewidth=0.9, linestyle=(0, (4, 3)), marker="o", markersize=4.5,
            markerfacecolor="white", markeredgewidth=1.5,
        )  # fmt: skip
        every_loss += [losses, validation]
    _frame(axes, "loss per token (nats)", *every_loss)
    axes.set_xlabel("step", color=INK)
    axes.set_title("lines: training (smoothed), points: validation", loc="left", fontsize=9, color=MUTED)
    figure.legend(frameon=False, labelcolor=INK, loc="outside upper center", ncols=min(len(runs), 4))
    _save(figure, path)


def smooth(values: np.ndarray) -> np.ndarray:
    """Mean under a bell curve a fiftieth of the run wide: centred, so that the curve does not lag."""
    if len(values) == 0:
        return values
    sigma = len(values) / 50
    reach = int(3 * sigma)
    bell = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(sigma, 1e-9)) ** 2)
    weights = np.convolve(np.ones(len(values)), bell)[reach : reach + len(values)]
    smoothed: np.ndarray = np.convolve(values, bell)[reach : reach + len(values)] / weights
    return smoothed


def _series(metrics: Records, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of the records that have `key`."""
    points = [(record["step"], record[key]) for record in metrics if record.get(key) is not None]
    steps, values = zip(*points, strict=True) if points else ((), ())
    return np.asarray(steps, dtype=np.int64), np.asarray(values, dtype=np.float64)


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, layout="constrained", facecolor="white")


def _save(figure: "Figure", path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    figure.savefig(path, format="png")


def _frame(axes: "Axes", label: str, *losses: np.ndarray) -> None:
    """Choose the loss range by what matters: a few wild first steps must not flatten the curve."""
    _style(axes, label)
    values = np.concatenate([loss[np.isfinite(loss)] for loss in losses])
    if len(values):
        low, high = float(values.min()), float(np.percentile(values, 99.5))
        margin = 0.06 * max(high - low, 0.05 * abs(high), 1e-3)
        axes.set_ylim(max(0.0, low - margin), high + 2 * margin)


def _style(axes: "Axes", label: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_ylabel(label, color=INK)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(x=0.02)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.tick_params(colors=MUTED, length=0, labelsize=9)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)


def _dot(steps: np.ndarray) -> str | None:
    """A line through one point is invisible."""
    return "." if len(steps) == 1 else None


def _note_last(axes: "Axes", steps: np.ndarray, values: np.ndarray, colour: str) -> None:
    axes.annotate(
        f"{values[-1]:.3f}", (steps[-1], values[-1]), textcoords="offset points", xytext=(0, 8),
        ha="right", color=colour, fontsize=9,
    )  # fmt: skip
