"""The held-out images: a share of the pictures by their hash, or those whose keys match a pattern.

The convention is in docs/reference/format.md. Shape letter in this file: N = images.
"""

import fnmatch
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...errors import SettingError
from ...store.cache import Cache


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitPolicy:
    """How images are held out. Images of the same bytes are always on the same side."""

    val_share: float = 0.05
    """Share of the *pictures* (images of different bytes) that are held out, 0 to below 1. A larger share
    holds out all that a smaller one does."""

    val_keys: str | None = None
    """Shell pattern over keys (``validation/*``): matching images are held out, with every other image of
    the same bytes, and val_share is not used. None: use val_share."""

    @property
    def words(self) -> str:
        """The policy in words."""
        if self.val_keys is None:
            return f"share {self.val_share:g}"
        return f"keys like {self.val_keys}"

    def __post_init__(self) -> None:
        if not 0 <= self.val_share < 1:
            raise SettingError(f"val_share must be 0 to below 1, got {self.val_share}")
        if self.val_keys == "":
            raise SettingError("val_keys must not be empty; leave it out to use val_share")


def split_policy(val_share: float | None, val_keys: str | None) -> SplitPolicy | None:
    """Return the policy of these settings; None if both are None."""
    if val_keys is not None:
        return SplitPolicy(val_keys=val_keys)
    return None if val_share is None else SplitPolicy(val_share=val_share)


def held_out(
    cache: Cache,
    policy: SplitPolicy,
    rows_N: NDArray[np.int64],
    sha256_N: NDArray[np.uint8],
    picture_N: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Return which images are held out, (N,) bool.

    Raises:
        SettingError: the pattern matches no key of the cache.
    """
    if policy.val_keys is None:
        first_N = np.ascontiguousarray(sha256_N[:, :8]).view(">u8")[:, 0]
        return first_N.astype(np.float64) / 2**64 < policy.val_share
    samples = cache.samples().select("row", "key").collect()
    fits = re.compile(fnmatch.translate(policy.val_keys)).match
    is_like = np.fromiter((fits(key) is not None for key in samples["key"]), np.bool_)
    if not is_like.any():
        raise SettingError(
            f"val_keys {policy.val_keys!r} matches no key of {cache.root} (its first key is "
            f"{samples['key'][0]!r}); use another pattern, or --val-share"
        )
    is_named_N = np.isin(rows_N, samples["row"].to_numpy()[is_like])
    return np.isin(picture_N, picture_N[is_named_N])


def number_pictures(sha256_N: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return for each image the position of the first one with the same bytes, (N,)."""
    words_N4 = np.ascontiguousarray(sha256_N).view(np.uint64)
    order_N = np.argsort(words_N4[:, 0], kind="stable")
    is_same_N = repeats(words_N4[order_N])
    if not np.array_equal(
        is_same_N, repeats(words_N4[order_N, :1])
    ):  # equal ones may not be adjacent
        order_N = np.lexsort(words_N4.T)
        is_same_N = repeats(words_N4[order_N])
    first_N = order_N[~is_same_N]  # both sorts are stable
    picture_N = np.empty(len(sha256_N), np.int64)
    picture_N[order_N] = first_N[np.cumsum(~is_same_N) - 1]
    return picture_N


def repeats(values: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Return whether each of (n, m) values equals the one before it, (n,)."""
    is_same = np.zeros(len(values), np.bool_)
    is_same[1:] = (values[1:] == values[:-1]).all(axis=1)
    return is_same
