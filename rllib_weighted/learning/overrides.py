"""Which class of a learner's ancestry a method comes from."""

from __future__ import annotations


def definer(cls: type, method: str) -> type:
    """Returns the class whose `method` an instance of `cls` has.

    Not told by the function itself: in an actor, Ray Train's subclass of every learner wraps all
    methods for tracing.
    """
    own = (c for c in cls.__mro__ if not c.__module__.startswith("ray.train."))
    return next(c for c in own if method in vars(c))
