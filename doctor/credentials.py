"""Which credentials are there for object stores and services, and where from. They are never shown."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from .report import Check, Fault

_Found = tuple[str | None, list[Fault]]


def check_credentials(
    *, environment: Mapping[str, str] = os.environ, home: Path | None = None
) -> Check:
    """Return where credentials were found, by store or service.

    No value of a variable and no content of a file is part of the result, except the path that
    GOOGLE_APPLICATION_CREDENTIALS names.
    """
    home = Path.home() if home is None else home
    looks: dict[str, Callable[[Mapping[str, str], Path], _Found]] = {
        "s3": _aws,
        "gcs": _google,
        "azure": _azure,
        "hub": _hub,
        "wandb": _wandb,
    }
    found: dict[str, str | None] = {}
    faults: list[Fault] = []
    for name, look in looks.items():
        found[name], of_it = look(environment, home)
        faults += of_it
    notes = [
        f"{name} is set, so nothing is downloaded from the hub; unset it for hub ids"
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
        if environment.get(name, "").lower() in ("1", "true", "yes", "on")
    ]
    shown = [f"{name} ({place})" for name, place in found.items() if place is not None]
    return Check(
        name="credentials",
        found=", ".join(shown) or "none; needed for private buckets and gated checkpoints only",
        values=found,
        faults=tuple(faults),
        notes=tuple(notes),
    )


def _aws(environment: Mapping[str, str], home: Path) -> _Found:
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    given = [name for name in names if environment.get(name)]
    if len(given) == 1:
        [missing] = set(names) - set(given)
        problem = f"{given[0]} is set and {missing} is not"
        return None, [Fault(problem=problem, remedy=f"export {missing}, or unset {given[0]}")]
    if given:
        return "AWS_ACCESS_KEY_ID", []
    for name in (
        "AWS_PROFILE",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    ):
        if environment.get(name):
            return name, []
    file = Path(environment.get("AWS_SHARED_CREDENTIALS_FILE") or home / ".aws" / "credentials")
    return (str(file) if file.is_file() else None), []


def _google(environment: Mapping[str, str], home: Path) -> _Found:
    name = "GOOGLE_APPLICATION_CREDENTIALS"
    if named := environment.get(name):
        if not Path(named).is_file():
            problem = f"{name} names {named}, which is no file"
            return None, [Fault(problem=problem, remedy=f"correct it, or unset {name}")]
        return name, []
    file = home / ".config" / "gcloud" / "application_default_credentials.json"
    return (str(file) if file.is_file() else None), []


def _azure(environment: Mapping[str, str], home: Path) -> _Found:
    if environment.get("AZURE_STORAGE_CONNECTION_STRING"):
        return "AZURE_STORAGE_CONNECTION_STRING", []
    account = "AZURE_STORAGE_ACCOUNT_NAME"
    secrets = (
        "AZURE_STORAGE_ACCOUNT_KEY",
        "AZURE_STORAGE_SAS_TOKEN",
        "AZURE_STORAGE_CLIENT_SECRET",
    )
    given = [name for name in secrets if environment.get(name)]
    if given and not environment.get(account):
        problem = f"{given[0]} is set and {account} is not"
        return None, [Fault(problem=problem, remedy=f"export {account}, or unset {given[0]}")]
    return (given[0] if given else None), []


def _hub(environment: Mapping[str, str], home: Path) -> _Found:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if environment.get(name):
            return name, []
    folder = Path(environment.get("HF_HOME") or home / ".cache" / "huggingface")
    file = Path(environment.get("HF_TOKEN_PATH") or folder / "token")
    return (str(file) if file.is_file() else None), []


def _wandb(environment: Mapping[str, str], home: Path) -> _Found:
    if environment.get("WANDB_API_KEY"):
        return "WANDB_API_KEY", []
    netrc = home / ".netrc"
    try:
        has_entry = "api.wandb.ai" in netrc.read_text("utf-8", errors="replace")
    except OSError:
        has_entry = False
    return (str(netrc) if has_entry else None), []
