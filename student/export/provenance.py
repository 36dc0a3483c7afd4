"""Where a student comes from, as the hub's metadata names it: base model, license, datasets, languages."""

import re
from collections.abc import Iterable

import yaml

from ...siglip import Checkpoint
from .metadata import read_metadata

_HUB_ID = r"[\w-][\w.-]*/[\w-][\w.-]*"
_HUB_DATASET = re.compile(rf"hf://datasets/({_HUB_ID})(?:[@/].*)?")
_LANGUAGE = re.compile(r"([a-z]{2,3})(?:[-_].*)?", re.IGNORECASE)


def base_model_of(checkpoint: Checkpoint) -> str | None:
    """Return the hub id of a checkpoint, or of the one it was cut from; None if there is none."""
    if checkpoint.revision is not None:
        return checkpoint.given
    return read_metadata(checkpoint).base_model


def license_of(checkpoint: Checkpoint) -> str | None:
    """Return the license of a checkpoint as the hub writes it.

    It is that of its card, or else of the checkpoint that it was cut or trained from, or of Google's SigLIP.
    """
    path = checkpoint.folder / "README.md"
    if path.is_file():
        parts = path.read_text(encoding="utf-8", errors="replace").split("---\n")
        try:
            fields = yaml.safe_load(parts[1]) if len(parts) > 2 and not parts[0] else None
        except yaml.YAMLError:
            fields = None
        if isinstance(fields, dict) and isinstance(fields.get("license"), str):
            return fields["license"]
    noted = read_metadata(checkpoint).license
    if noted is not None:
        return noted
    base_model = base_model_of(checkpoint) or ""
    return "apache-2.0" if base_model.startswith("google/siglip") else None


def hub_datasets(locations: Iterable[str]) -> list[str]:
    """Return the ids of the corpora that are datasets of the hub, each once; other places are private."""
    found = (_HUB_DATASET.fullmatch(location) for location in locations)
    return list(dict.fromkeys(match[1] for match in found if match))


def language_codes(langs: Iterable[str | None]) -> list[str]:
    """Return the codes of languages without region or script, sorted; other names are left out."""
    found = (_LANGUAGE.fullmatch(lang) for lang in langs if lang)
    return sorted({match[1].lower() for match in found if match})
