"""Whole rounds without autograd, against the same rounds with it."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from torch import Tensor

from rllib_weighted.learning.closed_form.kernel import Kernel
from rllib_weighted.learning.closed_form.loss import PPOLoss
from rllib_weighted.learning.steps import PerWorkerSteps, SharedSteps
from tests.learning.closed_form.helpers import BOX
from tests.learning.helpers import (
    DISCRETE,
    EitherPrecision,
    build_group,
    learner_of,
    make_episodes,
    make_request,
    module_of,
    pooled_group,
    run_update,
    small_config,
)

# Relative to the largest of all numbers of a kind.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5}
LENGTHS = {
    "equal": [[6, 4], [10], [3, 3, 4]],
    "unequal": [[6, 4], [2, 17], [6]],
    "few": [[1], [30], [2]],
    "one": [[], [14], []],
}
REWARDS = [2.0, -1.0, 4.0]
STRATEGIES: dict[str, tuple[str, dict[str, Any]]] = {
    "average": ("average", {}),
    "sum": ("sum", {}),
    "reward": ("reward_weighted", {}),
    "reward, softmax": ("reward_weighted", {"transform": "softmax"}),
    "loss": ("loss_weighted", {}),
    "loss, round": ("loss_weighted", {"scope": "round"}),
    "loss, value": ("loss_weighted", {"loss": "value", "offset": "min"}),
    "loss, rank": ("loss_weighted", {"transform": "rank"}),
    "loss, random": ("loss_weighted", {"transform": "random"}),
    "actor average": ("actor_average", {}),
    "actor sum": ("actor_sum", {}),
}


def pair_of_groups(strategy: str, dtype: torch.dtype, **kwargs: Any) -> list[Any]:
    """A group that takes its steps the fast way, and one that does not; the same parameters."""
    own = strategy if strategy.startswith("actor") else "average"
    kwargs = {"merge_strategy": own, **kwargs}
    groups = [
        pooled_group(3, EitherPrecision, fast_learner=fast, **kwargs) for fast in (True, False)
    ]
    start(groups, dtype)
    return groups


def start(groups: list[Any], dtype: torch.dtype) -> None:
    for group in groups:
        module_of(group).load_state_dict(module_of(groups[0]).state_dict())
        learner_of(group).use(dtype)
        if learner_of(group).per_worker is not None:
            learner_of(group).per_worker.start_from_module()
    fast, general = (learner_of(group).closed_form_networks for group in groups)
    assert fast is not None
    assert general is None


def snapshot(group: Any) -> dict[str, Tensor]:
    """Parameters, what is exported, and the optimizer's state, each as one vector."""
    learner = learner_of(group)
    (optimizer,) = learner._named_optimizers.values()
    parameters = list(learner._params.values())
    found = {"module": list(module_of(group).parameters()), "parameters": parameters}
    found["step"] = [
        optimizer.state.get(p, {}).get("step", torch.zeros(len(p) if learner.per_worker else 1))
        for p in parameters
    ]
    for key in ("exp_avg", "exp_avg_sq"):
        found[key] = [optimizer.state.get(p, {}).get(key, torch.zeros_like(p)) for p in parameters]
    return {
        name: torch.cat([t.detach().flatten() for t in tensors]) for name, tensors in found.items()
    }


def update(group: Any, episodes: list[Any], request: Any, **kwargs: Any) -> tuple[Any, dict]:
    """A round of two epochs; returns its report and metrics."""
    settings = {
        "num_epochs": 2,
        "minibatch_size": 11,
        "shuffle_batch_per_epoch": True,
        **kwargs,
    }
    (results,) = group.update(episodes=episodes, merge=request, **settings)
    metrics = {
        key: value.peek()
        for key, value in results[DEFAULT_MODULE_ID].items()
        if "lifetime" not in key and "throughput" not in key
    }
    return group.take_update_result(), metrics


def assert_close(found: Any, wanted: Any, tolerance: float, name: str) -> None:
    found, wanted = (
        np.array([np.nan if x is None else x for x in np.ravel(values)], np.float64)
        for values in (found, wanted)
    )
    scale = np.abs(wanted[np.isfinite(wanted)]).max(initial=1e-3)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * scale, err_msg=name)


