"""What an experiment consists of: the points of its search space, and how many run at once.

Finds, before anything starts, the points that cannot be trained or can never be placed.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ray.tune.impl import placeholder
from ray.tune.search.variant_generator import generate_variants

from rllib_weighted import tuning
from rllib_weighted.cli import InputError
from rllib_weighted.core.envs import env_problem
from rllib_weighted.report.trials import Settings, parse_settings, recorded_settings

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
    from ray.tune import PlacementGroupFactory, TuneConfig

_MAX_LISTED = 5  # Problems that are listed one by one.
_MAX_POINTS = 1000  # Of a search space whose settings are kept; grids are rarely larger.
_MAX_AT_ONCE = 1000  # Trials; counting stops there.


def variants(config: AlgorithmConfig) -> Iterator[tuple[str, AlgorithmConfig]]:
    """Yields the points of a config's search space, each with its name, as unfrozen copies.

    A config without a search space is its only point, and has no name. Values are drawn for
    spaces that are not a grid.
    """
    # As the Tuner does it: `sample_from` is resolved last and sees all other values.
    resolvers = placeholder.create_resolvers_map()
    space = placeholder.inject_placeholders(copy.deepcopy(config.to_dict()), resolvers)
    # A fixed state, so that drawing does not advance the global generator.
    for resolved, values in generate_variants(space, random_state=0):
        name = ", ".join(f"{'.'.join(map(str, path))}={v!r}" for path, v in resolved.items())
        placeholder.resolve_placeholders(values, resolvers)
        variant = config.copy(copy_frozen=False)
        changed = {path[0] for path in [*resolved, *resolvers]}
        variant.update_from_dict({key: values[key] for key in changed})
        yield name, variant


def config_problems(config: AlgorithmConfig) -> list[str]:
    """Returns everything that is wrong with a config, or with a point of its search space."""
    problems: dict[str | None, None] = {}  # A dict keeps the order and drops duplicates.
    try:
        for name, variant in variants(config):
            problems[_variant_problem(variant, name)] = None
    except Exception as error:  # What functions of the user's, in the space, raise.
        return [f"the search space cannot be drawn from: {type(error).__name__}: {error}"]
    if not problems:
        return ["the search space is empty: each grid should list one or more values"]
    return [problem for problem in problems if problem is not None]


def _variant_problem(variant: AlgorithmConfig, name: str) -> str | None:
    if not variant.is_offline:
        problem = env_problem(variant.env, getattr(variant, "env_backend", "gymnasium"))
        if problem is not None:
            return problem
    try:
        variant.validate()
    except Exception as error:  # Whatever RLlib raises over a value of the wrong kind.
        return _at_point(error or type(error).__name__, name)
    return None


@dataclass(frozen=True)
class ExperimentSize:
    """The size of an experiment, and of the Ray that it runs on.

    Args:
        num_trials: Trials in all; None for a search that goes on until it is stopped.
        requests: What trials ask for, each kind once.
        nodes: What each node of the cluster has.
        limit: Trials that the user lets run at once at most.
        points: The settings at each point of the search space, as the report will read them; those
            that are drawn differ from the trials'. Empty if there are too many.
        num_samples: Trials per point; -1 for a search without an end.
    """

    num_trials: int | None
    requests: Sequence[PlacementGroupFactory]
    nodes: Sequence[Mapping[str, float]]
    limit: int | None = None
    points: Sequence[Settings] = ()
    num_samples: int = 1

    def __str__(self) -> str:
        """The line that the command prints before it starts."""
        count = "no end of trials" if self.num_trials is None else self.num_trials
        return f"{count}, {self.resources('Ray')}"

    def resources(self, where: str) -> str:
        """Returns what trials take, what there is, and how many fit at once.

        Args:
            where: What has the nodes; without nodes, why they are not known.
        """
        asked = [tuning.total(request.bundles) for request in self.requests]
        names = ["CPU", "GPU", *sorted({name for one in asked for name in one} - {"CPU", "GPU"})]
        each = ", ".join(_amount(name, [one.get(name, 0) for one in asked]) for name in names)
        if not self.nodes:
            return f"each {each}; {where}"
        there = tuning.describe(tuning.total(self.nodes), names)
        grows = ", and grows" if tuning.cluster_grows() else ""
        limits = [self.num_trials, self.limit, _MAX_AT_ONCE]
        most = min(limit for limit in limits if limit is not None)
        counts = [tuning.num_at_once(request, self.nodes, most) for request in self.requests]
        at_once = " to ".join(map(str, sorted({min(counts), max(counts)})))
        return f"each {each}; {where} has {there}{grows}: {at_once} at once"


def experiment_size(
    config: AlgorithmConfig,
    tune_config: TuneConfig,
    *,
    nodes: Sequence[Mapping[str, float]] | None = None,
) -> ExperimentSize:
    """Returns the size of an experiment.

    Args:
        config: What is trained.
        tune_config: How it is searched.
        nodes: What each node has; none if that is not known. None asks the running Ray.

    Raises:
        InputError: Trials at some points of the search space can never be placed, and Tune would
            wait for ever. The message has the numbers.
    """
    requests: dict[str, PlacementGroupFactory] = {}
    problems: dict[str, None] = {}  # A dict keeps the order and drops duplicates.
    points: list[Settings] = []
    num_points = 0
    for name, variant in variants(config):
        num_points += 1
        if num_points <= _MAX_POINTS:
            points.append(run_settings(variant, variant.algo_class.__name__))
        try:
            request = variant.algo_class.default_resource_request(variant)
            problem = tuning.trial_problem(variant, request, nodes=nodes)
            requests.setdefault(str((request.bundles, request.strategy)), request)
        except ValueError as error:
            problem = str(error)
        if problem is not None:
            problems[_at_point(problem, name)] = None
    if problems:
        raise InputError(_listed(list(problems)))
    num_samples = tune_config.num_samples
    return ExperimentSize(
        num_trials=None if num_samples < 0 else num_points * num_samples,
        requests=list(requests.values()),
        nodes=tuning.cluster_nodes() if nodes is None else nodes,
        limit=tune_config.max_concurrent_trials or None,
        points=points if num_points <= _MAX_POINTS else (),
        num_samples=num_samples,
    )


def run_settings(config: AlgorithmConfig, algorithm: str) -> Settings:
    """Returns the settings of a trial as the report will read them from its records.

    Args:
        config: The trial's config.
        algorithm: The name of its algorithm.
    """
    resolved = getattr(config, "resolved_settings", None)
    if resolved is not None:
        with contextlib.suppress(ValueError):  # The trial itself reports what is wrong.
            return recorded_settings(resolved())
    return parse_settings(config.to_dict(), algorithm)


def _at_point(problem: object, name: str) -> str:
    return f"{problem} (at {name})" if name else str(problem)


def _listed(problems: list[str]) -> str:
    more = len(problems) - _MAX_LISTED
    told = "\n- ".join(problems[:_MAX_LISTED]) + (f"\n- and {more} more" if more > 0 else "")
    start = "" if len(problems) == 1 else f"{len(problems)} kinds of trial can never run:\n- "
    return f"{start}{told}\n--ray-num-cpus lets a local Ray count more CPUs than there are"


def _amount(name: str, amounts: Sequence[float]) -> str:
    """Returns what trials take of a resource: `1 CPU`, or `1 to 4 CPUs` if they differ."""
    low, high = min(amounts), max(amounts)
    start = "" if low == high else f"{low:g} to "
    return start + tuning.describe({name: high}, [name])
