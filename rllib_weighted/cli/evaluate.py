"""Evaluates a checkpoint the way the algorithm evaluates itself; the verb `evaluate`."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rllib_weighted.cli.cluster import quiet_ray
from rllib_weighted.cli.errors import InputError
from rllib_weighted.cli.files import load_experiments
from rllib_weighted.cli.storage import read_record
from rllib_weighted.cli.video import record_videos
from rllib_weighted.envs import env_problem

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
    from ray.rllib.env.env_runner import EnvRunner

_MARK = "rllib_checkpoint.json"
_MODULE_FOLDER = Path("learner_group", "learner", "rl_module")


@dataclass(frozen=True)
class EvaluationResult:
    """Returns and lengths of the evaluated episodes, in their order.

    Args:
        checkpoint: The evaluated checkpoint.
        returns: Undiscounted return of each episode.
        lengths: Steps of each episode.
        explore: Whether actions were drawn (else: the most likely ones).
        videos: The videos written, if any.
    """

    checkpoint: Path
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
            newest checkpoint is taken.
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
    found = find_checkpoint(checkpoint)
    with quiet_ray(verbose):
        if file is not None:
            load_experiments(file)
        config = _evaluation_config(found, seed)
        _require_env(config, found)
        with record_videos(config, video) as videos, _seeded(seed):
            runner = _restored_runner(config, found)
            try:
                played = runner.sample(num_episodes=episodes)
            finally:
                runner.stop()
    return EvaluationResult(
        checkpoint=found,
        returns=[float(episode.get_return()) for episode in played],
        lengths=[len(episode) for episode in played],
        explore=bool(config.explore),
        videos=videos,
    )


def find_checkpoint(path: str | Path) -> Path:
    """Returns a checkpoint's folder: the given one, or the newest below it.

    Raises:
        InputError: There is none.
    """
    folder = Path(path).expanduser().resolve()
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}")
    if (folder / _MARK).is_file():
        return folder
    marks = [*folder.glob(f"checkpoint_*/{_MARK}"), *folder.glob(f"*/checkpoint_*/{_MARK}")]
    if not marks:
        raise InputError(
            f"{folder} is no checkpoint and holds none; give the folder of a checkpoint, a trial "
            "or an experiment"
        )
    return max(marks, key=lambda mark: (mark.stat().st_mtime, str(mark))).parent


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


def _require_env(config: AlgorithmConfig, checkpoint: Path) -> None:
    problem = env_problem(config.env)
    record = read_record(str(checkpoint.parents[1])) if problem else None
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
