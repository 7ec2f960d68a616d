"""Reads texts of a user's: JSON, `KEY=VALUE` settings, stop criteria."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rllib_weighted.cli import InputError
from rllib_weighted.suggest import shown

if TYPE_CHECKING:
    pass

# Metrics of RLlib's old API stack that stop criteria name, and their names today.
OLD_STOP_NAMES = {
    "episode_reward_mean": "env_runners/episode_return_mean",
    "episode_return_mean": "env_runners/episode_return_mean",
    "env_runners/episode_reward_mean": "env_runners/episode_return_mean",
    "sampler_results/episode_reward_mean": "env_runners/episode_return_mean",
    "timesteps_total": "num_env_steps_sampled_lifetime",
    "num_env_steps_sampled": "num_env_steps_sampled_lifetime",
    "iterations": "training_iteration",
}

_MAX_DEPTH = 50  # What copies and merges settings calls itself at each level.
_MAX_VALUES = 100_000


def check_size(value: object, what: str) -> None:
    """Refuses what is nested so deep, or holds so much, that what handles it later would not end.

    YAML's aliases make both in a few bytes: `a: &a [*a]`, or nine lists of nine aliases each.
    """
    left: list[tuple[Any, int]] = [(value, 0)]
    num_values = 0
    while left:
        item, depth = left.pop()
        is_dict = isinstance(item, Mapping)
        inner = list(item.values()) if is_dict else item if isinstance(item, list | tuple) else ()
        num_values += len(inner)
        if depth > _MAX_DEPTH:
            raise InputError(
                f"{what} should be nested at most {_MAX_DEPTH} deep, found more, or a value that "
                "contains itself: write it flatter"
            )
        if num_values > _MAX_VALUES:
            raise InputError(
                f"{what} should hold at most {_MAX_VALUES:,} values (what an alias repeats counts "
                "each time), found more: read them from a file of their own"
            )
        left += [(child, depth + 1) for child in inner]


def parse_settings(texts: Sequence[str]) -> dict[str, Any]:
    """Returns the settings of several `--set KEY=VALUE`; the last of a key counts."""
    return dict(parse_setting(text) for text in texts)


def parse_setting(text: str) -> tuple[str, Any]:
    """Splits `KEY=VALUE`; VALUE is read as JSON, or as plain text if it is not JSON.

    Raises:
        InputError: There is no `=`, or no KEY before it.
    """
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise InputError(f"--set must be KEY=VALUE, e.g. --set lr=0.0003; found {shown(text)}")
    try:
        return key, parse_json(value, f"--set {key}")
    except _NotJson:
        # What begins like JSON was meant as JSON: show the error.
        if value.lstrip()[:1] in ("{", "[", '"'):
            raise
        return key, {"True": True, "False": False, "None": None}.get(value, value)


def read_stop(stop: object, what: str) -> dict[str, float]:
    """Checks stop criteria and returns them as Tune takes them: flat keys with `/`, and numbers.

    Names of the old API stack are replaced by today's.

    Args:
        stop: Criteria, possibly nested; any one of them that is reached ends a trial. None is
            the same as no criteria.
        what: Where they come from, for the message.

    Raises:
        InputError: `stop` is not a dict, or a value is not a number.
    """
    if stop is None:
        return {}
    if not isinstance(stop, Mapping):
        raise InputError(
            f"{what}: `stop` must be a dict of metric to number, e.g. "
            f'{{"training_iteration": 10}}; found {kind(stop)}: {shown(stop)}'
        )
    flat = _flat(stop, what)
    wrong = {key: value for key, value in flat.items() if not _is_number(value)}
    if wrong:
        found = ", ".join(
            f"{shown(key)} is {kind(value)} {shown(value)}" for key, value in wrong.items()
        )
        raise InputError(f"{what}: every value of `stop` must be a number; found: {found}")
    return flat


def merge_stop(stop: Mapping[str, float], override: str | None) -> dict[str, float]:
    """Returns a file's stop criteria with those of `--stop JSON` over them.

    A criterion set to `null` in the JSON is removed.
    """
    given = {} if override is None else _flat(parse_json_object(override, "--stop"), "--stop")
    read_stop({key: value for key, value in given.items() if value is not None}, "--stop")
    return {key: value for key, value in {**stop, **given}.items() if value is not None}


def _flat(stop: Mapping[str, Any], what: str) -> dict[str, Any]:  # Values are not checked yet.
    from ray.tune.utils import flatten_dict

    check_size(stop, what)
    flat = flatten_dict({str(key): value for key, value in stop.items()})
    return {OLD_STOP_NAMES.get(key, key): value for key, value in flat.items()}


def _is_number(value: Any) -> bool:  # Whatever a user wrote.
    try:
        return not isinstance(value, bool) and not math.isnan(value)
    except (TypeError, OverflowError):  # No number, or a whole one that no float can hold.
        return False


def is_count(value: object, least: int) -> bool:
    """Whether a value is a whole number that is not below another."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def parse_json_object(text: str, what: str) -> dict[str, Any]:
    """Returns the dict of a JSON text; see `parse_json`."""
    value = parse_json(text, what)
    if not isinstance(value, dict):
        raise InputError(
            f"{what} must be a JSON object {{...}}; found {kind(value)}: {shown(value)}"
        )
    return value


class _NotJson(InputError):
    """A text is not JSON at all."""


def parse_json(text: str, what: str) -> Any:  # Any JSON.
    """Returns the value of a JSON text.

    Args:
        text: The JSON text.
        what: What holds it, for the message: `--stop`, or a file's name.

    Raises:
        InputError: The text is not JSON, and the message points at the position; or it is nested
            deeper, or has a longer number, than Python reads.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = text.split("\n")[error.lineno - 1]
        # A window around the position, so that the caret stays under it on a narrow terminal.
        start = max(0, error.colno - 1 - 40)
        part = line[start : start + 76]
        caret = " " * (error.colno - 1 - start) + "^"
        where = f"line {error.lineno}, column {error.colno}"
        raise _NotJson(
            f"{what} is not valid JSON: {error.msg} ({where})\n\n  {part}\n  {caret}\n\n"
            'Names and texts stand in double quotes, e.g. {"training_iteration": 10}; '
            "on a shell, put single quotes around the whole."
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{what} should be nested at most {_MAX_DEPTH} deep and hold no whole number of more "
            f"than {sys.get_int_max_str_digits()} digits, found {shown(text)}: {error}"
        ) from None


def kind(value: object) -> str:
    """Returns the type of a value in JSON's words: `null`, `a number`, `a text`, `a list`."""
    names = {"NoneType": "null", "bool": "a boolean", "str": "a text"}
    names |= dict.fromkeys(("int", "float"), "a number")
    return names.get(type(value).__name__, f"a {type(value).__name__}")
