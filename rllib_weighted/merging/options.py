"""Options of a strategy: the fields of its dataclass, checked by their annotations."""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
import types
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_WORDS: dict[object, str] = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a string",
    type(None): "None",
}


def option_hints(strategy_class: type) -> dict[str, Any]:
    """Names and annotations of the options that `strategy_class` takes, in order of definition.

    An annotation that cannot be evaluated (a name local to a function, say) is Any.
    """
    if not dataclasses.is_dataclass(strategy_class):
        return {}
    try:
        hints = get_type_hints(strategy_class)
    except (NameError, AttributeError, TypeError, SyntaxError):
        hints = {}
    return {
        field.name: hints.get(field.name, Any)
        for field in dataclasses.fields(strategy_class)
        if field.init
    }


def required_options(strategy_class: type) -> list[str]:
    """Names of the options that have no default."""
    if not dataclasses.is_dataclass(strategy_class):
        return []
    return [
        field.name
        for field in dataclasses.fields(strategy_class)
        if field.init
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]


def matches(hint: Any, value: object) -> bool:
    """Whether `value` fits the annotation: numbers by value, so a bool or NaN is not a number.

    A float annotation takes whole numbers too. Of a container only the outer type is checked;
    an annotation that isinstance cannot judge takes anything.
    """
    origin = get_origin(hint)
    if hint is None or hint is type(None):
        return value is None
    if origin in (Union, types.UnionType):
        return any(matches(part, value) for part in get_args(hint))
    if origin is Literal:
        return any(_same(choice, value) for choice in get_args(hint))
    if hint is bool:
        return isinstance(value, bool)
    if hint is int:
        return isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if hint is float:
        return (
            isinstance(value, numbers.Real)
            and not isinstance(value, bool)
            and (isinstance(value, numbers.Integral) or not math.isnan(float(value)))
        )
    try:
        return isinstance(value, origin or hint)
    except TypeError:  # Any, a type variable, a protocol, …
        return True


def _same(choice: object, value: object) -> bool:
    """Equal and of the same kind: True is not 1."""
    same_kind = isinstance(value, type(choice)) and isinstance(choice, bool) == isinstance(
        value, bool
    )
    return same_kind and value == choice


def describe(hint: Any) -> str:
    """The annotation in words: "'auto', 'min' or a number"."""
    parts = _parts(hint)
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} or {parts[-1]}"


def _parts(hint: Any) -> list[str]:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return [part for argument in get_args(hint) for part in _parts(argument)]
    if origin is Literal:
        return [repr(choice) for choice in get_args(hint)]
    if hint in _WORDS:
        return [_WORDS[hint]]
    return [getattr(origin or hint, "__name__", str(hint))]


def nearest(name: object, known: Iterable[str]) -> str:
    """The end of a sentence that suggests the known name closest to `name`, or nothing."""
    if not isinstance(name, str):
        return ""
    by_lower = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return f"; did you mean {by_lower[close[0]]!r}?" if close else ""


def option_problems(
    owner: str, hints: Mapping[str, Any], options: Mapping[Any, object]
) -> dict[Any, str]:
    """One sentence for each option that is unknown or ill-typed.

    Args:
        owner: what takes the options, in words.
        hints: its options and their annotations.
        options: name -> value, as the user gave them.

    Returns:
        Name of the option -> should be, found, remedy.
    """
    found = {}
    for name, value in options.items():
        if not isinstance(name, str) or name not in hints:
            found[name] = _unknown(owner, hints, name)
        elif not matches(hints[name], value):
            choices = [part.strip("'") for part in _parts(hints[name])]
            found[name] = (
                f"`{name}` should be {describe(hints[name])}, found {value!r} "
                f"({type(value).__name__}): change the option of {owner}{nearest(value, choices)}"
            )
    return found


def _unknown(owner: str, hints: Mapping[str, Any], name: object) -> str:
    if not hints:
        return f"{owner} takes no options, found {name!r}: leave `merge_options` empty"
    return (
        f"`merge_options` of {owner} should be among {', '.join(map(repr, hints))}, "
        f"found unknown option {name!r}: rename or remove it{nearest(name, hints)}"
    )
