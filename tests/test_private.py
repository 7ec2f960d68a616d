"""Canaries: fails with the name and the version when upstream changes what we lean on."""

from __future__ import annotations

import gymnasium
import pytest
import ray

from rllib_weighted._private import NAMES, PrivateName


@pytest.mark.parametrize("private", NAMES, ids=lambda private: f"{private.owner}.{private.name}")
def test_a_private_name_is_as_it_was(private: PrivateName) -> None:
    problem = private.problem()
    assert problem is None, (
        f"Ray {ray.__version__}, gymnasium {gymnasium.__version__}: {problem}. "
        f"It is needed for: {private.reason}"
    )


def test_a_name_that_is_gone_is_noticed() -> None:
    gone = PrivateName("ray.rllib.algorithms.algorithm:Algorithm", "_not_there", "nothing")
    assert "has no `_not_there` any more" in str(gone.problem())


def test_a_class_that_is_gone_is_noticed() -> None:
    gone = PrivateName("ray.rllib.algorithms.algorithm:NotThere", "_x", "nothing")
    assert "NotThere is gone" in str(gone.problem())


def test_other_parameters_are_noticed() -> None:
    other = PrivateName("ray.rllib.algorithms.algorithm:Algorithm", "step", "nothing", ("x",))
    assert "takes (), not ('x',)" in str(other.problem())
