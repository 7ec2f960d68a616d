"""Names -> strategies. A user adds one in a line: `@register_strategy("mine")`."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import math
import numbers
import re
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from rllib_weighted.merging.strategies import (
    BUILT_IN,
    ActorAverage,
    ActorSum,
    Average,
    LossWeighted,
    RewardWeighted,
    Signal,
    Sum,
    Weighting,
)

# Options of a strategy: the fields of its dataclass, checked by their annotations


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


_Strategy = TypeVar("_Strategy", bound=type[Weighting])

_strategies: dict[str, type[Weighting]] = {
    "average": Average,
    "sum": Sum,
    "reward_weighted": RewardWeighted,
    "loss_weighted": LossWeighted,
    "actor_average": ActorAverage,
    "actor_sum": ActorSum,
}


def register_strategy(name: str) -> Callable[[_Strategy], _Strategy]:
    """Class decorator: make a `Weighting` known under `name`, in this process.

    Registering a class again under its name (a notebook cell run twice) replaces it.

    Args:
        name: what `merge_strategy` will say: a letter, then letters, digits, "_", "-" or ".".

    Raises:
        ValueError: if the name is malformed or taken, or what is decorated is not a `Weighting`
            with `shares` and a `signal`.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z][\w.-]*", name, re.ASCII):
        raise ValueError(
            "the name of a strategy should be a letter followed by letters, digits, '_', '-' or "
            f"'.', found {name!r}: write @register_strategy(\"my_strategy\")"
        )

    def register(strategy_class: _Strategy) -> _Strategy:
        _check_class(name, strategy_class)
        known = _strategies.get(name)
        if known is not None and _identity(known) != _identity(strategy_class):
            raise ValueError(
                f"strategy {name!r} is already registered, as {'.'.join(_identity(known))}: "
                "choose another name, or call unregister_strategy first"
            )
        _strategies[name] = strategy_class
        return strategy_class

    return register


def _identity(strategy_class: type) -> tuple[str, str]:
    return strategy_class.__module__, strategy_class.__qualname__


def _check_class(name: str, strategy_class: object) -> None:
    """ValueError if this cannot be a strategy."""
    if not isinstance(strategy_class, type) or not issubclass(strategy_class, Weighting):
        raise ValueError(
            f"strategy {name!r} should be a subclass of Weighting, found {strategy_class!r}: "
            "derive the class from rllib_weighted.merging.Weighting"
        )
    if inspect.isabstract(strategy_class):
        missing = ", ".join(sorted(strategy_class.__abstractmethods__))
        raise ValueError(
            f"strategy {name!r} should define {missing}, found {strategy_class.__name__} without: "
            "define it in the class"
        )
    if problem := _signal_problem(strategy_class):
        raise ValueError(problem)


def _signal_problem(strategy_class: type[Weighting]) -> str | None:
    signal = getattr(strategy_class, "signal", None)
    if signal in get_args(Signal):
        return None
    return (
        f"the `signal` of {strategy_class.__name__} should be 'reward', 'loss' or 'none', "
        f'found {signal!r}: set it in the class, as in `signal = "reward"`'
    )


def unregister_strategy(name: str) -> None:
    """Forget a strategy that `register_strategy` added.

    Raises:
        ValueError: if no strategy has this name, or it is a built-in one.
    """
    if name not in _strategies:
        raise ValueError(_unknown_strategy(name))
    if _strategies[name] in BUILT_IN:
        raise ValueError(
            f"strategy {name!r} is built in and should stay: unregister only strategies of your own"
        )
    del _strategies[name]


def strategy_names() -> list[str]:
    """The names that `merge_strategy` can take now, the built-in ones first."""
    return list(_strategies)


def _unknown_strategy(name: str) -> str:
    return (
        f"`merge_strategy` should be one of {', '.join(map(repr, _strategies))}, found {name!r}: "
        f"use one of them or register your own{nearest(name, _strategies)}"
    )


