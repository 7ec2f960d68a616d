"""Which class of a learner's ancestry a method comes from."""

from __future__ import annotations

_OWN_PACKAGES = ("ray.rllib.", "rllib_weighted.")


def definer(cls: type, method: str) -> type:
    """Returns the class whose `method` an instance of `cls` has.

    Not told by the function itself: in an actor, Ray Train's subclass of every learner wraps all
    methods for tracing.
    """
    own = (c for c in cls.__mro__ if not c.__module__.startswith("ray.train."))
    return next(c for c in own if method in vars(c))


def overrider(cls: type, method: str) -> str | None:
    """Returns the name of a user's class whose `method` it is; None if it is RLlib's or ours."""
    owner = definer(cls, method)
    return None if owner.__module__.startswith(_OWN_PACKAGES) else owner.__name__
