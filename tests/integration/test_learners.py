"""Any number of learners, the same result: whole workers each, one merged gradient."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import tree
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.utils.numpy import convert_to_numpy

from rllib_weighted import WeightedPPOConfig
from rllib_weighted.core.workers import WORKER_KEY
from rllib_weighted.learning.learner_group import WeightedLearnerGroup
from rllib_weighted.learning.losses import segment_means
from tests.learning.helpers import (
    EitherPrecision,
    build_group,
    make_episodes,
    make_request,
    small_config,
)

pytestmark = pytest.mark.usefixtures("ray_session")

NUM_WORKERS = 8
STRATEGIES = [
    "average",
    "sum",
    "reward_weighted",
    "loss_weighted",
    "actor_average",
    "actor_sum",
    "advantage_scaled",
    "inverse_variance",
    "torchjd",
]
# What the driver says to those that read more than returns and losses.
REQUESTS: dict[str, dict[str, Any]] = {
    "inverse_variance": {"measures_gradients": True, "options": {"smoothing": 0.5}},
}
BATCHES = {
    "equal": [[12, 8]] * NUM_WORKERS,
    "unequal": [[3], [30, 14], [7, 7, 7], [1], [40], [5, 2], [16], [9, 1]],
    "few": [[3], [], [], [], [40], [], [], []],  # Of 3 learners, one has no episode at all.
    "one": [[], [21], [], [], [], [], [], []],
}
REWARDS = [3.0, -1.0, 4.0, 1.0, 5.0, -9.0, 2.0, 6.0]
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-10}


def group_of(
    num_learners: int, per_worker_parameters: bool, fast: bool = True
) -> WeightedLearnerGroup:
    """A group in which all that a learner feeds back to itself is on."""
    config = small_config(NUM_WORKERS).training(
        merge_strategy="actor_average" if per_worker_parameters else "average",
        advantage_normalization="batch",
        use_kl_loss=True,
        kl_target=1e-4,  # So small that the coefficient moves in every round.
        lr=[[0, 5e-3], [300, 1e-3]],
        entropy_coeff=[[0, 0.02], [300, 0.0]],
        grad_clip=0.5,
        grad_clip_by="global_norm",
    )
    config.learners(
        learner_class=EitherPrecision,
        num_learners=num_learners,
        num_cpus_per_learner=0.1,
        fast_learner=fast,
    )
    group = build_group(config)
    found = group.foreach_learner(lambda learner: learner.closed_form_networks is not None)
    assert all(result.get() == fast for result in found)
    return group


class Groups(dict):
    """Number of learners, whether workers have their own parameters -> group.

    A third entry says whether steps are taken without autograd; by default they are. Built when
    it is asked for: each learner is a process.
    """

    def __missing__(self, key: tuple[Any, ...]) -> WeightedLearnerGroup:
        self[key] = group_of(*key)
        return self[key]


@pytest.fixture(scope="module")
def groups() -> Iterator[Groups]:
    built = Groups()
    yield built
    for group in built.values():
        group.shutdown()


@dataclasses.dataclass(frozen=True)
class Reference:
    """What the learner in this process, a fast one, makes of a case."""

    reports: list[Any]
    results: Any
    state: dict[str, Any]


@pytest.fixture(scope="module")
def references(groups, start) -> dict[tuple[Any, ...], Reference]:
    """Case -> its reference, made once."""
    return References(groups, start)


class References(dict):
    """Filled when a case is asked for."""

    def __init__(self, groups: Groups, start: Any) -> None:
        super().__init__()
        self._groups, self._start = groups, start

    def __missing__(self, case: tuple[Any, ...]) -> Reference:
        strategy, batch, dtype = case
        own = strategy.startswith("actor")
        state, before = self._start[own]
        group = self._groups[0, own]
        reports, results = train(group, state, dtype, batch, request_of(strategy))
        (found,) = snapshots(group)
        assert found["parameters"].dtype == np.dtype(str(dtype).removeprefix("torch."))
        assert np.abs(found["parameters"] - before).max() > 1e-3
        self[case] = Reference(reports, results, found)
        return self[case]


def request_of(strategy: str) -> dict[str, Any]:
    return {"strategy": strategy, **REQUESTS.get(strategy, {})}


@pytest.fixture(scope="module")
def start(groups) -> Any:
    """For both kinds of groups: the first state, and the parameters in it."""
    found = {}
    for own in (False, True):
        group = groups[0, own]
        (first,) = snapshots(group)
        found[own] = group.get_state(), first["parameters"].copy()
    return found


def snapshot(learner: EitherPrecision) -> dict[str, Any]:
    """All that a learner carries from round to round. (`get_state` writes float64 as float32.)"""
    module = learner.module[DEFAULT_MODULE_ID].unwrapped()
    (optimizer,) = learner._named_optimizers.values()
    return {
        "parameters": torch.cat([p.detach().flatten() for p in learner._params.values()]).numpy(),
        "exported": torch.cat([p.detach().flatten() for p in module.parameters()]).numpy(),
        "optimizer": convert_to_numpy(optimizer.state_dict()["state"]),
        "learning_rate": optimizer.param_groups[0]["lr"],
        "kl_coeff": learner.curr_kl_coeffs_per_module[DEFAULT_MODULE_ID].item(),
        "entropy_coeff": learner.entropy_coeff_schedulers_per_module[
            DEFAULT_MODULE_ID
        ].get_current_value(),
    }


def snapshots(group: WeightedLearnerGroup) -> list[dict[str, Any]]:
    return [result.get() for result in group.foreach_learner(snapshot)]


def train(
    group: WeightedLearnerGroup, start: Any, dtype: torch.dtype, batch: str, request: dict[str, Any]
) -> tuple[list[Any], Any]:
    """Three rounds from the common start; returns reports and the last round's metrics."""
    group.foreach_learner(lambda learner: learner.use(dtype))
    group.set_state(copy.deepcopy(start))
    reports, results = [], None
    for round in (1, 2, 3):
        results = group.update(
            episodes=make_episodes(BATCHES[batch], seed=1000 * round),
            merge=make_request(NUM_WORKERS, rewards=REWARDS, round=round, **request),
            timesteps={"num_env_steps_sampled_lifetime": 100 * round},
            num_epochs=2,
            minibatch_size=40,
            shuffle_batch_per_epoch=True,
        )
        reports.append(group.take_update_result())
    return reports, results