def strategy_problems(
    strategy: str | Weighting, options: Mapping[str, object] | None = None
) -> list[str]:
    """Everything that is wrong with a choice of strategy and options, without raising.

    Args:
        strategy: a registered name, or a strategy object.
        options: the strategy's own options by name (`merge_options`); only together with a name.

    Returns:
        One sentence per problem: what should be, what was found, the remedy. [] if all is well.
    """
    problems = []
    if options is not None and not isinstance(options, Mapping):
        problems.append(
            "`merge_options` should be a dict of option names and values, found "
            f'{options!r} ({type(options).__name__}): write {{"offset": "auto"}}, or leave it out'
        )
        options = None
    if isinstance(strategy, Weighting):
        if options:
            problems.append(
                "`merge_options` should be empty when `merge_strategy` is an object, found "
                f"{dict(options)!r}: pass them to {type(strategy).__name__}(...) instead"
            )
        return problems + _object_problems(strategy)
    if not isinstance(strategy, str):
        return [_neither_name_nor_object(strategy), *problems]
    if strategy not in _strategies:
        return [_unknown_strategy(strategy), *problems]
    return problems + _named_problems(strategy, options or {})


def _neither_name_nor_object(strategy: object) -> str:
    is_class = isinstance(strategy, type) and issubclass(strategy, Weighting)
    remedy = f"write {strategy.__name__}()" if is_class else "use a name"  # type: ignore[attr-defined]
    return (
        f"`merge_strategy` should be one of {', '.join(map(repr, _strategies))} or a Weighting "
        f"object, found {strategy!r} ({type(strategy).__name__}): {remedy}"
    )


def _object_problems(strategy: Weighting) -> list[str]:
    """Problems of the fields of a strategy object."""
    strategy_class = type(strategy)
    hints = option_hints(strategy_class)
    values = {name: getattr(strategy, name) for name in hints}
    ill_typed = option_problems(strategy_class.__name__, hints, values)
    signal = _signal_problem(strategy_class)
    return [
        *([signal] if signal else []),
        *ill_typed.values(),
        *_value_problems(strategy_class.__name__, lambda: strategy, ill_typed),
    ]


def _named_problems(name: str, options: Mapping[str, object]) -> list[str]:
    """Problems of the options of a registered strategy."""
    strategy_class = _strategies[name]
    owner = repr(name)
    found = option_problems(owner, option_hints(strategy_class), options)
    missing = [option for option in required_options(strategy_class) if option not in options]
    problems = [*found.values()]
    if missing:
        problems.append(
            f"`merge_options` of {owner} should hold {', '.join(map(repr, missing))}, found none: "
            "it has no default, set it"
        )
    if missing or any(option in found for option in required_options(strategy_class)):
        return problems  # it cannot be built, so its values cannot be asked
    good = {option: value for option, value in options.items() if option not in found}
    return problems + _value_problems(owner, lambda: strategy_class(**good), found)


def _value_problems(
    owner: str, build: Callable[[], Weighting], reported: Mapping[Any, str]
) -> list[str]:
    """What the strategy itself says, less what concerns an option that is reported already."""
    try:
        problems = build().problems()
    except Exception as error:  # code of the user: say whose it is, and go on collecting
        return [] if reported else [f"{owner} refused its options: {error!r}"]
    return [text for text in problems if not any(f"`{name}`" in text for name in reported)]


def resolve_strategy(
    strategy: str | Weighting, options: Mapping[str, object] | None = None
) -> Weighting:
    """The strategy object for a name and its options, or for an object, checked.

    Args:
        strategy: a registered name, or a strategy object (returned as it is).
        options: the strategy's own options by name (`merge_options`).

    Raises:
        ValueError: with all problems that `strategy_problems` finds, one a line.
    """
    if problems := strategy_problems(strategy, options):
        raise ValueError("\n".join(problems))
    if isinstance(strategy, Weighting):
        return strategy
    arguments: dict[str, Any] = dict(options or {})
    return _strategies[strategy](**arguments)
