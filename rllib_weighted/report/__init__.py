"""Reads records of any number of trials, computes statistics, draws, and writes a report.

Every step is a function that returns a pandas DataFrame; none of them needs Ray or PyTorch.
"""

from __future__ import annotations

from rllib_weighted.report.comparisons import comparisons
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
