from __future__ import annotations

import copy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.connectors.env_to_module import FlattenObservations, MeanStdFilter
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from rllib_weighted import WeightedPPOConfig
from rllib_weighted.core.messages import SampleRequest, SampleResult
from rllib_weighted.core.workers import WORKER_KEY
from rllib_weighted.sampling.collect import collect_rollouts
from rllib_weighted.sampling.env_runner import WeightedEnvRunner
from rllib_weighted.sampling.own_parameters import per_worker_policy
from tests.sampling.envs import ScriptedEnv
from tests.sampling.helpers import SEED, make_config, make_runner, sample

LOGITS = "action_dist_inputs"


def _filter(env: Any = None, spaces: Any = None, device: Any = None) -> MeanStdFilter:
    return MeanStdFilter()


def _flatten(env: Any = None, spaces: Any = None, device: Any = None) -> FlattenObservations:
    return FlattenObservations()


def _config(env: Any = "CartPole-v1", unit: str = "env", **env_runners: Any) -> WeightedPPOConfig:
    config = make_config(env, **env_runners).training(merge_unit=unit)
    if unit == "env_runner":
        config.training(merge_strategy="average")
    return config


class OwnModule(DefaultPPOTorchRLModule):
    """A custom one, for which nothing can be known: it is called row by row."""


def _with_own_module(config: WeightedPPOConfig) -> WeightedPPOConfig:
    spec = RLModuleSpec(module_class=OwnModule, model_config=DefaultModelConfig(fcnet_hiddens=[8]))
    return config.rl_module(rl_module_spec=spec)


def _recurrent(config: WeightedPPOConfig, **model: Any) -> WeightedPPOConfig:
    model = {"use_lstm": True, "lstm_cell_size": 4, "max_seq_len": 8, **model}
    return config.rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[8], **model))


def _stacks(runner: WeightedEnvRunner, n: int = 2, *, seed: int = 1) -> dict[str, np.ndarray]:
    """Parameters of n workers that differ, and a critic that the env runner lacks."""
    rng = np.random.default_rng(seed)
    named = runner.module.named_parameters()
    stacks = {
        name: rng.normal(scale=0.7, size=(n, *p.shape)).astype(np.float32) for name, p in named
    }
    return {**stacks, "a.critic": np.zeros((n, 3), np.float32)}


def _own(runner: WeightedEnvRunner, n: int = 2) -> dict[str, np.ndarray]:
    """The env runner's own parameters, n times."""
    return {
        name: np.repeat(p.detach().numpy()[None], n, axis=0)
        for name, p in runner.module.named_parameters()
    }


def _module_of(
    runner: WeightedEnvRunner, stacks: dict[str, np.ndarray] | None = None, worker: int = 0
) -> Any:
    """A copy of the env runner's module; with the parameters of one worker, if given."""
    module = copy.deepcopy(runner.module)
    if stacks is not None:
        named = module.named_parameters()
        state = {name: torch.tensor(stacks[name][worker]) for name, _ in named}
        module.load_state_dict(state, strict=False)
    return module


def _slow(runner: WeightedEnvRunner) -> WeightedEnvRunner:
    runner.__dict__["fast_sampler"] = None
    return runner


def _assert_acted_with(module: Any, episode: SingleAgentEpisode) -> None:
    """Every step's policy outputs are those of `module`."""
    obs = torch.from_numpy(episode.get_observations()[:-1]).float()
    expected = module.forward_exploration({"obs": obs})[LOGITS].numpy()
    actual = episode.get_extra_model_outputs(LOGITS)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=2e-6)


