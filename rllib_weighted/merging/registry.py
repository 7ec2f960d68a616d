"""Names -> strategies. A user adds one in a line: `@register_strategy("mine")`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, get_args

from rllib_weighted.merging.options import (
    nearest,
    option_hints,
    option_problems,
    required_options,
)
from rllib_weighted.merging.weightings import (
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
