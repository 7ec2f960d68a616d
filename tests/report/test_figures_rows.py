from __future__ import annotations

import pandas as pd
import pytest
from matplotlib.figure import Figure

from rllib_weighted.report.figures import _weight_axis


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
