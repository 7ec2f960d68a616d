"""Why a fast path is not taken: requirements in one form, checked in order.

Every fast path states what it needs as a tuple of `Requirement`. The first one that is not met is
the reason that the log gives; all of them together are the table in CONTRIBUTING.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

Subject = TypeVar("Subject")


@dataclass(frozen=True)
class Requirement(Generic[Subject]):
    """One thing that a fast path needs.

    Args:
        needs: What must hold, as the table in CONTRIBUTING says it.
        reason: Subject -> why it does not hold, for the log; None if it does.
    """

    needs: str
    reason: Callable[[Subject], str | None]


def required(needs: str, holds: Callable[[Subject], bool], otherwise: str) -> Requirement[Subject]:
    """Returns a requirement with one reason: what the log says if it does not hold."""
    return Requirement(needs, lambda subject: None if holds(subject) else otherwise)


def first_reason(requirements: Iterable[Requirement[Subject]], subject: Subject) -> str | None:
    """Returns why the first requirement that is not met is not met; None if all are."""
    reasons = (requirement.reason(subject) for requirement in requirements)
    return next((reason for reason in reasons if reason is not None), None)
