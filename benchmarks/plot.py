"""Plots of what engines.py, streams.py, fleet.py measured, and fleet_model.py: `plot.py RUN.json … --folder docs`.

Each RUN.json is what one of them printed with --json; the folder gets `streams.svg` and so on, whose colours can be
read on a light and on a dark page. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#7d8590"
"""Text and lines: a contrast of 4 to white, and to GitHub's black."""
OURS, OURS_TOO, PEERS = "#2f81f7", "#8957e5", "#d29922"
LATEST_SECONDS = 4.0
"""Top of the plot of streams: later text is off it."""
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "whisper-byoc",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.constrained_layout.use": True,
}

Rows = Sequence[Mapping[str, Any]]


def main() -> None:
    """Draw every run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN.json")
    parser.add_argument("--folder", type=Path, default=Path(), help="where the plots go (default: here)")
    options = parser.parse_args()
    if importlib.util.find_spec("matplotlib") is None:
        raise SystemExit("matplotlib is not installed: pip install -e .[bench]")
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        for path in options.runs:
            draw(json.loads(path.read_text().splitlines()[-1]), options.folder)


def draw(run: Mapping[str, Any], folder: Path) -> None:
    """Draw a run. Raises SystemExit for one that has no plot."""
    plots: Mapping[str, Callable[..., Figure]] = {
        "streams": streams_plot, "engines": engines_plot, "fleet": fleet_plot, "fleet_model": model_plot
    }  # fmt: skip
    name = run["benchmark"]
    if name not in plots:
        raise SystemExit(f"there is no plot of {name!r}; there are those of {', '.join(plots)}")
    figure = plots[name](*list(run["tables"].values())[: 4 if name == "fleet_model" else 1])
    path = folder / f"{name}.svg"
    figure.savefig(path, transparent=True, metadata={"Date": None})
    print(path)


def streams_plot(rows: Rows) -> Figure:
    """How late final text is, by the number of streams: a line for each server."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6))
    axes = figure.subplots()
    labels = {
        "ours": ("final text", OURS, "o"),
        "ours, partials": ("final text, with partial text too", OURS_TOO, "s"),
        "faster-whisper": ("a server around faster-whisper", PEERS, "^"),
    }
    for server, (label, colour, marker) in labels.items():
        points = sorted(
            (row["streams"], row["final p95 s"]) for row in rows if row["server"] == server and row["final p95 s"]
        )
        if points:
            axes.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=4, label=label)
    ticks = [2**power for power in range(max(row["streams"] for row in rows).bit_length())]
    axes.axhline(1, color=INK, linewidth=0.8, linestyle="--")
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(each) for each in ticks])
    axes.minorticks_off()
    axes.set_ylim(0, LATEST_SECONDS)
    axes.set_xlabel("live streams at once")
    axes.set_ylabel("p95 of the delay of final text, s")
    axes.legend(frameon=False, loc="upper left")
    return figure


def fleet_plot(rows: Rows) -> Figure:
    """How late final text is, by the number of streams: a line for each number of containers."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.2))
    axes = figure.subplots()
    numbers = sorted({row["containers"] for row in rows})
    for number, colour, marker in zip(numbers, (OURS, OURS_TOO, PEERS, INK), "os^v", strict=False):
        points = sorted((row["streams"], row["final p95 s"]) for row in rows if row["containers"] == number)
        label = f"{number} container{'s' if number > 1 else ''} of one core"
        axes.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=4, label=label)
    axes.axhline(1, color=INK, linewidth=0.8, linestyle="--")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("live streams at the gateway")
    axes.set_ylabel("p95 of the delay of final text, s")
    axes.legend(frameon=False)
    return figure


def model_plot(check: Rows, size: Rows, loss: Rows, growth: Rows) -> Figure:
    """The model beside what was measured, delay by load and size, and refusals by how far is looked ahead."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2))
    first, second, third = figure.subplots(1, 3)
    points = [(row["final p95 s"], row["model p95 s"]) for row in check if row["final p95 s"]]
    top = 1.1 * max(max(point) for point in points)
    first.plot(*zip(*points, strict=True), "o", color=OURS, markersize=4)
    first.plot([0, top], [0, top], color=INK, linewidth=0.8, linestyle="--")
    first.set_xlabel("p95 measured, s")
    first.set_ylabel("p95 of the model, s")
    colours = (OURS, OURS_TOO, PEERS, INK)
    for number, colour in zip(sorted({row["containers"] for row in size}), colours, strict=False):
        points = [(100 * row["share"], row["p95 s"]) for row in size if row["containers"] == number]
        second.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=4, label=f"{number} containers")
    second.set_xlabel("streams, % of what fits")
    second.set_ylabel("p95 of the model, s")
    for row, colour in zip(growth, colours, strict=False):
        found = [(name.split()[2], value) for name, value in row.items() if name.startswith("refused")]
        label = f"image {row['image pulled in s']} s"
        third.plot(*zip(*found, strict=True), color=colour, marker="o", markersize=4, label=label)
    third.set_xlabel("autoscaler looks ahead, s")
    third.set_ylabel("refused, %")
    second.legend(frameon=False)
    third.legend(frameon=False)
    return figure


def engines_plot(rows: Rows) -> Figure:
    """How long each engine takes: bars, a panel for each length of sound."""
    from matplotlib.figure import Figure

    lengths = [name for name in rows[0] if name.endswith("s: ms")]
    figure = Figure(figsize=(9, 0.9 + 0.3 * len(rows)))
    panels: Sequence[Axes] = figure.subplots(1, len(lengths), sharey=True, squeeze=False)[0]
    names = [row["engine"] for row in rows]
    colours = [{"f": OURS, "o": INK}.get(name[0], PEERS) if "-" not in name else PEERS for name in names]
    for axes, length in zip(panels, lengths, strict=True):
        seconds = [row[length] / 1000 for row in rows]
        bars = axes.barh(names, seconds, color=colours)
        axes.bar_label(bars, [f"{each:.2g}" if each < 10 else f"{each:.0f}" for each in seconds], padding=2)
        axes.set_xlim(0, 1.35 * max(seconds))
        axes.set_title(f"{length.removesuffix(': ms')} of sound", fontsize=10)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
    panels[0].invert_yaxis()
    figure.supxlabel("seconds of work", fontsize=10)
    return figure


if __name__ == "__main__":
    main()
