"""Records of the merge: metric names, their summary, and the merge history as Parquet files."""

from __future__ import annotations

from rllib_weighted.records.history import MergeHistory
from rllib_weighted.records.metrics import (
    METRICS,
    MetricInfo,
    WorkerRecord,
    metrics_table,
    summarize,
    worker_metrics,
)
from rllib_weighted.records.origin import read_settings, resolved_settings
from rllib_weighted.records.reading import iter_history, read_history
from rllib_weighted.records.schema import HISTORY_DIR, SCHEMA

__all__ = [
    "HISTORY_DIR",
    "METRICS",
    "SCHEMA",
    "MergeHistory",
    "MetricInfo",
    "WorkerRecord",
    "iter_history",
    "metrics_table",
    "read_history",
    "read_settings",
    "resolved_settings",
    "summarize",
    "worker_metrics",
]
