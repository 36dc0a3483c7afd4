"""What the checks found, as lines and as JSON."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..formatting import format_count


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something that will make a command fail, or go far slower than the machine allows."""

    problem: str
    """What is wrong, with the value."""

    remedy: str
    """What mends it: a command where there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check of the machine."""

    name: str
    found: str
    """What is there, in one line."""

    values: dict[str, Any] = field(default_factory=dict[str, Any])
    """The same for programs; never a credential."""

    faults: tuple[Fault, ...] = ()
    notes: tuple[str, ...] = ()
    """What is no fault and worth knowing."""


def report_lines(checks: Sequence[Check]) -> list[str]:
    """Return the checks, their notes, the faults with remedies, and the verdict as lines."""
    width = max(len(check.name) for check in checks)
    lines = [f"{check.name.ljust(width)}  {check.found}" for check in checks]
    lines += [f"{'note'.ljust(width)}  {note}" for check in checks for note in check.notes]
    faults = [fault for check in checks for fault in check.faults]
    lines += [f"{'fault'.ljust(width)}  {fault.problem}; {fault.remedy}" for fault in faults]
    return [*lines, f"checked: {format_count(len(faults), 'fault') if faults else 'no fault'}"]


def report_values(checks: Sequence[Check]) -> dict[str, Any]:
    """Return the checks as a JSON object."""
    return {
        "healthy": not any(check.faults for check in checks),
        "checks": {
            check.name: {
                "found": check.found,
                "values": check.values,
                "notes": list(check.notes),
                "faults": [
                    {"problem": fault.problem, "remedy": fault.remedy} for fault in check.faults
                ],
            }
            for check in checks
        },
    }
