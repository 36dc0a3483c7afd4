"""The table of costs in the documentation is what the formulas give."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def costs(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("costs")


def test_the_table_of_the_documentation_is_the_computed_one(costs: ModuleType) -> None:
    assert "\n".join(costs.table_lines()) in (ROOT / "docs/explanation/cost.md").read_text("utf-8")


def test_bytes_are_those_of_float16_targets_and_of_the_catalog(costs: ModuleType) -> None:
    whole, views = costs.cost_of("so400m-patch14-224", 1), costs.cost_of("so400m-patch14-224", 5)
    # Units of 16,384 rows, and with 5 views of 2,048; 16 bytes of index for each chunk of 64 rows.
    assert whole.target_bytes == 1_000_000 * (1152 * 2 + 1152 * 2) + 2 * 62 * (256 * 16 + 4)
    assert views.target_bytes == 1_000_000 * (5 * 1152 * 2 + 1152 * 2) + 2 * 489 * (32 * 16 + 4)
    assert views.catalog_bytes - whole.catalog_bytes == 1_000_000 * 5 * 16


def test_arithmetic_grows_with_the_views_of_images_and_not_of_texts(costs: ModuleType) -> None:
    one, two, three = (costs.cost_of("base-patch16-224", views).flops for views in (1, 2, 3))
    assert three - two == pytest.approx(two - one)
    text = 2 * 12 * (64 * (4 * 768**2 + 2 * 768 * 3072) + 2 * 64**2 * 768) + 2 * 768**2  # by hand
    assert one - (two - one) == pytest.approx(1_000_000 * text)


def test_an_hour_is_as_much_as_a_device_does_in_3600_seconds(costs: ModuleType) -> None:
    cost = costs.cost_of("base-patch16-224", 1)
    assert cost.hours_at(cost.flops / 3600) == pytest.approx(1)
