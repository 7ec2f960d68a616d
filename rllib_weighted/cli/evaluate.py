"""Evaluates a checkpoint the way the algorithm evaluates itself; the verb `evaluate`."""

from __future__ import annotations

import importlib.util
import math
import os
import re
import statistics
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyarrow import fs

from rllib_weighted.cli import InputError, storage
from rllib_weighted.cli.cluster import quiet_ray
from rllib_weighted.cli.inputs import load_experiments
from rllib_weighted.core.checkpoints import MODULE_FOLDER, restoring
from rllib_weighted.core.envs import env_creator, env_problem
from rllib_weighted.records.schema import is_uri
from rllib_weighted.suggest import shown

if TYPE_CHECKING:
    import gymnasium as gym
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
    from ray.rllib.env.env_context import EnvContext
    from ray.rllib.env.env_runner import EnvRunner

_MARK = "rllib_checkpoint.json"
_RECORDED_ENV = "rllib_weighted-recorded"
_MAX_SEED = 2**32 - 1  # Of numpy's global generator.


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
        """Sample standard deviation of the returns; 0 for one episode, NaN if one is not finite."""
        if not all(map(math.isfinite, self.returns)):
            return math.nan
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
        file: A training file to load first, for an environment that it registers. None loads the
            file that the experiment was started with, if the environment is unknown.
        verbose: Shows Ray's logs.

    Raises:
        InputError: There is no checkpoint, one of its files is damaged, or its environment cannot
            be built or is another one than it was trained in.
    """
    if episodes < 1:
        raise InputError(f"--episodes must be at least 1; found {episodes}")
    if seed is not None and not 0 <= seed <= _MAX_SEED:
        raise InputError(f"--seed must be from 0 to {_MAX_SEED}; found {shown(seed)}")
    if video is not None and Path(video).is_file():
        raise InputError(f"--video must be a folder; found the file {video}")
    location = find_checkpoint(checkpoint)
    from rllib_weighted.core.seeding import seeded_globals

    folder = None if video is None else Path(video).expanduser().resolve()
    # Actions are drawn from the global generators.
    seeded = nullcontext() if seed is None else seeded_globals(seed)
    with quiet_ray(verbose), _local_copy(location) as found, _explained(location, verbose):
        if file is not None:
            load_experiments(file)
        with restoring(found):
            config = _evaluation_config(found, seed)
        _require_env(config, location)
        started = time.time_ns()
        if folder is not None:
            _record_videos(config, folder)
        with seeded:
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
        videos=[] if folder is None else _videos_since(started, folder),
    )


def find_checkpoint(location: str | Path) -> str:
    """Returns a checkpoint's location: the given one, or the newest below it.

    Raises:
        InputError: There is none.
    """
    text = storage.absolute(str(location))
    storage.check_store(text)
    filesystem, folder = storage.open_storage(text)
    try:
        if filesystem.get_file_info(folder).type != fs.FileType.Directory:
            raise InputError(f"there is no folder {text}")
        if filesystem.get_file_info(f"{folder}/{_MARK}").is_file:
            return text
        files = filesystem.get_file_info(fs.FileSelector(folder, recursive=True))
    except OSError as error:
        raise InputError(f"{text} cannot be read: {error}") from None
    pattern = re.compile(rf"{re.escape(folder)}/([^/]+/)?checkpoint_[^/]*/{_MARK}")
    marks = [info for info in files if pattern.fullmatch(info.path)]
    if not marks:
        raise InputError(
            f"{text} is no checkpoint and holds none; give the folder of a checkpoint, a trial "
            "or an experiment"
        )
    newest = max(marks, key=lambda info: (info.mtime_ns or 0, info.path))
    return storage.parent(storage.locate(text, newest.path))


@contextmanager
def _local_copy(checkpoint: str) -> Iterator[Path]:
    """Yields a local folder with the checkpoint: a temporary copy if it lies on a remote store."""
    if not is_uri(checkpoint):
        yield Path(checkpoint)
        return
    filesystem, path = storage.open_storage(checkpoint)
    with tempfile.TemporaryDirectory(prefix="rllib-checkpoint-") as folder:
        fs.copy_files(path, folder, source_filesystem=filesystem)
        yield Path(folder)


@contextmanager
def _explained(location: str, verbose: bool) -> Iterator[None]:
    """Makes whatever is raised inside the block an `InputError` that names the checkpoint."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        cause = traceback.format_exc() if verbose else f"{kind}{error}"
        raise InputError(
            f"cannot evaluate {location}: {cause}\n-v shows where it was raised; --file names the "
            "training file if the environment or classes of yours are defined there"
        ) from None


