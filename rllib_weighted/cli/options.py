"""What a training is asked for and what it leaves behind."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray.tune import ResultGrid


@dataclass(frozen=True)
class TrainOptions:
    """The options of `rllib train`, with the same meaning.

    Args:
        stop: Stop criteria as JSON, over those of the file; `null` removes one.
        settings: `KEY=VALUE` texts, over those of the file.
        num_samples: How often each point of the search space is run.
        storage_path: Where results go: a folder or a URI.
        name: The experiment's name; its results lie in `storage_path/name`.
        checkpoint_freq: Rounds between checkpoints; 0 writes none on the way. None writes one a
            minute and keeps the last three.
        checkpoint_at_end: Whether a trial that ends writes a checkpoint.
        resume: Continue an experiment instead of starting one.
        ray_address: The Ray cluster to join.
        ray_num_cpus: CPUs that a local Ray counts with.
        local_mode: Samples and learns in a single process, for debugging.
        verbose: Shows Ray's logs.
    """

    stop: str | None = None
    settings: tuple[str, ...] = ()
    num_samples: int | None = None
    storage_path: str | None = None
    name: str | None = None
    checkpoint_freq: int | None = None
    checkpoint_at_end: bool | None = None
    resume: bool = False
    ray_address: str | None = None
    ray_num_cpus: int | None = None
    local_mode: bool = False
    verbose: bool = False

    def fixed_at_start(self) -> list[str]:
        """Returns the given options that have no effect on an experiment that is resumed."""
        given = {
            "--num-samples": self.num_samples,
            "--checkpoint-freq": self.checkpoint_freq,
            "--checkpoint-at-end": self.checkpoint_at_end,
        }
        return [name for name, value in given.items() if value is not None]


@dataclass(frozen=True)
class TrainResult:
    """What a training left behind.

    Args:
        results: Tune's results, one per trial.
        experiment: The experiment's folder or URI.
        exit_code: 0, or 130 or 143 if it was interrupted (and can be resumed).
        checkpoints: The last checkpoint of each trial that has one.
    """

    results: ResultGrid
    experiment: str
    exit_code: int = 0
    checkpoints: list[str] = field(default_factory=list)