def assert_same(groups: list[Any], rounds: list[Any], tolerance: float) -> None:
    """State, report and metrics of the two groups after the same round."""
    (report, metrics), (wanted_report, wanted_metrics) = rounds
    found, wanted = map(snapshot, groups)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype
        assert_close(found[name].numpy(), value.numpy(), tolerance, name)
    for field in dataclasses.fields(wanted_report):
        value, other = (getattr(r, field.name) for r in (report, wanted_report))
        if field.name in ("drops", "gradient_signals") or value is None:
            assert value == other
        elif isinstance(value, dict):
            assert value.keys() == other.keys()
            assert_close([*value.values()], [*other.values()], 10 * tolerance, field.name)
        else:
            assert_close(value, other, 10 * tolerance, field.name)
    assert metrics.keys() == wanted_metrics.keys()
    for key, value in wanted_metrics.items():
        # RLlib writes its norm down in float32.
        own = max(tolerance, 1e-7) if key.endswith("global_norm") else tolerance
        assert_close(metrics[key], value, 10 * own, key)


def check(
    groups: list[Any],
    strategy: str,
    options: dict[str, Any],
    dtype: torch.dtype,
    *,
    lengths: str = "unequal",
    action_space: Any = DISCRETE,
) -> None:
    """Three rounds, of which the first starts without an optimizer state."""
    before = snapshot(groups[0])
    for round in (1, 2, 3):
        request = make_request(3, strategy, options, rewards=REWARDS, round=round)
        rounds = [
            update(
                group,
                make_episodes(LENGTHS[lengths], seed=1000 * round, action_space=action_space),
                request,
                timesteps={"num_env_steps_sampled_lifetime": 20 * round},
            )
            for group in groups
        ]
        assert_same(groups, rounds, TOLERANCES[dtype])
        assert rounds[0][0].num_steps >= 2
    after = snapshot(groups[0])
    for name in ("parameters", "step"):
        assert (after[name] - before[name]).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("strategy", "lengths", "dtype"),
    [
        *((strategy, "unequal", dtype) for strategy in STRATEGIES for dtype in TOLERANCES),
        *((strategy, "few", torch.float64) for strategy in STRATEGIES),
        *(
            (strategy, lengths, torch.float64)
            for strategy in ("sum", "loss", "actor average")
            for lengths in ("equal", "one")
        ),
    ],
    ids=str,
)
def test_every_strategy(strategy, lengths, dtype):
    name, options = STRATEGIES[strategy]
    check(pair_of_groups(name, dtype), name, options, dtype, lengths=lengths)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize(
    "strategy",
    ["reward", "reward, softmax", "loss", "loss, round", "loss, value", "actor average"],
)
def test_every_strategy_goes_with_parameters_per_worker(strategy, dtype):
    name, options = STRATEGIES[strategy]
    groups = pair_of_groups(name, dtype, merge_strategy=name, per_worker_parameters=True)
    assert all(learner_of(group).per_worker is not None for group in groups)
    check(groups, name, options, dtype)
    rows = next(iter(learner_of(groups[0]).per_worker.stacked.values())).detach()
    assert (rows[0] - rows[1]).abs().max() > 1e-3


SETTINGS: dict[str, dict[str, Any]] = {
    "kl": {"use_kl_loss": True, "kl_coeff": 0.4},
    "no entropy": {"entropy_coeff": 0.0},
    "clipped values": {"vf_clip_param": 0.3, "vf_loss_coeff": 0.5},
    "values without a limit": {"vf_clip_param": None},
    "tight": {"clip_param": 0.02},
    "clip by value": {"grad_clip": 0.05, "grad_clip_by": "value"},
    "clip by norm": {"grad_clip": 0.1, "grad_clip_by": "norm"},
    "clip by global norm": {"grad_clip": 0.1, "grad_clip_by": "global_norm"},
    "clipped never": {"grad_clip": 1e3, "grad_clip_by": "global_norm"},
    "no clip": {"grad_clip": None},
    "batch": {"advantage_normalization": "batch"},
    "schedules": {"lr": [[0, 0.05], [50, 0.001]], "entropy_coeff": [[0, 0.1], [50, 0.0]]},
}


SPACES = {"discrete": DISCRETE, "continuous": BOX}


@pytest.mark.parametrize(
    ("strategy", "space", "dtype"),
    [
        ("loss_weighted", "discrete", torch.float64),
        ("loss_weighted", "continuous", torch.float64),
        ("actor_average", "continuous", torch.float64),
        ("actor_average", "discrete", torch.float32),
    ],
    ids=str,
)
@pytest.mark.parametrize("settings", SETTINGS)
def test_every_setting(settings, strategy, space, dtype):
    groups = pair_of_groups(strategy, dtype, action_space=SPACES[space], **SETTINGS[settings])
    check(groups, strategy, {}, dtype, action_space=SPACES[space])


