"""One training round on a cluster of R env runners, simulated from costs that were measured.

The env runners sample side by side, each at a speed drawn for the round. Ray fetches what they
send while others still sample; the link carries one after the other. When all are there, the
driver reads them one by one, and the learner takes its steps. Every env runner is one worker.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

PHASES = ("sampling", "network", "driver", "learner")


@dataclass(frozen=True)
class Costs:
    """What a round is made of, as recorded. Seconds and bytes.

    Args:
        sample: Mean seconds per environment step in an env runner.
        sample_spread: Standard deviation of the logarithm of an env runner's time for a round.
        collect: Driver's seconds per env runner to ask and to take the answer, without its steps.
        read: Driver's seconds per environment step to unpickle it and to sort it by worker.
        build: Learner's seconds per environment step before and after its optimizer steps.
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
    read: float
    build: float
    step: float
    row: float
    worker: float
    step_bytes: float
    order_bytes: float
    parameter_bytes: float


@dataclass(frozen=True)
class Network:
    """Assumptions: what one machine cannot measure.

    Args:
        bytes_per_s: What the link of a driver or a learner carries, in each direction.
        latency: Seconds until a transfer begins to flow.
        streams: Transfers at a time; they share the link and hide each other's latency.
        runners_per_node: Env runners on a machine; they share one copy of the round's order.
    """

    bytes_per_s: float = 1.25e9
    latency: float = 5e-4
    streams: int = 8
    runners_per_node: int = 8

    def seconds(self, transfers: float, num_bytes: float) -> float:
        """Returns the seconds of some transfers that have that many bytes together."""
        return transfers * self.latency / self.streams + num_bytes / self.bytes_per_s


