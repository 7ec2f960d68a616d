"""Whether a trial fits: in all, on single nodes, and with what is left beside others."""

from __future__ import annotations

import itertools
import random
import re
from pathlib import Path
from typing import Any

import pytest
from ray.tune import PlacementGroupFactory

from rllib_weighted import WeightedPPO, WeightedPPOConfig
from rllib_weighted.tuning import cluster_grows, describe, num_at_once, placement_problem


def request(*bundles: dict[str, float], strategy: str = "PACK") -> PlacementGroupFactory:
    return PlacementGroupFactory(list(bundles), strategy=strategy)


def cpus(*amounts: float) -> list[dict[str, float]]:
    return [{"CPU": amount} for amount in amounts]


@pytest.mark.parametrize(
    ("bundles", "nodes", "message"),
    [
        (cpus(1, 0.5, 0.5), cpus(2), None),
        (cpus(1, 1, 1), cpus(2), "a trial takes 3 CPUs and Ray has 2 CPUs, so it would wait"),
        ([{"CPU": 1, "GPU": 1}], cpus(8), "a trial takes 1 GPU and Ray has 0 GPUs"),
        ([{"CPU": 1, "license": 2}], [{"CPU": 1, "license": 1}], "2 license and Ray has 1 license"),
        # 4 CPUs in all, but no node with 3.
        (
            cpus(3),
            cpus(2, 2),
            r"\(1 x 3 CPUs; PACK\) do not fit on the 2 nodes of Ray \(2 CPUs; 2 CPUs\)",
        ),
        # Each process fits on a node, and 4.5 <= 6 in all, but only one of 1.5 fits beside nothing.
        (cpus(1.5, 1.5, 1.5), cpus(2, 2), "a trial takes 4.5 CPUs and Ray has 4"),
        (cpus(1.5, 1.5, 1.5), cpus(2, 2, 1), r"3 x 1.5 CPUs; PACK\) do not fit on the 3 nodes"),
        (cpus(1.5, 1.5, 1.5), cpus(3, 2), None),
        # The largest first on the first node would leave no room; another way exists.
        (cpus(2, 2, 3), cpus(4, 3), None),
        ([{"CPU": 0}, {"CPU": 1}], cpus(1), None),
        (cpus(*[1] * 500), cpus(*[1] * 500), None),
    ],
)
def test_a_trial_that_never_fits_is_told_with_the_numbers(
    bundles: list[dict[str, float]], nodes: list[dict[str, float]], message: str | None
) -> None:
    problem = placement_problem(request(*bundles), nodes)
    if message is None:
        assert problem is None
    else:
        assert re.search(message, problem or "")


@pytest.mark.parametrize(
    ("strategy", "fits"),
    [("PACK", True), ("SPREAD", True), ("STRICT_PACK", False), ("STRICT_SPREAD", True)],
)
def test_strategies_of_two_processes_on_two_nodes(strategy: str, fits: bool) -> None:
    problem = placement_problem(request(*cpus(1, 1), strategy=strategy), cpus(1, 1))
    assert (problem is None) == fits


def test_strict_spread_takes_a_node_per_process() -> None:
    assert placement_problem(request(*cpus(1, 1), strategy="STRICT_SPREAD"), cpus(4))


def test_agrees_with_trying_every_assignment() -> None:
    draw = random.Random(0)
    answers = []
    for _ in range(300):
        bundles = [draw.choice([0.5, 1, 1.5, 2]) for _ in range(draw.randint(1, 4))]
        nodes = [draw.choice([1, 2, 3]) for _ in range(draw.randint(1, 3))]
        possible = any(
            all(
                sum(b for b, n in zip(bundles, where, strict=True) if n == node) <= size
                for node, size in enumerate(nodes)
            )
            for where in itertools.product(range(len(nodes)), repeat=len(bundles))
        )
        assert (placement_problem(request(*cpus(*bundles)), cpus(*nodes)) is None) == possible
        answers.append(possible)
    assert 30 < sum(answers) < 270


@pytest.mark.parametrize(
    ("bundles", "nodes", "limit", "expected"),
    [
        (cpus(1, 1), cpus(8), 100, 4),
        (cpus(1, 1), cpus(8), 3, 3),
        (cpus(3), cpus(4, 4), 100, 2),
        ([{"CPU": 1, "GPU": 0.5}], [{"CPU": 8, "GPU": 1}], 100, 2),
        (cpus(9), cpus(8), 100, 0),
    ],
)
def test_how_many_run_at_once(bundles: Any, nodes: Any, limit: int, expected: int) -> None:
    assert num_at_once(request(*bundles), nodes, limit) == expected


def test_a_hopeless_search_ends_and_gives_the_benefit_of_the_doubt() -> None:
    # 40 processes of 0.7 on 40 different nodes, one of which is too small: too many ways to try.
    nodes = cpus(*(1 + index / 100 for index in range(39)), 0.6)
    assert placement_problem(request(*cpus(*[0.7] * 40)), nodes) is None


def test_words() -> None:
    assert describe({"CPU": 1, "GPU": 0}) == "1 CPU"
    assert describe({"CPU": 2.5}, ["CPU", "GPU"]) == "2.5 CPUs, 0 GPUs"
    assert describe({}) == "nothing"


@pytest.mark.parametrize(("value", "grows"), [("1", True), ("0", False), ("", False)])
def test_only_the_user_knows_whether_nodes_will_come(
    value: str, grows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLLIB_WEIGHTED_CLUSTER_GROWS", value)
    assert cluster_grows() == grows


@pytest.mark.usefixtures("ray_session")
def test_actors_that_never_fit_are_told_before_anything_starts(tmp_path: Path) -> None:
    """With too few CPUs RLlib waits for ever, after `from_checkpoint` too."""
    config = (
        WeightedPPOConfig()
        .environment("CartPole-v1")
        .env_runners(num_env_runners=1, num_cpus_per_env_runner=0.5)
        .training(merge_strategy="average", train_batch_size=20, minibatch_size=10)
    )
    large = config.copy(copy_frozen=False).env_runners(num_env_runners=9, num_cpus_per_env_runner=1)
    with pytest.raises(ValueError, match=r"the algorithm takes 9 CPUs and Ray has 8.*`num_env_run"):
        large.build_algo()
    algorithm = config.build_algo()
    try:
        algorithm.save_to_path(tmp_path)
    finally:
        algorithm.stop()
    with pytest.raises(ValueError, match="so it would wait for ever"):
        WeightedPPO.from_checkpoint(tmp_path, config=large)
    # The driver's own CPU is nobody's: eight actors fit beside it.
    fits = config.copy(copy_frozen=False).env_runners(num_env_runners=8, num_cpus_per_env_runner=1)
    assert WeightedPPO._actors_problem(fits) is None
