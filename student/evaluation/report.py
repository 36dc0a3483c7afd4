"""Evaluations as plain-text tables: one column a model."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ...formatting import aligned, format_count
from ..data.split import SplitPolicy
from .eval_set import CacheEvalSet
from .intervals import LEVEL, NUM_RESAMPLES

_NA = "n/a"
_WAYS = {"image_to_text": "image to text", "text_to_image": "text to image"}
_NEARNESS = (
    (("image_cosine",), "cosine to the teacher, images", ".4f"),
    (("text_cosine",), "cosine to the teacher, texts", ".4f"),
    (("image_correlation",), "image-image cosines, correlation", ".4f"),
    (("neighbour_overlap",), "10 nearest images, overlap", ".4f"),
    (("soft_loss_excess",), "soft loss - entropy, nats a pair", ".3g"),
    (("calibration_error",), "calibration error, half the pairs match", ".4f"),
    (("calibration", "error_per_match"), "calibration error, all pairs, per match", ".4f"),
    (("calibration", "predicted"), "share of all pairs said to match", ".3g"),
    (("calibration", "prior"), "share of all pairs that match", ".3g"),
)
_QUERIES = {"text_to_image": "texts", "image_to_image": "the images themselves"}

INTERVALS = f"[ ]  {100 * LEVEL:g} % of {NUM_RESAMPLES:,} resamples of the images"
"""What the intervals in a table are."""

PROMPTS_COMMAND = (
    "siglip2-cache build SOURCE CACHE --teacher TEACHER --templates FILE, one template a line, such as "
    "'This is a photo of {}.'"
)
"""What adds prompts to a cache."""

_Column = Mapping[str, Any]


def table_lines(
    columns: Mapping[str, _Column],
    eval_set: Mapping[str, Any] | None,
    *,
    has_intervals: bool = False,
) -> list[str]:
    """Return the lines of a table, one row a metric, one column a model; then why numbers are missing.

    Rows without any number are left out.

    Args:
        columns: result of evaluate by heading, all of one eval set.
        eval_set: result of eval_set_numbers; None: no reasons are given.
        has_intervals: whether the interval of each number is beside it.
    """
    rows = table_rows(columns, has_intervals=has_intervals)
    return aligned(rows) + list(_why_missing(columns, eval_set) if eval_set else ())


def table_rows(columns: Mapping[str, _Column], *, has_intervals: bool = False) -> list[list[str]]:
    """Return the cells of that table, the headings first; the label of a row of a language is indented."""
    rows = [["", *columns]]
    for label, path, form in _rows(list(columns.values())):
        if any(_value(column, path) is not None for column in columns.values()):
            cells = (_cell(column, path, form, has_intervals) for column in columns.values())
            rows.append([label, *cells])
    return rows


def _why_missing(columns: Mapping[str, _Column], eval_set: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each reason why numbers are missing."""
    lacks = {
        name: [heading for heading, column in columns.items() if column[name] is None]
        for name in ("retrieval", "zero_shot", "image_cosine", "image_correlation")
    }
    everybody = list(columns)
    if lacks["retrieval"] == everybody:
        yield "retrieval, text cosine and calibration need images with captions; none of these has one"
    elif lacks["retrieval"]:
        yield f"n/a for {', '.join(lacks['retrieval'])}: no text embeddings"
    if lacks["zero_shot"] == everybody:
        yield _why_no_zero_shot(eval_set)
    if lacks["image_cosine"] and lacks["image_cosine"] != everybody:
        names = ", ".join(lacks["image_cosine"])
        yield f"cosine to the teacher is n/a for {names}: there is no map from its space to the teacher's"
    if lacks["image_correlation"] == everybody:
        yield "image-image cosines need at least three different pictures with different cosines"


def _why_no_zero_shot(eval_set: Mapping[str, Any]) -> str:
    if not eval_set.get("has_prompts"):
        return f"zero-shot needs prompts of the images' classes: {PROMPTS_COMMAND}"
    if not eval_set["labelled_images"]:
        return "zero-shot needs images with a label; none of these has one"
    return (
        "zero-shot needs prompts of the images' classes; the cache has none for "
        f"{_some(eval_set['classes_without_prompt'])}: build again with --labels that name them"
    )


def _some(labels: Sequence[str]) -> str:
    shown = ", ".join(repr(label[:40]) for label in labels[:3])
    return shown + (f" or {len(labels) - 3:,} more" if len(labels) > 3 else "")


def eval_set_numbers(eval_set: CacheEvalSet, policy: SplitPolicy | None) -> dict[str, Any]:
    """Return the counts of an eval set, as JSON values."""
    return {
        "split": eval_set.split,
        "val_share": policy.val_share if policy and policy.val_keys is None else None,
        "val_keys": policy and policy.val_keys,
        "split_images": eval_set.num_split_images,
        "images": len(eval_set.rows_N),
        "captioned_images": eval_set.num_captioned,
        "captions": eval_set.num_captions,
        "captions_in_train": eval_set.num_texts_in_train,
        "prompts": len(eval_set.prompt_Q),
        "has_prompts": eval_set.has_prompts,
        "labelled_images": eval_set.num_labelled,
        "prompted_images": int((eval_set.label_N >= 0).sum()),
        "classes_without_prompt": list(eval_set.unprompted),
    }


def eval_set_lines(eval_set: CacheEvalSet, policy: SplitPolicy | None) -> list[str]:
    """Return the counts of an eval set, as lines for people."""
    how = "" if policy is None else f" ({policy.words})"
    also = (
        ""
        if eval_set.num_texts_in_train is None
        else f", {eval_set.num_texts_in_train:,} of them also in train"
    )
    return [
        f"images     {len(eval_set.rows_N):,} of {eval_set.num_split_images:,} of split "
        f"{eval_set.split}{how}; {eval_set.num_captioned:,} have a caption",
        f"texts      {eval_set.num_captions:,} different captions{also}; "
        f"{len(eval_set.prompt_Q):,} prompts",
        *zero_shot_lines(eval_set_numbers(eval_set, policy)),
    ]


