"""Names -> strategies, and what is wrong with a choice of one and its options.

A user adds a strategy in a line: `@register_strategy("mine")`.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import numbers
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, get_type_hints

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import SchemaError

from rllib_weighted.merging.aggregators import TorchJD
from rllib_weighted.merging.signals import SIGNALS
from rllib_weighted.merging.strategies import BUILT_IN, Weighting
from rllib_weighted.suggest import nearest

_Strategy = TypeVar("_Strategy", bound=type[Weighting])

_built_in: dict[str, type[Weighting]] = {**BUILT_IN, "torchjd": TorchJD}
_strategies = dict(_built_in)


def register_strategy(name: str) -> Callable[[_Strategy], _Strategy]:
    """Class decorator: make a `Weighting` known under `name`, in this process.

    Registering a class again under its name (a notebook cell run twice) replaces it.

    Args:
        name: what `merge_strategy` will say: a letter, then letters, digits, "_", "-" or ".".

    Raises:
        ValueError: if the name is malformed or taken, or what is decorated is not a `Weighting`
            that has `shares` and names its `signals`.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z][\w.-]*", name, re.ASCII):
        raise ValueError(
            "the name of a strategy should be a letter followed by letters, digits, '_', '-' or "
            f"'.', found {name!r}: write @register_strategy(\"my_strategy\")"
        )

    def register(strategy_class: _Strategy) -> _Strategy:
        _check_class(name, strategy_class)
        known = _full_name(_strategies.get(name, strategy_class))
        if known != _full_name(strategy_class):
            raise ValueError(
                f"strategy {name!r} is already registered, as {known}: "
                "choose another name, or call unregister_strategy first"
            )
        _strategies[name] = strategy_class
        return strategy_class

    return register


def _full_name(strategy_class: type) -> str:
    return f"{strategy_class.__module__}.{strategy_class.__qualname__}"


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
    if problem := _signals_problem(strategy_class, strategy_class.signals):
        raise ValueError(problem)


def _signals_problem(strategy_class: type[Weighting], declared: object) -> str | None:
    """What is wrong with the `signals` that a class or an object of it declares."""
    if declared is Weighting.signals:
        declared = getattr(strategy_class, "signal", None)
        is_known = declared in ("reward", "loss", "none")
    elif isinstance(declared, property):
        is_known = True  # It depends on the options: the object is asked.
    else:
        is_known = isinstance(declared, tuple) and all(name in [*SIGNALS] for name in declared)
    if is_known:
        return None
    return (
        f"the `signal` of {strategy_class.__name__} should be 'reward', 'loss' or 'none', or "
        f"better its `signals` a tuple of names among {', '.join(map(repr, SIGNALS))}, found "
        f'{declared!r}: set it in the class, as in `signals = ("return",)`'
    )


def unregister_strategy(name: str) -> None:
    """Forget a strategy that `register_strategy` added.

    Raises:
        ValueError: if no strategy has this name, or it is a built-in one.
    """
    if name not in _strategies:
        raise ValueError(_unknown_strategy(name))
    if name in _built_in:
        raise ValueError(
            f"strategy {name!r} is built in and should stay: unregister only strategies of your own"
        )
    del _strategies[name]


def strategy_names() -> list[str]:
    """The names that `merge_strategy` can take now, the built-in ones first."""
    return list(_strategies)


