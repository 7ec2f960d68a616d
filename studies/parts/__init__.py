"""The parts of the study, in the order in which they are run. Each file is a pre-registration."""

from studies.design import Part
from studies.parts import confirm

PARTS: dict[str, Part] = {part.name: part for part in (confirm.PART,)}
"""Name -> part."""
