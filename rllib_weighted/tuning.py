"""Everything that concerns Tune: the algorithm as a trial, search spaces, and does a trial fit."""

from __future__ import annotations

import contextlib
import copy
import errno
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ray
from pyarrow.fs import LocalFileSystem
from ray import tune
from ray.air.constants import TRAINING_ITERATION
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.ppo.ppo import PPO
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, EVALUATION_RESULTS, NUM_EPISODES
from ray.tune.result import SHOULD_CHECKPOINT, TRIAL_INFO
from ray.util import get_current_placement_group

from rllib_weighted.core.durable import DEFAULT_TIMEOUT_S, durable, is_full, unwritten, where_full
from rllib_weighted.core.processes import computing_with, round_threads
from rllib_weighted.merging import Weighting, resolve_strategy
from rllib_weighted.old_api import NewStackOnly

if TYPE_CHECKING:
    from ray.tune import PlacementGroupFactory


_STATE_KEY = "tune_trial"

# What a restored trial takes from its own checkpoint.
_KEPT_SETTINGS = ("merge_strategy", "min_weight", "merge_options", "per_worker_parameters")


class TrialPPO(NewStackOnly, PPO):
    """PPO that can be searched and scheduled.

    It refuses to wait for ever, has columns for its evaluation from the start, can be reused for
    another trial, and keeps the settings that a scheduler has changed.
    """

    config: Any

    @override(Algorithm)
    def __init__(self, config: Any = None, *args: Any, **kwargs: Any) -> None:
        # RLlib drops what Tune says of the trial: its own `trial_id` is always "default".
        trial_info = config.get(TRIAL_INFO) if isinstance(config, dict) else None
        self._tune_trial_id: str | None = getattr(trial_info, "trial_id", None)
        self._is_clone = False
        self._evaluation: dict[str, Any] = {}  # What the last one reported.
        storage = kwargs.get("storage")
        if storage is not None and not isinstance(storage.storage_filesystem, LocalFileSystem):
            timeout_s = (config or {}).get("storage_timeout_s", DEFAULT_TIMEOUT_S)
            storage.storage_filesystem = durable(storage.storage_filesystem, timeout_s)
        super().__init__(config, *args, **kwargs)

    @override(Algorithm)
    def setup(self, config: Any) -> None:
        """Builds everything; see `Algorithm.setup`.

        Raises:
            ValueError: The running Ray can never place its actors: RLlib would wait for ever.
        """
        if problem := self._actors_problem(config):
            raise ValueError(problem)
        super().setup(config)
        self._num_threads = round_threads(
            self.config, num_parameters=self.learner_group.num_parameters
        )

    @classmethod
    @override(Algorithm)
    def default_resource_request(cls, config: Any) -> Any:
        """Returns what a trial asks Tune for; see `Algorithm.default_resource_request`.

        Raises:
            ValueError: The running Ray can never place it, so that it would wait for ever.
        """
        request = super().default_resource_request(config)
        problem = trial_problem(cls.get_default_config().update_from_dict(config), request)
        if problem is not None:
            raise ValueError(problem)
        return request

    @classmethod
    def _actors_problem(cls, config: Any) -> str | None:
        """Returns why the actors of an algorithm can never be placed; None if they can.

        None as well inside a trial: Tune has room for it.
        """
        if get_current_placement_group() is not None:
            return None
        _, *actors = super().default_resource_request(config).bundles
        if not total(actors):
            return None
        if not ray.is_initialized():
            ray.init()  # As the first actor would do.
        request = tune.PlacementGroupFactory([{}, *actors])
        whole = cls.get_default_config().update_from_dict(config)
        return trial_problem(whole, request, "the algorithm")

    @override(Algorithm)
    def step(self) -> dict[str, Any]:
        """One round, evaluated if it is time to; see `Algorithm.step`.

        Where there is an `evaluation_interval`, the first round is evaluated too: Tune's
        progress.csv takes its columns from the first result. A round without evaluation repeats
        the last one's values, as RLlib means to (it loses some, 2.60): Tune's own max, min and mean
        never get over a NaN. `evaluation/training_iteration` is the round that they are of.
        `_run_one_evaluation` is RLlib's private `evaluate()` with the care for failed env runners
        around it.
        """
        with computing_with(self._num_threads):
            results: dict[str, Any] = super().step()
            if self._is_clone:
                results[SHOULD_CHECKPOINT] = True  # Its own, with the settings that it has now.
                self._is_clone = False
            round, interval = self.iteration + 1, self.config.evaluation_interval
            if not interval:
                return results
            is_evaluated = round % interval == 0
            if round == 1 and not is_evaluated and self.config.evaluation_duration != "auto":
                results.update(self._run_one_evaluation())
                is_evaluated = True
            if is_evaluated:
                own = {TRAINING_ITERATION: round}
                self._evaluation = copy.deepcopy({**results.get(EVALUATION_RESULTS, {}), **own})
            if self._evaluation:
                results[EVALUATION_RESULTS] = copy.deepcopy(self._evaluation)
            return results

    @override(Algorithm)
    def _evaluate_with_auto_duration(self, parallel_train_future: Any) -> Any:
        """Evaluates for as long as the round takes, and for one episode per env runner at least.

        RLlib (2.60) reports nothing where the round is over before an episode is.
        """
        key = EVALUATION_RESULTS, ENV_RUNNER_RESULTS
        results, env_steps, agent_steps, batches = super()._evaluate_with_auto_duration(
            parallel_train_future
        )
        if not self.metrics.peek((*key, NUM_EPISODES), default=0) > 0:  # Or NaN: none since then.
            found = self.eval_env_runner_group.foreach_env_runner(
                _evaluate_an_episode,
                local_env_runner=False,
                timeout_seconds=self.config.evaluation_sample_timeout_s,
            )
            self.metrics.aggregate([metrics for metrics, _ in found], key=key)
            env_steps += sum(steps for _, steps in found)
            agent_steps += sum(steps for _, steps in found)
        return results, env_steps, agent_steps, batches

    @override(Algorithm)
    def save(self, checkpoint_dir: str | None = None) -> Any:
        """Writes a checkpoint into the trial's folder; see `Trainable.save`.

        Of one that cannot be written, nothing is left behind (RLlib, 2.60, leaves both halves).

        Raises:
            OSError: It says where there is no space left, if that is why.
        """
        storage = self._storage
        if checkpoint_dir is not None or storage is None:
            return super().save(checkpoint_dir)
        index = storage.current_checkpoint_index
        try:
            with tempfile.TemporaryDirectory(prefix="checkpoint_") as folder:
                result = super().save(folder)
                if problem := unwritten(storage.storage_filesystem, storage.checkpoint_fs_path):
                    raise problem
                return result
        except OSError as error:
            full = where_full([tempfile.gettempdir(), storage.trial_fs_path])
            if storage.current_checkpoint_index != index:
                with contextlib.suppress(OSError):
                    storage.storage_filesystem.delete_dir(storage.checkpoint_fs_path)
            if not is_full(error):
                raise
            raise OSError(
                errno.ENOSPC,
                "no space left for a checkpoint: make room, and resume from the one before",
                ", ".join(full) or storage.trial_fs_path,
            ) from error

    @override(Algorithm)
    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        state: dict[str, Any] = super().get_state(*args, **kwargs)
        settings = {name: getattr(self.config, name) for name in _KEPT_SETTINGS}
        state[_STATE_KEY] = {
            "trial_id": self._tune_trial_id,
            "settings": settings,
            "evaluation": self._evaluation,
        }
        return state

    @override(Algorithm)
    def set_state(self, state: dict[str, Any]) -> None:
        """Restores a state; see `Algorithm.set_state`.

        A resumed experiment gives its trials the settings of their start: Tune (2.60) forgets
        what population-based training has changed, and draws what `tune.sample_from` drew anew.
        So a trial that goes on from a checkpoint of its own takes the settings from there. From
        another trial's, it is a clone, and the settings that it was given are the new ones.
        """
        super().set_state(state)
        saved = state.get(_STATE_KEY)
        if saved is None:
            return
        self._evaluation = saved.get("evaluation", {})
        if self._tune_trial_id is None:
            return
        self._is_clone = saved["trial_id"] != self._tune_trial_id
        if not self._is_clone:
            config = self.config.copy(copy_frozen=False)
            for name, value in saved["settings"].items():
                setattr(config, name, value)
            config.freeze()
            self.config = config

    @override(Algorithm)
    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Starts over in the same process with the config of another trial (`reuse_actors`)."""
        # `Trainable.reset` has put that plain dict in place of the config already.
        self.cleanup()
        info = {TRIAL_INFO: self._trial_info}
        type(self).__init__(self, {**new_config, **info}, storage=self._storage)
        return True


def _evaluate_an_episode(env_runner: Any) -> tuple[Any, int]:
    """Returns an evaluation env runner's metrics of an episode, and its steps."""
    episodes = env_runner.sample(num_episodes=1)
    return env_runner.get_metrics(), sum(map(len, episodes))