def _assert_same(ours: SampleResult, theirs: SampleResult, *, atol: float = 0.0) -> None:
    assert len(ours.episodes) == len(theirs.episodes) > 0
    for a, b in zip(ours.episodes, theirs.episodes, strict=True):
        assert a.custom_data == b.custom_data
        assert len(a) == len(b)
        for name in ("observations", "actions", "rewards"):
            x, y = getattr(a, f"get_{name}")(), getattr(b, f"get_{name}")()
            np.testing.assert_allclose(x, y, rtol=0, atol=atol, err_msg=name)
        x, y = (e.get_extra_model_outputs(LOGITS) for e in (a, b))
        np.testing.assert_allclose(x, y, rtol=0, atol=atol)


def _of_worker(rollouts: SampleResult, worker: int) -> list[SingleAgentEpisode]:
    return [e for e in rollouts.episodes if e.custom_data[WORKER_KEY] == worker]


def _weights(runner: WeightedEnvRunner) -> dict[str, np.ndarray]:
    return copy.deepcopy(runner.module.get_state())


# Every step of every worker


@pytest.mark.parametrize("loop", ["fast", "own loop", "own loop, own module"])
@pytest.mark.parametrize("mode", ["truncate", "complete"])
@pytest.mark.parametrize(
    ("env", "connectors"),
    [
        ("CartPole-v1", {}),
        ("CartPole-v1", {"env_to_module_connector": _filter}),
        ("Pendulum-v1", {}),
    ],
)
def test_each_sub_environment_acts_with_its_own_workers_parameters(
    env: str, connectors: dict[str, Any], mode: str, loop: str
) -> None:
    config = _config(env, batch_mode=f"{mode}_episodes", **connectors)
    if env == "Pendulum-v1":
        config.environment(env_config={"max_episode_steps": 17})
    if loop == "own loop, own module":
        config = _with_own_module(config)
    runner = make_runner(config)
    if loop == "own loop":
        _slow(runner)
    assert (runner.fast_sampler is None) == (loop != "fast")
    for round_ in (1, 2):
        stacks = _stacks(runner, seed=round_)
        rollouts = sample(runner, round_, per_worker_parameters=stacks)
        seen = set()
        for episode in rollouts.episodes:
            worker = episode.custom_data[WORKER_KEY]
            seen.add(worker)
            _assert_acted_with(_module_of(runner, stacks, worker), episode)
            for wrong in (
                _module_of(runner, stacks, 1 - worker),
                _module_of(runner, _stacks(runner, seed=99), worker),
                _module_of(runner),
            ):  # Negative controls.
                with pytest.raises(AssertionError, match="Not equal to tolerance"):
                    _assert_acted_with(wrong, episode)
        assert seen == {0, 1}


@pytest.mark.parametrize("prepare", [_slow, lambda runner: runner], ids=["own loop", "fast"])
@pytest.mark.parametrize("mode", ["truncate", "complete"])
@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_an_env_runner_acts_with_its_workers_parameters_bit_for_bit(
    env: str, mode: str, prepare: Any
) -> None:
    config = _config(env, "env_runner", num_env_runners=3, batch_mode=f"{mode}_episodes")
    if env == "Pendulum-v1":
        config.environment(env_config={"max_episode_steps": 17})
    for index in (1, 3):
        runner, separate = (prepare(make_runner(config, worker_index=index)) for _ in range(2))
        for round_ in (1, 2):
            stacks = _stacks(runner, n=3, seed=round_)
            separate.module.load_state_dict(
                _module_of(runner, stacks, index - 1).state_dict(), strict=True
            )
            _assert_same(
                sample(runner, round_, per_worker_parameters=stacks), sample(separate, round_)
            )


