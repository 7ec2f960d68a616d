"""Evaluates a checkpoint the way the algorithm evaluates itself; the verb `evaluate`."""

from __future__ import annotations

import importlib.util
import os
import random
import re
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rllib_weighted.cli.cluster import InputError, quiet_ray
from rllib_weighted.cli.inputs import load_experiments
from rllib_weighted.cli.storage import (
    is_remote,
    locate,
    open_storage,
    parent,
    reach_storage,
    read_record,
)
from rllib_weighted.core.envs import env_problem

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
    from ray.rllib.env.env_runner import EnvRunner

# Records episodes of an evaluation as MP4 files


_ENV_NAME = "rllib_weighted-recorded"


@contextmanager
def record_videos(config: AlgorithmConfig, folder: str | Path | None) -> Iterator[list[Path]]:
    """Lets environments that are built inside the block record each episode.

    Args:
        config: Its environment is replaced by one that records.
        folder: Where the videos go; None records nothing.

    Yields:
        A list that holds the videos' paths when the block has ended.

    Raises:
        InputError: A package for writing videos is missing.
    """
    videos: list[Path] = []
    if folder is None:
        yield videos
        return
    if importlib.util.find_spec("moviepy") is None:
        raise InputError('--video needs the package moviepy: pip install "rllib-weighted[video]"')
    # Nothing is to be opened on a screen, nor sound played, which machines without them report.
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    os.environ.setdefault("SDL_AUDIODRIVER", "dummy")
    target = Path(folder).expanduser().resolve()
    started = time.time_ns()
    _replace_env(config, target)
    yield videos
    written = [path for path in target.glob("*.mp4") if path.stat().st_mtime_ns >= started]
    videos.extend(sorted(written, key=lambda path: path.stat().st_mtime_ns))


def _replace_env(config: AlgorithmConfig, folder: Path) -> None:
    import gymnasium as gym
    from ray.tune.registry import ENV_CREATOR, _global_registry, register_env

    env = config.env
    creator: Any = env
    if isinstance(env, str) and _global_registry.contains(ENV_CREATOR, env):
        creator = _global_registry.get(ENV_CREATOR, env)

    def create(context: Any) -> gym.Env[Any, Any]:
        if isinstance(creator, str):
            built = gym.make(creator, **{**context, "render_mode": "rgb_array"})
        else:
            context["render_mode"] = "rgb_array"
            built = creator(context)
        if built.render_mode != "rgb_array":
            built.close()
            raise InputError(
                f"environment {env!r} cannot be recorded: its render_mode is "
                f"{built.render_mode!r}, not 'rgb_array'. Its creator is given "
                "`render_mode` in its config: pass it on"
            )
        return gym.wrappers.RecordVideo(
            built, str(folder), episode_trigger=lambda episode: True, name_prefix="evaluation"
        )

    register_env(_ENV_NAME, create)
    config.env = _ENV_NAME


_MARK = "rllib_checkpoint.json"
_MODULE_FOLDER = Path("learner_group", "learner", "rl_module")


@dataclass(frozen=True)
class EvaluationResult:
    """Returns and lengths of the evaluated episodes, in their order.

    Args:
        checkpoint: The evaluated checkpoint: a local folder or a URI.
        returns: Undiscounted return of each episode.
        lengths: Steps of each episode.
        explore: Whether actions were drawn (else: the most likely ones).
        videos: The videos written, if any.
    """

    checkpoint: str
    returns: list[float]
    lengths: list[int]
    explore: bool
    videos: list[Path]

    @property
    def return_mean(self) -> float:
        """Mean return."""
        return statistics.fmean(self.returns)

    @property
    def return_std(self) -> float:
        """Sample standard deviation of the returns; 0 for a single episode."""
        return statistics.stdev(self.returns) if len(self.returns) > 1 else 0.0

    @property
    def length_mean(self) -> float:
        """Mean length in steps."""
        return statistics.fmean(self.lengths)