@dataclass(frozen=True)
class Setup:
    """How a cluster is used.

    Args:
        steps_per_runner: Environment steps of an env runner per round; None: `batch` is shared out.
        batch: Environment steps per round over all env runners, if fixed.
        minibatch: Rows per optimizer step, at least. The package wants one per worker or more.
        minibatch_share: Rows per optimizer step as a share of the batch, at least.
        epochs: Passes over the batch.
        learners: Learners; each takes its workers' part of every minibatch.
        direct: Whether env runners send rollouts to the learners and not through the driver.
        network: The assumptions.
    """

    steps_per_runner: int | None = 1024
    batch: int = 131_072
    minibatch: int = 256
    minibatch_share: float = 0.0
    epochs: int = 10
    learners: int = 1
    direct: bool = False
    network: Network = field(default_factory=Network)

    def steps(self, runners: int) -> int:
        """Environment steps of a round."""
        if self.steps_per_runner is None:
            return max(self.batch, runners)
        return runners * self.steps_per_runner

    def minibatches(self, runners: int) -> int:
        """Optimizer steps per epoch."""
        steps = self.steps(runners)
        rows = max(self.minibatch, runners, math.ceil(self.minibatch_share * steps))
        return max(1, steps // rows)


def simulate(
    costs: Costs, setup: Setup, runners: int, *, rounds: int = 200, seed: int = 0
) -> dict[str, float]:
    """Returns the mean seconds of each phase of a round, of the round, and steps per second.

    Args:
        costs: Recorded costs.
        setup: How the cluster is used.
        runners: R.
        rounds: Rounds to average over; the env runners' times are drawn anew in each.
        seed: Of the draws.
    """
    sampling, waited = _arrivals(costs, setup, runners, rounds=rounds, seed=seed)
    network, steps, learners = setup.network, setup.steps(runners), setup.learners
    nodes = math.ceil(runners / network.runners_per_node)
    moving = network.seconds(nodes, nodes * costs.order_bytes) + waited
    reading = steps * costs.read
    learning = steps * costs.build / learners + _steps_seconds(costs, setup, runners)
    driving = runners * costs.collect
    if setup.direct:
        learning += reading / learners
    else:
        driving += reading
        if learners > 1:  # The driver hands on what it has read.
            moving += network.seconds(learners, steps * costs.step_bytes)
    seconds = dict(zip(PHASES, (sampling, moving, driving, learning), strict=True))
    total = sum(seconds.values())
    return {**seconds, "round": total, "steps_per_s": steps / total}


def _arrivals(
    costs: Costs, setup: Setup, runners: int, *, rounds: int, seed: int
) -> tuple[float, float]:
    """Returns when the slowest has sampled, and how much later the link has carried everything."""
    steps = setup.steps(runners) / runners
    takers = setup.learners if setup.direct else 1
    draws = np.random.default_rng([seed, runners]).normal(size=(rounds, runners))
    # A lognormal time of mean 1: exp(s z - s^2 / 2).
    speeds = np.exp(costs.sample_spread * draws - costs.sample_spread**2 / 2)
    sampled = np.sort(costs.sample * steps * speeds, axis=1)
    each = setup.network.seconds(1, steps * costs.step_bytes) / takers
    # The link is done when it is free from the k-th on: that one, and all that come after it.
    carried = (sampled + each * np.arange(runners, 0, -1)).max(axis=1)
    slowest = float(sampled[:, -1].mean())
    return slowest, float(carried.mean()) - slowest


def _steps_seconds(costs: Costs, setup: Setup, runners: int) -> float:
    """Returns the seconds of a round's optimizer steps."""
    learners, network = setup.learners, setup.network
    per_step = costs.step + costs.worker * runners / learners
    if learners > 1:  # A ring all-reduce, and one of the workers' losses before it.
        moved = 2 * (learners - 1) / learners * costs.parameter_bytes
        per_step += moved / network.bytes_per_s + 2 * network.latency
    rows = costs.row * setup.steps(runners) / learners
    return setup.epochs * (setup.minibatches(runners) * per_step + rows)


@dataclass(frozen=True)
class Place:
    """A number of env runners, and what limits there.

    Args:
        runners: R; None: there is no such place, and the rest is of the last count.
        phase: The phase that takes longest.
        share: Its share of the round.
    """

    runners: int | None
    phase: str
    share: float


@dataclass(frozen=True)
class Saturation:
    """Where more env runners stop paying.

    Args:
        knee: The first count of which twice to 8 times as many bring less than a tenth more.
        ninety: The first count that reaches 90 % of the limit.
        limit: The highest environment steps per second of all counts and of `beyond`.
        at_last: Environment steps per second at the last count.
    """

    knee: Place
    ninety: Place
    limit: float
    at_last: float


def saturation(
    costs: Costs, setup: Setup, counts: Sequence[int], *, beyond: Sequence[int] = (), seed: int = 0
) -> Saturation:
    """Returns where throughput levels off, where it reaches 90 % of its limit, and what limits.

    Args:
        costs: Recorded costs.
        setup: How the cluster is used.
        counts: Numbers of env runners, rising.
        beyond: Greater numbers, only to find the limit: else 90 % of a line that still rises
            straight would look like one.
        seed: Of the draws.
    """
    found = {count: simulate(costs, setup, count, seed=seed) for count in counts}
    further = [simulate(costs, setup, count, rounds=10, seed=seed) for count in beyond]
    limit = max(each["steps_per_s"] for each in (*found.values(), *further))
    reached = [count for count in counts if found[count]["steps_per_s"] >= 0.9 * limit]

    def place(count: int | None) -> Place:
        there = found[counts[-1] if count is None else count]
        phase = max(PHASES, key=lambda name: there[name])
        return Place(count, phase, there[phase] / there["round"])

    return Saturation(
        place(levels_off(costs, setup, counts, seed=seed)),
        place(reached[0] if reached else None),
        limit,
        found[counts[-1]]["steps_per_s"],
    )


def levels_off(
    costs: Costs,
    setup: Setup,
    counts: Sequence[int],
    *,
    times: Sequence[int] = (2, 4, 8),
    gain: float = 1.1,
    seed: int = 0,
) -> int | None:
    """Returns the first count at which more env runners bring less than `gain` times as much.

    Args:
        costs: Recorded costs.
        setup: How the cluster is used.
        counts: Numbers of env runners, rising.
        times: How many times as many are tried; none of them may bring more.
        gain: Of the environment steps per second. Twice as many env runners can bring twice as
            much at best; of a fixed batch, that is half of the round's time.
        seed: Of the draws.

    Returns:
        None if there is none among the counts.
    """

    def speed(count: int) -> float:
        return simulate(costs, setup, count, rounds=50, seed=seed)["steps_per_s"]

    for count in counts:
        least = gain * speed(count)
        if all(speed(factor * count) < least for factor in times):
            return count
    return None


def remedies(setup: Setup, *, learners: int = 8) -> dict[str, Setup]:
    """Returns what could be changed, by name; minibatches grow as a 16th of the batch."""
    many = replace(setup, learners=learners)
    direct = replace(many, direct=True)
    large = 1 / 16
    return {
        "as it is": setup,
        f"{learners} learners": many,
        f"{learners} learners, rollouts straight to them": direct,
        "minibatches of a 16th of the batch": replace(setup, minibatch_share=large),
        "all of these": replace(direct, minibatch_share=large),
    }


def fit_line(
    xs: Sequence[float], ys: Sequence[float], *, relative: bool = False
) -> tuple[float, float]:
    """Returns intercept and slope of the least-squares line, neither below 0.

    Args:
        xs: Where.
        ys: What was found there.
        relative: Whether errors count as a share of what was found, which is then above 0: else
            the greatest say nearly everything, and the intercept is left to chance.
    """
    x, y = np.asarray(xs, float), np.asarray(ys, float)
    slope, intercept = np.polyfit(x, y, 1, w=1 / y if relative else None)
    return max(0.0, float(intercept)), max(0.0, float(slope))
