"""Search spaces for Tune."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ray import tune

from rllib_weighted.merging import Weighting, resolve_strategy

_Point = tuple[str | Weighting, float | None]


def merge_grid(
    strategies: Sequence[str | Weighting], min_weights: Sequence[float | None]
) -> dict[str, Any]:
    """Returns a Tune grid over merge strategies and minimum weights.

    A strategy that has no minimum weight (`average`, `sum`) is a single point of it, with None,
    where a plain cross of two grids would train it once per minimum weight.

    Example:
        >>> from rllib_weighted import WeightedPPOConfig, merge_grid
        >>> config = WeightedPPOConfig().training(
        ...     **merge_grid(["average", "reward_weighted"], [1 / 32, 1 / 8, 1 / 2])
        ... )

    Args:
        strategies: Names, or strategy objects.
        min_weights: As `min_weight` takes them; None is 1/N.

    Returns:
        Three settings, for a config or a plain dict of settings: `merge_arm`, a grid over the
        points' names, and `merge_strategy` and `min_weight`, which follow it.

    Raises:
        ValueError: An unknown strategy, or an empty list.
    """
    for name, values in (("strategies", strategies), ("min_weights", min_weights)):
        if isinstance(values, str) or not len(values):
            raise ValueError(
                f"`{name}` should be a list of one or more values, found {values!r}: write [...]"
            )
    arms: dict[str, _Point] = {}
    for strategy in strategies:
        for weight in min_weights if uses_min_weight(strategy) else [None]:
            point = strategy, weight
            if point not in arms.values():
                arms[_arm_name(point, arms)] = point
    return {
        "merge_arm": tune.grid_search(list(arms)),
        "merge_strategy": tune.sample_from(lambda config: arms[config["merge_arm"]][0]),
        "min_weight": tune.sample_from(lambda config: arms[config["merge_arm"]][1]),
    }


def uses_min_weight(strategy: str | Weighting, options: Mapping[str, object] | None = None) -> bool:
    """Whether `min_weight` changes anything for a strategy.

    Args:
        strategy: A registered name, or a strategy object.
        options: Its `merge_options`.

    Raises:
        ValueError: There is no such strategy, or it does not take the options.
    """
    return bool(getattr(resolve_strategy(strategy, options), "uses_min_weight", False))


def _arm_name(point: _Point, taken: Mapping[str, Any]) -> str:
    """Returns a name that is free: `average`, `reward_weighted 0.125`, `LossWeighted 0.125 #2`."""
    strategy, weight = point
    name = strategy if isinstance(strategy, str) else type(strategy).__name__
    if uses_min_weight(strategy):
        name += " 1/N" if weight is None else f" {weight:.4g}"
    names = [name, *(f"{name} #{number}" for number in range(2, len(taken) + 2))]
    return next(free for free in names if free not in taken)