def zero_shot_lines(eval_set: Mapping[str, Any]) -> list[str]:
    """Return a line about images that zero-shot leaves out; empty if it takes all, or none."""
    taken, labelled = eval_set.get("prompted_images", 0), eval_set.get("labelled_images", 0)
    left_out: list[str] = []
    if labelled > taken:
        classes = eval_set["classes_without_prompt"]
        left_out.append(f"{labelled - taken:,} without a prompt for their class ({_some(classes)})")
    if eval_set["images"] > labelled:
        left_out.append(f"{eval_set['images'] - labelled:,} without a label")
    if not taken or not left_out:
        return []
    return [f"zero-shot  of {format_count(taken, 'image')}; left out: {', '.join(left_out)}"]


def _shown(value: float | None, form: str) -> str:
    return _NA if value is None else format(value, form)


_Path = tuple[str, ...]
_Row = tuple[str, _Path, str]


def _rows(columns: list[_Column]) -> Iterator[_Row]:
    """Yield label, place of the number in a column, and format of each row."""
    for way, words in _WAYS.items():
        for k in ("1", "5", "10"):
            yield f"{words}, R@{k}", ("retrieval", "all", way, k), ".4f"
    yield from _language_rows(columns, "retrieval", _retrieval_rows)
    for k in ("1", "5"):
        yield f"zero-shot, top {k}", ("zero_shot", "all", "accuracy", k), ".4f"
    yield from _language_rows(columns, "zero_shot", _zero_shot_rows)
    for path, words, form in _NEARNESS:
        yield words, path, form
    for way, words in _QUERIES.items():
        yield f"index of the teacher's images, {words}, R@1", ("teacher_index", way, "1"), ".4f"
    for way in _QUERIES:
        path = ("teacher_index", "neighbour_overlap", way)
        yield f"10 nearest in the teacher's index, {way.partition('_')[0]}s, overlap", path, ".4f"
    for name in ("missing_images", "missing_texts"):
        if any(column[name] for column in columns):
            yield name.replace("_", " "), (name,), ",d"


def _language_rows(
    columns: list[_Column],
    task: str,
    rows_of: Callable[[str, Mapping[str, Any] | None], Iterator[_Row]],
) -> Iterator[_Row]:
    """Yield the rows of each language and of their macro mean, if there are several."""
    found: dict[str, Mapping[str, Any]] = {}
    for column in columns:
        if column[task] is not None:
            found |= column[task]["languages"]
    if len(found) < 2:
        return
    for lang, numbers in sorted(found.items()):
        yield from rows_of(lang, numbers)
    yield from rows_of("", None)


def _retrieval_rows(lang: str, sizes: Mapping[str, Any] | None) -> Iterator[_Row]:
    where = ("languages", lang) if sizes else ("macro_mean",)
    size = f" ({sizes['images']:,} images, {sizes['texts']:,} texts)" if sizes else ""
    for way, words in _WAYS.items():
        label = f"  {lang or 'mean of languages'}: {words}, R@1{size}"
        yield label, ("retrieval", *where, way, "1"), ".4f"


def _zero_shot_rows(lang: str, sizes: Mapping[str, Any] | None) -> Iterator[_Row]:
    where = ("languages", lang, "accuracy") if sizes else ("macro_mean",)
    size = f" ({sizes['images']:,} images, {sizes['classes']:,} classes)" if sizes else ""
    label = f"  {lang or 'mean of languages'}: zero-shot, top 1{size}"
    yield label, ("zero_shot", *where, "1"), ".4f"


def _value(column: _Column, path: _Path) -> Any:
    """Return a nested value; None if a step is None or missing."""
    value: Any = column
    for name in path:
        value = None if value is None else value.get(name)
    return value


def _cell(column: _Column, path: _Path, form: str, has_intervals: bool) -> str:
    """Return a number, and its interval if that is not a point."""
    low, high = _value(column, ("intervals", *path)) or (0, 0)
    shown = _shown(_value(column, path), form)
    return shown if low == high or not has_intervals else f"{shown} [{low:{form}}, {high:{form}}]"


def main_metrics(column: _Column) -> dict[str, float]:
    """Return the metrics of a column by which a training is watched, without those that do not apply."""
    ways = {f"{way}_r1": _value(column, ("retrieval", "all", way, "1")) for way in _WAYS}
    both = [value for value in ways.values() if value is not None]
    found: dict[str, float | None] = {
        "mean_r1": sum(both) / len(both) if both else None,
        **ways,
        "zero_shot_top1": _value(column, ("zero_shot", "all", "accuracy", "1")),
        **{path[0]: column[path[0]] for path, *_ in _NEARNESS if len(path) == 1},
    }
    return {name: value for name, value in found.items() if value is not None}


def result_rows(columns: Mapping[str, _Column]) -> list[tuple[str, str, str, str]]:
    """Return rows (metric, teacher, student before, student after) of a run, for its model card.

    Rows of single languages and rows without a number are left out.
    """
    if "after" not in columns:
        return []
    wanted = [columns.get(name) for name in ("teacher", "before", "after")]
    rows: list[tuple[str, str, str, str]] = []
    for label, path, form in _rows([column for column in wanted if column is not None]):
        cells = [_NA if column is None else _cell(column, path, form, False) for column in wanted]
        if not label.startswith(" ") and set(cells) != {_NA}:
            rows.append((label, cells[0], cells[1], cells[2]))
    return rows