@pytest.mark.parametrize(
    ("model", "action_space"),
    [
        ({"vf_share_layers": False, "fcnet_activation": "relu"}, DISCRETE),
        ({"head_fcnet_hiddens": [5], "fcnet_hiddens": [6, 4]}, DISCRETE),
        ({"free_log_std": True, "vf_share_layers": False}, BOX),
        ({"free_log_std": True, "log_std_clip_param": 0.05}, BOX),
    ],
)
@pytest.mark.parametrize("strategy", ["average", "actor_sum"])
def test_other_networks(model, action_space, strategy):
    groups = []
    for fast in (True, False):
        config = small_config(3).learners(learner_class=EitherPrecision, fast_learner=fast)
        config.training(merge_strategy=strategy, use_kl_loss=True)
        config.rl_module(model_config=DefaultModelConfig(**{"fcnet_hiddens": [8], **model}))
        groups.append(build_group(config, action_space=action_space))
    start(groups, torch.float64)
    check(groups, strategy, {}, torch.float64, action_space=action_space)


def test_a_wrong_coefficient_is_seen():
    """Negative control of the comparison."""
    groups = pair_of_groups("average", torch.float64)
    learner_of(groups[0]).entropy_coeff = lambda module_id: 0.0101
    try:
        with pytest.raises(AssertionError, match="Not equal to tolerance"):
            check(groups, "average", {}, torch.float64)
    finally:
        del learner_of(groups[0]).entropy_coeff


# Which way a step is taken


class Count:
    """How many steps were left to the general way, and passes with the kernel."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.general = self.fast = 0
        for kind in (SharedSteps, PerWorkerSteps):
            monkeypatch.setattr(kind, "take", self._counted(kind.take, "general"))
        monkeypatch.setattr(Kernel, "forward", self._counted(Kernel.forward, "fast"))

    def _counted(self, method: Any, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            setattr(self, name, getattr(self, name) + 1)
            return method(*args, **kwargs)

        return call


@pytest.mark.parametrize("strategy", ["loss_weighted", "actor_average"])
def test_no_step_is_left_to_the_general_way_without_need(monkeypatch, strategy):
    fast, general = pair_of_groups(strategy, torch.float32)
    count = Count(monkeypatch)
    episodes = make_episodes(LENGTHS["unequal"])
    report, _ = update(fast, episodes, make_request(3, strategy))
    assert (count.fast, count.general) == (report.num_steps, 0) == (6, 0)
    update(general, make_episodes(LENGTHS["unequal"]), make_request(3, strategy))
    assert (count.fast, count.general) == (6, 6)


@pytest.mark.parametrize("strategy", ["average", "loss_weighted", "actor_average", "actor_sum"])
def test_only_steps_with_a_loss_that_is_not_finite_are_left_to_it(monkeypatch, strategy):
    """One row of worker 1 is bad: it is in one of three minibatches of each epoch."""
    groups = pair_of_groups(strategy, torch.float64, use_kl_loss=True, grad_clip=0.1)
    count = Count(monkeypatch)
    for round in (1, 2):
        request = make_request(3, strategy, round=round)
        rounds = []
        for group in groups:
            episodes = make_episodes(LENGTHS["unequal"], seed=1000 * round)
            bad = next(e for e in episodes if len(e) == 17)
            bad.extra_model_outputs["action_dist_inputs"].data[3] = math.nan
            rounds.append(update(group, episodes, request))
            if group is groups[0]:
                assert (count.fast, count.general) == (6, 2)
        count.fast = count.general = 0
        report = rounds[0][0]
        assert report.drops == [None, "its loss is not finite", None]
        assert (report.num_steps, report.num_skipped_steps) == (6, 0)
        # The KL divergence itself, in the metrics, is that of the last step: it may be fine.
        assert_same(groups, rounds, TOLERANCES[torch.float64])


def spoil(monkeypatch: pytest.MonkeyPatch, what: str, is_bad: Callable[[], bool]) -> None:
    """Makes a loss or a gradient of the fast way infinite, and nothing else."""
    forward, backward = PPOLoss.forward, Kernel.backward

    def bad_forward(loss: PPOLoss, *args: Any) -> Tensor:
        parts = forward(loss, *args)
        if is_bad():
            parts[0, 0] = math.inf
        return parts

    def bad_backward(kernel: Kernel, policy: Tensor, value: Tensor) -> None:
        backward(kernel, policy, value * math.inf if is_bad() else value)

    if what == "loss":
        monkeypatch.setattr(PPOLoss, "forward", bad_forward)
    else:
        monkeypatch.setattr(Kernel, "backward", bad_backward)


@pytest.mark.parametrize("strategy", ["loss_weighted", "actor_average"])
@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("bad_step", [0, 2, 5])
def test_one_bad_number_leaves_its_step_to_it(monkeypatch, strategy, what, bad_step):
    """The general way finds nothing to drop here, and the result is as if all steps were fast."""
    groups = pair_of_groups(strategy, torch.float64, grad_clip=0.1, grad_clip_by="global_norm")
    count = Count(monkeypatch)
    spoil(monkeypatch, what, lambda: count.fast == bad_step + 1)
    request = make_request(3, strategy)
    rounds = []
    for group in groups:
        rounds.append(update(group, make_episodes(LENGTHS["unequal"]), request))
        if group is groups[0]:
            assert (count.fast, count.general) == (6, 1)
    assert rounds[0][0].drops == [None] * 3
    assert_same(groups, rounds, TOLERANCES[torch.float64])


@pytest.mark.parametrize("strategy", ["average", "actor_average"])
def test_a_ratio_that_overflows_drops_its_worker_either_way(strategy):
    """Its loss is finite, as it is clipped, but autograd's gradient is 0 times infinity."""
    groups = pair_of_groups(strategy, torch.float32)
    rounds = []
    for group in groups:
        episodes = make_episodes(LENGTHS["equal"])
        episodes[0].extra_model_outputs["action_logp"].data[1] = -200.0
        rounds.append(update(group, episodes, make_request(3, strategy)))
    assert rounds[0][0].drops == ["its gradient is not finite", None, None]
    assert_same(groups, rounds, TOLERANCES[torch.float32])


