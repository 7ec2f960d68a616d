"""Aggregators of the gradient matrix [N, P]: what looks at the gradients and not at signals.

They are TorchJD's (https://torchjd.org), the optional extra `torchjd`.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from rllib_weighted.merging.strategies import Average
from rllib_weighted.suggest import nearest

Aggregator = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class TorchJD(Average):
    """One of TorchJD's aggregators of the workers' gradients, [N, P] -> [P].

    UPGrad (arXiv 2406.16232) leaves no worker's loss to rise to first order; trimmed mean and Krum
    withstand corrupt workers, and so discard the one that succeeded. They have no minimum weight.
    Every step computes each worker's gradient by itself, in one batched pass.

    Example:
        >>> import torch
        >>> from rllib_weighted.merging import TorchJD
        >>> TorchJD("TrimmedMean", {"trim_number": 1}).aggregate(
        ...     torch.tensor([[0.0], [3.0], [100.0]])
        ... )[0].tolist()
        [3.0]

    Attributes:
        aggregator: The name of a class in `torchjd.aggregation`.
        arguments: What it is made with, by name.
    """

    aggregates_gradients: ClassVar[bool] = True
    aggregator: str = "UPGrad"
    arguments: dict[str, Any] = field(default_factory=dict)

    def problems(self) -> list[str]:
        """See `Weighting.problems`."""
        try:
            known = aggregators()
        except ImportError as error:
            return [
                "`merge_strategy`='torchjd' needs TorchJD, which cannot be imported "
                f"({error}): pip install 'rllib_weighted[torchjd]'"
            ]
        if self.aggregator not in known:
            return [
                f"`aggregator` should be among {', '.join(known)}, found {self.aggregator!r}: "
                f"use one of them{nearest(self.aggregator, known)}"
            ]
        try:
            self.make()
        except ImportError as error:
            return [f"`aggregator`={self.aggregator!r} needs another package: {error}"]
        except Exception as error:  # Whatever TorchJD makes of a user's arguments.
            wanted = inspect.signature(known[self.aggregator]).parameters
            return [
                f"`arguments` of {self.aggregator} should be those of TorchJD's class "
                f"({', '.join(map(str, wanted.values())) or 'none'}), found "
                f"{dict(self.arguments)!r}: {error}"
            ]
        return []

    def make(self) -> Aggregator:
        """Makes the aggregator; some carry a state from step to step."""
        made: Aggregator = aggregators()[self.aggregator](**self.arguments)
        return made

    def aggregate(
        self, gradients: Tensor, aggregator: Aggregator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Merges the gradients of the workers that take part.

        Args:
            gradients: [N, P], N >= 1.
            aggregator: What `make` returned; None: a new one.

        Returns:
            The merged gradient, [P], and the weights that it is the sum with, [N] float64; NaN if
            it is none.
        """
        from torchjd.aggregation import WeightedAggregator

        aggregator = self.make() if aggregator is None else aggregator
        if isinstance(aggregator, WeightedAggregator):
            weights = aggregator.weighting(gradients).detach()
            return weights.to(gradients) @ gradients, weights.double()
        unknown = torch.full((len(gradients),), torch.nan, dtype=torch.float64)
        return aggregator(gradients).detach(), unknown


def aggregators() -> dict[str, type]:
    """TorchJD's aggregators by name.

    Raises:
        ImportError: If TorchJD is not installed.
    """
    from torchjd import aggregation

    bases = ("Aggregator", "WeightedAggregator", "GramianWeightedAggregator")
    found = {name: getattr(aggregation, name) for name in aggregation.__all__ if name not in bases}
    return {n: c for n, c in found.items() if issubclass(c, aggregation.Aggregator)}


@contextlib.contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """Seeds torch's generator inside: some aggregators draw, and all learners must draw alike."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
