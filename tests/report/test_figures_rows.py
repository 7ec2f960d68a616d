from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rllib_weighted.report import Results, compute
from rllib_weighted.report import figures as module
from rllib_weighted.report.figures import (
    DOTS,
    Drawing,
    EnvFigures,
    _weight_axis,
    arm_styles,
    draw_curves,
    draw_faster,
    draw_finals,
    draw_profile,
)
from tests.report.helpers import make_results
from tests.report.test_conclusions import reaching


@pytest.mark.parametrize(
    ("weights", "scale"),
    [
        ([0.25, 0.5], "linear"),
        ([0.125, 1.0], "log"),
        ([0.0, 0.125, 1.0], "symlog"),
        ([0.0], "linear"),
    ],
)
def test_minimum_weights_far_apart_are_spread(weights: list[float], scale: str) -> None:
    axes = Figure().add_subplot()
    _weight_axis(axes, pd.Series(weights))
    assert axes.get_xscale() == scale
    if scale != "linear":
        assert axes.get_xticks().tolist() == weights


def drawn(draw: Callable[[EnvFigures], Iterator[Drawing]], results: Results) -> list[Axes]:
    """The panels that a function draws."""
    tables = compute(results, threshold=1.0, hold=1)
    arms = list(tables.arms["arm"])
    figures = EnvFigures(1, "Env", tables, arm_styles(arms, ["average"]), ["average"])
    panels: list[Axes] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            module, "pictures", lambda figure: panels.append(figure.axes[0]) or (b"", b"")
        )
        list(draw(figures))
    return panels


def small_dots(axes: Axes) -> dict[float, list[float]]:
    """The places of the dots, by row."""
    lines = [line for line in axes.lines if line.get_markersize() == DOTS["markersize"]]
    found = [(line.get_xdata(), line.get_ydata()) for line in lines]
    return {round(float(y[0])): sorted(x) for x, y in found if len(x)}


def test_every_seed_is_a_dot() -> None:
    arms = {"average": {1: [0.0, 3.0], 2: [0.0, 5.0]}, "sum": {1: [0.0, 4.0], 2: [0.0, 9.0]}}
    (axes,) = drawn(draw_finals, make_results(arms))
    assert small_dots(axes) == {0: [3.0, 5.0], 1: [4.0, 9.0]}


def test_pairs_are_dots_where_both_came_to_the_threshold() -> None:
    arms = {
        "average": reaching({1: 10, 2: 20, 3: 15, 4: None}),
        "sum": reaching({1: 8, 2: 15, 3: None, 4: 5}),
    }
    (axes,) = drawn(draw_faster, make_results(arms))
    (dots,) = {tuple(places) for places in small_dots(axes).values()}
    assert dots == pytest.approx([20.0, 25.0])  # 100 (1 - 8 / 10), 100 (1 - 15 / 20)


def test_a_curve_ends_where_less_than_half_of_the_runs_go_on() -> None:
    runs = {seed: [0.0, 1.0] for seed in (1, 2, 3)} | {4: [0.0, 1.0, 99.0, 99.0]}
    (axes,) = drawn(draw_curves, make_results({"average": runs}))
    assert max(float(np.nanmax(line.get_ydata())) for line in axes.lines) == 1.0


def test_the_profile_by_hand() -> None:
    runs = {1: [0.0, 1.0], 2: [0.0, 3.0], 3: [0.0, 3.0], 4: [0.0, 7.0]}
    (axes,) = drawn(draw_profile, make_results({"average": runs}))
    (line,) = axes.lines
    x, y = (np.asarray(data, dtype=float) for data in line.get_data())
    for at, part in ((0.5, 1.0), (2.0, 0.75), (5.0, 0.25), (8.0, 0.0)):
        assert y[min(np.searchsorted(x, at), y.size - 1)] == pytest.approx(part), at