@pytest.mark.parametrize("prepare", [_slow, lambda runner: runner], ids=["own loop", "fast"])
@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_a_sub_environment_samples_what_it_would_in_a_runner_all_of_its_workers(
    env: str, prepare: Any
) -> None:
    runner = prepare(make_runner(_config(env)))
    stacks = _stacks(runner)
    rollouts = sample(runner, per_worker_parameters=stacks)
    for worker in (0, 1):
        separate = prepare(make_runner(_config(env)))
        separate.module.load_state_dict(_module_of(runner, stacks, worker).state_dict())
        expected = _of_worker(sample(separate), worker)
        found = _of_worker(rollouts, worker)
        # When the round is over, is a matter of both workers' steps.
        for a, b in zip(found, expected, strict=False):
            steps = min(len(a), len(b))
            assert steps > 0
            for name in ("observations", "actions"):
                x, y = (getattr(e, f"get_{name}")(slice(0, steps)) for e in (a, b))
                np.testing.assert_allclose(x, y, rtol=0, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("unit", ["env", "env_runner"])
@pytest.mark.parametrize("mode", ["truncate", "complete"])
def test_recurrent_modules_act_with_their_workers_parameters(
    mode: str, unit: str, shared: bool
) -> None:
    config = _recurrent(_config(unit=unit, batch_mode=f"{mode}_episodes"), vf_share_layers=shared)
    runner = make_runner(config)
    stacks = _stacks(runner)
    episodes = sample(runner, per_worker_parameters=stacks).episodes
    assert {e.custom_data[WORKER_KEY] for e in episodes} == ({0, 1} if unit == "env" else {0})
    for episode in episodes:
        if episode.t_started:
            continue
        worker = episode.custom_data[WORKER_KEY]
        for module, right in (
            (_module_of(runner, stacks, worker), True),
            (_module_of(runner, stacks, 1 - worker), False),
        ):
            state = _add_batch(module.get_initial_state())
            obs = torch.from_numpy(episode.get_observations()[None, :-1])
            output = module.forward_exploration({"obs": obs, "state_in": state})[LOGITS][0]
            logits = episode.get_extra_model_outputs(LOGITS)
            same = np.allclose(logits, output.numpy(), rtol=1e-5, atol=1e-5)
            assert same == right


def _add_batch(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: _add_batch(value) for key, value in state.items()}
    return state[None]


class _Callbacks(RLlibCallback):
    def on_episode_step(self, **kwargs: Any) -> None:
        pass


def test_dict_observations_and_multi_discrete_actions_in_rllibs_own_loop() -> None:
    class Env(ScriptedEnv):
        def __init__(self, context: Any = None) -> None:
            super().__init__(context)
            self.action_space = gym.spaces.MultiDiscrete([2, 3])

    config = _config(Env, env_to_module_connector=_flatten).callbacks(_Callbacks)
    config.environment(env_config={"space": "dict", "length": [4, 7]})
    runner = make_runner(config)
    assert runner.fast_sampler is None
    stacks = _stacks(runner)
    for episode in sample(runner, per_worker_parameters=stacks).episodes:
        worker = episode.custom_data[WORKER_KEY]
        _assert_acted_with(_module_of(runner, stacks, worker), episode)


def test_acting_without_exploration() -> None:
    runner = make_runner(_config(explore=False))
    stacks = _stacks(runner)
    for episode in sample(runner, per_worker_parameters=stacks).episodes:
        _assert_acted_with(_module_of(runner, stacks, episode.custom_data[WORKER_KEY]), episode)
        logits = episode.get_extra_model_outputs(LOGITS)
        np.testing.assert_array_equal(episode.get_actions(), logits.argmax(axis=-1))


def test_remote_env_runners_take_their_own_rows() -> None:
    config = _config(num_env_runners=2)
    for index, workers in ((1, {0, 1}), (2, {2, 3})):
        runner = make_runner(config, worker_index=index)
        stacks = _stacks(runner, n=4)
        episodes = sample(runner, per_worker_parameters=stacks).episodes
        assert {e.custom_data[WORKER_KEY] for e in episodes} == workers
        for episode in episodes:
            worker = episode.custom_data[WORKER_KEY]
            _assert_acted_with(_module_of(runner, stacks, worker), episode)


# What stays as it was


@pytest.mark.parametrize("unit", ["env", "env_runner"])
@pytest.mark.parametrize("loop", ["fast", "own loop", "own module", "recurrent"])
def test_equal_parameters_sample_what_one_policy_does(loop: str, unit: str) -> None:
    # The random streams are those of a round without parameters per worker.
    config = _config(unit=unit)
    if loop == "own module":
        config = _with_own_module(config)
    if loop == "recurrent":
        config = _recurrent(config)
    runner, plain = make_runner(config), make_runner(config)
    if loop == "own loop":
        _slow(runner), _slow(plain)
    for round_ in (1, 2, 3):
        own = _own(runner)
        atol = 0.0 if unit == "env_runner" else 1e-6
        ours = sample(runner, round_, per_worker_parameters=own)
        _assert_same(ours, sample(plain, round_), atol=atol)
    with pytest.raises(AssertionError):  # Negative control.
        _assert_same(ours, sample(plain, 4), atol=atol)


@pytest.mark.parametrize("unit", ["env", "env_runner"])
@pytest.mark.parametrize("loop", ["fast", "own loop", "recurrent"])
def test_an_evaluation_uses_the_exported_policy(unit: str, loop: str) -> None:
    config = _config(unit=unit)
    runner = make_runner(_recurrent(config) if loop == "recurrent" else config)
    if loop == "own loop":
        _slow(runner)
    before, attributes = _weights(runner), set(vars(runner.module))
    sample(runner, 1, per_worker_parameters=_stacks(runner))
    for name, value in _weights(runner).items():
        np.testing.assert_array_equal(value, before[name])
    assert set(vars(runner.module)) == attributes
    if loop == "recurrent":
        return
    exported = {name: value + 0.5 for name, value in before.items()}
    for state in (None, {"rl_module": {DEFAULT_MODULE_ID: exported}, "weights_seq_no": 3}):
        if state is not None:
            runner.set_state(state)
        for episode in runner.sample(num_episodes=2):
            _assert_acted_with(_module_of(runner), episode)
    np.testing.assert_array_equal(
        runner.module.get_state()["pi.net.mlp.0.bias"], exported["pi.net.mlp.0.bias"]
    )


def test_weights_in_the_request_are_kept_and_not_acted_with() -> None:
    runner = make_runner(_config())
    stacks = _stacks(runner)
    exported = {name: value + 0.5 for name, value in _weights(runner).items()}
    state = {"rl_module": {DEFAULT_MODULE_ID: exported}, "weights_seq_no": 7}
    result = runner.sample_round(SampleRequest(1, SEED, state, {}, per_worker_parameters=stacks))
    assert result.error is None
    for episode in result.episodes:
        _assert_acted_with(_module_of(runner, stacks, episode.custom_data[WORKER_KEY]), episode)
    for name, value in _weights(runner).items():
        np.testing.assert_array_equal(value, exported[name])


def test_a_round_without_parameters_per_worker_takes_the_exported_ones() -> None:
    runner = make_runner(_config())
    sample(runner, 1, per_worker_parameters=_stacks(runner))
    for episode in sample(runner, 2).episodes:
        _assert_acted_with(_module_of(runner), episode)


@pytest.mark.parametrize("unit", ["env", "env_runner"])
def test_an_exception_in_the_round_leaves_the_exported_policy(unit: str, tmp_path: Any) -> None:
    config = _config(ScriptedEnv, unit).environment(env_config={"folder": str(tmp_path)})
    runner = make_runner(config)
    before, parameters = _weights(runner), [id(p) for p in runner.module.parameters()]
    (tmp_path / "raise-0").touch()
    request = SampleRequest(1, SEED, {}, {}, per_worker_parameters=_stacks(runner))
    error = runner.sample_round(request).error
    assert error is not None
    assert "told to raise" in error
    (tmp_path / "raise-0").unlink()
    assert [id(p) for p in runner.module.parameters()] == parameters
    assert not {"forward_exploration", "forward_inference"} & set(vars(runner.module))
    for name, value in _weights(runner).items():
        np.testing.assert_array_equal(value, before[name])
    assert sample(runner, 2, per_worker_parameters=_stacks(runner)).episodes


def test_parameters_are_copied_and_not_written_to() -> None:
    runner = make_runner(_config(unit="env_runner"))
    stacks = _stacks(runner, n=1)
    before = copy.deepcopy(stacks)
    for array in stacks.values():
        array.flags.writeable = False
    sample(runner, per_worker_parameters=stacks)
    tensors = {name: torch.from_numpy(before[name]).requires_grad_() for name in stacks}
    sample(runner, 2, per_worker_parameters=tensors)
    for name, array in stacks.items():
        np.testing.assert_array_equal(array, before[name])
        assert tensors[name].grad is None


# Errors


@pytest.mark.parametrize("unit", ["env", "env_runner"])
def test_parameters_that_do_not_fit_the_module_are_an_error(unit: str) -> None:
    runner = make_runner(_config(unit=unit))
    stacks = _stacks(runner)
    name = "pi.net.mlp.0.bias"
    for wrong, message in (
        ({k: v for k, v in stacks.items() if k != name}, f"parameter '{name}', found ["),
        ({**stacks, name: np.zeros((2, 5), np.float32)}, "shape [2, 2], found [2, 5]"),
    ):
        error = runner.sample_round(
            SampleRequest(1, SEED, {}, {}, per_worker_parameters=wrong)
        ).error
        assert error is not None
        assert message in error


@pytest.mark.parametrize("own_module", [False, True])
def test_connectors_that_change_the_number_of_rows_are_an_error(own_module: bool) -> None:
    runner = make_runner(_with_own_module(_config()) if own_module else _config())
    own = _stacks(runner)
    with per_worker_policy(runner.module, own, [0, 1]) as forwards:
        forward = forwards["forward_exploration"]
        assert forward({"obs": torch.zeros(2, 4)})[LOGITS].shape == (2, 2)
        for rows in (1, 4):
            with pytest.raises(ValueError, match=rf"per sub-environment \(2\) .* found {rows}: "):
                forward({"obs": torch.zeros(rows, 4)})


# The driver's side


class _LocalGroup:
    def __init__(self, runner: WeightedEnvRunner) -> None:
        self.local_env_runner = runner

    def num_remote_workers(self) -> int:
        return 0


class _RemoteGroup:
    """One remote env runner, in this process."""

    def __init__(self, runner: WeightedEnvRunner) -> None:
        self._runner = runner

    def num_remote_workers(self) -> int:
        return 1

    def sample(self, group: Any, request: SampleRequest, config: Any) -> list[SampleResult]:
        """As that of `OpenCalls`."""
        return [self._runner.sample_round(request)]


@pytest.mark.parametrize("is_remote", [False, True])
def test_collecting_passes_the_parameters_on(is_remote: bool) -> None:
    config = _config(num_env_runners=int(is_remote))
    runner = make_runner(config, worker_index=int(is_remote))
    stacks, before = _stacks(runner), _weights(runner)
    exported = {name: value + 0.5 for name, value in before.items()}
    group: Any = _RemoteGroup(runner) if is_remote else _LocalGroup(runner)
    state = {"rl_module": {DEFAULT_MODULE_ID: exported}, "weights_seq_no": 1}
    rollouts = collect_rollouts(
        group,
        SampleRequest(
            round=1,
            root_seed=SEED,
            state=state if is_remote else {},
            num_resets={},
            per_worker_parameters=stacks,
        ),
        config,
        group,
    )
    assert rollouts.workers == {0, 1}
    for episode in rollouts.episodes:
        _assert_acted_with(_module_of(runner, stacks, episode.custom_data[WORKER_KEY]), episode)
    # The local env runner's weights are the algorithm's business.
    kept = exported if is_remote else before
    for name, value in _weights(runner).items():
        np.testing.assert_array_equal(value, kept[name])
