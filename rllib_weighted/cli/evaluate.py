"""Evaluates a checkpoint the way the algorithm evaluates itself; the verb `evaluate`."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyarrow import fs

from rllib_weighted.cli import InputError, storage
from rllib_weighted.cli.checkpoints import find_checkpoint
from rllib_weighted.cli.cluster import quiet_ray
from rllib_weighted.cli.inputs import load_experiments
from rllib_weighted.core.checkpoints import MODULE_FOLDER, restoring
from rllib_weighted.core.envs import env_creator, env_problem, envpool_id
from rllib_weighted.core.redaction import redact
from rllib_weighted.records.schema import is_uri
from rllib_weighted.suggest import shown
from rllib_weighted.text import html_table, short_path

if TYPE_CHECKING:
    import gymnasium as gym
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
    from ray.rllib.env.env_context import EnvContext
    from ray.rllib.env.env_runner import EnvRunner
    from ray.rllib.env.single_agent_episode import SingleAgentEpisode

_SHOWN_ENV = "rllib_weighted-shown"
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

    def to_json(self) -> str:
        """Returns all of it as a JSON object; what is not finite is null there."""
        values: dict[str, Any] = {
            "checkpoint": self.checkpoint,
            "explore": self.explore,
            "return_mean": self.return_mean,
            "return_std": self.return_std,
            "length_mean": self.length_mean,
            "returns": self.returns,
            "lengths": self.lengths,
            "videos": [str(path) for path in self.videos],
        }
        known = {
            name: [_or_null(x) for x in value] if name == "returns" else _or_null(value)
            for name, value in values.items()
        }
        return json.dumps(known, indent=2)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        actions = "drawn, as in training" if self.explore else "the most likely ones"
        rows = [
            ("checkpoint", short_path(redact(self.checkpoint))),
            ("episodes", f"{len(self.returns)} (actions {actions})"),
            ("return mean", f"{self.return_mean:.2f}"),
            ("return std", f"{self.return_std:.2f}"),
            ("return min, max", f"{min(self.returns):.2f}, {max(self.returns):.2f}"),
            ("length mean", f"{self.length_mean:.1f}"),
            *(("video", short_path(path)) for path in self.videos),
        ]
        return html_table((), rows)


def _or_null(value: Any) -> Any:  # Any of the above.
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def playing(num_episodes: int) -> Iterator[Callable[[float], None]]:
    """Shows on a terminal's standard error how many episodes have been played, and the last return.

    Yields:
        What is to be called with each episode's return.
    """
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("episodes"),
        MofNCompleteColumn(),
        TextColumn("{task.fields[last]}"),
        TimeElapsedColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task("", total=num_episodes, last="")

        def on_episode(value: float) -> None:
            progress.update(task, advance=1, last=f"last return {value:.2f}")

        yield on_episode


def evaluate_checkpoint(
    checkpoint: str | Path,
    *,
    episodes: int = 10,
    seed: int | None = None,
    deterministic: bool = False,
    best: bool | None = None,
    render: bool = False,
    video: str | Path | None = None,
    video_episodes: int = 3,
    file: str | Path | None = None,
    on_episode: Callable[[float], None] | None = None,
    verbose: bool = False,
) -> EvaluationResult:
    """Plays whole episodes with a checkpoint's policy.

    As in the algorithm's own evaluation, the env runner is built from the evaluation config, with
    the checkpoint's connectors and the state of their filters.

    Args:
        checkpoint: An algorithm's checkpoint, or the folder of a trial or experiment; `best` says
            which of those below. A local path, or a URI such as `s3://bucket/results/name`.
        episodes: How many episodes to play.
        seed: Seeds environments and actions; None takes the config's.
        deterministic: Whether the most likely actions are taken; else as the evaluation config's
            `explore` says.
        best: See `find_checkpoint`.
        render: Whether to show the environment in a window.
        video: A folder to write MP4s into.
        video_episodes: Of how many episodes, the first ones.
        file: A training file to load first, for an environment that it registers. None loads the
            file that the experiment was started with, if the environment is unknown.
        on_episode: Called with the return of each episode that has ended.
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
    if video is not None and render:
        raise InputError("an environment renders into a window or a video: leave out one of both")
    if video_episodes < 1:
        raise InputError(f"--video-episodes must be at least 1; found {video_episodes}")
    location = find_checkpoint(checkpoint, best=best)
    from rllib_weighted.core.seeding import seeded_globals

    folder = None if video is None else Path(video).expanduser().resolve()
    # Actions are drawn from the global generators.
    seeded = nullcontext() if seed is None else seeded_globals(seed)
    with quiet_ray(verbose), local_copy(location) as found, _explained(location, verbose):
        if file is not None:
            load_experiments(file)
        with restoring(found):
            config = _evaluation_config(found, seed)
        _require_env(config, location)
        started = time.time_ns()
        if deterministic:
            config.explore = False
        if folder is not None:
            _record_videos(config, folder, video_episodes)
        elif render:
            _show(config, "human", lambda env: env)
        if on_episode is not None:
            _report_episodes(config, on_episode)
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


@contextmanager
def local_copy(checkpoint: str) -> Iterator[Path]:
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


def _record_videos(config: AlgorithmConfig, folder: Path, num_episodes: int) -> None:
    """Replaces a config's environment by one that records its first episodes as MP4 files.

    Raises:
        InputError: A package for writing videos is missing.
    """
    import gymnasium as gym

    if importlib.util.find_spec("moviepy") is None:
        raise InputError('--video needs the package moviepy: pip install "rllib-weighted[video]"')
    # Keeps pygame from a screen and a sound card, which this machine may not have.
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    os.environ.setdefault("SDL_AUDIODRIVER", "dummy")

    def recorded(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
        return gym.wrappers.RecordVideo(
            env,
            str(folder),
            episode_trigger=lambda episode: episode < num_episodes,
            name_prefix="evaluation",
        )

    _show(config, "rgb_array", recorded)


def _show(config: AlgorithmConfig, mode: str, wrap: Callable[[Any], Any]) -> None:
    """Replaces a config's environment by one with a render mode, in a wrapper."""
    from ray.tune import register_env

    env = config.env
    if envpool_id(env, getattr(config, "env_backend", "gymnasium")) is not None:
        raise InputError(
            f"environment {env!r} is stepped by EnvPool, which cannot be shown or recorded: train "
            "with gymnasium's environment of that name to see it"
        )
    create = env_creator(env)

    def create_shown(context: EnvContext) -> gym.Env[Any, Any]:  # Of any spaces.
        context["render_mode"] = mode
        built = create(context)
        if built.render_mode != mode:
            built.close()
            raise InputError(
                f"environment {env!r} cannot be shown or recorded: its render_mode is "
                f"{built.render_mode!r}, not {mode!r}. Its creator is given `render_mode` in its "
                "config: pass it on"
            )
        return wrap(built)

    register_env(_SHOWN_ENV, create_shown)
    config.env = _SHOWN_ENV


def _report_episodes(config: AlgorithmConfig, on_episode: Callable[[float], None]) -> None:
    """Has a config's env runner say when an episode has ended, besides its own callbacks."""
    from ray.rllib.utils import force_list

    def ended(*, episode: SingleAgentEpisode, **kwargs: Any) -> None:
        on_episode(float(episode.get_return()))

    own = force_list(config.callbacks_on_episode_end)
    config.callbacks_on_episode_end = [*own, ended]


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
