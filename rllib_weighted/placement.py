"""Whether a trial's processes can be placed on a cluster's nodes, and how often at once."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.tune import PlacementGroupFactory

Resources = Mapping[str, float]

GROWS_VARIABLE = "RLLIB_WEIGHTED_CLUSTER_GROWS"
"""Set to 1 where nodes join by themselves: what is not there yet is then waited for."""

_MAX_TRIES = 10_000
_MAX_PROCESSES = 200  # A trial with more is only counted in all: the search goes that deep.
_TOLERANCE = 1e-9  # Ray counts in units of 1e-4.


def cluster_nodes() -> list[dict[str, float]]:
    """Returns what each living node of the running Ray has in all."""
    import ray

    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def cluster_grows() -> bool:
    """Whether the user says that the cluster adds nodes by itself (an autoscaler does).

    It has to be said: Ray (2.60) has no way to ask whether more nodes will come.
    """
    return os.environ.get(GROWS_VARIABLE, "0") not in ("", "0")


def total(bundles: Iterable[Resources]) -> dict[str, float]:
    """Returns the sum of several bundles; resources of which they take none are left out."""
    sums: Counter[str] = Counter()
    for bundle in bundles:
        sums.update(bundle)
    return {name: amount for name, amount in sums.items() if amount}


def placement_problem(
    request: PlacementGroupFactory, nodes: Sequence[Resources] | None = None
) -> str | None:
    """Returns why a trial can never be placed, with the numbers; None if it can.

    Args:
        request: What the trial asks for: a bundle of resources per process.
        nodes: What each node has in all; None asks the running Ray. Without one the answer is
            None.
    """
    if nodes is None:
        import ray

        if not ray.is_initialized():
            return None
        nodes = cluster_nodes()
    asked, there = total(request.bundles), total(nodes)
    short = [name for name, amount in asked.items() if amount > there.get(name, 0) + _TOLERANCE]
    if short:
        return (
            f"a trial takes {describe(asked, short)} and Ray has {describe(there, short)}, so it "
            "would wait for ever"
        )
    if not _can_be_placed(request, nodes):
        bundles = Counter(describe(bundle) for bundle in _bundles(request))
        listed = ", ".join(f"{count} x {bundle}" for bundle, count in bundles.items())
        names = list(asked)
        return (
            f"a trial's processes ({listed}; {request.strategy}) do not fit on the "
            f"{len(nodes)} node{'s' * (len(nodes) > 1)} of Ray "
            f"({'; '.join(describe(node, names) for node in nodes)}), so it would wait for ever"
        )
    return None


def trial_problem(config: Any, request: PlacementGroupFactory) -> str | None:
    """Returns why a trial of a config can never be placed, and what to do; None if it can.

    None as well where the user says that the cluster grows.

    Args:
        config: An `AlgorithmConfig`.
        request: What its trial asks for.
    """
    problem = None if cluster_grows() else placement_problem(request)
    if problem is None:
        return None
    settings = {
        "num_env_runners": config.num_env_runners,
        "num_cpus_per_env_runner": config.num_cpus_per_env_runner,
        "num_learners": config.num_learners,
        "num_gpus_per_learner": config.num_gpus_per_learner,
    }
    listed = ", ".join(f"`{name}` (={value})" for name, value in settings.items())
    return (
        f"{problem}: lower one of {listed}, start a Ray with more, or set {GROWS_VARIABLE}=1 if "
        "nodes will join by themselves"
    )


def num_at_once(request: PlacementGroupFactory, nodes: Sequence[Resources], limit: int) -> int:
    """Returns how many trials of a kind run at once on empty nodes, at most `limit`."""
    left = nodes
    for count in range(limit):
        after = _first_fit(request, left)
        if after is None:
            return count
        left = after
    return limit


def describe(resources: Resources, names: Iterable[str] | None = None) -> str:
    """Returns resources as people read them: `2 CPUs, 1 GPU`.

    Args:
        resources: Amounts by name.
        names: Which to name; None names those of which there are some.
    """
    shown = list(names) if names is not None else [name for name in resources if resources[name]]
    return ", ".join(_amount(name, resources.get(name, 0)) for name in shown) or "nothing"


def _amount(name: str, amount: float) -> str:
    plural = "s" if name in ("CPU", "GPU") and amount != 1 else ""
    return f"{amount:g} {name}{plural}"


def _bundles(request: PlacementGroupFactory) -> list[Resources]:
    """Returns the bundles that must each lie on a single node, the largest first."""
    bundles = [bundle for bundle in request.bundles if any(bundle.values())]
    if request.strategy == "STRICT_PACK" and bundles:
        return [total(bundles)]
    return sorted(bundles, key=lambda bundle: (len(bundle), sum(bundle.values())), reverse=True)


def _first_fit(
    request: PlacementGroupFactory, nodes: Sequence[Resources]
) -> list[Resources] | None:
    """Returns what is left of the nodes if each process goes to the first one with room.

    None if one of them then finds no room; another way of placing them may exist.
    """
    left = list(nodes)
    used: set[int] = set()
    for bundle in _bundles(request):
        free = (i for i, node in enumerate(left) if i not in used and _fits(bundle, node))
        index = next(free, None)
        if index is None:
            return None
        left[index] = _minus(left[index], bundle)
        if request.strategy == "STRICT_SPREAD":
            used.add(index)
    return left


def _can_be_placed(request: PlacementGroupFactory, nodes: Sequence[Resources]) -> bool:
    bundles = _bundles(request)
    if _first_fit(request, nodes) is not None or len(bundles) > _MAX_PROCESSES:
        return True
    search = _Search(one_per_node=request.strategy == "STRICT_SPREAD")
    return search.fits(bundles, list(nodes), frozenset())


class _Search:
    """Tries all ways to put bundles on nodes, up to a number of tries.

    After that many it takes the trial as one that fits: an error must be certain.
    """

    def __init__(self, *, one_per_node: bool) -> None:
        self._one_per_node = one_per_node
        self._tries = 0

    def fits(self, bundles: list[Resources], nodes: list[Resources], used: frozenset[int]) -> bool:
        """Whether there is a way.

        Args:
            bundles: What is still to be placed.
            nodes: What each node has left.
            used: Nodes that take no more of them.
        """
        self._tries += 1
        if not bundles or self._tries > _MAX_TRIES:
            return True
        bundle, *rest = bundles
        tried: list[Resources] = []
        for index, node in enumerate(nodes):
            # Nodes that have the same left need not be tried twice.
            if index in used or node in tried or not _fits(bundle, node):
                continue
            tried.append(node)
            after = [*nodes[:index], _minus(node, bundle), *nodes[index + 1 :]]
            if self.fits(rest, after, used | {index} if self._one_per_node else used):
                return True
        return False


def _fits(bundle: Resources, node: Resources) -> bool:
    return all(amount <= node.get(name, 0) + _TOLERANCE for name, amount in bundle.items())


def _minus(node: Resources, bundle: Resources) -> Resources:
    return {name: amount - bundle.get(name, 0) for name, amount in node.items()}
