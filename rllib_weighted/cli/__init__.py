"""The `rllib` command. Every verb is a thin layer over a function that a notebook can call.

Names are loaded when they are first used, so that `rllib --help` does not wait for Ray.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rllib_weighted.cli.cluster import InputError, TrainingError
    from rllib_weighted.cli.evaluate import EvaluationResult, evaluate_checkpoint
    from rllib_weighted.cli.examples import Example, find_example, list_examples
    from rllib_weighted.cli.inputs import (
        TrainFile,
        TrainOptions,
        TrainResult,
        load_experiments,
        load_file,
    )
    from rllib_weighted.cli.main import train_file_main
    from rllib_weighted.cli.report import report_results
    from rllib_weighted.cli.train import run_algorithm, run_file

__all__ = [
    "EvaluationResult",
    "Example",
    "InputError",
    "TrainFile",
    "TrainOptions",
    "TrainResult",
    "TrainingError",
    "evaluate_checkpoint",
    "find_example",
    "list_examples",
    "load_experiments",
    "load_file",
    "report_results",
    "run_algorithm",
    "run_file",
    "train_file_main",
]

_MODULES = {
    "InputError": "errors",
    "TrainingError": "errors",
    "EvaluationResult": "evaluate",
    "evaluate_checkpoint": "evaluate",
    "Example": "examples",
    "find_example": "examples",
    "list_examples": "examples",
    "TrainFile": "files",
    "load_experiments": "files",
    "load_file": "files",
    "TrainOptions": "options",
    "TrainResult": "options",
    "report_results": "report",
    "run_algorithm": "train",
    "run_file": "train",
    "train_file_main": "train",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
