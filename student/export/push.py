"""Pushing an exported model to the Hugging Face hub, with the credentials of huggingface_hub."""

from pathlib import Path
from typing import Any

from ...errors import ExportError, SettingError
from ...formatting import first_line
from ...version import __version__
from .atomic_folder import MARK

_OF_THE_HUB = {".gitattributes", "README.md"}
"""Files that a new repository may have."""


def check_push(repo_id: str | None, *, is_private: bool) -> None:
    """Check before an export that it can be pushed: the name, the credentials, and what is there.

    Args:
        repo_id: ORG/NAME; None: nothing is pushed, and nothing is checked.
        is_private: whether a new repository is private.

    Raises:
        SettingError: the name is no id of the hub, there are no credentials, or the repository has other
            files than those of an export; or ``is_private`` without a name.
        ExportError: the hub does not answer.
    """
    if repo_id is None:
        if is_private:
            raise SettingError("--private goes with --push: else nothing is pushed")
        return
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        raise SettingError(f"push {repo_id!r} is no id of the hub, such as ORG/NAME") from None
    api: Any = HfApi()
    try:
        api.whoami(token=True)
        names = set(api.list_repo_files(repo_id)) if api.repo_exists(repo_id) else set[str]()
    except LocalTokenNotFoundError:
        raise SettingError(
            f"push {repo_id} needs a token of the hub: set HF_TOKEN, or run hf auth login"
        ) from None
    except Exception as error:  # network, proxy, rights: the hub has many
        raise ExportError(
            f"{repo_id} cannot be pushed to the hub: {first_line(error).rstrip('.')}"
        ) from error
    if names - _OF_THE_HUB and MARK not in names:
        raise SettingError(
            f"{repo_id} has files on the hub and no {MARK}, so it is no earlier export and is not replaced; "
            "name another one"
        )


def push(folder: Path, repo_id: str, *, is_private: bool, written: Path | None = None) -> str:
    """Replace a repository of the hub by an exported folder, in one commit; return its URL.

    Args:
        folder: an export that has passed its check.
        repo_id: ORG/NAME, which check_push has accepted; it is made if it does not exist.
        is_private: whether a new repository is private.
        written: what an error names as the folder that is there; None: ``folder``.

    Raises:
        ExportError: the hub refuses it or does not answer.
    """
    from huggingface_hub import HfApi

    api, written = HfApi(), written or folder
    try:
        api.create_repo(repo_id, private=is_private, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=f"Upload a student, by siglip2-cache {__version__}",
            delete_patterns="*",
        )
    except Exception as error:  # network, proxy, rights: the hub has many
        raise ExportError(
            f"{written} is written, but could not be pushed to {repo_id}: {first_line(error).rstrip('.')}; "
            "run the same command again"
        ) from error
    return str(done.repo_url)