def assert_equal_learners(found: list[dict[str, Any]]) -> None:
    """All learners hold the same, bit for bit."""
    first, *others = found
    assert first["kl_coeff"] not in (0.2, 0.0)  # The coefficient has moved.
    assert len(first["optimizer"])
    for other in others:
        tree.map_structure(np.testing.assert_array_equal, first, other)


def check(
    groups: Groups, start: Any, references: Any, num_learners: int, *case: Any, fast: bool = True
) -> None:
    """Compares a number of learners with the one in this process, which is a fast one."""
    strategy, batch, dtype = case
    own = strategy.startswith("actor")
    state, _ = start[own]
    reference = references[case]
    key = (num_learners, own) if fast else (num_learners, own, False)
    reports, results = train(groups[key], state, dtype, batch, request_of(strategy))
    found = snapshots(groups[key])
    assert len(found) == num_learners
    for name in ("parameters", "exported"):
        wanted = reference.state[name]
        error = np.abs(found[0][name] - wanted).max() / np.abs(wanted).max()
        assert error <= TOLERANCES[dtype], name
    assert_equal_learners(found)
    for report, one in zip(reports, reference.reports, strict=True):
        assert report.drops == one.drops
        assert report.num_steps == one.num_steps > 0
        for name in ("signals", "shares", "weights", "losses", "drifts"):
            values = [numbers(getattr(r, name) or []) for r in (report, one)]
            np.testing.assert_allclose(*values, rtol=1e-4, err_msg=name)
        assert report.ages == one.ages
        assert (report.diagnostics is None) == (one.diagnostics is None)
        if report.diagnostics is not None and one.diagnostics is not None:
            for name in ("noise_scale", "spread", "agreement"):
                pair = (getattr(d, name) for d in (report.diagnostics, one.diagnostics))
                np.testing.assert_allclose(*pair, rtol=1e-3, err_msg=name)
    assert_same_metrics(results, reference.results)


