"""The parts of the study, in the order in which they are run. Each file is a pre-registration."""

from studies.design import Part
from studies.parts import (
    backends,
    backends_again,
    baselines,
    confirm,
    contexts,
    gradients,
    levels,
    low_losses,
    noise,
    noisy_lander,
    overfitting,
    paper,
    rates,
    replay,
    sensitivity,
    sensors,
)

_ORDER = (
    confirm.PART,
    contexts.PART,
    noise.PART,
    noisy_lander.PART,
    levels.PART,
    replay.PART,
    sensors.PART,
    rates.PART,
    gradients.PART,
    paper.PART,
    low_losses.PART,
    sensitivity.PART,
    overfitting.PART,
    baselines.PART,
    backends.PART,
    backends_again.PART,
)

PARTS: dict[str, Part] = {part.name: part for part in _ORDER}
"""Name -> part."""