def _unknown_strategy(strategy: object) -> str:
    found, remedy = f"{strategy!r} ({type(strategy).__name__})", "use a name"
    if isinstance(strategy, str):
        found = repr(strategy)
        remedy = f"use one of them or register your own{nearest(strategy, _strategies)}"
    elif isinstance(strategy, type) and issubclass(strategy, Weighting):
        remedy = f"write {strategy.__name__}()"
    return (
        f"`merge_strategy` should be one of {', '.join(map(repr, _strategies))} or a Weighting "
        f"object, found {found}: {remedy}"
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
        cls = type(strategy)
        values = {name: getattr(strategy, name) for name in option_types(cls)}
        return problems + _problems_of(cls.__name__, cls, values, strategy)
    if not isinstance(strategy, str) or strategy not in _strategies:
        return [_unknown_strategy(strategy), *problems]
    return problems + _problems_of(repr(strategy), _strategies[strategy], options or {})


def _problems_of(
    owner: str,
    strategy_class: type[Weighting],
    options: Mapping[Any, object],
    strategy: Weighting | None = None,
) -> list[str]:
    """Problems of a strategy's options, and what the strategy itself says of their values.

    Args:
        owner: The strategy in words.
        strategy_class: Its class.
        options: Its options by name.
        strategy: The object; None: it is made with the options that are well-typed.
    """
    found = _option_problems(owner, strategy_class, options)
    good = {name: value for name, value in options.items() if name not in found}
    signals = _signals_problem(strategy_class, strategy_class.signals)
    try:
        built = strategy_class(**good) if strategy is None else strategy
        values = [
            text for text in built.problems() if not any(f"`{name}`" in text for name in found)
        ]
        if not (signals or found):
            signals = _signals_problem(strategy_class, built.signals)
    except Exception as error:  # Code of the user: say whose it is, and go on collecting.
        values = [] if found else [f"{owner} refused its options: {error!r}"]
    return [*([signals] if signals else []), *found.values(), *values]


def _option_problems(
    owner: str, strategy_class: type[Weighting], options: Mapping[Any, object]
) -> dict[Any, str]:
    """Name of an option -> should be, found, remedy: those unknown, ill-typed or not given."""
    types = option_types(strategy_class)
    found = {}
    for name, value in options.items():
        if not types:
            found[name] = f"{owner} takes no options, found {name!r}: leave `merge_options` empty"
        elif name not in types:
            found[name] = (
                f"`merge_options` of {owner} should be among {', '.join(map(repr, types))}, "
                f"found unknown option {name!r}: rename or remove it{nearest(name, types)}"
            )
        elif should_be := type_problem(types[name], value):
            choices = re.findall("'([^']+)'", should_be)
            found[name] = (
                f"`{name}` should be {should_be}, found {value!r} ({type(value).__name__}): "
                f"change the option of {owner}{nearest(value, choices)}"
            )
    for field in dataclasses.fields(strategy_class) if types else ():  # type: ignore[arg-type]
        has_default = not (field.default is field.default_factory is dataclasses.MISSING)
        if field.init and not has_default and field.name not in options:
            found[field.name] = (
                f"`merge_options` of {owner} should hold {field.name!r}, found none: "
                "it has no default, set it"
            )
    return found


@functools.cache
def option_types(strategy_class: type) -> dict[str, TypeAdapter[Any]]:
    """Name -> annotation, of the options that `strategy_class` takes, in order of definition.

    An annotation that cannot be evaluated (a name local to a function, say), or that pydantic
    cannot check, takes anything.
    """
    if not dataclasses.is_dataclass(strategy_class):
        return {}
    try:
        hints = get_type_hints(strategy_class, include_extras=True)
    except (NameError, AttributeError, TypeError, SyntaxError):
        hints = {}
    fields = [field.name for field in dataclasses.fields(strategy_class) if field.init]
    return {name: _adapter(hints.get(name, Any)) for name in fields}


def _adapter(annotation: Any) -> TypeAdapter[Any]:  # Any: whatever users write behind a colon.
    try:
        return TypeAdapter(annotation, config=ConfigDict(strict=True, arbitrary_types_allowed=True))
    except (PydanticUserError, SchemaError):
        return TypeAdapter(Any)


_NO_NUMBER = object()  # Fits only what takes anything.


def type_problem(annotation: TypeAdapter[Any], value: object) -> str | None:
    """What an option should be, in pydantic's words, if `value` does not fit its annotation.

    Numbers count by their value: those of NumPy are numbers, NaN and bools are none.
    """
    number = value
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        number = int(value) if isinstance(value, numbers.Integral) else float(value)
        if number != number:  # NaN.
            number = _NO_NUMBER
    try:
        taken = annotation.validate_python(number)
        if any(isinstance(taken, kind) != isinstance(number, kind) for kind in (bool, float | int)):
            # Even if strict, pydantic takes True for 1, and a tensor for its number.
            annotation.validate_python(_NO_NUMBER)
    except ValidationError as error:
        expected = [each["msg"].removeprefix("Input should be ") for each in error.errors()]
        if annotation.core_schema["type"] == "nullable":
            expected.append("None")
        return " or ".join(dict.fromkeys(expected))
    return None


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
    return _strategies[strategy](**(options or {}))


@dataclasses.dataclass(frozen=True)
class MergeChoice:
    """A strategy as a setting names it, for one part of the loss.

    Args:
        merge_strategy: A registered name, or a strategy object.
        merge_options: Its options by name.
        min_weight: Its minimum weight; None is the strategy's default.
    """

    merge_strategy: str | Weighting
    merge_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    min_weight: float | None = None

    @classmethod
    def of(cls, setting: object) -> MergeChoice:
        """Reads a name, an object, or a dict of the fields; `problems` says what is wrong."""
        return cls(**setting) if isinstance(setting, dict) else cls(setting)  # type: ignore[arg-type]

    def resolve(self) -> Weighting:
        """Returns the strategy object."""
        return resolve_strategy(self.merge_strategy, self.merge_options)
