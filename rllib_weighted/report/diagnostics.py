"""Would weighting pay? What the workers' gradients predicted, where a run measured them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from rllib_weighted.report.figures import Drawing, EnvFigures, canvas, plain
from rllib_weighted.report.formats import format_number
from rllib_weighted.report.tables import Tables, View, of_env

WORTH = 1.05
"""Predicted speed from which on a strategy is said to be worth a try."""

_ESTIMATES = {
    "noise_scale": "noise scale",
    "heterogeneity": "heterogeneity",
    "agreement": "agreement",
}
_NUM_BINS = 20
_OPTIONS = {"advantage_scaled_inverse": "advantage_scaled(exponent=-1)"}
"""What is to be set for what has no name of its own among the strategies."""
_NO_CHOICE = ("average", "sum")  # They have equal weights: nothing to predict.


def diagnostics_view(tables: Tables, env: str) -> View | None:
    """Returns the estimates of each arm, and the strategies by their predicted speed."""
    table = of_env(tables.diagnostics, env)
    if table.empty:
        return None
    medians = table.groupby(["arm", "name"], sort=False)["value"].median()
    arms = list(dict.fromkeys(table["arm"]))
    columns: dict[str, list[str]] = {"arm": arms}
    for name, heading in _ESTIMATES.items():
        columns[heading] = [format_number(medians.get((arm, name), np.nan)) for arm in arms]
    columns["predicted speed, by strategy"] = [_ranking(medians[arm]) for arm in arms]
    measured = table[table["name"] == "noise_scale"].groupby("arm", sort=False)["value"].size()
    columns["measurements"] = [str(measured.get(arm, 0)) for arm in arms]
    return View(
        "Gradients",
        columns,
        "Medians over all measurements of an arm's runs. Noise scale: noise over signal of the "
        "average of the workers' gradients; heterogeneity: spread between workers over the noise "
        "within them; predicted speed: against the average, if all workers' expected gradients are "
        "equal. A prediction, no measurement of learning.",
    )


def diagnostics_sentences(tables: Tables, env: str) -> list[str]:
    """Returns, for each arm that measured, what it says of weighting, as a sentence."""
    table = of_env(tables.diagnostics, env)
    found = []
    for arm, part in table.groupby("arm", sort=False):
        speeds = _speeds(part.groupby("name", sort=False)["value"].median())
        if not len(speeds):
            continue
        best, speed = _strategy(speeds.index[0]), float(speeds.iloc[0])
        if speed >= WORTH:
            verdict = (
                f"perhaps: {best} is predicted to be {100 * (speed - 1):.0f} % faster than the "
                "average; try it"
            )
        else:
            verdict = (
                f"hardly: the best strategy, {best}, is predicted to be {100 * (speed - 1):+.1f} % "
                "faster than the average"
            )
        found.append(f"By the gradients of {arm}, would weighting pay? {verdict.capitalize()}.")
    return found


def draw_diagnostics(tables: Tables) -> Iterator[Drawing]:
    """Draws the predicted speed of each strategy over the steps, of one arm per environment."""
    for number, env in enumerate(tables.thresholds, start=1):
        table = of_env(tables.diagnostics, env)
        if not table.empty:
            yield from _draw(EnvFigures(number, env, tables, {}, []), table)


def _draw(figures: EnvFigures, table: pd.DataFrame) -> Iterator[Drawing]:
    arm = table["arm"].iat[0]
    part = table[(table["arm"] == arm) & table["name"].str.startswith("speed/")]
    edges = np.linspace(0, part["env_steps"].max(), _NUM_BINS + 1)
    place = np.clip(np.searchsorted(edges, part["env_steps"], side="left"), 1, _NUM_BINS)
    curves = part.assign(steps=edges[place]).groupby(["name", "steps"], sort=True)["value"].median()
    with canvas(2.6) as (figure, axes):
        axes.axhline(1.0, linewidth=1.0, color="0.4")
        for name in _speeds(part.groupby("name")["value"].median()).index:
            curve = curves[f"speed/{name}"]
            axes.plot(curve.index, curve.to_numpy(), label=plain(_strategy(name), 40))
        axes.set_xlabel("environment steps (steps)")
        axes.set_ylabel("predicted speed (average = 1)")
        axes.legend()
        note = (
            f"Medians over the runs of {arm}. In the package's own study such predictions did not "
            "tell which strategies are faster."
        )
        yield figures.drawing(figure, "diagnostics", "Would weighting pay?", note, arm)


def _speeds(medians: pd.Series) -> pd.Series:
    """Returns strategy -> predicted speed, the fastest first, without those of equal weights."""
    named = medians[medians.index.str.startswith("speed/")]
    named.index = named.index.str.removeprefix("speed/")
    return named.drop(labels=list(_NO_CHOICE), errors="ignore").sort_values(ascending=False)


def _ranking(medians: pd.Series) -> str:
    speeds = _speeds(medians).items()
    return "; ".join(f"{_strategy(name)} {value:.2f}" for name, value in speeds)


def _strategy(name: str) -> str:
    return _OPTIONS.get(name, name)
