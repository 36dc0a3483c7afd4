"""What a plan found in the corpus: counts, and the lines that report them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ...formatting import format_count
from ...store.format.corpus_notes import Note

_NOTES_SHOWN = 6


@dataclass(slots=True, kw_only=True)
class Findings:
    """What a plan found in the corpus, compared with the cache."""

    num_samples: int = 0
    """New samples."""

    num_existing: int = 0
    """Samples that the cache had before."""

    num_merged_rows: int = 0
    """Rows that name the same image as an earlier row; their captions belong to its sample."""

    num_merged_images: int = 0
    """Images that several rows name."""

    num_captions: int = 0
    num_texts: int = 0
    num_prompts: int = 0
    label_note: str = ""
    """A note if the labels of the corpus were taken as numbers of classes."""

    unprompted: list[str] = field(default_factory=list[str])
    """Labels of the corpus without a prompt."""

    num_problems: int = 0
    num_missing_files: int = 0
    """New samples whose file is missing."""

    num_gone: int = 0
    """Samples of the cache that are no longer in their source; they keep their rows."""

    gone: list[str] = field(default_factory=list[str])
    """Keys of the first few."""

    num_changed: int = 0
    """Samples of the cache whose file has another size or time than when planned."""

    changed: list[str] = field(default_factory=list[str])
    num_kept: int = 0
    """Samples of the cache with another image, location, label or captions in the corpus, kept as recorded
    (--changed skip)."""

    kept: str = ""
    """The differences of the first few of them."""

    problems: list[str] = field(default_factory=list[str])
    """The first few, as ``place: reason``."""

    notes: list[Note] = field(default_factory=list[Note])
    """What is unused in the scanned sources, or missing from them."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to append."""
        return not (self.num_samples or self.num_texts or self.num_prompts or self.num_problems)


def finding_values(findings: Findings) -> dict[str, Any]:
    """Return what a plan found, as JSON values."""
    return {
        "samples": findings.num_samples,
        "samples_before": findings.num_existing,
        "captions": findings.num_captions,
        "texts": findings.num_texts,
        "prompts": findings.num_prompts,
        "merged_rows": findings.num_merged_rows,
        "problems": findings.num_problems,
        "missing_files": findings.num_missing_files,
        "gone": findings.num_gone,
        "changed": findings.num_changed,
        "kept": findings.num_kept,
        "labels_without_prompt": findings.unprompted,
        "first_problems": findings.problems,
        "notes": [asdict(note) for note in findings.notes],
    }


def finding_lines(findings: Findings, list_all: str) -> list[str]:
    """Return what a plan found that is new, gone, changed or unreadable, for people.

    ``list_all`` names the command that lists all problems, of which only the first few are shown.
    """
    lines: list[str] = []
    if findings.num_samples or findings.num_texts:
        again = f" ({findings.num_existing:,} planned before)" if findings.num_existing else ""
        lines.append(
            f"planned    {findings.num_samples:,} images{again}, {findings.num_captions:,} captions, "
            f"{findings.num_texts:,} unique texts"
            + (f", {findings.num_prompts:,} prompts" if findings.num_prompts else "")
        )
    if findings.label_note:
        lines.append(f"labels     {findings.label_note}")
    if findings.unprompted:
        few = ", ".join(repr(label[:40]) for label in findings.unprompted[:3])
        lines.append(
            f"labels     {format_count(len(findings.unprompted), 'label')} of the corpus without a prompt "
            f"({few}{', ...' if len(findings.unprompted) > 3 else ''}): zero-shot skips their images; "
            "add them to --labels"
        )
    if findings.num_merged_rows:
        lines.append(
            f"merged     {findings.num_merged_rows + findings.num_merged_images:,} rows name "
            f"{format_count(findings.num_merged_images, 'image')}: each is one sample, with the captions of "
            "all its rows and the key of the first"
        )
    if findings.num_kept:
        lines.append(
            f"kept       {format_count(findings.num_kept, 'sample')} as recorded, though changed in the "
            f"corpus: {findings.kept}"
        )
    lines += note_lines(findings.notes, list_all)
    if findings.num_gone:
        lines.append(
            f"gone       {findings.num_gone:,} samples are no longer in the corpus and keep their "
            f"rows: {_few(findings.gone, findings.num_gone)}"
        )
    if findings.num_changed:
        lines.append(
            f"changed    the files of {findings.num_changed:,} samples changed in size or time since they "
            f"were planned; their targets stay: {_few(findings.changed, findings.num_changed)}"
        )
    if findings.num_problems:
        lines.append(f"problems   {findings.num_problems:,} items could not be read:")
        lines += [f"           {problem}" for problem in findings.problems]
        if findings.num_problems > len(findings.problems):
            lines.append(f"           ... {list_all}")
    return lines


def note_lines(notes: Sequence[Note], list_all: str) -> list[str]:
    """Return the first few notes on what is unused in the corpus, or missing from it."""
    lines = [f"note       {note.line()}" for note in notes[:_NOTES_SHOWN]]
    if len(notes) > len(lines):
        lines.append(f"           ... {len(notes) - len(lines)} more notes: {list_all}")
    return lines


def _few(keys: list[str], count: int) -> str:
    return ", ".join(keys) + (", ..." if count > len(keys) else "")
