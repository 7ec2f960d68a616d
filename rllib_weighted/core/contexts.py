"""Contexts: what an environment is made with besides `env_config`, per worker or per level."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from rllib_weighted.core.envs import context_keys
from rllib_weighted.suggest import nearest

Context: TypeAlias = dict[str, Any]
WorkerContexts: TypeAlias = Sequence[Mapping[str, Any]] | Callable[[int], Mapping[str, Any]]


def resolve_contexts(given: WorkerContexts | None, num_workers: int) -> list[Context]:
    """Returns the contexts that `worker_env_config` gives; [] without any.

    Args:
        given: One dict per worker, or a function from a worker's number to its dict. A function is
            called in several processes and must return the same in each.
        num_workers: How often a function is asked; a list is taken as it is.
    """
    if given is None:
        return []
    if callable(given):
        return [dict(given(worker)) for worker in range(num_workers)]
    return [dict(context) for context in given]


def context_problems(
    setting: str, given: Any, *, num_workers: int, env: Any, backend: str, any_number: bool = False
) -> Iterator[str]:
    """What is wrong with contexts, a sentence each.

    Args:
        setting: The setting's name.
        given: What the user set; None is never wrong.
        num_workers: N.
        env: What the config holds as `env`.
        backend: The setting `env_backend`.
        any_number: Whether a list may have another length than N (but not 0).
    """
    if given is None:
        return
    if callable(given):
        try:
            found: Any = [_called(setting, given, worker) for worker in range(num_workers)]
        except _CallFailedError as error:
            yield str(error)
            return
    elif isinstance(given, (list, tuple)):
        found = given
    else:
        yield (
            f"`{setting}` should be a list of dicts, one per worker, or a function from a worker's "
            f"number to its dict, found {given!r}: write [{{…}}, …], or leave it out"
        )
        return
    if not found or not (any_number or len(found) == num_workers):
        wanted = "of one dict or more" if any_number else f"of {num_workers} dicts, one per worker"
        yield (
            f"`{setting}` should be a list {wanted}, found {len(found)}: add or remove some, or "
            "use a function from the worker's number to its dict"
        )
    yield from key_problems(setting, found, "worker", env=env, backend=backend)


class _CallFailedError(Exception):
    """A user's function raised."""


def _called(setting: str, function: Callable[[int], Any], worker: int) -> Any:
    try:
        return function(worker)
    except Exception as error:
        raise _CallFailedError(
            f"`{setting}` should return a dict for each worker, but raised for worker {worker}: "
            f"mend the function\n{users_traceback(error)}"
        ) from None


def users_traceback(error: Exception) -> str:
    """Returns the traceback of a user's function, without the frame that called it."""
    own = error.__traceback__ and error.__traceback__.tb_next
    return "".join(traceback.format_exception(type(error), error, own)).rstrip()


def key_problems(
    setting: str, contexts: Iterable[Any], owner: str, *, env: Any, backend: str
) -> Iterator[str]:
    """What is wrong with single contexts: no dict, or a key that the environment does not take.

    Args:
        setting: The setting's name.
        contexts: The contexts.
        owner: What has one, in a word.
        env: What the config holds as `env`.
        backend: The setting `env_backend`.
    """
    known = context_keys(env, backend)
    told = set()
    for number, context in enumerate(contexts):
        if not isinstance(context, Mapping) or not all(isinstance(key, str) for key in context):
            yield (
                f"`{setting}` should hold dicts with texts as keys, found {context!r} for {owner} "
                f'{number}: write {{"gravity": -5.0}}, say'
            )
            continue
        for key in context:
            if known is not None and key not in known and key not in told:
                told.add(key)
                yield (
                    f"`{setting}` should hold keys that {env!r} takes ({', '.join(known)}), found "
                    f"{key!r} for {owner} {number}{nearest(key, known) or ': rename or remove it'}"
                )
