"""The architecture of a checkpoint, and the operations to embed one view or one text.

No weights are needed, so that a build can be estimated before anything is downloaded. Letters of the
formulas:

    D = width, M = width of the MLP, L = layers, p = height and width of a patch in pixels,
    N = patches of a view, or tokens of a text, P = width of the embedding.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import CheckpointError, SettingError
from .checkpoint import find_folder
from .config import TowerSettings, read_towers
from .image import NaflexRecipe, check_max_num_patches, read_image_settings
from .published import PUBLISHED, published_towers

VIEW_FORMULA = "2 (3 N p^2 D + L (N (4 D^2 + 2 D M) + 2 N^2 D) + 2 N D^2 + 2 D^2 + 2 N D + 2 D M)"
"""Floating-point operations of one view; a multiplication with its addition counts as two. Only matrix
products are counted: patches, projections, attention and MLPs of each layer, and the pooling head."""

TEXT_FORMULA = "2 (L (N (4 D^2 + 2 D M) + 2 N^2 D) + D P)"
"""Floating-point operations of one text, counted in the same way."""

_SETTINGS_FILES = ["config.json", "preprocessor_config.json"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """The sizes of the towers of a checkpoint."""

    name: str
    """Name as the user gave it; the hub id of a published checkpoint."""

    towers: TowerSettings
    num_patches: int
    """Patches of a view; the maximum for NaFlex."""

    @property
    def is_naflex(self) -> bool:
        """Whether views have any aspect ratio and any number of patches up to ``num_patches``."""
        return self.towers.model_type == "siglip2"

    @property
    def embed_dim(self) -> int:
        """The width of both embeddings."""
        return self.towers.vision["hidden_size"]

    @property
    def text_tokens(self) -> int:
        """The tokens of every text after padding or truncation."""
        return self.towers.text["max_position_embeddings"]

    @property
    def view_sizes(self) -> dict[str, int]:
        """The letters of VIEW_FORMULA."""
        vision = self.towers.vision
        return {"N": self.num_patches, "p": vision["patch_size"], **_sizes(vision)}

    @property
    def text_sizes(self) -> dict[str, int]:
        """The letters of TEXT_FORMULA."""
        return {"N": self.text_tokens, **_sizes(self.towers.text), "P": self.embed_dim}

    @property
    def flops_of_view(self) -> int:
        """Floating-point operations of one view: VIEW_FORMULA."""
        N, p, D, M, L = (self.view_sizes[letter] for letter in "NpDML")
        layer = N * (4 * D * D + 2 * D * M) + 2 * N * N * D
        head = 2 * N * D * D + 2 * D * D + 2 * N * D + 2 * D * M
        return 2 * (3 * N * p * p * D + L * layer + head)

    @property
    def flops_of_text(self) -> int:
        """Floating-point operations of one text: TEXT_FORMULA."""
        N, D, M, L, P = (self.text_sizes[letter] for letter in "NDMLP")
        layer = N * (4 * D * D + 2 * D * M) + 2 * N * N * D
        return 2 * (L * layer + D * P)


def find_architecture(id_or_path: str, *, max_num_patches: int | None = None) -> Architecture:
    """Return the architecture of a local folder, a published checkpoint or a hub id.

    Published checkpoints need no network. For another hub id the settings are downloaded, no weights.

    Args:
        id_or_path: the checkpoint.
        max_num_patches: most patches of a view, NaFlex only; None: as in its processor.

    Raises:
        CheckpointError: the checkpoint does not exist or is not supported.
        SettingError: ``max_num_patches`` is invalid, or the checkpoint has a fixed resolution.
    """
    is_folder = Path(os.path.expanduser(id_or_path)).is_dir()
    published = None if is_folder else published_towers(id_or_path)
    if published is None:
        found = _read_architecture(id_or_path)
    else:
        name, towers = published
        found = Architecture(name=name, towers=towers, num_patches=_num_patches(towers))
    if max_num_patches is None:
        return found
    check_max_num_patches(max_num_patches)
    if not found.is_naflex:
        raise SettingError(
            f"max num patches {max_num_patches} goes with a NaFlex checkpoint; {id_or_path} is of "
            f"fixed resolution, {found.num_patches} patches a view: leave out --max-num-patches"
        )
    return replace(found, num_patches=max_num_patches)


def _read_architecture(id_or_path: str) -> Architecture:
    if "/" not in id_or_path and not Path(os.path.expanduser(id_or_path)).exists():
        raise CheckpointError(
            f"{id_or_path} is neither a folder, nor a hub id such as "
            f"google/siglip2-so400m-patch14-224, nor the short name of a published SigLIP 2 "
            f"checkpoint: {', '.join(PUBLISHED)}"
        )
    folder, _ = find_folder(id_or_path, None, patterns=_SETTINGS_FILES)
    towers = read_towers(folder)
    num_patches = _num_patches(towers)
    if towers.model_type == "siglip2":
        recipe = read_image_settings(folder, towers).recipe
        assert isinstance(recipe, NaflexRecipe)
        num_patches = recipe.max_num_patches
    return Architecture(name=id_or_path, towers=towers, num_patches=num_patches)


def _num_patches(towers: TowerSettings) -> int:
    vision = towers.vision
    if towers.model_type == "siglip2":
        return vision["num_patches"]
    return (vision["image_size"] // vision["patch_size"]) ** 2


def _sizes(tower: dict[str, int]) -> dict[str, int]:
    return {
        "D": tower["hidden_size"],
        "M": tower["intermediate_size"],
        "L": tower["num_hidden_layers"],
    }
