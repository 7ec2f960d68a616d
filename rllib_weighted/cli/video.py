"""Records episodes of an evaluation as MP4 files."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rllib_weighted.cli.errors import InputError

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

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
