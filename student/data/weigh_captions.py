"""Weights of captions by kind and language, with which they are drawn: --caption-weight kind:NAME=WEIGHT."""

from collections.abc import Mapping

import polars as pl

from ...errors import SettingError
from ...formatting import nearest_name
from ..caption_weights import split_name

_COLUMNS = {"kind": "kind", "language": "lang"}
"""Column of the captions by what a name is of."""

_NONE = "none"
"""Name of captions without a kind, or without a language."""


def weight_of_caption(captions: pl.LazyFrame, weights: Mapping[str, float]) -> pl.Expr:
    """Return the weight of each caption: that of its kind times that of its language, 1 unless given.

    Args:
        captions: the captions of a cache.
        weights: by ``kind:NAME`` and ``language:NAME``; ``none`` names captions without one.

    Raises:
        SettingError: no caption has such a kind or language.
    """
    found, expression = dict[str, dict[str, float]](), pl.lit(1.0)
    for name, weight in weights.items():
        what, value = split_name(name)
        found.setdefault(what, {})[value] = weight
    for what, of_value in found.items():
        tag = pl.col(_COLUMNS[what]).fill_null(_NONE)
        known = captions.select(tag.unique().sort()).collect().to_series().to_list()
        for value in of_value:
            if value not in known:
                raise SettingError(
                    f"caption_weights has {what} {value!r}, and the captions of the cache have "
                    f"{', '.join(known) or 'none'}{nearest_name(value, known)}"
                )
        expression *= tag.replace_strict(of_value, default=1.0, return_dtype=pl.Float64)
    return expression
