"""Evaluating a checkpoint agrees with the algorithm's own evaluation."""

from __future__ import annotations

import json
import math
import re
import shutil
import statistics
from pathlib import Path

import pytest
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.connectors.env_to_module import MeanStdFilter

from rllib_weighted import WeightedPPOConfig
from rllib_weighted._private import tune_registry
from rllib_weighted.cli import InputError, storage
from rllib_weighted.cli import evaluate as evaluate_module
from rllib_weighted.cli.checkpoints import find_checkpoint
from rllib_weighted.cli.evaluate import EvaluationResult, evaluate_checkpoint
from rllib_weighted.cli.storage import ExperimentRecord
from tests.cli.test_main import failed, rllib
from tests.sampling.envs import INF, ScriptedEnv
from tests.sampling.helpers import make_config

EPISODES = 6
SEED = 7


@pytest.fixture(scope="module")
def trained(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A checkpoint with a filter, and the mean return of the algorithm's own evaluation."""
    folder = tmp_path_factory.mktemp("experiment") / "trial" / "checkpoint_000000"
    config = (
        PPOConfig()
        .environment("CartPole-v1")
        .env_runners(
            num_env_runners=0,
            num_envs_per_env_runner=3,
            # With the default of 1, RLlib drops the filter that it sends to the evaluation runner
            # right after the weights (Ray 2.60, `foreach_actor_async_fetch_ready`).
            max_requests_in_flight_per_env_runner=4,
            env_to_module_connector=lambda env, spaces, device: MeanStdFilter(),
        )
        .training(train_batch_size_per_learner=600, minibatch_size=100, num_epochs=4, lr=0.003)
        .evaluation(
            evaluation_interval=1000,
            # A remote one: a local evaluation runner is never given the filter (Ray 2.60,
            # `EnvRunnerGroup.sync_env_runner_states` returns early).
            evaluation_num_env_runners=1,
            evaluation_duration=EPISODES,
            evaluation_config={"explore": False, "num_envs_per_env_runner": 1},
        )
        .debugging(seed=SEED)
    )
    algorithm = config.build_algo()
    for _ in range(2):
        algorithm.train()
    algorithm.save_to_path(str(folder))
    algorithm.stop()
    restored = Algorithm.from_checkpoint(str(folder))
    own_mean = restored.evaluate()["env_runners"]["episode_return_mean"]
    restored.stop()
    return folder, own_mean


def test_agrees_with_the_algorithm(trained: tuple[Path, float]) -> None:
    checkpoint, own_mean = trained
    # RLlib seeds its env runner 1 with the config's seed + 1.
    result = evaluate_checkpoint(checkpoint, episodes=EPISODES, seed=SEED + 1)
    assert len(result.returns) == EPISODES
    assert result.explore is False
    assert result.return_mean == pytest.approx(own_mean)
    assert result.return_std == statistics.stdev(result.returns)
    assert result.lengths == result.returns  # CartPole pays 1 a step.


@pytest.mark.usefixtures("ray_session")
def test_returns_that_are_not_finite_are_shown(tmp_path: Path) -> None:
    config = (
        WeightedPPOConfig()
        .environment(ScriptedEnv, env_config={"length": 10, "rewards": {10: -INF}})
        .env_runners(num_env_runners=0, num_envs_per_env_runner=2)
        .training(merge_unit="env", train_batch_size=40, minibatch_size=20)
    )
    algorithm = config.build_algo()
    algorithm.save_to_path(str(tmp_path / "checkpoint"))
    algorithm.stop()
    result = evaluate_checkpoint(tmp_path / "checkpoint", episodes=2, seed=1)
    assert result.returns == [-INF, -INF]
    assert result.return_mean == -INF
    assert math.isnan(result.return_std)


def test_seed_decides(trained: tuple[Path, float]) -> None:
    checkpoint, _ = trained
    once = evaluate_checkpoint(checkpoint, episodes=3, seed=1)
    assert evaluate_checkpoint(checkpoint, episodes=3, seed=1).returns == once.returns
    assert evaluate_checkpoint(checkpoint, episodes=3, seed=2).returns != once.returns


def test_filter_of_the_checkpoint_is_used(
    trained: tuple[Path, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Negative control: with the filter left untrained the figure differs.
    checkpoint, _ = trained
    with_filter = evaluate_checkpoint(checkpoint, episodes=3, seed=1).returns
    from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

    monkeypatch.setattr(SingleAgentEnvRunner, "restore_from_path", lambda self, path: None)
    assert evaluate_checkpoint(checkpoint, episodes=3, seed=1).returns != with_filter


def test_newest_checkpoint_of_a_trial_is_found(trained: tuple[Path, float]) -> None:
    checkpoint, _ = trained
    assert find_checkpoint(checkpoint) == str(checkpoint)
    assert find_checkpoint(checkpoint.parent) == str(checkpoint)
    assert find_checkpoint(checkpoint.parent.parent) == str(checkpoint)


def test_video_needs_moviepy(
    trained: tuple[Path, float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    checkpoint, _ = trained
    from rllib_weighted.cli import evaluate as video

    monkeypatch.setattr(video.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'pip install "rllib-weighted\[video\]"'):
        evaluate_checkpoint(checkpoint, episodes=1, video=tmp_path)


def test_environment_of_a_training_file_is_loaded_from_its_record(
    trained: tuple[Path, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, _ = trained
    loaded: list[Path | str] = []
    problems = iter(["unknown environment", None])
    monkeypatch.setattr(evaluate_module, "env_problem", lambda env, backend: next(problems))
    monkeypatch.setattr(evaluate_module, "load_experiments", loaded.append)
    file = tmp_path / "train_me.py"
    file.touch()
    record = ExperimentRecord(file=str(file))
    monkeypatch.setattr(storage, "read_record", lambda path: record)
    evaluate_checkpoint(checkpoint, episodes=1)
    assert loaded == [str(file)]


@pytest.mark.parametrize("part", [0.0, 0.5])
@pytest.mark.parametrize(
    "name",
    [
        "class_and_ctor_args.pkl",
        "env_runner/state.pkl",
        "learner_group/learner/rl_module/default_policy/module_state.pkl",
        "learner_group/learner/rl_module/class_and_ctor_args.pkl",
    ],
)
def test_a_torn_file_is_named(
    trained: tuple[Path, float], tmp_path: Path, name: str, part: float
) -> None:
    folder = shutil.copytree(trained[0], tmp_path / "checkpoint")
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(part * len(content))])
    message = f"{folder} is damaged: its files should be whole and these are not: {name}"
    with pytest.raises(InputError, match=re.escape(message)):
        evaluate_checkpoint(folder, episodes=1)


def test_a_missing_file_is_named(trained: tuple[Path, float], tmp_path: Path) -> None:
    folder = shutil.copytree(trained[0], tmp_path / "checkpoint")
    (folder / "class_and_ctor_args.pkl").unlink()
    with pytest.raises(InputError, match=r"cannot evaluate .*class_and_ctor_args\.pkl"):
        evaluate_checkpoint(folder, episodes=1)


OTHER_ENV = """
import gymnasium as gym
from ray import tune
from ray.rllib.algorithms.ppo import PPOConfig

def make(context):
    {make}

tune.register_env("CartPole-v1", make)
config = PPOConfig().environment("CartPole-v1")
"""


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            'return gym.make("Acrobot-v1")',
            r"is of another environment.* its observation_space Box\(.* \(4,\), float32\), found "
            r"Box\(.* \(6,\), float32\) and its action_space Discrete\(2\), found Discrete\(3\)",
        ),
        (
            'raise OSError("no licence for this simulator")',
            r"cannot evaluate .*no licence for this simulator",
        ),
    ],
)
def test_another_environment(
    trained: tuple[Path, float], tmp_path: Path, make: str, message: str
) -> None:
    file = tmp_path / "other_env.py"
    file.write_text(OTHER_ENV.format(make=make))
    try:
        with pytest.raises(InputError, match=f"(?s){message}"):
            evaluate_checkpoint(trained[0], episodes=1, file=file)
    finally:
        tune_registry().unregister("env_creator", "CartPole-v1")


# Options


@pytest.fixture(scope="module")
def drawing(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose evaluation draws actions, untrained."""
    folder = tmp_path_factory.mktemp("drawing") / "trial" / "checkpoint_000000"
    algorithm = make_config().build_algo()
    algorithm.save_to_path(str(folder))
    algorithm.stop()
    return folder


def test_deterministic_is_rllibs_explore_false(drawing: Path) -> None:
    result = evaluate_checkpoint(drawing, episodes=3, seed=4, deterministic=True)
    drawn = evaluate_checkpoint(drawing, episodes=3, seed=4)
    assert (drawn.explore, result.explore) == (True, False)
    assert drawn.returns != result.returns
    runner = evaluate_module._restored_runner(
        evaluate_module._evaluation_config(drawing, 4), drawing
    )
    played = runner.sample(num_episodes=3, explore=False)
    assert result.returns == [episode.get_return() for episode in played]


def test_every_episode_is_told_when_it_ends(drawing: Path) -> None:
    told: list[float] = []
    result = evaluate_checkpoint(drawing, episodes=3, on_episode=told.append)
    assert told == result.returns


def test_only_the_first_episodes_are_recorded(drawing: Path, tmp_path: Path) -> None:
    result = evaluate_checkpoint(drawing, episodes=3, video=tmp_path, video_episodes=2)
    assert len(result.videos) == 2
    assert len(result.returns) == 3


def test_rendering_opens_a_window(drawing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str] = []
    monkeypatch.setattr(CartPoleEnv, "render", lambda self: modes.append(self.render_mode))
    result = evaluate_checkpoint(drawing, episodes=1, render=True)
    assert modes == ["human"] * (result.lengths[0] + 1)


def test_json_has_every_episode(drawing: Path) -> None:
    result = rllib("evaluate", drawing, "--episodes", "2", "--seed", "4", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    own = evaluate_checkpoint(drawing, episodes=2, seed=4)
    assert found["returns"] == own.returns
    assert found["return_mean"] == own.return_mean
    assert found["checkpoint"] == str(drawing)


def test_json_has_no_numbers_that_are_none() -> None:
    result = EvaluationResult("x", [math.nan, 1.0], [1, 2], explore=True, videos=[])
    found = json.loads(result.to_json(), parse_constant=pytest.fail)
    assert found["returns"] == [None, 1.0]
    assert found["return_mean"] is None


def test_progress_is_for_terminals(capsys: pytest.CaptureFixture[str]) -> None:
    with evaluate_module.playing(2) as on_episode:
        on_episode(1.0)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--video-episodes", "2"], "--video-episodes needs --video DIR"),
        (["--video", "x", "--render"], "leave out one of both"),
    ],
)
def test_options_that_do_not_go_together(drawing: Path, options: list[str], message: str) -> None:
    assert message in failed(rllib("evaluate", drawing, *options))


def test_envpools_environments_cannot_be_shown(drawing: Path) -> None:
    config = evaluate_module._evaluation_config(drawing, None)
    config.env = "envpool:CartPole-v1"
    with pytest.raises(InputError, match="which cannot be shown or recorded"):
        evaluate_module._show(config, "human", lambda env: env)


def test_a_notebook_shows_a_table() -> None:
    location = "s3://me:secret@bucket/<run>"
    result = EvaluationResult(location, [1.0, 3.0], [10, 20], explore=False, videos=[])
    shown = result._repr_html_()
    assert "<th>checkpoint</th><td>s3://bucket/&lt;run&gt;</td>" in shown
    assert "<th>episodes</th><td>2 (actions the most likely ones)</td>" in shown
    assert "<th>return mean</th><td>2.00</td>" in shown
    assert "<th>return min, max</th><td>1.00, 3.00</td>" in shown
    assert "secret" not in shown
