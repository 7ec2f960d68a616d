"""One training round on a cluster of R env runners, simulated from costs that were measured.

The env runners sample side by side, and the round waits for the slowest; then their rollouts come
through one link, are taken in by the driver one after the other, and the learner takes its steps.
Nothing overlaps, as in `WeightedPPO`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

PHASES = ("sampling", "network", "driver", "learner")


@dataclass(frozen=True)
class Costs:
    """What a round is made of. Seconds and bytes.

    Args:
        sample: Mean seconds per environment step in an env runner.
        sample_spread: Standard deviation of the logarithm of an env runner's time for a round.
        collect: Driver's seconds per env runner to ask and to take the answer, without its data.
        take_in: Driver's seconds per environment step: to read rollouts and make the batch.
        step: Learner's seconds per optimizer step, whatever its size.
        row: Learner's seconds per row of a minibatch.
        worker: Learner's seconds per worker and optimizer step.
        step_bytes: Bytes of one environment step's rollout.
        order_bytes: Bytes of what an env runner is sent per round.
        parameter_bytes: Bytes of all parameters.
    """

    sample: float
    sample_spread: float
    collect: float
    take_in: float
    step: float
    row: float
    worker: float
    step_bytes: float
    order_bytes: float
    parameter_bytes: float


@dataclass(frozen=True)
class Setup:
    """How a cluster is used.

    Args:
        steps_per_runner: Environment steps of an env runner per round; None: `batch` is shared out.
        batch: Environment steps per round over all env runners, if fixed.
        minibatch: Rows per optimizer step.
        minibatch_share: If given, a minibatch is this share of the batch instead.
        epochs: Passes over the batch.
        learners: Learners; each takes its part of every minibatch.
        bytes_per_s: What a link carries; an assumption.
        direct: Whether rollouts go straight to the learners, which take them in side by side.
    """

    steps_per_runner: int | None = 1024
    batch: int = 131_072
    minibatch: int = 256
    minibatch_share: float | None = None
    epochs: int = 10
    learners: int = 1
    bytes_per_s: float = 1.25e9
    direct: bool = False

    def steps(self, runners: int) -> int:
        """Environment steps of a round."""
        if self.steps_per_runner is None:
            return max(self.batch, runners)
        return runners * self.steps_per_runner


def simulate(
    costs: Costs, setup: Setup, runners: int, *, rounds: int = 200, seed: int = 0
) -> dict[str, float]:
    """Returns the mean seconds of each phase of a round, and environment steps per second.

    Args:
        costs: Recorded costs.
        setup: How the cluster is used.
        runners: R.
        rounds: Rounds to average over; only the slowest env runner's time is drawn.
        seed: Of the draws.
    """
    steps = setup.steps(runners)
    draws = np.random.default_rng([seed, runners]).normal(size=(rounds, runners))
    # A lognormal time of mean 1: exp(s z - s^2 / 2).
    spread = costs.sample_spread
    slowest = float(np.exp(spread * draws.max(axis=1) - spread**2 / 2).mean())
    takers = setup.learners if setup.direct else 1
    minibatch = setup.minibatch
    if setup.minibatch_share is not None:
        minibatch = math.ceil(setup.minibatch_share * steps)
    num_steps = setup.epochs * max(1, steps // minibatch)
    per_step = costs.step + (costs.row * minibatch + costs.worker * runners) / setup.learners
    if setup.learners > 1:  # A ring all-reduce carries every parameter twice.
        per_step += 2 * costs.parameter_bytes / setup.bytes_per_s
    moved = steps * costs.step_bytes / takers + runners * costs.order_bytes
    seconds = {
        "sampling": slowest * costs.sample * steps / runners,
        "network": moved / setup.bytes_per_s,
        "driver": runners * costs.collect + steps * costs.take_in / takers,
        "learner": num_steps * per_step,
    }
    return {**seconds, "steps_per_s": steps / sum(seconds.values())}


def saturation(
    costs: Costs, setup: Setup, counts: Sequence[int], *, seed: int = 0
) -> tuple[int, str, float]:
    """Returns where more env runners stop paying, what limits there, and steps per second there.

    Args:
        costs: Recorded costs.
        setup: How the cluster is used.
        counts: Numbers of env runners, rising.
        seed: Of the draws.

    Returns:
        The first count that reaches 90 % of the highest throughput of all counts, the phase that
        takes longest there, and its environment steps per second.
    """
    found = [simulate(costs, setup, count, seed=seed) for count in counts]
    best = max(each["steps_per_s"] for each in found)
    place = next(i for i, each in enumerate(found) if each["steps_per_s"] >= 0.9 * best)
    limit = max(PHASES, key=lambda phase: found[place][phase])
    return counts[place], limit, found[place]["steps_per_s"]


def remedies(setup: Setup) -> dict[str, Setup]:
    """Returns what could be changed, alone and together, by name."""
    share = setup.minibatch / setup.steps(1)
    many = replace(setup, learners=8)
    large = replace(setup, minibatch_share=min(1.0, share))
    return {
        "as it is": setup,
        "8 learners": many,
        "minibatches that grow with the batch": large,
        "both": replace(large, learners=8),
        "both, rollouts straight to the learners": replace(large, learners=8, direct=True),
    }


def fit_line(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float]:
    """Returns intercept and slope of the least-squares line, neither below 0."""
    slope, intercept = np.polyfit(np.asarray(xs, float), np.asarray(ys, float), 1)
    return max(0.0, float(intercept)), max(0.0, float(slope))
