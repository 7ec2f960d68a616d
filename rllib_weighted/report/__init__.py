"""Reads records of any number of trials, computes statistics, draws, and writes a report.

Every step is a function that returns a pandas DataFrame; none of them needs Ray or PyTorch. Names
are loaded when they are first used: a training groups its trials as the report does, and waits for
neither SciPy nor matplotlib.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rllib_weighted.report.conclusions import comparisons
    from rllib_weighted.report.measures import (
        Threshold,
        convergence,
        convergence_runs,
        drops,
        final_returns,
        learning_curves,
        sensitivity,
        thresholds,
        weight_curves,
    )
    from rllib_weighted.report.page import Report, write_report
    from rllib_weighted.report.results import Results, load_results
    from rllib_weighted.report.tables import Tables, compute
    from rllib_weighted.report.trials import ReportError

__all__ = [
    "Report",
    "ReportError",
    "Results",
    "Tables",
    "Threshold",
    "comparisons",
    "compute",
    "convergence",
    "convergence_runs",
    "drops",
    "final_returns",
    "learning_curves",
    "load_results",
    "sensitivity",
    "thresholds",
    "weight_curves",
    "write_report",
]

_MODULES = {
    "Report": "page",
    "ReportError": "trials",
    "Results": "results",
    "Tables": "tables",
    "comparisons": "conclusions",
    "compute": "tables",
    "load_results": "results",
    "write_report": "page",
}  # The others are of `measures`.


def __getattr__(name: str) -> Any:  # Of the types above.
    if name in __all__:
        module = importlib.import_module(f"{__name__}.{_MODULES.get(name, 'measures')}")
        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
