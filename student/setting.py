"""What a field of a config says about itself: its help on the command line, and its bounds."""

import math
import operator
from dataclasses import dataclass

from ..errors import SettingError


@dataclass(frozen=True, slots=True)
class Setting:
    """What the command line shows of a field, and which numbers the field takes."""

    help: str
    panel: str | None = None
    """Group of options in the help; None: the first one."""

    metavar: str | None = None
    """What stands for the value in the help; None: by the field's type."""

    flag: str | None = None
    """Name of the option; None: the field's."""

    default: str | None = None
    """The default in words, where the field's own is None."""

    least: float | None = None
    """Smallest value."""

    above: float | None = None
    """Value that must be exceeded."""

    below: float | None = None
    """Value that must not be reached."""

    def check(self, name: str, value: float) -> None:
        """Refuse a number that is out of bounds.

        Raises:
            SettingError: naming the field, its bound and the number.
        """
        bounds = [
            (self.least, "at least", operator.ge),
            (self.above, "above", operator.gt),
            (self.below, "below", operator.lt),
        ]
        given = [(bound, words, holds) for bound, words, holds in bounds if bound is not None]
        if given and not (
            math.isfinite(value) and all(holds(value, bound) for bound, _, holds in given)
        ):
            wanted = " and ".join(f"{words} {bound}" for bound, words, _ in given)
            raise SettingError(f"{name} must be {wanted}, got {value}")
