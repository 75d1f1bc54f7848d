"""The picture of a table: each arm's mean with an error bar, and the paper's figure."""

import statistics
from collections.abc import Mapping
from pathlib import Path

from experiments.plan import Loaded
from maskrcnn_jax.files import replacing

NAMES = {"segm": "mask", "bbox": "box", "keypoints": "keypoint"}


def draw(path: Path, loaded: Loaded, columns: Mapping[str, Mapping[str, list[float]]]) -> str:
    """Writes the PNG, one panel per judged metric; returns why not, or "".

    columns: arm -> metric -> one value in percent per finished run.
    """
    if not any(columns.values()):
        return "No run is finished, so there is no plot."
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return "No plot: it needs `pip install 'maskrcnn_jax[plot]'`."
    table = loaded.table
    arms = list(reversed(table.arms))  # the first on top
    size = (4.2 * len(table.judged) + 1.5, 0.45 * len(arms) + 1.4)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(table.judged), sharey=True, squeeze=False)[0]
    for axes, metric in zip(panels, table.judged, strict=True):
        for place, arm in enumerate(arms):
            values = columns[arm.name].get(metric, [])
            if values:
                bar = statistics.stdev(values) if len(values) > 1 else None
                axes.errorbar(
                    statistics.fmean(values), place, xerr=bar, fmt="o", color="C0", capsize=4
                )
                axes.plot(values, [place] * len(values), ".", color="C0", alpha=0.4)
            if metric in arm.paper:
                axes.plot(arm.paper[metric], place, "D", color="C1", markerfacecolor="none")
        kind, _, name = metric.partition("/")
        axes.set_xlabel(f"{NAMES[kind]} {name}, %")
        axes.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(arms)), [arm.name for arm in arms])
    panels[0].set_ylim(-0.6, len(arms) - 0.4)
    figure.suptitle(f"{loaded.name}: dots ours, mean ± standard deviation", fontsize=10)
    if any(metric in arm.paper for arm in arms for metric in table.judged):
        figure.suptitle(
            f"{loaded.name}: dots ours, mean ± standard deviation; diamonds the paper", fontsize=10
        )
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    return ""
