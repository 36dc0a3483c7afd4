"""Patch dropout of the image tower."""

from pathlib import Path

import pytest
import torch
from transformers import SiglipVisionModel

from siglip2_cache.student.training.patch_dropout import PatchDropout
from siglip2_cache.student.training.schedule import make_schedule


def test_in_training_each_image_is_seen_by_another_part_of_its_patches(tiny_student: Path) -> None:
    tower = SiglipVisionModel.from_pretrained(tiny_student)
    seen: list[torch.Tensor] = []
    tower.encoder.register_forward_pre_hook(
        lambda _, inputs, named: seen.append(named["inputs_embeds"] if named else inputs[0]),
        with_kwargs=True,
    )
    pixels = torch.rand(3, 3, 32, 32)
    whole = tower.eval()(pixel_values=pixels).pooler_output
    dropout = PatchDropout(tower, 0.75)
    torch.manual_seed(0)
    tower.train()(pixel_values=pixels)  # off
    dropout.is_on = True
    tower(pixel_values=pixels)
    tower(pixel_values=pixels)
    torch.testing.assert_close(tower.eval()(pixel_values=pixels).pooler_output, whole)
    P = seen[0].shape[1]
    assert [each.shape[1] for each in seen] == [P, P, round(P / 4), round(P / 4), P]
    differs: list[bool] = []
    for image in range(3):
        all_patches = {tuple(row.tolist()) for row in seen[0][image]}
        parts = [{tuple(row.tolist()) for row in each[image]} for each in seen[2:4]]
        assert all(part < all_patches and len(part) == round(P / 4) for part in parts)
        differs.append(parts[0] != parts[1])
    assert any(differs)


@pytest.mark.parametrize(("kind", "last"), [("cosine", 90), ("wsd", 95)])
def test_it_is_off_while_the_map_is_fitted_and_in_the_last_steps(kind: str, last: int) -> None:
    schedule = make_schedule(100, 5, steps_to_fit=3, kind=kind)  # pyright: ignore[reportArgumentType]
    schedule = schedule.lasting(100, 5 if kind == "wsd" else None)
    found = [step for step in range(1, 101) if schedule.has_patch_dropout(step)]
    assert found == list(range(4, last + 1))
