"""The lines a build ends with."""

import shlex
from collections.abc import Sequence

from ..formatting import format_count, format_seconds
from ..store.format.corpus_notes import Note
from .config import BuildConfig, BuildSummary
from .planning.part_writer import Findings

_NOTES_SHOWN = 6


def summary_lines(config: BuildConfig, summary: BuildSummary) -> list[str]:
    """Return what a person wants to know after a build."""
    list_all = f"siglip2-cache info {shlex.quote(str(config.cache))} --rejected lists them all"
    lines = finding_lines(summary.plan.findings, list_all)
    if summary.num_units == 0 and config.retry_rejected and summary.num_rejected:
        lines.append(f"tried again {summary.num_rejected:,} rejected rows; none can be read yet")
    elif summary.num_units == 0:
        lines.append(
            f"nothing to do: every unit of {config.cache} is committed for {summary.teacher}"
        )
    else:
        lines.append(
            f"embedded   {summary.num_images:,} images, {summary.num_texts:,} texts in "
            f"{summary.num_units} units, {format_seconds(summary.elapsed_s)}; batches of "
            f"{summary.image_batch} images, {summary.text_batch} texts"
        )
        lines += _stage_lines(summary)
    lines += _rejected_lines(summary, list_all)
    lines.append(f"cache      {config.cache}, teacher {summary.teacher}")
    return lines


def finding_lines(findings: Findings, list_all: str) -> list[str]:
    """Return what planning found that is new, gone, changed or unreadable.

    ``list_all`` says what shows more of the latter than the first few.
    """
    lines: list[str] = []
    if findings.num_samples or findings.num_texts:
        again = f" ({findings.num_known:,} were there before)" if findings.num_known else ""
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
            f"({few}{', ...' if len(findings.unprompted) > 3 else ''}): zero-shot leaves their images "
            "out; name them in --labels"
        )
    if findings.num_folded_rows:
        lines.append(
            f"folded     {findings.num_folded_rows + findings.num_folded_pictures:,} rows name "
            f"{format_count(findings.num_folded_pictures, 'image')}: each is one sample, with the "
            "captions of all its rows and the key of the first"
        )
    if findings.num_kept:
        lines.append(
            f"kept       {format_count(findings.num_kept, 'sample')} as recorded, where the corpus now "
            f"differs: {findings.kept}"
        )
    lines += note_lines(findings.notes, list_all)
    if findings.num_gone:
        lines.append(
            f"gone       {findings.num_gone:,} samples are no longer in the corpus and keep their "
            f"rows: {_few(findings.gone, findings.num_gone)}"
        )
    if findings.num_changed:
        lines.append(
            f"changed    the files of {findings.num_changed:,} samples have another size or time than "
            f"when planned, their targets stay: {_few(findings.changed, findings.num_changed)}"
        )
    if findings.num_problems:
        lines.append(f"problems   {findings.num_problems:,} things could not be read:")
        lines += [f"           {problem}" for problem in findings.problems]
        if findings.num_problems > len(findings.problems):
            lines.append(f"           ... {list_all}")
    return lines


def note_lines(notes: Sequence[Note], list_all: str) -> list[str]:
    """Return what was seen in the corpus and not used, or is not there: the first few notes."""
    lines = [f"note       {note.line()}" for note in notes[:_NOTES_SHOWN]]
    if len(notes) > len(lines):
        lines.append(f"           ... {len(notes) - len(lines)} notes more: {list_all}")
    return lines


def _stage_lines(summary: BuildSummary) -> list[str]:
    times, workers = summary.times, summary.num_workers
    decoders = max(1, summary.num_decoders) * workers
    stages = {
        "read": times.read_s / decoders,
        "decode": times.decode_s / decoders,
        "forward": times.forward_s / workers,
        "write": times.write_s / workers,
    }
    shown = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in stages.items())
    slowest = max(stages, key=lambda name: stages[name])
    over = (
        f"{decoders} workers"
        if workers == 1
        else f"{decoders} decoders; means of {workers} workers"
    )
    return [
        f"stages     {shown} (they overlap; read and decode over {over}); "
        f"slowest: {slowest}; the teacher waited {times.wait_s / workers:.1f} s for pixels"
    ]


def _rejected_lines(summary: BuildSummary, list_all: str) -> list[str]:
    if not summary.num_rejected:
        return ["rejected   none"]
    lines = [f"rejected   {summary.num_rejected:,} rows of the cache:"]
    lines += [f"           {each}" for each in summary.first_rejected]
    if summary.num_rejected > len(summary.first_rejected):
        lines.append(f"           ... {list_all}")
    lines.append("           --retry-rejected tries them again")
    return lines


def _few(keys: list[str], count: int) -> str:
    return ", ".join(keys) + (", ..." if count > len(keys) else "")
