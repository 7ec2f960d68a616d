"""What the simulated cluster says, as tables and sentences that follow from the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from cluster_model import (
    PHASES,
    Costs,
    Network,
    Saturation,
    Setup,
    doubling_ends,
    remedies,
    saturation,
    simulate,
)

RUNNERS = (2, 5, 10, 20, 50, 100, 200, 500, 1000)
BEYOND = (2000, 4000, 8000, 16_000)
FINE = tuple(sorted({round(x) for x in np.geomspace(2, 1000, 60)}))


def cluster_text(
    costs: Costs, network: Network, *, learners: int, runners: Sequence[int] = RUNNERS
) -> tuple[str, list[dict[str, Any]]]:
    """Returns tables and sentences as Markdown, and a record per env runners, remedy and phase.

    Args:
        costs: Recorded costs.
        network: The assumptions.
        learners: Learners of the remedies that have more than one.
        runners: Numbers of env runners of the tables.
    """
    text, records = [assumptions(network)], []
    weak = Setup(network=network)
    strong = replace(weak, steps_per_runner=None)
    for title, setup in (
        (f"{weak.steps_per_runner} steps per env runner and round", weak),
        (f"{strong.batch:,} steps per round, shared out", strong),
    ):
        text += [f"### {title}", rounds_table(costs, setup, runners)]
        changes = remedies(setup, learners=learners)
        found = {n: saturation(costs, s, FINE, beyond=BEYOND) for n, s in changes.items()}
        text += [saturation_table(found), sentences(found)]
        if setup.steps_per_runner is None:
            text.append(doubling_sentence(doubling_ends(costs, setup, FINE)))
        for name, changed in changes.items():
            for count in runners:
                result = simulate(costs, changed, count)
                series = [(f"{title}: {name}: {part}", result[part]) for part in (*PHASES, "round")]
                records += [{"x": str(count), "series": s, "seconds": t} for s, t in series]
    return "\n\n".join(text), records


def assumptions(network: Network) -> str:
    """Returns what was not measured."""
    return (
        f"Assumed, not measured: {8e-9 * network.bytes_per_s:g} Gbit/s at the driver and at each "
        f"learner, {1e3 * network.latency:g} ms until a transfer flows, {network.streams} "
        f"transfers at a time, {network.runners_per_node} env runners per machine, a core for "
        "each and for the driver; all machines as fast as this one, an env runner's times as "
        "scattered as one's are here, one worker per env runner. Minibatches of 256, or of one "
        "step per worker where there are more workers, which is the least that the package "
        "takes. Every optimizer step of several learners waits for two all-reduces."
    )


def rounds_table(costs: Costs, setup: Setup, runners: Sequence[int]) -> str:
    """Returns the seconds of each phase, and what they come to, against the env runners."""
    lines = [
        f"| env runners | {' | '.join(f'{phase}, s' for phase in PHASES)} | round, s | steps/s "
        "| learner's share |",
        "|---" * (len(PHASES) + 4) + "|",
    ]
    for count in runners:
        found = simulate(costs, setup, count)
        cells = [f"{found[name]:.3f}" for name in (*PHASES, "round")]
        share = found["learner"] / found["round"]
        lines.append(
            f"| {count} | {' | '.join(cells)} | {found['steps_per_s']:,.0f} | {share:.0%} |"
        )
    return "\n".join(lines)


def saturation_table(found: dict[str, Saturation]) -> str:
    """Returns where throughput reaches 90 % of its limit, for each change."""
    lines = [
        f"| | 90 % of the limit at | what takes longest there | steps/s at {FINE[-1]:,} "
        "| against as it is | limit, steps/s |",
        "|---|---|---|---|---|---|",
    ]
    first = next(iter(found.values())).at_last
    for name, each in found.items():
        lines.append(
            f"| {name} | {_count(each.runners)} | {each.phase}, {each.share:.0%} "
            f"| {each.at_last:,.0f} | {each.at_last / first:.2f} | {each.limit:,.0f} |"
        )
    return "\n".join(lines)


def sentences(found: dict[str, Saturation]) -> str:
    """Returns the same in words.

    Args:
        found: Name -> where it saturates; the first is as it is.
    """
    (_, now), *others = found.items()
    where = f"at {now.runners}" if now.runners else f"at none of up to {FINE[-1]:,}"
    text = (
        f"As it is, throughput reaches 90 % of its limit {where} env runners; the {now.phase} "
        f"takes {now.share:.0%} of the round {'there' if now.runners else 'at the last'}."
    )
    if now.runners and now.at_last < 0.9 * now.limit:
        text += (
            f" Then it falls: with {FINE[-1]:,} it is {now.at_last / now.limit:.0%} of the limit."
        )
    gains = {name: each.at_last / now.at_last for name, each in others}
    ranked = sorted(gains, key=lambda name: -gains[name])
    helping = [name for name in ranked if gains[name] >= 1.1]
    idle = [name for name in ranked if 0.9 < gains[name] < 1.1]
    harmful = [name for name in ranked if gains[name] <= 0.9]
    for names, verb in (
        (helping, "What would raise it"),
        (idle, "What would change it by less than a tenth"),
        (harmful, "What would lower it"),
    ):
        if names:
            listed = "; ".join(f"{name} ({gains[name]:.2f} times)" for name in names)
            text += f" {verb} with {FINE[-1]:,} env runners: {listed}."
    if helping:
        best = found[helping[0]]
        text += (
            f" With {helping[0]}, 90 % of the limit are reached at {_count(best.runners)}, and "
            f"the {best.phase} takes longest."
        )
    return (
        f"{text} Larger minibatches are fewer optimizer steps: what that does to learning is not "
        "in here."
    )


def doubling_sentence(runners: int | None) -> str:
    """Returns from where on a round of a fixed batch is far from halved."""
    if runners is None:
        return f"Up to {FINE[-1]:,} env runners, twice as many save a quarter of a round or more."
    return (
        f"From {runners} env runners on, twice as many no longer halve the round, nor save a "
        "quarter of it."
    )


def _count(runners: int | None) -> str:
    return f"more than {FINE[-1]:,}" if runners is None else f"{runners:,}"
