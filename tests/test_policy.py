"""A loaded policy acts as the env runner of its checkpoint does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.connectors.env_to_module import MeanStdFilter
from ray.rllib.core.columns import Columns

from rllib_weighted import load_policy
from tests.checkpoints import BOX, LENGTH, recorded, recorded_config, write_checkpoint

SPACES = [BOX, gym.spaces.Discrete(4, start=3), gym.spaces.MultiDiscrete([3, 4])]
SCALES = [
    {"normalize_actions": True},
    {"normalize_actions": False, "clip_actions": True},
    {"normalize_actions": False, "clip_actions": False},
]


def same(found: Any, expected: Any) -> bool:
    return bool(np.array_equal(found, expected)) and np.shape(found) == np.shape(expected)


@pytest.mark.parametrize("actions", SPACES, ids=lambda space: type(space).__name__)
@pytest.mark.parametrize("scale", SCALES, ids=["unsquashed", "clipped", "as they are"])
def test_acts_as_its_env_runner(tmp_path: Path, actions: Any, scale: dict[str, bool]) -> None:
    runner = write_checkpoint(tmp_path, recorded_config(actions).environment(**scale))
    policy = load_policy(tmp_path)
    steps = recorded(runner, explore=False)
    assert all(same(policy(obs), action) for obs, action in steps)
    assert policy.action_space == actions


def test_the_filter_is_used_and_acting_does_not_change_it(tmp_path: Path) -> None:
    runner = write_checkpoint(tmp_path, recorded_config())
    steps = recorded(runner, explore=False)
    policy = load_policy(tmp_path)
    (filter_,) = [c for c in policy.env_to_module.connectors if isinstance(c, MeanStdFilter)]
    before = filter_.get_state()
    assert all(same(policy(obs), action) for obs, action in steps + steps)
    assert filter_.get_state() == before
    policy.env_to_module.connectors.remove(filter_)
    assert not all(same(policy(obs), action) for obs, action in steps)


def test_exploring_draws_from_torchs_generator(tmp_path: Path) -> None:
    config = recorded_config(env_to_module_connector=None).environment(**SCALES[2])
    write_checkpoint(tmp_path, config)
    policy = load_policy(tmp_path, explore=True)
    obs = torch.tensor([[0.5, 5.0, -3.0]])
    mean, log_std = policy.module.forward_exploration({Columns.OBS: obs})[
        Columns.ACTION_DIST_INPUTS
    ].chunk(2, dim=-1)
    torch.manual_seed(5)
    expected = torch.normal(mean, log_std.exp())[0].numpy()
    torch.manual_seed(5)
    assert same(policy(obs[0].numpy()), expected)
    assert not same(policy(obs[0].numpy()), expected)


class LastThree(ConnectorV2):
    """Gives the module the sum of the last three observations."""

    def __call__(self, *, batch: Any, episodes: Any, **kwargs: Any) -> Any:
        for episode in self.single_agent_episode_iterator(episodes):
            last = sum(episode.get_observations(slice(-3, None), fill=0.0))
            self.add_batch_item(batch, Columns.OBS, last, episode)
        return batch


def last_three(env: Any, spaces: Any, device: Any) -> Any:
    return LastThree()


@pytest.mark.parametrize("kind", ["recurrent", "a connector"])
def test_memory_lasts_until_a_reset(tmp_path: Path, kind: str) -> None:
    config = recorded_config(env_to_module_connector=last_three if kind != "recurrent" else None)
    if kind == "recurrent":
        config.rl_module(model_config={"use_lstm": True, "lstm_cell_size": 8, "max_seq_len": 4})
    steps = recorded(write_checkpoint(tmp_path, config), explore=False)
    policy = load_policy(tmp_path)
    for t, (obs, action) in enumerate(steps):
        if t % LENGTH == 0:
            policy.reset()
        np.testing.assert_allclose(policy(obs), action, rtol=1e-5, atol=1e-6)
    first_obs, first_action = steps[0]
    assert not np.allclose(policy(first_obs), first_action, atol=1e-4)  # It has not been reset.


def test_a_policy_without_memory_keeps_no_episode(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, recorded_config())
    policy = load_policy(tmp_path)
    for _ in range(3):
        policy(np.zeros(3))
    assert policy._episode is not None
    assert len(policy._episode) == 0


def test_ray_is_not_started(tmp_path: Path) -> None:
    config = recorded_config(gym.spaces.Discrete(3), env_to_module_connector=None)
    write_checkpoint(tmp_path, config)
    code = f"""
import ray
from rllib_weighted import load_policy
assert load_policy({str(tmp_path)!r})([0.0, 5.0, 1.0]) in range(3)
assert not ray.is_initialized()
"""
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, check=True, timeout=120, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", "")  # RLlib's deprecations are not the user's.


def test_a_batch_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, recorded_config())
    with pytest.raises(ValueError, match=r"shape \[3\], found \[2, 3\]: give one observation"):
        load_policy(tmp_path)(np.zeros((2, 3)))


def test_a_folder_without_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"should be the folder of a checkpoint, found no rllib"):
        load_policy(tmp_path)


@pytest.mark.parametrize(
    ("left", "message"),
    [
        (None, r"found none: the checkpoint is torn"),
        (0, r"is damaged: .* not: env_runner/env_to_module_connector/class_and_ctor_args\.pkl"),
        (100, r"is damaged: .* not: env_runner/env_to_module_connector/class_and_ctor_args\.pkl"),
    ],
)
def test_a_torn_checkpoint(tmp_path: Path, left: int | None, message: str) -> None:
    write_checkpoint(tmp_path, recorded_config())
    file = tmp_path / "env_runner" / "env_to_module_connector" / "class_and_ctor_args.pkl"
    if left is None:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(ValueError, match=message):
        load_policy(tmp_path)


def test_a_class_that_cannot_be_imported(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, recorded_config())
    file = tmp_path / "env_runner" / "env_to_module_connector" / "class_and_ctor_args.pkl"
    file.write_bytes(b"cno_such_module\nConnector\n.")
    with pytest.raises(ValueError, match=r"cannot be imported here \(No module named 'no_such_mo"):
        load_policy(tmp_path)


def test_several_policies(tmp_path: Path) -> None:
    config = recorded_config()
    runner = write_checkpoint(tmp_path, config)
    spec = config.get_multi_rl_module_spec(spaces=runner.get_spaces())
    spec.add_modules({"second": spec.rl_module_specs["default_policy"]})
    spec.build().save_to_path(str(tmp_path / "learner_group" / "learner" / "rl_module"))
    with pytest.raises(ValueError, match=r"one policy of a single agent, found .*second"):
        load_policy(tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_of_an_algorithm_with_remote_env_runners(tmp_path: Path) -> None:
    """The filter and the parameters are those of the algorithm after its last round."""
    config = recorded_config(num_env_runners=2).training(lr=0.1)
    algorithm = config.build_algo()
    try:
        algorithm.train()
        algorithm.save_to_path(str(tmp_path))
        runner = algorithm.env_runner
        obs = np.array([0.5, 5.0, -3.0], np.float32)
        policy = load_policy(tmp_path)
        first = policy.module.get_state()["pi.net.mlp.0.weight"]
        assert np.array_equal(first, algorithm.get_module().get_state()["pi.net.mlp.0.weight"])
        assert policy.env_to_module.get_state() == runner._env_to_module.get_state()
        assert policy.action_space.contains(policy(obs))
    finally:
        algorithm.stop()
