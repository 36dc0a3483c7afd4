"""Zero-shot prompts for the labels of a benchmark."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import SettingError
from ..precompute.planning.prompt_files import read_labels, read_templates, refuse_repeats
from ..precompute.planning.prompts import (
    Label,
    Prompt,
    class_positions,
    make_prompts,
    number_labels,
)

_TEMPLATES = Path(__file__).with_name("imagenet_templates.txt")
"""The 80 templates of CLIP for ImageNet. Source: OpenAI, Prompt_Engineering_for_ImageNet.ipynb."""

_WORDNET_ID = re.compile(r"n\d{8}")


def prompts_for(
    found: Iterable[str], *, labels: Path | None, templates: Path | None
) -> list[Prompt]:
    """Return the prompts of the classes; empty without labels.

    Args:
        found: labels of all images, also of those that are not evaluated.
        labels: file of class names (read_labels). It may name the labels, number them from 0, or be a plain
            list with one name for each label in sorted order, as lists of ImageNet's names are; the last two
            may repeat a name. None: the labels are the names.
        templates: file of templates; None: the 80 of CLIP.

    Raises:
        SourceError: a file cannot be read.
        SettingError: the names do not fit the labels, or these are WordNet ids.
    """
    classes = sorted(set(found))
    if not classes:
        if labels is not None:
            raise SettingError(f"class names were given ({labels}), but no image has a label")
        return []
    if labels is not None:
        names = _matched(read_labels(labels), classes, labels)
    else:
        if any(map(_WORDNET_ID.fullmatch, classes)):
            raise SettingError(
                f"the labels are WordNet ids, such as {classes[0]}; give the names of the classes with "
                "--labels FILE, one per line in the order of the ids"
            )
        names = [Label(label=name, name=name) for name in classes]
    return list(make_prompts(names, read_templates(templates or _TEMPLATES)))


def _matched(names: Sequence[Label], classes: Sequence[str], file: Path) -> Sequence[Label]:
    """Return the names with the labels of the images."""
    names = number_labels(names, classes)
    if {name.label for name in names} & set(classes):
        refuse_repeats(names)
        return names
    positions = class_positions(names)
    if max(positions) + 1 != len(classes):
        raise SettingError(
            f"{file} names {max(positions) + 1:,} classes, none of them a label of the images, such as "
            f"{classes[0]!r}; as a list in sorted order it needs {len(classes):,} names"
        )
    return [
        replace(name, label=classes[position])
        for name, position in zip(names, positions, strict=True)
    ]
