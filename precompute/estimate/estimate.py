"""What a build of so many images would take, without a corpus: every number with its formula.

Rates are assumed, from the architecture and a GPU's data sheet, unless they were measured and given.
``siglip2-cache build --dry-run`` counts a corpus that exists, and can time it.
"""

from dataclasses import dataclass

from ...siglip import Architecture, find_architecture
from .config import EstimateConfig
from .formulas import Formulas, Quantity


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a build would take."""

    config: EstimateConfig
    architecture: Architecture
    quantities: tuple[Quantity, ...]
    notes: tuple[str, ...]

    def __getitem__(self, name: str) -> float:
        """Return a number by its name."""
        return next(each.value for each in self.quantities if each.name == name)


def estimate_build(config: EstimateConfig) -> Estimate:
    """Return what a build would take. Reads at most a checkpoint's settings.

    Raises:
        CheckpointError: the teacher is not found.
        SettingError: the teacher has a fixed resolution, and a number of patches was given.
    """
    architecture = find_architecture(config.teacher, max_num_patches=config.max_num_patches)
    formulas = Formulas(config, architecture)
    return Estimate(
        config=config,
        architecture=architecture,
        quantities=tuple(formulas.quantities()),
        notes=tuple(formulas.notes()),
    )
