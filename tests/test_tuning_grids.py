"""The points of a grid over strategies and minimum weights."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from ray import cloudpickle, tune
from ray.tune.impl.placeholder import (
    create_resolvers_map,
    inject_placeholders,
    resolve_placeholders,
)
from ray.tune.search.variant_generator import generate_variants

from rllib_weighted import LossWeighted, merge_grid


def points(**space: Any) -> list[tuple[Any, ...]]:
    """Returns the points of a space, as the Tuner makes trials of it."""
    resolvers = create_resolvers_map()
    found = [config for _, config in generate_variants(inject_placeholders(space, resolvers))]
    for config in found:
        resolve_placeholders(config, resolvers)
    return [tuple(config[key] for key in space if key != "merge_arm") for config in found]


def test_strategies_without_a_minimum_weight_are_there_once() -> None:
    grid = merge_grid(["average", "reward_weighted", "sum"], [0.1, None])
    assert sorted(points(**grid), key=str) == [
        ("average", None),
        ("reward_weighted", 0.1),
        ("reward_weighted", None),
        ("sum", None),
    ]


def test_every_point_gets_every_seed() -> None:
    grid = merge_grid(["average", "loss_weighted"], [1, 2])
    found = points(**grid, seed=tune.grid_search([7, 8]))
    assert sorted(found, key=str) == [
        (*point, seed)
        for point in [("average", None), ("loss_weighted", 1), ("loss_weighted", 2)]
        for seed in (7, 8)
    ]


def test_strategy_objects_and_pickling() -> None:
    """Tune pickles the space of an experiment, to go on with it in another process."""
    rule = LossWeighted(direction="low")
    grid = pickle.loads(cloudpickle.dumps(merge_grid(["average", rule], [0.5])))
    assert points(**grid) == [("average", None), (rule, 0.5)]


def test_arms_have_names_that_people_can_read() -> None:
    rules = [LossWeighted(direction="low"), LossWeighted(direction="high")]
    grid = merge_grid(["average", "average", "reward_weighted", *rules], [0.5, None])
    assert grid["merge_arm"]["grid_search"] == [
        "average",
        *("reward_weighted 0.5", "reward_weighted 1/N"),
        *("LossWeighted 0.5", "LossWeighted 1/N"),
        *("LossWeighted 0.5 #2", "LossWeighted 1/N #2"),
    ]


@pytest.mark.parametrize(
    ("strategies", "min_weights", "match"),
    [
        (["avrage"], [1], "did you mean 'average'"),
        ([], [1], r"`strategies` should be a list of one or more values, found \[\]"),
        ("average", [1], "`strategies` should be a list of one or more values, found 'average'"),
        (["average"], [], "`min_weights` should be a list of one or more values"),
    ],
)
def test_mistakes_are_told(strategies: Any, min_weights: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        merge_grid(strategies, min_weights)
