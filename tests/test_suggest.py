"""Suggestions for misspelt names."""

from __future__ import annotations

from rllib_weighted.suggest import nearest


def test_nearest_suggests_only_what_is_close() -> None:
    assert nearest("min_wieght", ["min_weight", "lr"]) == "; did you mean 'min_weight'?"
    assert nearest("zzz", ["min_weight", "lr"]) == ""
    assert nearest("LR", ["min_weight", "lr"]) == "; did you mean 'lr'?"
    assert nearest(3, ["min_weight", "lr"]) == ""
