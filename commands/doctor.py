"""The command ``doctor``: check the installation and the machine."""

from pathlib import Path
from typing import Annotated

import typer

from .options import AsJson, local_path, print_found


def doctor(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            parser=local_path,
            help="Folder where caches and runs are to be written.",
            show_default="the current one",
        ),
    ] = Path("."),
    as_json: AsJson = False,
) -> None:
    """Check versions, GPUs, decode speed, disk, limits and credentials; show a remedy for each fault.

    Credentials are looked for and never shown. Exits with status 1 if there is a fault.
    """
    from ..doctor.doctor import run_checks
    from ..doctor.report import report_lines, report_values

    checks = run_checks(folder)
    found = report_values(checks)
    print_found(found, report_lines(checks), as_json)
    if not found["healthy"]:
        raise typer.Exit(1)
