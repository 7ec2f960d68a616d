"""Draws throughput.svg, the README's figure, from the table in docs/speed.md."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).resolve().parent
_BARS = {
    "`average`": ("rllib_weighted, average", "#3f51b5"),
    "`reward_weighted`": ("rllib_weighted, reward_weighted", "#7986cb"),
    "Stable-Baselines3 PPO, in one process": ("Stable-Baselines3 PPO", "#ffb300"),
    "stock RLlib PPO": ("stock RLlib PPO", "#9e9e9e"),
}
_CELL = re.compile(r"([\d,]+) \(([\d,]+) – ([\d,]+)\)")


def read_table(page: str) -> tuple[list[str], dict[str, list[tuple[int, int, int]]]]:
    """Returns the environments, and row -> (median, lowest, highest) in each, steps per second."""
    lines = page.splitlines()
    head = next(line for line in lines if line.startswith("| | CartPole"))
    rows = {}
    for line in lines:
        name = line.strip("| ").split(" | ")[0]
        cells = _CELL.findall(line)
        if name in _BARS and cells:
            rows[name] = [tuple(int(x.replace(",", "")) for x in cell) for cell in cells]
    return [cell.strip() for cell in head.strip("| ").split("|")], rows


def draw(file: Path) -> None:
    """Writes the figure."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    page = (HERE.parent / "speed.md").read_text(encoding="utf-8")
    envs, rows = read_table(page)
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "throughput", "font.size": 9}):
        figure, axes = plt.subplots(1, len(envs), figsize=(9, 2.1), layout="constrained")
        for column, (env, axis) in enumerate(zip(envs, axes, strict=True)):
            for place, (row, (label, color)) in enumerate(_BARS.items()):
                median, low, high = rows[row][column]
                spread = [[median - low], [high - median]]
                axis.barh(-place, median, color=color, xerr=spread, ecolor="#424242", label=label)
                axis.text(high, -place, f"  {median:,}", va="center")
            axis.set(title=env, yticks=[], xticks=[], xlim=(0, 1.3 * axis.get_xlim()[1]))
            axis.spines[["top", "right", "bottom"]].set_visible(False)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
        figure.savefig(file, metadata={"Date": None, "Creator": None}, facecolor="white")
        plt.close(figure)


if __name__ == "__main__":
    draw(HERE / "throughput.svg")
