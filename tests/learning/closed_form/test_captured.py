"""Steps as they are captured on a GPU, here uncaptured, on the CPU, against the reference.

What a GPU adds is the capture itself. It needs that a step reads no number of the device and makes
no tensor from one of the host: that is checked here too.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from torch.utils._python_dispatch import TorchDispatchMode

from rllib_weighted.learning import update as update_module
from rllib_weighted.learning.closed_form import captured, steps
from rllib_weighted.learning.closed_form.captured import Programs, Replay, StepProgram
from rllib_weighted.merging import resolve_strategy
from tests.learning import helpers
from tests.learning.closed_form import test_steps as uncaptured
from tests.learning.closed_form.test_steps import SETTINGS, SPACES, STRATEGIES
from tests.learning.helpers import (
    DISCRETE,
    build_group,
    learner_of,
    make_episodes,
    make_request,
    small_config,
)


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(update_module, "captures", lambda learner: True)
    for group, _ in (entry for entries in helpers._pool.values() for entry in entries):
        learner_of(group).programs = Programs()  # Of other tests, with their patches.


class Ran:
    """How many steps programs ran, and plain ones were asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.captured = self.plain = 0
        monkeypatch.setattr(StepProgram, "_step", self._counted(StepProgram._step, "captured"))
        take = steps.ClosedFormSteps.take
        monkeypatch.setattr(steps.ClosedFormSteps, "take", self._counted(take, "plain"))

    def _counted(self, method: Any, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            setattr(self, name, getattr(self, name) + 1)
            return method(*args, **kwargs)

        return call


def alone(strategy: str, action_space: gym.Space = DISCRETE, **training: Any) -> Any:
    """A group of its own: those of a pool have to have the same past, in pairs."""
    config = small_config(3).training(merge_strategy=strategy, **training)
    return build_group(config, action_space=action_space)


# Which of the strategies weigh by what only the step itself can tell.
NOT_CAPTURED = ("loss, rank", "loss, random")


@pytest.mark.parametrize(
    ("strategy", "lengths", "dtype"),
    [
        *((strategy, "unequal", torch.float64) for strategy in STRATEGIES),
        *((strategy, "few", torch.float64) for strategy in ("loss", "reward", "actor sum")),
        *((strategy, "unequal", torch.float32) for strategy in ("loss", "actor average")),
        ("sum", "one", torch.float64),
    ],
    ids=str,
)
def test_every_strategy(strategy, lengths, dtype, monkeypatch):
    ran = Ran(monkeypatch)
    name, options = STRATEGIES[strategy]
    groups = uncaptured.pair_of_groups(name, dtype)
    uncaptured.check(groups, name, options, dtype, lengths=lengths)
    assert (ran.captured > 0, ran.plain > 0) == (
        strategy not in NOT_CAPTURED,
        strategy in NOT_CAPTURED,
    )


@pytest.mark.parametrize("strategy", ["reward", "loss", "loss, value"])
def test_parameters_per_worker(strategy):
    name, options = STRATEGIES[strategy]
    groups = uncaptured.pair_of_groups(
        name, torch.float64, merge_strategy=name, per_worker_parameters=True
    )
    uncaptured.check(groups, name, options, torch.float64)


@pytest.mark.parametrize(
    ("strategy", "space"), [("loss_weighted", "discrete"), ("actor_average", "continuous")]
)
@pytest.mark.parametrize("settings", SETTINGS)
def test_every_setting(settings, strategy, space):
    groups = uncaptured.pair_of_groups(
        strategy, torch.float64, action_space=SPACES[space], **SETTINGS[settings]
    )
    uncaptured.check(groups, strategy, {}, torch.float64, action_space=SPACES[space])


def test_the_value_functions_part_may_have_weights_of_its_own(monkeypatch):
    ran = Ran(monkeypatch)
    groups = uncaptured.pair_of_groups("reward_weighted", torch.float64)
    request = make_request(
        3,
        "reward_weighted",
        rewards=uncaptured.REWARDS,
        value_strategy=resolve_strategy("sum"),
    )
    rounds = [
        uncaptured.update(group, make_episodes(uncaptured.LENGTHS["unequal"]), request)
        for group in groups
    ]
    uncaptured.assert_same(groups, rounds, 1e-10)
    assert (ran.captured, ran.plain) == (6, 0)


IMAGES = gym.spaces.Box(0, 255, (10, 10, 2), np.uint8)


def image_groups(**settings: Any) -> list[Any]:
    """A group that captures a convolutional module's steps, and one that takes them by autograd."""
    groups = []
    for fast in (True, False):
        config = small_config(3).learners(
            learner_class=uncaptured.EitherPrecision, fast_learner=fast
        )
        config.training(use_kl_loss=True, grad_clip=0.5, **settings)
        config.rl_module(
            observation_scale=1 / 255,
            model_config=DefaultModelConfig(conv_filters=[[3, 4, 2], [4, 3, 2]], fcnet_hiddens=[6]),
        )
        groups.append(build_group(config, obs_space=IMAGES))
    uncaptured.module_of(groups[1]).load_state_dict(uncaptured.module_of(groups[0]).state_dict())
    return groups


@pytest.mark.parametrize("strategy", ["average", "loss_weighted"])
def test_convolutions_are_captured_with_autograds_passes(strategy, monkeypatch):
    monkeypatch.setattr(steps, "_needs_layers", lambda learner: False)
    ran = Ran(monkeypatch)
    groups = image_groups()
    networks = [learner_of(group).closed_form_networks for group in groups]
    assert networks[0] is not None
    assert not networks[0].is_dense
    assert networks[1] is None
    for round in (1, 2):
        request = make_request(3, strategy, rewards=uncaptured.REWARDS, round=round)
        lengths = uncaptured.LENGTHS["unequal"]
        rounds = [
            uncaptured.update(group, make_episodes(lengths, seed=round, obs_space=IMAGES), request)
            for group in groups
        ]
        uncaptured.assert_same(groups, rounds, 1e-5)
    assert (ran.captured, ran.plain) == (12, 0)


@pytest.mark.parametrize("strategy", ["average", "loss_weighted", "actor_average"])
def test_from_a_step_that_is_not_finite_on_nothing_has_moved(strategy, monkeypatch):
    """One row of worker 1 is bad: it is in one of three minibatches of each epoch."""
    groups = uncaptured.pair_of_groups(strategy, torch.float64, use_kl_loss=True, grad_clip=0.1)
    ran = Ran(monkeypatch)
    for round in (1, 2):
        request = make_request(3, strategy, round=round)
        rounds = []
        for group in groups:
            episodes = make_episodes(uncaptured.LENGTHS["unequal"], seed=1000 * round)
            bad = next(e for e in episodes if len(e) == 17)
            bad.extra_model_outputs["action_dist_inputs"].data[3] = math.nan
            rounds.append(uncaptured.update(group, episodes, request))
        report = rounds[0][0]
        assert report.drops == [None, "its loss is not finite", None]
        assert (report.num_steps, report.num_skipped_steps) == (6, 0)
        uncaptured.assert_same(groups, rounds, 1e-10)
    assert ran.captured == 12  # All of them: the host does not know yet.
    assert 6 <= ran.plain < 12  # The bad one of each first epoch, and what follows.


def test_shapes_that_are_nearly_the_same_share_a_program(monkeypatch):
    group = alone("average")
    learner = learner_of(group)
    kept = learner.programs._programs
    for round, length in enumerate((8, 9, 10, 200), 1):
        episodes = make_episodes([[length], [length], [length]], seed=round)
        uncaptured.update(
            group, episodes, make_request(3, "average", round=round), minibatch_size=None
        )
        assert len(kept) == (1 if length < 20 else 2)
    monkeypatch.setattr(captured, "_MOST_PROGRAMS", 3)
    for num_epochs in (33, 65, 97):
        episodes = make_episodes([[2], [2], [2]])
        uncaptured.update(
            group,
            episodes,
            make_request(3, "average"),
            minibatch_size=None,
            num_epochs=num_epochs,
        )
    assert [shape.num_steps for shape in kept] == [64, 96, 128]


class HostAccess(TorchDispatchMode):
    """Refuses what a CUDA graph cannot hold: a number read by the host, or one copied from it."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "lift_fresh", "is_nonzero", "masked_select")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().partition("::")[2].partition(".")[0]
        assert name not in self.FORBIDDEN, f"a step calls {func.name()}"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("strategy", "space", "settings"),
    [
        ("average", "discrete", "kl"),
        ("loss_weighted", "continuous", "clip by norm"),
        ("loss_weighted", "discrete", "clip by value"),
        ("actor_average", "continuous", "clip by global norm"),
    ],
)
def test_a_step_neither_reads_nor_writes_a_number(strategy, space, settings, monkeypatch):
    step = StepProgram._step
    checked = []

    def watched(program: StepProgram) -> None:
        with HostAccess():
            step(program)
        checked.append(program)

    monkeypatch.setattr(StepProgram, "_step", watched)
    group = alone(strategy, SPACES[space], **SETTINGS[settings])
    episodes = make_episodes(uncaptured.LENGTHS["unequal"], action_space=SPACES[space])
    uncaptured.update(group, episodes, make_request(3, strategy))
    assert len(checked) == 6


def test_negative_control_a_step_of_the_plain_kind_reads_numbers():
    group = alone("average")
    episodes = make_episodes(uncaptured.LENGTHS["unequal"])
    with HostAccess(), pytest.raises(AssertionError, match="_local_scalar_dense"):
        uncaptured.update(group, episodes, make_request(3, "average"))


def test_without_a_gpu_a_replay_is_the_function_itself():
    calls = []
    replay = Replay(lambda: calls.append(1), torch.device("cpu"))
    replay.prepare()
    assert calls == []
    replay()
    assert calls == [1]


class NoCapture:
    """A stand-in for torch's streams and graphs on a GPU that refuses to capture."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def wait_stream(self, stream: Any) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: Any) -> None:
        pass


def test_what_cannot_be_captured_is_called_as_it_is(monkeypatch, caplog):
    def refuse(graph: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    for name in ("CUDAGraph", "Stream", "stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, NoCapture)
    monkeypatch.setattr(torch.cuda, "graph", refuse)
    calls = []
    replay = Replay(lambda: calls.append(1), torch.device("cuda"))
    with caplog.at_level(logging.WARNING):
        replay.prepare()
        replay.prepare()
    assert len(calls) == captured._WARM_UPS
    replay()
    assert len(calls) == captured._WARM_UPS + 1
    (message,) = caplog.messages
    assert message.endswith("which is slower: operation not permitted when stream is capturing")


def test_only_learners_on_a_gpu_capture(monkeypatch):
    monkeypatch.undo()
    group = alone("average")
    assert not captured.captures(learner_of(group))
    monkeypatch.setattr(learner_of(group), "_device", torch.device("cuda", 0))
    assert captured.captures(learner_of(group))


def test_a_dense_module_has_the_written_out_passes(monkeypatch):
    count = uncaptured.Count(monkeypatch)
    group = alone("average")
    episodes = make_episodes(uncaptured.LENGTHS["unequal"])
    uncaptured.update(group, episodes, make_request(3, "average"))
    assert (count.fast, count.general) == (6, 0)
