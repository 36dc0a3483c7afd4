"""siglip2-cache estimate, as a user meets it."""

import json
from collections.abc import Callable

import pytest
from kit.commands import error_line

from siglip2_cache.commands.estimate import parse_count
from siglip2_cache.errors import SettingError

Command = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1000000000", 10**9),
        ("1_000_000", 10**6),
        ("1e9", 10**9),
        ("2.5e6", 2_500_000),
        ("100M", 10**8),
        ("1B", 10**9),
        ("1.5G", 1_500_000_000),
        ("0.5k", 500),
        ("12K", 12_000),
        ("0", 0),
    ],
)
def test_large_numbers_are_written_as_people_do(text: str, number: int) -> None:
    assert parse_count("images", text) == number


@pytest.mark.parametrize(
    "text", ["", "-1", "1.5", "1e-3", "1x", "1e999", "nan", "1 000", "1,000", "٣", "1.2345k"]
)
def test_what_is_no_whole_number_is_refused(text: str) -> None:
    with pytest.raises(SettingError, match=r"images .* is not a whole number; write it as"):
        parse_count("images", text)


def test_an_estimate_shows_each_number_with_its_formula(command: Command) -> None:
    status, out, _ = command(
        *("estimate", "--images", "1e9", "--teacher", "google/siglip2-so400m-patch14-384"),
        *("--views", "5", "--gpus", "64", "--shard-rows", "16384", "--images-per-s", "120"),
    )
    assert status == 0
    lines = {line[11:31].strip(): line[31:] for line in out.splitlines() if line[31:]}
    assert lines["image units"].split() == [
        *("61,036", "1,000,000,000", "images", "/", "16,384", "rows")
    ]
    assert lines["view"].split()[:2] == ["670.3", "GFLOP"]
    assert "N 729, p 14, D 1,152, M 4,304, L 27" in lines["view"]
    assert lines["wall time"].split()[:4] == ["1", "d", "12", "h"]
    assert "as given, measured" in lines["images per s"]
    assert "(assumed)" in lines["gpu"]
    assert "(assumed)" in lines["read by a worker"]
    assert out.splitlines()[-1].startswith("note ")


def test_an_estimate_is_json_too(command: Command) -> None:
    status, out, _ = command(
        "estimate", "--images", "1M", "--teacher", "base-patch16-224", "--json"
    )
    found = json.loads(out)
    assert status == 0
    assert (found["images"], found["texts"], found["embed_dim"]) == (10**6, 10**6, 768)
    assert found["units"]["image_units"]["value"] == 62
    assert found["a_worker"]["images_per_s"]["unit"] == "/s"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "many"], "images 'many' is not a whole number"),
        (["--images", "0"], "images must be 1 to 1,000,000,000,000,000, got 0"),
        (["--images", "1M", "--max-num-patches", "9"], "max num patches 9 goes with a NaFlex"),
        (["--images", "1M", "--gpu", "abacus"], "gpu 'abacus' is not one of h100, "),
        (["--images", "1M", "--teacher", "huge"], "huge is neither a folder, nor a hub id"),
    ],
)
def test_mistakes_are_one_line(command: Command, arguments: list[str], message: str) -> None:
    teacher = [] if "--teacher" in arguments else ["--teacher", "base-patch16-224"]
    assert message in error_line(*command("estimate", *arguments, *teacher))
