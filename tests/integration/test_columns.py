"""Whole runs: columns and episodes lead to the same parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ray.rllib.connectors.env_to_module import MeanStdFilter

from rllib_weighted import WeightedPPOConfig
from rllib_weighted.learning.connectors import ScaleRewards

pytestmark = pytest.mark.usefixtures("ray_session")


def _filter(env: Any = None, spaces: Any = None, device: Any = None) -> MeanStdFilter:
    return MeanStdFilter()


def _scale(obs: Any, act: Any) -> ScaleRewards:
    return ScaleRewards(0.1)


def _run(env: str, training: dict[str, Any], runners: dict[str, Any], num_learners: int) -> Any:
    config = (
        WeightedPPOConfig()
        .environment(env)
        .env_runners(num_envs_per_env_runner=3, **{"num_env_runners": 0, **runners})
        .learners(num_learners=num_learners, learner_connector=_scale)
        .training(train_batch_size=240, minibatch_size=60, num_epochs=2, **training)
        .rl_module(model_config={"fcnet_hiddens": [8]})
        .debugging(seed=1)
    )
    algorithm = config.build_algo()
    try:
        start = algorithm.get_module().state_dict()
        start = {name: value.clone() for name, value in start.items()}
        results = [algorithm.train() for _ in range(2)]
        state = algorithm.learner_group.get_state(components="learner/rl_module")
        return results, state["learner"]["rl_module"]["default_policy"], start
    finally:
        algorithm.stop()


_CASES = {
    "environments": ("CartPole-v1", {"merge_unit": "env"}, {}, 0),
    "env runners": ("CartPole-v1", {}, {"num_env_runners": 2}, 0),
    "two learners": ("CartPole-v1", {"merge_unit": "env"}, {"num_env_runners": 1}, 2),
    "actors": ("CartPole-v1", {"merge_unit": "env", "merge_strategy": "actor_average"}, {}, 0),
    "continuous": (
        "Pendulum-v1",
        {"merge_unit": "env"},
        {"env_to_module_connector": _filter},
        0,
    ),
    "complete": (
        "CartPole-v1",
        {"merge_unit": "env"},
        {"num_env_runners": 1, "batch_mode": "complete_episodes"},
        1,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", _CASES)
def test_columns_and_episodes_train_the_same(name: str) -> None:
    env, training, runners, num_learners = _CASES[name]
    ours, columns, start = _run(env, training, runners, num_learners)
    runners = {**runners, "fast_sampling": False}
    theirs, episodes, _ = _run(env, training, runners, num_learners)
    for results, value in ((ours, 1.0), (theirs, 0.0)):
        for result in results:
            assert result["merge"]["columns"] == value
            assert result["merge"]["fast_sampling"] == value
    # Not the lengths: a local learner adds a step to the chunks that RLlib's own loop still counts.
    for key in ("episode_return_mean", "num_env_steps_sampled_lifetime"):
        a, b = (results[-1]["env_runners"].get(key, np.nan) for results in (ours, theirs))
        assert a == pytest.approx(b, rel=1e-12, nan_ok=True)
    for weights in columns, episodes:
        assert any(np.abs(weights[n] - start[n].numpy()).max() > 1e-6 for n in start)
    for parameter, values in columns.items():
        np.testing.assert_allclose(values, episodes[parameter], rtol=1e-5, atol=1e-6)
