"""The `rllib` command. Every verb is a thin layer over a function that a notebook can call.

Names are loaded when they are first used, so that `rllib --help` does not wait for Ray.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from rllib_weighted.core.redaction import redact

if TYPE_CHECKING:
    from rllib_weighted.cli.evaluate import EvaluationResult, evaluate_checkpoint
    from rllib_weighted.cli.examples import Example, find_example, list_examples
    from rllib_weighted.cli.export import ExportResult, export_policy
    from rllib_weighted.cli.hub import push_checkpoint
    from rllib_weighted.cli.inputs import TrainFile, TrainOptions, load_experiments, load_file
    from rllib_weighted.cli.main import train_file_main
    from rllib_weighted.cli.report import report_results
    from rllib_weighted.cli.train import TrainResult, run_algorithm, run_file

__all__ = [
    "EvaluationResult",
    "Example",
    "ExportResult",
    "InputError",
    "TrainFile",
    "TrainOptions",
    "TrainResult",
    "TrainingError",
    "evaluate_checkpoint",
    "export_policy",
    "find_example",
    "list_examples",
    "load_experiments",
    "load_file",
    "push_checkpoint",
    "report_results",
    "run_algorithm",
    "run_file",
    "train_file_main",
]


class InputError(ValueError):
    """Bad input of the user: a file, an option or a setting. The command exits with 2."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(redact(message))


class TrainingError(RuntimeError):
    """A training that started and failed. The command exits with 1."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(redact(message))


class RayEnded(TrainingError):
    """Ray has ended under a training. Nothing of it can be used in this process any more."""


class Aborted(KeyboardInterrupt):
    """A training that a second Ctrl-C stopped at once. The command exits with 130 or 143."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(redact(message))
        self.exit_code = exit_code


_NAMES = {
    "examples": ("Example", "find_example", "list_examples"),
    "evaluate": ("EvaluationResult", "evaluate_checkpoint"),
    "export": ("ExportResult", "export_policy"),
    "hub": ("push_checkpoint",),
    "inputs": ("TrainFile", "TrainOptions", "load_experiments", "load_file"),
    "main": ("train_file_main",),
    "report": ("report_results",),
    "train": ("TrainResult", "run_algorithm", "run_file"),
}


def __getattr__(name: str) -> Any:  # Of the types above.
    for module, names in _NAMES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