def numbers(values: list[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values])


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_learners_do_what_one_does(groups, start, references, strategy, batch, dtype):
    check(groups, start, references, 2, strategy, batch, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_three_learners_do_what_one_does(groups, start, references, strategy, batch, dtype):
    check(groups, start, references, 3, strategy, batch, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("batch", ["unequal", "few"])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("num_learners", [1, 4])
def test_a_remote_one_and_four_do_what_one_does(
    groups, start, references, num_learners, strategy, batch
):
    check(groups, start, references, num_learners, strategy, batch, torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_learners_that_use_autograd_do_what_a_fast_one_does(
    groups, start, references, strategy, batch
):
    check(groups, start, references, 2, strategy, batch, torch.float64, fast=False)


def assert_same_metrics(results: list[Any], expected: list[Any]) -> None:
    (wanted,) = (result[DEFAULT_MODULE_ID] for result in expected)
    norm = "gradients_default_optimizer_global_norm"  # Of one gradient, not of N.
    assert all(norm in result[DEFAULT_MODULE_ID] for result in results) == (norm in wanted)
    for result in results:
        found = result[DEFAULT_MODULE_ID]
        for name in (
            "total_loss",
            "mean_kl_loss",
            "curr_kl_coeff",
            "curr_entropy_coeff",
            "default_optimizer_learning_rate",
            "vf_explained_var",
            "module_train_batch_size_mean",
            "weights_seq_no",
        ):
            value = found[name].peek()
            assert value == pytest.approx(wanted[name].peek(), rel=1e-3, abs=1e-5), name
    steps = sum(result[DEFAULT_MODULE_ID]["num_module_steps_trained"].peek() for result in results)
    assert steps == wanted["num_module_steps_trained"].peek()


# Of two learners, the second holds the odd workers.
@pytest.mark.parametrize(
    "bad", [[3], [1, 3, 5, 7], list(range(NUM_WORKERS))], ids=["one", "a learner's", "all"]
)
@pytest.mark.parametrize("strategy", ["reward_weighted", "loss_weighted", "actor_average"])
def test_dropped_workers_are_dropped_everywhere(groups, start, strategy, bad):
    own = strategy.startswith("actor")
    state, before = start[own]
    found = []
    for num_learners in (0, 2):
        group = groups[num_learners, own]
        group.foreach_learner(lambda learner: learner.use(torch.float64))
        group.set_state(copy.deepcopy(state))
        episodes = make_episodes(BATCHES["unequal"])
        for episode in episodes:
            if episode.custom_data[WORKER_KEY] in bad:
                episode.rewards.data[0] = np.nan
        group.update(
            episodes=episodes,
            merge=make_request(NUM_WORKERS, strategy, rewards=REWARDS),
            num_epochs=2,
            minibatch_size=20,
        )
        report = group.take_update_result()
        assert [why is not None for why in report.drops] == [w in bad for w in range(NUM_WORKERS)]
        assert all("rewards" in why for why in report.drops if why)
        everyone = len(bad) == NUM_WORKERS
        assert bool(report.num_steps) != everyone
        assert bool(report.num_skipped_steps) == everyone
        found.append((report.weights, snapshots(group)))
    (weights, (one,)), (weights_of_two, two) = found
    np.testing.assert_allclose(weights, weights_of_two, rtol=1e-9)
    scale = np.abs(one["parameters"]).max()
    for snapshot_of_two in two:
        error = np.abs(snapshot_of_two["parameters"] - one["parameters"]).max() / scale
        assert error <= TOLERANCES[torch.float64]
    assert (np.abs(one["parameters"] - before).max() > 1e-3) != everyone


class BadGradient(EitherPrecision):
    """A finite loss without a finite gradient for worker 3, which one learner alone holds."""

    def losses_of_rows(self, module_id: str, columns: Any, fwd_out: Any, sizes: Any) -> Any:
        losses = super().losses_of_rows(module_id, columns, fwd_out, sizes)
        marked = segment_means((columns["obs"][:, :1] == MARK).float(), sizes)[:, 0] > 0
        zero = (losses.total - losses.total.detach()).masked_fill(~marked, 1.0)
        return dataclasses.replace(losses, total=losses.total + torch.sqrt(zero) * marked)


MARK = 5.0


@pytest.mark.slow
def test_a_bad_gradient_in_one_learner_drops_its_worker_in_both():
    found = []
    for num_learners in (0, 2):
        config = small_config(4).learners(
            learner_class=BadGradient, num_learners=num_learners, num_cpus_per_learner=0.1
        )
        group = build_group(config)
        episodes = make_episodes([[6], [9], [4], [8]])
        next(e for e in episodes if e.custom_data[WORKER_KEY] == 3).observations.data[:, 0] = MARK
        group.update(episodes=episodes, merge=make_request(4), num_epochs=2)
        report = group.take_update_result()
        assert report.drops == [None, None, None, "its gradient is not finite"]
        assert report.num_steps == 2
        found += snapshots(group)
        group.shutdown()
    for other in found[1:]:
        np.testing.assert_allclose(other["parameters"], found[0]["parameters"], rtol=1e-5)


def run(num_learners: int, strategy: str, batch_mode: str) -> tuple[np.ndarray, list[Any]]:
    """Three rounds of a whole algorithm with eight workers in two env runners."""
    algorithm = (
        WeightedPPOConfig()
        .environment("CartPole-v1")
        .env_runners(
            num_env_runners=2,
            num_envs_per_env_runner=4,
            num_cpus_per_env_runner=0.5,
            batch_mode=batch_mode,
        )
        .learners(num_learners=num_learners, num_cpus_per_learner=0.5)
        .training(
            merge_strategy=strategy,
            merge_unit="env",
            train_batch_size=322,  # Not a multiple of the learners: RLlib would round it down.
            minibatch_size=80,
            num_epochs=2,
            lr=1e-3,
        )
        .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[16]))
        .debugging(seed=3)
        .build_algo()
    )
    results = [algorithm.train() for _ in range(3)]
    state = algorithm.learner_group.get_state()["learner"]["rl_module"][DEFAULT_MODULE_ID]
    algorithm.stop()
    return np.concatenate([np.ravel(value) for value in state.values()]), results


@pytest.mark.slow
@pytest.mark.parametrize("batch_mode", ["complete_episodes", "truncate_episodes"])
@pytest.mark.parametrize("strategy", ["reward_weighted", "loss_weighted", "actor_average"])
def test_whole_algorithms_do_not_depend_on_it_either(strategy, batch_mode):
    (expected, wanted), (found, results) = (run(n, strategy, batch_mode) for n in (0, 3))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    for result, one in zip(results, wanted, strict=True):
        for name in ("num_env_steps_sampled_lifetime", "num_env_steps_trained_lifetime"):
            pick = result["learners"]["__all_modules__"] if "trained" in name else result
            same = one["learners"]["__all_modules__"] if "trained" in name else one
            assert pick[name] == same[name]
        assert result["merge"]["effective_workers"] == pytest.approx(
            one["merge"]["effective_workers"], rel=1e-4
        )
        drift = [r["merge"].get("drift_mean") for r in (result, one)]
        assert (drift[0] is not None) == (strategy == "actor_average")
        assert drift[0] == (pytest.approx(drift[1], rel=1e-3) if drift[0] else None)
