"""Trees of trials as Tune and the merge history write them, and results without any file."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pyarrow import fs

from rllib_weighted.records import HISTORY_DIR, MergeHistory, WorkerRecord
from rllib_weighted.report import Results
from rllib_weighted.report.arms import assign_arms
from rllib_weighted.report.trials import Settings

METRIC = "merge/episode_return_mean"
STOCK = "env_runners/episode_return_mean"
HELD_OUT = "evaluation/env_runners/episode_return_mean"
STEPS = 100  # environment steps per round
SECONDS = 2.0  # wall time per round


def params(**changes: Any) -> dict[str, Any]:
    """A config as far as a report looks at it, with two workers."""
    values: dict[str, Any] = {
        "env": "CartPole-v1",
        "merge_strategy": "average",
        "min_weight": None,
        "merge_options": {},
        "merge_unit": "env",
        "num_env_runners": 0,
        "num_envs_per_env_runner": 2,
        "num_learners": 0,
        "lr": 0.001,
        "seed": 1,
        "evaluation_interval": None,
    }
    return {**values, **changes}


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Joined names -> nested dicts."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        *folders, last = name.split("/")
        level = result
        for folder in folders:
            level = level.setdefault(folder, {})
        level[last] = value
    return result


def rows_of(
    returns: Sequence[float], *, trial_id: str, finished: bool, metrics: Sequence[str]
) -> list[dict[str, Any]]:
    """What Tune logs, a dict of joined names per round."""
    return [
        {
            "training_iteration": index + 1,
            "num_env_steps_sampled_lifetime": float(STEPS * (index + 1)),
            "done": finished and index == len(returns) - 1,
            "trial_id": trial_id,
            "date": "2026-11-25_07-11-39",
            "hostname": "machine",
            "time_total_s": SECONDS * (index + 1),
            **dict.fromkeys(metrics, value),
        }
        for index, value in enumerate(returns)
    ]


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """As Tune's logger: the columns are those of the first row."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def write_trial(
    folder: Path,
    returns: Sequence[float] = (10.0, 20.0, 30.0),
    *,
    finished: bool = True,
    held_out: Mapping[int, float] | None = None,
    history: bool = True,
    progress: bool = True,
    shares: Sequence[float] = (0.25, 0.75),
    stock: bool = False,
    recorded: Mapping[str, Any] | None = None,
    more: Sequence[Mapping[str, float]] = (),
    **changes: Any,
) -> Path:
    """Write a trial; `held_out` gives returns of evaluations by round, `stock` is RLlib's PPO.

    `recorded` are the settings in its merge history, as `resolved_settings` returns them; `more`,
    further metrics of each round.
    """
    folder.mkdir(parents=True)
    config = params(**changes)
    if stock:
        config = {name: value for name, value in config.items() if not name.startswith("merge_")}
    (folder / "params.json").write_text(json.dumps(config))
    trial_id = folder.name
    metrics = [STOCK] if stock else [METRIC, STOCK]
    rows = rows_of(returns, trial_id=trial_id, finished=finished, metrics=metrics)
    rows = [row | dict(extra) for row, extra in zip_longest(rows, more, fillvalue={})]
    if progress:
        write_csv(folder / "progress.csv", rows)
    lines = []
    for row in rows:
        value = (held_out or {}).get(row["training_iteration"], math.nan)
        lines.append(json.dumps(nested({**row, HELD_OUT: value} if held_out else row)))
    (folder / "result.json").write_text("".join(f"{line}\n" for line in lines))
    if history and not stock:
        write_history(folder, returns, shares, recorded)
    return folder


def write_history(
    folder: Path,
    returns: Sequence[float],
    shares: Sequence[float],
    settings: Mapping[str, Any] | None = None,
) -> None:
    store = MergeHistory(
        fs.LocalFileSystem(),
        str(folder / HISTORY_DIR),
        trial_id=folder.name,
        settings=settings,
        flush_seconds=1e9,
    )
    for index, value in enumerate(returns):
        records = [worker_record(i, share, value) for i, share in enumerate(shares)]
        store.append(index + 1, STEPS * (index + 1), records)
    store.close()


