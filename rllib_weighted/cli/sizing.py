"""How many trials there will be, what each takes, and how many run at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rllib_weighted.cli.cluster import InputError
from rllib_weighted.cli.inputs import variants
from rllib_weighted.tuning import (
    cluster_grows,
    cluster_nodes,
    describe,
    num_at_once,
    total,
    trial_problem,
)

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
    from ray.tune import PlacementGroupFactory, TuneConfig

_MAX_LISTED = 5  # Problems that are told one by one.
_MAX_AT_ONCE = 1000  # Trials; more are not counted.


@dataclass(frozen=True)
class ExperimentSize:
    """The size of an experiment, and of the Ray that it runs on.

    Args:
        num_trials: Trials in all; None for a search that goes on until it is stopped.
        requests: What trials ask for, each kind once.
        nodes: What each node of the cluster has.
        limit: Trials that the user lets run at once at most.
    """

    num_trials: int | None
    requests: Sequence[PlacementGroupFactory]
    nodes: Sequence[Mapping[str, float]]
    limit: int | None = None

    def __str__(self) -> str:
        """As the command says it before it starts."""
        asked, there = [total(request.bundles) for request in self.requests], total(self.nodes)
        names = ["CPU", "GPU", *sorted({name for one in asked for name in one} - {"CPU", "GPU"})]
        amounts = [_between([one.get(name, 0) for one in asked], name) for name in names]
        count = "no end of trials" if self.num_trials is None else str(self.num_trials)
        grows = ", and grows" if cluster_grows() else ""
        return (
            f"{count}, each {', '.join(amounts)}; Ray has {describe(there, names)}{grows}: "
            f"{self._at_once()} at once"
        )

    def _at_once(self) -> str:
        limits = [self.num_trials, self.limit, _MAX_AT_ONCE]
        most = min(limit for limit in limits if limit is not None)
        counts = [num_at_once(request, self.nodes, most) for request in self.requests]
        return _range(counts)


def experiment_size(config: AlgorithmConfig, tune_config: TuneConfig) -> ExperimentSize:
    """Returns the size of an experiment on the running Ray.

    Raises:
        InputError: With the numbers: a trial can never be placed (Tune would let it wait for
            ever). Every point of the search space is looked at.
    """
    requests: dict[str, PlacementGroupFactory] = {}
    problems: dict[str, None] = {}  # A dict keeps the order and drops what repeats.
    num_points = 0
    for name, variant in variants(config):
        num_points += 1
        try:
            request = variant.algo_class.default_resource_request(variant)
            problem = trial_problem(variant, request)
            requests.setdefault(str((request.bundles, request.strategy)), request)
        except ValueError as error:
            problem = str(error)
        if problem is not None:
            problems[f"{problem}{f' (at {name})' if name else ''}"] = None
    if problems:
        raise InputError(_listed(list(problems)))
    num_samples = tune_config.num_samples
    return ExperimentSize(
        num_trials=None if num_samples < 0 else num_points * num_samples,
        requests=list(requests.values()),
        nodes=cluster_nodes(),
        limit=tune_config.max_concurrent_trials or None,
    )


def _listed(problems: list[str]) -> str:
    more = len(problems) - _MAX_LISTED
    told = "\n- ".join(problems[:_MAX_LISTED]) + (f"\n- and {more} more" if more > 0 else "")
    start = "" if len(problems) == 1 else f"{len(problems)} kinds of trial can never run:\n- "
    return f"{start}{told}\n--ray-num-cpus lets a local Ray count more CPUs than there are"


def _between(amounts: Sequence[float], name: str) -> str:
    low, high = min(amounts), max(amounts)
    return describe({name: high}, [name]) if low == high else f"{low:g} to {high:g} {name}s"


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"
