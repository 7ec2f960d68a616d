"""Reads what a user types: JSON options, `KEY=VALUE` settings, stop criteria."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rllib_weighted.cli.errors import InputError

# Names of stop criteria that RLlib's old API stack reported, and what reports the same today.
OLD_STOP_NAMES = {
    "episode_reward_mean": "env_runners/episode_return_mean",
    "episode_return_mean": "env_runners/episode_return_mean",
    "env_runners/episode_reward_mean": "env_runners/episode_return_mean",
    "sampler_results/episode_reward_mean": "env_runners/episode_return_mean",
    "timesteps_total": "num_env_steps_sampled_lifetime",
    "num_env_steps_sampled": "num_env_steps_sampled_lifetime",
    "iterations": "training_iteration",
}


def parse_json(text: str, what: str) -> Any:
    """Returns the value of a JSON text.

    Args:
        text: The JSON text.
        what: What holds it, for the message: `--stop`, or a file's name.

    Raises:
        InputError: The text is not JSON. The message points at the position.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = text.splitlines()[error.lineno - 1] if text.strip() else ""
        # A window around the position, so that the caret stays under it on a narrow terminal.
        start = max(0, error.colno - 1 - 40)
        shown = line[start : start + 76]
        caret = " " * (error.colno - 1 - start) + "^"
        where = f"line {error.lineno}, column {error.colno}"
        raise InputError(
            f"{what} is not valid JSON: {error.msg} ({where})\n\n  {shown}\n  {caret}\n\n"
            'Names and texts stand in double quotes, e.g. {"training_iteration": 10}; '
            "on a shell, put single quotes around the whole."
        ) from None


def parse_json_object(text: str, what: str) -> dict[str, Any]:
    """Returns the dict of a JSON text; see `parse_json`."""
    value = parse_json(text, what)
    if not isinstance(value, dict):
        raise InputError(f"{what} must be a JSON object {{...}}; found {_kind(value)}: {text}")
    return value


def parse_setting(text: str) -> tuple[str, Any]:
    """Splits `KEY=VALUE`; VALUE is read as JSON, or taken as text where it is none.

    Raises:
        InputError: There is no `=`, or no KEY before it.
    """
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise InputError(f"--set must be KEY=VALUE, e.g. --set lr=0.0003; found {text!r}")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        # A text that begins like JSON is a typing error, not a text.
        if value.lstrip()[:1] in ("{", "[", '"'):
            return key, parse_json(value, f"--set {key}")
        return key, {"True": True, "False": False, "None": None}.get(value, value)


def parse_settings(texts: Sequence[str]) -> dict[str, Any]:
    """Returns the settings of several `--set KEY=VALUE`; the last of a key counts."""
    return dict(parse_setting(text) for text in texts)


def read_stop(stop: Mapping[str, Any] | None, what: str) -> dict[str, float]:
    """Returns checked stop criteria as Tune takes them: flat keys with `/`, numbers.

    Names of the old API stack become those that are reported today.

    Args:
        stop: Criteria, possibly nested; any one of them that is reached ends a trial.
        what: Where they come from, for the message.

    Raises:
        InputError: `stop` is not a dict, or a value is not a number.
    """
    if stop is None:
        return {}
    if not isinstance(stop, Mapping):
        raise InputError(
            f"{what}: `stop` must be a dict of metric to number, e.g. "
            f'{{"training_iteration": 10}}; found {_kind(stop)}: {stop!r}'
        )
    flat = _flatten(stop)
    wrong = {key: value for key, value in flat.items() if not _is_number(value)}
    if wrong:
        found = ", ".join(f"{key!r} is {_kind(value)} {value!r}" for key, value in wrong.items())
        raise InputError(f"{what}: every value of `stop` must be a number; found: {found}")
    return {OLD_STOP_NAMES.get(key, key): value for key, value in flat.items()}


def merge_stop(stop: Mapping[str, Any], override: str | None) -> dict[str, float]:
    """Returns a file's stop criteria with those of `--stop JSON` over them.

    A criterion set to `null` in the JSON is removed.
    """
    merged = dict(stop)
    if override is not None:
        given = _flatten(parse_json_object(override, "--stop"))
        removed = {OLD_STOP_NAMES.get(key, key) for key, value in given.items() if value is None}
        kept = {key: value for key, value in given.items() if value is not None}
        merged.update(read_stop(kept, "--stop"))
        merged = {key: value for key, value in merged.items() if key not in removed}
    return merged


def _flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{path}/"))
        else:
            flat[path] = value
    return flat


def _is_number(value: Any) -> bool:
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    return is_real and not math.isnan(value)


def _kind(value: Any) -> str:
    names = {
        type(None): "null",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "a dict",
    }
    return names.get(type(value), f"a {type(value).__name__}")
