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
    Place,
    Saturation,
    Setup,
    levels_off,
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
        text += [saturation_table(found), sentences(found, setup.minibatch)]
        if setup.steps_per_runner is None:
            text.append(doubling_sentence(levels_off(costs, setup, FINE, times=(2,), gain=4 / 3)))
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
    """Returns where throughput levels off and reaches 90 % of its limit, for each change."""
    lines = [
        "| | up to 8 times as many bring < 10 % from | 90 % of the limit at | limit, steps/s "
        f"| steps/s at {FINE[-1]:,} | to as it is |",
        "|---|---|---|---|---|---|",
    ]
    first = next(iter(found.values())).at_last
    for name, each in found.items():
        lines.append(
            f"| {name} | {_cell(each.knee)} | {_cell(each.ninety)} | {each.limit:,.0f} "
            f"| {each.at_last:,.0f} | {each.at_last / first:.2f} |"
        )
    return "\n".join(lines)


def sentences(found: dict[str, Saturation], minibatch: int) -> str:
    """Returns the same in words.

    Args:
        found: Name -> where it saturates; the first is as it is.
        minibatch: Rows per optimizer step that were asked for.
    """
    (_, now), *others = found.items()
    text = ["As it is,", _in_words(now)]
    if now.ninety.runners and now.at_last < 0.9 * now.limit:
        text.append(f"With {FINE[-1]:,} it is {now.at_last / now.limit:.0%} of the limit.")
    end = now.ninety.runners or FINE[-1]
    if now.knee.runners and now.knee.runners <= minibatch < end:
        text.append(
            f"That it rises again lies behind {minibatch} env runners, where minibatches have to "
            "grow with the workers."
        )
    gains = {name: each.at_last / now.at_last for name, each in others}
    ranked = sorted(gains, key=lambda name: -gains[name])
    for start, names in (
        ("What would raise it", [n for n in ranked if gains[n] >= 1.1]),
        ("What would change it by less than a tenth", [n for n in ranked if 0.9 < gains[n] < 1.1]),
        ("What would lower it", [n for n in ranked if gains[n] <= 0.9]),
    ):
        if names:
            listed = "; ".join(f"{name} ({gains[name]:.2f} times)" for name in names)
            text.append(f"{start} with {FINE[-1]:,} env runners: {listed}.")
    if gains[ranked[0]] >= 1.1:
        text += [f"With {ranked[0]},", _in_words(found[ranked[0]])]
    text.append(
        "Larger minibatches are fewer optimizer steps: what that does to learning is not here."
    )
    return " ".join(text)


def _in_words(found: Saturation) -> str:
    knee, ninety = found.knee, found.ninety
    last = f"{FINE[-1]:,}"
    if knee.runners:
        first = (
            f"up to 8 times as many env runners bring less than a tenth from {knee.runners:,} on"
        )
    else:
        first = f"8 times as many env runners bring a tenth or more up to {last}"
    second = (
        f"90 % of the limit are reached at {ninety.runners:,}"
        if ninety.runners
        else f"90 % of the limit are not reached by {last}"
    )
    there = f"at {knee.runners or last}"
    return f"{first}, and {second}; {there} the {knee.phase} takes {knee.share:.0%} of the round."


def doubling_sentence(runners: int | None) -> str:
    """Returns from where on a round of a fixed batch is far from halved."""
    if runners is None:
        return f"Up to {FINE[-1]:,} env runners, twice as many save a quarter of a round or more."
    return (
        f"From {runners} env runners on, twice as many no longer halve the round, nor save a "
        "quarter of it."
    )


def _cell(place: Place) -> str:
    count = f"> {FINE[-1]:,}" if place.runners is None else f"{place.runners:,}"
    return f"{count} ({place.phase} {place.share:.0%})"