def worker_record(worker: int, share: float, value: float, **changes: Any) -> WorkerRecord:
    values: dict[str, Any] = {
        "worker": worker,
        "env_runner": 0,
        "env_index": worker,
        "seed": 7 + worker,
        "signal": value,
        "share": share,
        "weight": share + 0.5,
        "loss": 0.1,
        "episode_return": value,
        "num_episodes": 2,
        "dropped": False,
    }
    return WorkerRecord(**{**values, **changes})


def curve(final: float, rounds: int = 20, *, speed: float = 4.0) -> list[float]:
    """A learning curve from 0 that comes close to `final`."""
    return [final * (1 - math.exp(-(index + 1) / speed)) for index in range(rounds)]


def write_sweep(
    root: Path,
    strategies: Iterable[tuple[str, float | None]] = (
        ("average", None),
        ("reward_weighted", 0.5),
        ("reward_weighted", 1.0),
    ),
    seeds: Iterable[int] = (1, 2, 3),
    **changes: Any,
) -> Path:
    """An experiment: arms x seeds, with curves that differ a little from seed to seed."""
    for number, (strategy, min_weight) in enumerate(strategies):
        for seed in seeds:
            rng = np.random.default_rng([number, seed])
            returns = np.array(curve(100.0 + 5 * number, speed=rng.uniform(3, 6)))
            settings = {"merge_strategy": strategy, "min_weight": min_weight, "seed": seed}
            write_trial(
                root / f"WeightedPPO_CartPole-v1_{number}_{seed}",
                (returns + rng.normal(0, 2, returns.size)).tolist(),
                **{**settings, **changes},
            )
    return root


def make_results(
    arms: Mapping[tuple[str, float] | str, Mapping[int | None, Sequence[float]]],
    *,
    env: str = "Env",
    finished: bool = True,
    steps: int = STEPS,
    held_out: Mapping[str, Mapping[int, float]] | None = None,
) -> Results:
    """Results without files: for each arm, the returns per round of each seed's run.

    A final return here is the last value.
    """
    settings, runs, progress = [], [], []
    for arm, by_seed in arms.items():
        strategy, min_weight = arm if isinstance(arm, tuple) else (arm, math.nan)
        for seed, values in by_seed.items():
            settings.append(Settings(env=env, strategy=strategy, min_weight=min_weight, seed=seed))
            rounds = np.arange(1, len(values) + 1)
            progress.append(
                pd.DataFrame(
                    {
                        "run": len(runs),
                        "round": rounds,
                        "env_steps": steps * rounds,
                        "time_s": SECONDS * rounds,
                        "value": np.asarray(values, dtype=float),
                    }
                )
            )
            runs.append(
                {
                    "run": len(runs),
                    "env": env,
                    "strategy": strategy,
                    "min_weight": min_weight,
                    "seed": seed,
                    "num_rounds": len(values),
                    "env_steps": steps * len(values),
                    "time_s": SECONDS * len(values),
                    "final": float(values[-1]),
                    "held_out": (held_out or {}).get(strategy, {}).get(seed or 0, math.nan),
                    "finished": finished,
                    "counts": True,
                    "has_weights": False,
                    "source": "progress.csv",
                    "host": "machine",
                    "date": "2026-11-25_07-11-39",
                    "trial_id": str(len(runs)),
                    "path": f"/results/{len(runs)}",
                }
            )
    labels, arm_table = assign_arms(settings)
    table = pd.DataFrame(runs)
    table.insert(2, "arm", labels)
    table["seed"] = table["seed"].astype("Int64")
    empty = pd.DataFrame({"run": []})
    nothing = pd.DataFrame({"env": [], "arm": []})
    return Results(table, arm_table, pd.concat(progress), empty, nothing, nothing, METRIC, [])