def _evaluation_config(checkpoint: Path, seed: int | None) -> AlgorithmConfig:
    """Returns the evaluation config of the algorithm in a checkpoint, for a single env runner."""
    import ray.cloudpickle as pickle

    with (checkpoint / "class_and_ctor_args.pkl").open("rb") as stream:
        saved = pickle.load(stream)
    (state, *_), _ = saved["ctor_args_and_kwargs"]
    config = saved["class"].get_default_config().from_state(state).copy(copy_frozen=False)
    config = config.get_evaluation_config_object()
    # With several environments the shortest episodes would end first: a biased sample.
    config.num_env_runners = 0
    config.num_envs_per_env_runner = 1
    if seed is not None:
        config.seed = seed
    return config


def _require_env(config: AlgorithmConfig, checkpoint: str) -> None:
    """Makes sure that the environment can be built.

    If it cannot, loads the training file of the experiment, which may register it.

    Raises:
        InputError: It still cannot be built.
    """
    backend = getattr(config, "env_backend", "gymnasium")  # Stock PPO's checkpoint has none.
    problem = env_problem(config.env, backend)
    record = storage.read_record(storage.parent(storage.parent(checkpoint))) if problem else None
    if record is not None and record.file and Path(record.file).is_file():
        load_experiments(record.file)
        problem = env_problem(config.env, backend)
    if problem:
        raise InputError(f"{problem}, and name that file with --file")


def _record_videos(config: AlgorithmConfig, folder: Path) -> None:
    """Replaces a config's environment by one that records each episode as an MP4 file.

    Raises:
        InputError: A package for writing videos is missing.
    """
    import gymnasium as gym
    from ray.tune import register_env

    if importlib.util.find_spec("moviepy") is None:
        raise InputError('--video needs the package moviepy: pip install "rllib-weighted[video]"')
    # Keeps pygame from a screen and a sound card, which this machine may not have.
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    os.environ.setdefault("SDL_AUDIODRIVER", "dummy")
    env, create = config.env, env_creator(config.env)

    def create_recorded(context: EnvContext) -> gym.Env[Any, Any]:  # Of any spaces.
        context["render_mode"] = "rgb_array"
        built = create(context)
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

    register_env(_RECORDED_ENV, create_recorded)
    config.env = _RECORDED_ENV


def _videos_since(started: int, folder: Path) -> list[Path]:
    """Returns the videos written since a time in nanoseconds, the oldest first."""
    written = sorted((path.stat().st_mtime_ns, path) for path in folder.glob("*.mp4"))
    return [path for time_ns, path in written if time_ns >= started]


def _restored_runner(config: AlgorithmConfig, checkpoint: Path) -> EnvRunner:
    from ray.rllib.core.rl_module.multi_rl_module import MultiRLModule
    from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

    if config.is_multi_agent:
        raise InputError("multi-agent checkpoints cannot be evaluated with this command")
    runner_class: Any = config.env_runner_cls or SingleAgentEnvRunner  # Ray types it as any class.
    runner = runner_class(config=config, worker_index=0, num_workers=0)
    with restoring(checkpoint, lambda: runner.module):
        # Connectors with their filters, and the counters; a checkpoint's runner has no weights.
        runner.restore_from_path(str(checkpoint / "env_runner"))
        modules = MultiRLModule.from_checkpoint(str(checkpoint / MODULE_FOLDER))
        runner.set_state({"rl_module": modules.get_state(inference_only=True)})
    return runner