_Point = tuple[str | Weighting, float | None]


def merge_grid(
    strategies: Sequence[str | Weighting], min_weights: Sequence[float | None]
) -> dict[str, Any]:
    """Returns a Tune grid over merge strategies and minimum weights.

    A strategy that has no minimum weight (`average`, `sum`) is a single point of it, with None,
    where a plain cross of two grids would train it once per minimum weight.

    Examples:
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


Resources = Mapping[str, float]

GROWS_VARIABLE = "RLLIB_WEIGHTED_CLUSTER_GROWS"
"""Set to 1 where nodes join by themselves: what is not there yet is then waited for."""

_MAX_TRIES = 10_000
_MAX_PROCESSES = 200  # A trial with more is only counted in all: the search goes that deep.
_TOLERANCE = 1e-9  # Ray counts in units of 1e-4.


def cluster_nodes() -> list[dict[str, float]]:
    """Returns what each living node of the running Ray has in all."""
    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def cluster_grows() -> bool:
    """Whether the user says that the cluster adds nodes by itself (an autoscaler does).

    It has to be said: Ray (2.60) has no way to ask whether more nodes will come.
    """
    return os.environ.get(GROWS_VARIABLE, "0") not in ("", "0")


def total(bundles: Iterable[Resources]) -> dict[str, float]:
    """Returns the sum of several bundles; resources of which they take none are left out."""
    sums: Counter[str] = Counter()
    for bundle in bundles:
        sums.update(bundle)
    return {name: amount for name, amount in sums.items() if amount}


def placement_problem(
    request: PlacementGroupFactory,
    nodes: Sequence[Resources] | None = None,
    who: str = "a trial",
) -> str | None:
    """Returns why a trial can never be placed, with the numbers; None if it can.

    Args:
        request: What the trial asks for: a bundle of resources per process.
        nodes: What each node has in all; None asks the running Ray. Without one the answer is
            None.
        who: What asks, for the message.
    """
    if nodes is None:
        if not ray.is_initialized():
            return None
        nodes = cluster_nodes()
    asked, there = total(request.bundles), total(nodes)
    short = [name for name, amount in asked.items() if amount > there.get(name, 0) + _TOLERANCE]
    if short:
        return (
            f"{who} takes {describe(asked, short)} and Ray has {describe(there, short)}, so it "
            "would wait for ever"
        )
    if not _can_be_placed(request, nodes):
        bundles = Counter(describe(bundle) for bundle in _bundles(request))
        listed = ", ".join(f"{count} x {bundle}" for bundle, count in bundles.items())
        names = list(asked)
        return (
            f"{who}'s processes ({listed}; {request.strategy}) do not fit on the "
            f"{len(nodes)} node{'s' * (len(nodes) > 1)} of Ray "
            f"({'; '.join(describe(node, names) for node in nodes)}), so it would wait for ever"
        )
    return None


def trial_problem(
    config: Any,
    request: PlacementGroupFactory,
    who: str = "a trial",
    nodes: Sequence[Resources] | None = None,
) -> str | None:
    """Returns why a trial of a config can never be placed, and what to do; None if it can.

    None as well where the user says that the cluster grows.

    Args:
        config: An `AlgorithmConfig`.
        request: What its trial asks for.
        who: What asks, for the message.
        nodes: What each node has in all; None asks the running Ray. With none at all, it can.
    """
    unknown = cluster_grows() or (nodes is not None and not nodes)
    problem = None if unknown else placement_problem(request, nodes, who=who)
    if problem is None:
        return None
    names = ("num_env_runners", "num_cpus_per_env_runner", "num_learners", "num_gpus_per_learner")
    listed = ", ".join(f"`{name}` (={getattr(config, name)})" for name in names)
    return (
        f"{problem}: lower one of {listed}, start a Ray with more, or set {GROWS_VARIABLE}=1 if "
        "nodes will join by themselves"
    )


def num_at_once(request: PlacementGroupFactory, nodes: Sequence[Resources], limit: int) -> int:
    """Returns how many trials of a kind run at once on empty nodes, at most `limit`."""
    left = nodes
    for count in range(limit):
        after = _first_fit(request, left)
        if after is None:
            return count
        left = after
    return limit


def describe(resources: Resources, names: Iterable[str] | None = None) -> str:
    """Returns resources as people read them: `2 CPUs, 1 GPU`.

    Args:
        resources: Amounts by name.
        names: Which to name; None names those of which there are some.
    """
    shown = list(names) if names is not None else [name for name in resources if resources[name]]
    return ", ".join(_amount(name, resources.get(name, 0)) for name in shown) or "nothing"


def _amount(name: str, amount: float) -> str:
    plural = "s" if name in ("CPU", "GPU") and amount != 1 else ""
    return f"{amount:g} {name}{plural}"


def _bundles(request: PlacementGroupFactory) -> list[Resources]:
    """Returns the bundles that must each lie on a single node, the largest first."""
    bundles = [bundle for bundle in request.bundles if any(bundle.values())]
    if request.strategy == "STRICT_PACK" and bundles:
        return [total(bundles)]
    return sorted(bundles, key=lambda bundle: (len(bundle), sum(bundle.values())), reverse=True)


def _first_fit(
    request: PlacementGroupFactory, nodes: Sequence[Resources]
) -> list[Resources] | None:
    """Returns what is left of the nodes if each process goes to the first one with room.

    None if one of them then finds no room; another way of placing them may exist.
    """
    left = list(nodes)
    used: set[int] = set()
    for bundle in _bundles(request):
        free = (i for i, node in enumerate(left) if i not in used and _fits(bundle, node))
        index = next(free, None)
        if index is None:
            return None
        left[index] = _minus(left[index], bundle)
        if request.strategy == "STRICT_SPREAD":
            used.add(index)
    return left


def _can_be_placed(request: PlacementGroupFactory, nodes: Sequence[Resources]) -> bool:
    """Whether there is a way to place every bundle; an error must be certain.

    After `_MAX_TRIES` tries, and for trials of more than `_MAX_PROCESSES` processes, yes.
    """
    bundles = _bundles(request)
    if len(bundles) > _MAX_PROCESSES:
        return True
    tries = iter(range(_MAX_TRIES))
    one_per_node = request.strategy == "STRICT_SPREAD"

    def place(start: int, nodes: list[Resources]) -> bool:
        if start == len(bundles) or next(tries, None) is None:
            return True
        tried: list[Resources] = []
        for index, node in enumerate(nodes):
            # Nodes that have the same left need not be tried twice.
            if node in tried or not _fits(bundles[start], node):
                continue
            tried.append(node)
            left = [] if one_per_node else [_minus(node, bundles[start])]
            if place(start + 1, [*nodes[:index], *left, *nodes[index + 1 :]]):
                return True
        return False

    return place(0, list(nodes))


def _fits(bundle: Resources, node: Resources) -> bool:
    return all(amount <= node.get(name, 0) + _TOLERANCE for name, amount in bundle.items())


def _minus(node: Resources, bundle: Resources) -> Resources:
    return {name: amount - bundle.get(name, 0) for name, amount in node.items()}
