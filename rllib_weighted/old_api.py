"""Calls of RLlib's old API stack on an algorithm: each names what takes its place.

On the new stack RLlib (2.60) still has these methods, and most of them end in an AttributeError of
something deep inside.
"""

from __future__ import annotations

from typing import Any, NoReturn

from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_LEARNER_GROUP, COMPONENT_RL_MODULE

_ACT = (
    '`algorithm.get_module().forward_inference({"obs": observations})`, whose output holds the '
    "inputs of `algorithm.get_module().get_inference_action_dist_cls()`, or `rllib evaluate` and "
    "`algorithm.evaluate()`, which go through all connectors"
)
_ONE_MODULE = "nothing: a WeightedPPO has one module, and `config.rl_module()` says which"
_EXPORT = "`algorithm.get_module().save_to_path(folder)` or `algorithm.save_to_path(folder)`"


def _refuse(name: str, successor: str) -> Any:
    def call(*args: Any, **kwargs: Any) -> NoReturn:
        raise ValueError(_problem(f"{name}()", successor))

    call.__name__, call.__doc__ = name, f"Of the old API stack: use {successor}."
    return call


def _refuse_attribute(name: str, successor: str) -> property:
    def read(self: Any) -> NoReturn:
        # What `hasattr` understands.
        raise AttributeError(_problem(name, successor))

    return property(read, doc=f"Of the old API stack: use {successor}.")


def _problem(what: str, successor: str) -> str:
    return f"`{what}` belongs to RLlib's old API stack, found the new one: use {successor}"


class NewStackOnly:
    """A mixin of algorithms: refuses the calls of the old API stack, and mends `set_weights`."""

    compute_single_action = _refuse("compute_single_action", _ACT)
    compute_actions = _refuse("compute_actions", _ACT)
    get_policy = _refuse("get_policy", "`algorithm.get_module()`")
    add_policy = _refuse("add_policy", _ONE_MODULE)
    remove_policy = _refuse("remove_policy", _ONE_MODULE)
    export_policy_model = _refuse("export_policy_model", _EXPORT)
    export_policy_checkpoint = _refuse("export_policy_checkpoint", _EXPORT)
    from_state = staticmethod(_refuse("from_state", "`WeightedPPO.from_checkpoint(folder)`"))
    workers = _refuse_attribute("workers", "`algorithm.env_runner_group`")
    evaluation_workers = _refuse_attribute(
        "evaluation_workers", "`algorithm.eval_env_runner_group`"
    )

    def set_weights(self, weights: dict[str, Any]) -> None:
        """Sets the parameters of modules, as `get_weights` returns them.

        RLlib's own (2.60) sets them, and then calls a method of its env runners that raises.
        """
        state = {COMPONENT_LEARNER_GROUP: {COMPONENT_LEARNER: {COMPONENT_RL_MODULE: weights}}}
        self.set_state(state)  # type: ignore[attr-defined]  # Of the algorithm.
