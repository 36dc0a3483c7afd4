"""What is known of a checkpoint without its weights, and what one view or text of it takes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Siglip2Config, Siglip2Model, SiglipConfig, SiglipModel

from siglip2_cache.errors import CheckpointError, SettingError
from siglip2_cache.siglip import PUBLISHED, find_architecture
from siglip2_cache.siglip.published import published_towers

CHECKPOINTS = Path(__file__).resolve().parents[4] / "shared" / "data" / "checkpoints.json"


@pytest.fixture(scope="module")
def make_checkpoint_module(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("make_checkpoint")


def count(model: Any, method: str, **arguments: Any) -> int:
    """Count the operations of a forward pass as torch does, attention written out."""
    for each in (model, model.vision_model, model.text_model):
        each.config._attn_implementation = "eager"
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        getattr(model, method)(**arguments)
    return counter.get_total_flops()


@pytest.mark.parametrize("name", ["base-patch16-224", "giant-opt-patch16-256"])
def test_arithmetic_is_what_torch_counts(name: str, make_checkpoint_module: ModuleType) -> None:
    config = SiglipConfig(**make_checkpoint_module.checkpoint_config(name))
    architecture, size = find_architecture(name), config.vision_config.image_size
    with torch.device("meta"):
        model = SiglipModel(config)
        pixels, ids = torch.zeros(1, 3, size, size), torch.zeros(1, 64, dtype=torch.long)
    assert count(model, "get_image_features", pixel_values=pixels) == architecture.flops_of_view
    assert count(model, "get_text_features", input_ids=ids) == architecture.flops_of_text


def test_arithmetic_of_naflex_is_what_torch_counts_of_a_full_view(
    make_checkpoint_module: ModuleType, naflex_checkpoint: Path
) -> None:
    config = make_checkpoint_module.checkpoint_config("tiny-patch16-naflex", vocab_size=512)
    model = Siglip2Model(Siglip2Config(**config))
    given = {
        "pixel_values": torch.zeros(1, 12, 768),
        "pixel_attention_mask": torch.ones(1, 12, dtype=torch.int64),
        "spatial_shapes": torch.tensor([[3, 4]]),
    }
    architecture = find_architecture(str(naflex_checkpoint), max_num_patches=12)
    assert count(model, "get_image_features", **given) == architecture.flops_of_view


@pytest.mark.skipif(not CHECKPOINTS.is_file(), reason=f"there is no {CHECKPOINTS}")
def test_the_published_sizes_are_those_of_their_configs() -> None:
    found = json.loads(CHECKPOINTS.read_text())
    names = [name for name in found if name.startswith("siglip2-")]
    assert len(names) >= 5
    for name in names:
        published = published_towers(f"google/{name}")
        assert published is not None
        hub_id, towers = published
        assert hub_id == f"google/{name}"
        for section, ours in (("vision", towers.vision), ("text", towers.text)):
            theirs = found[name][section]
            assert {field: ours[field] for field in theirs} == theirs, name
        assert towers.model_type == found[name]["model_type"]


def test_every_published_checkpoint_has_three_names() -> None:
    assert len(PUBLISHED) == 17
    for name in PUBLISHED:
        published = published_towers(name)
        assert published is not None
        assert (
            published
            == published_towers(f"siglip2-{name}")
            == published_towers(f"google/siglip2-{name}")
        )
    assert published_towers("base-patch16-225") is None


@pytest.mark.parametrize(
    ("name", "patches"),
    [
        ("so400m-patch14-384", 729),  # 27 x 27: 384 is no multiple of 14
        ("base-patch32-256", 64),
        ("large-patch16-512", 1024),
        ("so400m-patch16-naflex", 256),
    ],
)
def test_patches_of_a_view(name: str, patches: int) -> None:
    assert find_architecture(name).num_patches == patches


def test_a_folder_says_what_its_files_say(
    tiny_checkpoint: Path, naflex_checkpoint: Path, tmp_path: Path
) -> None:
    tiny = find_architecture(str(tiny_checkpoint))
    assert (tiny.embed_dim, tiny.num_patches, tiny.text_tokens) == (64, 16, 64)
    assert not tiny.is_naflex
    shutil.copyfile(naflex_checkpoint / "config.json", tmp_path / "config.json")
    settings = json.loads((naflex_checkpoint / "preprocessor_config.json").read_text())
    settings["max_num_patches"] = 100
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    assert find_architecture(str(tmp_path)).num_patches == 100  # no weights are there
    assert find_architecture(str(tmp_path), max_num_patches=50).num_patches == 50


def test_of_a_hub_id_that_is_not_published_only_settings_are_fetched(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def download(repo: str, **options: Any) -> str:
        asked.append((repo, options["allow_patterns"]))
        return str(tiny_checkpoint)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert find_architecture("someone/their-siglip").embed_dim == 64
    assert asked == [("someone/their-siglip", ["config.json", "preprocessor_config.json"])]


def test_what_is_not_known_is_refused_with_what_is() -> None:
    with pytest.raises(
        CheckpointError,
        match=r"so400m-patch15-384 is neither a folder, nor a hub id .*so400m-patch14-384",
    ):
        find_architecture("so400m-patch15-384")
    with pytest.raises(SettingError, match=r"is of fixed resolution, 729 patches a view"):
        find_architecture("so400m-patch14-384", max_num_patches=512)
    with pytest.raises(SettingError, match="must be 1 to"):
        find_architecture("so400m-patch16-naflex", max_num_patches=0)
