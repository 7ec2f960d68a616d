"""Exact increments of RLlib's `MeanStdFilter` statistics.

RLlib merges the filters of its env runners from "delta" statistics. In the tested Ray versions
the delta mean is the *increment of the running mean*, but the merge reads it as the *mean of the
new observations*: with a running mean of 5 the merged mean falls to 2.5 after the second round
and goes on falling. `repair_deltas` writes the mean and the squared differences of the new
observations into the state that an env runner sends, computed from its statistics before and
after the round (the inverse of Chan's parallel update), so that RLlib's own merge is right.

A connector state nests dicts, lists and numbers as each connector likes: it is annotated `Any`.

Tested with Ray 2.60; can go when upstream's `RunningStat.push` keeps delta means of its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ray.rllib.utils.filter import RunningStat

_KEYS = {"num_pushes", "num_pushes_delta", "mean_delta_array", "sum_sq_diff_delta_array"}


def repair_deltas(before: Any, after: Any) -> Any:
    """Returns `after` with the deltas of every running statistic in it made exact.

    Args:
        before: Connector state at the start of the round.
        after: State of the same connectors at its end. Not modified.
    """
    if isinstance(after, dict):
        if after.keys() >= _KEYS and isinstance(before, dict):
            return _increment(RunningStat.from_state(before), RunningStat.from_state(after))
        old = before if isinstance(before, dict) else {}
        return {key: repair_deltas(old.get(key), value) for key, value in after.items()}
    if isinstance(after, list):
        old_items = before if isinstance(before, list) and len(before) == len(after) else after
        return [repair_deltas(o, a) for o, a in zip(old_items, after, strict=True)]
    return after


def is_finite(state: Any) -> bool:
    """Returns whether no running statistic in a connector state is NaN or infinite."""
    if isinstance(state, dict):
        if state.keys() >= _KEYS:
            stat = RunningStat.from_state(state)
            return bool(
                np.isfinite(stat.mean_array).all() and np.isfinite(stat.sum_sq_diff_array).all()
            )
        return all(map(is_finite, state.values()))
    return not isinstance(state, list) or all(map(is_finite, state))


def _increment(old: RunningStat, new: RunningStat) -> dict[str, Any]:
    count = new.num_pushes - old.num_pushes
    mean = np.zeros_like(new.mean_array)
    sum_sq_diff = np.zeros_like(new.sum_sq_diff_array)
    if count > 0:
        mean = (new.num_pushes * new.mean_array - old.num_pushes * old.mean_array) / count
        between = old.num_pushes * count / new.num_pushes * (mean - old.mean_array) ** 2
        sum_sq_diff = np.maximum(0.0, new.sum_sq_diff_array - old.sum_sq_diff_array - between)
    new.num_pushes_delta = count
    new.mean_delta_array = mean
    new.sum_sq_diff_delta_array = sum_sq_diff
    state: dict[str, Any] = new.to_state()
    return state
