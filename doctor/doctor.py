"""All checks, in the order in which they are shown."""

from pathlib import Path

from .credentials import check_credentials
from .hardware import check_decoding, check_gpus
from .packages import check_extras, check_versions, own_requirements
from .report import Check
from .storage import check_disk, check_limits, check_shared_memory


def run_checks(folder: Path) -> list[Check]:
    """Check the installation and this machine; takes some seconds, most of them to import torch.

    Args:
        folder: where caches and runs are to be written.
    """
    import torch

    requirements = own_requirements()
    gpus = check_gpus(torch)
    num_gpus = len(gpus.values["gpus"])
    checks = [
        check_versions(requirements),
        check_extras(requirements),
        gpus,
        check_decoding(num_gpus=num_gpus),
        check_disk(folder),
        check_shared_memory(num_gpus=num_gpus),
        check_limits(),
        check_credentials(),
    ]
    return [check for check in checks if check is not None]
