"""What a training would do, without doing it: `--dry-run` of `rllib train` and `example run`."""

from __future__ import annotations

import collections
import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from rllib_weighted.cli import InputError, inputs
from rllib_weighted.cli.cluster import quiet_ray
from rllib_weighted.cli.display import show
from rllib_weighted.cli.inputs import TrainFile, TrainOptions
from rllib_weighted.cli.progress import format_number
from rllib_weighted.cli.tracking import check_trackers
from rllib_weighted.cli.train import algorithm_file, checked_config, tune_config_of
from rllib_weighted.core.redaction import redact
from rllib_weighted.records.origin import without_addresses
from rllib_weighted.report.arms import group_arms
from rllib_weighted.report.formats import shorten

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

    from rllib_weighted.cli.sizing import ExperimentSize

_LONGEST_VALUE = 300
_MAX_ARMS = 30
_OBJECT = re.compile(r"<(?:function |bound method |class ')?([\w.<>]+).*>")


def plan_file(path: Path, options: TrainOptions, *, console: Console | None = None) -> None:
    """Prints what `rllib train file` would do.

    Args:
        path: The training file.
        options: What the command's options say.
        console: Where to print; None takes the standard output.

    Raises:
        InputError: What the training itself would refuse.
    """
    with quiet_ray(options.verbose):
        for experiment in inputs.load_experiments(path):
            print_plan(experiment, options, console or Console(highlight=False))


def plan_algorithm(
    algo: str | None,
    env: str | None,
    config: str,
    options: TrainOptions,
    *,
    console: Console | None = None,
) -> None:
    """Prints what `rllib train --algo` would do; see `plan_file`."""
    if algo is None:
        _refuse_resume(options)
        raise InputError("--dry-run needs an algorithm (--algo), or a training file")
    with quiet_ray(options.verbose):
        asked = algorithm_file(algo, env, config)
        print_plan(asked, options, console or Console(highlight=False))


def print_plan(asked: TrainFile, options: TrainOptions, console: Console) -> None:
    """Prints the settings, the trials and the resources of an experiment.

    Raises:
        InputError: What the training itself would refuse.
    """
    from rllib_weighted.cli.sizing import experiment_size

    _refuse_resume(options)
    asked = asked.with_options(options)
    for warning in asked.warnings:
        show(console, f"Warning: {warning}")
    config = checked_config(asked, options)
    trackers = check_trackers(options.track)
    nodes = None if _joins(options) else [_machine(options)]
    size = experiment_size(config, tune_config_of(asked), nodes=nodes or ())
    algorithm = config.algo_class or type(config)
    env = getattr(config.env, "__name__", config.env)
    lines = [f"Would train {algorithm.__name__} on {env}"]
    changed = changed_settings(config)
    lines.append(f"  settings    {len(changed)} that {type(config).__name__} has not by default:")
    width = max(map(len, changed), default=0)
    lines += [f"    {name:<{width}}  {text}" for name, text in changed.items()]
    goals = [f"{key} >= {format_number(value)}" for key, value in asked.stop.items()]
    goals += ["the file's own criterion says so"] * (asked.run.stopper is not None)
    lines.append(f"  until       {' or '.join(goals) or 'Ctrl-C (no stop criterion is set)'}")
    if trackers:
        lines.append(f"  tracked by  {', '.join(trackers)}")
    lines += _trials(size)
    where = "the cluster that is joined was not asked" if nodes is None else "this machine"
    lines.append(f"  resources   {size.resources(where)}")
    lines.append("Nothing was started, nothing was written.")
    for line in lines:
        show(console, redact(line))


def _refuse_resume(options: TrainOptions) -> None:
    if options.resume:
        raise InputError(
            "--dry-run shows what would be started, and --resume goes on with what was: leave out "
            "one of both"
        )


def _joins(options: TrainOptions) -> bool:
    """Whether the training would join a cluster instead of starting a Ray of its own."""
    return bool(options.ray_address or os.environ.get("RAY_ADDRESS"))


def _machine(options: TrainOptions) -> dict[str, float]:
    """Returns what a local Ray would count with."""
    import torch

    cpus = options.ray_num_cpus or len(os.sched_getaffinity(0))
    return {"CPU": float(cpus), "GPU": float(torch.cuda.device_count())}


def _trials(size: ExperimentSize) -> list[str]:
    """Returns the number of trials and the arms that they belong to, as lines."""
    arms = group_arms(size.points)
    count = "no end of trials" if size.num_trials is None else format_number(size.num_trials)
    lines = [f"  trials      {count}" + (f", in {len(arms)} arms:" if len(arms) > 1 else "")]
    if len(arms) < 2:
        return lines
    for arm in arms[:_MAX_ARMS]:
        seeds = collections.Counter(size.points[index].seed for index in arm.runs)
        num = len(arm.runs) * max(1, size.num_samples)
        named = ", ".join(str(seed) for seed in seeds if seed is not None)
        of_seeds = f" (seed{'s' * (len(seeds) > 1)} {named})" if named else ""
        lines.append(f"    {num} x {arm.label}{of_seeds}")
    if len(arms) > _MAX_ARMS:
        lines.append(f"    … and {len(arms) - _MAX_ARMS} more arms")
    return lines


def changed_settings(config: AlgorithmConfig) -> dict[str, str]:
    """Returns the settings of a config that differ from its class's defaults, as texts by name."""
    defaults = type(config)().to_dict()
    found = {
        name.removeprefix("_"): shorten(_text(value), _LONGEST_VALUE)
        for name, value in config.to_dict().items()
        if _text(value) != _text(defaults.get(name))
    }
    return dict(sorted(found.items()))


def _text(value: Any) -> str:
    """Returns a setting as a person writes it: a grid as its values, a function by its name."""
    from ray.tune.search.sample import Domain

    if isinstance(value, Mapping):
        if set(value) == {"grid_search"}:
            return f"each of {_text(value['grid_search'])}"
        return "{" + ", ".join(f"{key}: {_text(item)}" for key, item in value.items()) + "}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        own = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
        defaults = {field.name: _default(field) for field in dataclasses.fields(value)}
        named = (f"{name}={_text(item)}" for name, item in own if item != defaults[name])
        return f"{type(value).__name__}({', '.join(named)})"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_text, value)) + "]"
    if isinstance(value, Domain):
        return "drawn or computed for each trial"
    if callable(value):
        return getattr(value, "__qualname__", type(value).__name__)
    text = without_addresses(str(value))
    match = _OBJECT.fullmatch(text)
    return match[1] if match else text


def _default(field: dataclasses.Field[Any]) -> Any:  # Of any type.
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()