def evaluate_checkpoint(
    checkpoint: str | Path,
    *,
    episodes: int = 10,
    seed: int | None = None,
    video: str | Path | None = None,
    file: str | Path | None = None,
    verbose: bool = False,
) -> EvaluationResult:
    """Plays whole episodes with a checkpoint's policy.

    As in the algorithm's own evaluation, the env runner is built from the evaluation config, with
    the checkpoint's connectors and the state of their filters.

    Args:
        checkpoint: An algorithm's checkpoint, or the folder of a trial or experiment, of which the
            newest checkpoint is taken. A local path, or a URI such as `s3://bucket/results/name`.
        episodes: How many episodes to play.
        seed: Seeds environments and actions; None takes the config's.
        video: A folder to write an MP4 of each episode into.
        file: A training file to load first, for an environment that it registers. None takes the
            one that the experiment was started with, if the environment is unknown without.
        verbose: Shows Ray's logs.

    Raises:
        InputError: There is no checkpoint, or its environment cannot be built.
    """
    if episodes < 1:
        raise InputError(f"--episodes must be at least 1; found {episodes}")
    location = find_checkpoint(checkpoint)
    with quiet_ray(verbose), _local_copy(location) as found:
        if file is not None:
            load_experiments(file)
        config = _evaluation_config(found, seed)
        _require_env(config, location)
        with record_videos(config, video) as videos, _seeded(seed):
            runner = _restored_runner(config, found)
            try:
                played = runner.sample(num_episodes=episodes)
            finally:
                runner.stop()
    return EvaluationResult(
        checkpoint=location,
        returns=[float(episode.get_return()) for episode in played],
        lengths=[len(episode) for episode in played],
        explore=bool(config.explore),
        videos=videos,
    )


def find_checkpoint(location: str | Path) -> str:
    """Returns a checkpoint's location: the given one, or the newest below it.

    Raises:
        InputError: There is none.
    """
    from pyarrow import fs

    text = str(location)
    text = text.rstrip("/") if is_remote(text) else str(Path(text).expanduser().resolve())
    reach_storage(text)
    filesystem, folder = open_storage(text)
    if filesystem.get_file_info(folder).type != fs.FileType.Directory:
        raise InputError(f"there is no folder {text}")
    if filesystem.get_file_info(f"{folder}/{_MARK}").is_file:
        return text
    marks = [
        info
        for info in filesystem.get_file_info(fs.FileSelector(folder, recursive=True))
        if re.fullmatch(rf"([^/]+/)?checkpoint_[^/]*/{_MARK}", info.path.removeprefix(f"{folder}/"))
    ]
    if not marks:
        raise InputError(
            f"{text} is no checkpoint and holds none; give the folder of a checkpoint, a trial "
            "or an experiment"
        )
    newest = max(marks, key=lambda info: (info.mtime_ns or 0, info.path))
    return parent(locate(text, newest.path))


@contextmanager
def _local_copy(checkpoint: str) -> Iterator[Path]:
    """Gives a checkpoint's folder on this machine; a copy for the time of the block if remote."""
    from pyarrow.fs import copy_files

    if not is_remote(checkpoint):
        yield Path(checkpoint)
        return
    filesystem, path = open_storage(checkpoint)
    with tempfile.TemporaryDirectory(prefix="rllib-checkpoint-") as folder:
        copy_files(path, folder, source_filesystem=filesystem)
        yield Path(folder)


def _evaluation_config(checkpoint: Path, seed: int | None) -> AlgorithmConfig:
    """Returns the evaluation config of the algorithm in a checkpoint, for a single env runner."""
    import ray.cloudpickle as pickle

    with (checkpoint / "class_and_ctor_args.pkl").open("rb") as stream:
        saved = pickle.load(stream)
    (state, *_), _ = saved["ctor_args_and_kwargs"]
    config = saved["class"].get_default_config().from_state(state)
    config._is_frozen = False
    config = config.get_evaluation_config_object()
    # One environment: of several, the first to end are the shortest episodes, a biased sample.
    config.num_env_runners = 0
    config.num_envs_per_env_runner = 1
    if seed is not None:
        config.seed = seed
    return config


def _require_env(config: AlgorithmConfig, checkpoint: str) -> None:
    problem = env_problem(config.env)
    record = read_record(parent(parent(checkpoint))) if problem else None
    if record is not None and record.file and Path(record.file).is_file():
        load_experiments(record.file)
        problem = env_problem(config.env)
    if problem:
        raise InputError(f"{problem}, and name that file with --file")


def _restored_runner(config: AlgorithmConfig, checkpoint: Path) -> EnvRunner:
    from ray.rllib.core.rl_module.multi_rl_module import MultiRLModule
    from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

    if config.is_multi_agent:
        raise InputError("multi-agent checkpoints cannot be evaluated with this command")
    runner_class: Any = config.env_runner_cls or SingleAgentEnvRunner
    runner = runner_class(config=config, worker_index=0, num_workers=0)
    # Connectors with their filters, and the counters; a checkpoint's runner has no weights.
    runner.restore_from_path(str(checkpoint / "env_runner"))
    modules = MultiRLModule.from_checkpoint(str(checkpoint / _MODULE_FOLDER))
    runner.set_state({"rl_module": modules.get_state(inference_only=True)})
    return runner


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """Seeds the generators from which actions are drawn."""
    if seed is not None:
        import numpy as np
        import torch

        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
    yield