@pytest.mark.parametrize("strategy", ["average", "actor_average"])
@pytest.mark.parametrize("round", [1, 2])
def test_an_exception_leaves_everything_as_before_the_round(monkeypatch, strategy, round):
    groups = pair_of_groups(strategy, torch.float64)
    for earlier in range(1, round):
        for group in groups:
            update(
                group, make_episodes(LENGTHS["few"], seed=earlier), make_request(3, round=earlier)
            )
    before = snapshot(groups[0])
    backward, calls = Kernel.backward, []

    def failing(kernel: Kernel, *args: Tensor) -> None:
        calls.append(kernel)
        if len(calls) == 3:
            raise KeyboardInterrupt
        backward(kernel, *args)

    with mock.patch.object(Kernel, "backward", failing), pytest.raises(KeyboardInterrupt):
        update(groups[0], make_episodes(LENGTHS["equal"]), make_request(3, round=round))
    after = snapshot(groups[0])
    assert all(torch.equal(after[name], value) for name, value in before.items())
    # And it goes on from there as if nothing had been.
    request = make_request(3, round=round)
    rounds = [update(group, make_episodes(LENGTHS["equal"]), request) for group in groups]
    for found in rounds:
        found[1].pop("weights_seq_no")  # It counts the attempts.
    assert_same(groups, rounds, TOLERANCES[torch.float64])


def test_parameters_with_different_step_counts_take_the_general_way(monkeypatch):
    """As in a state that was saved where the critic was not trained."""
    groups = pair_of_groups("average", torch.float64)
    for group in groups:
        update(group, make_episodes(LENGTHS["equal"]), make_request(3))
        (optimizer,) = learner_of(group)._named_optimizers.values()
        head = module_of(group).vf.net.mlp[0]
        for parameter in head.parameters():
            del optimizer.state[parameter]
    count = Count(monkeypatch)
    request = make_request(3, round=2)
    rounds = [update(group, make_episodes(LENGTHS["equal"], seed=9), request) for group in groups]
    assert count.fast == 0
    assert_same(groups, rounds, TOLERANCES[torch.float64])


@pytest.mark.parametrize("strategy", ["average", "actor_average"])
def test_a_state_goes_from_one_way_to_the_other(strategy):
    """Rounds 1 and 3 with one learner, round 2 with the other: nothing is lost in between."""
    fast, general = pair_of_groups(strategy, torch.float32, use_kl_loss=True)
    mixed = pooled_group(
        3, EitherPrecision, fast_learner=False, merge_strategy=strategy, use_kl_loss=True
    )
    learner_of(mixed).use(torch.float32)
    state = None
    for round, group in ((1, fast), (2, mixed), (3, fast)):
        if state is not None:
            learner_of(group).set_state(copy.deepcopy(state))
        request = make_request(3, strategy, rewards=REWARDS, round=round)
        run_update(group, make_episodes(LENGTHS["unequal"], seed=round), request, num_epochs=2)
        run_update(general, make_episodes(LENGTHS["unequal"], seed=round), request, num_epochs=2)
        state = learner_of(group).get_state()
    found, wanted = snapshot(fast), snapshot(general)
    for name, value in wanted.items():
        assert_close(found[name].numpy(), value.numpy(), 1e-5, name)
