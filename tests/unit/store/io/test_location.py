"""Locations: which texts are accepted, and how locations are compared and joined."""

import pickle
from pathlib import Path

import pytest
from upath import UPath

from siglip2_cache.errors import SettingError
from siglip2_cache.store.io import location as locations
from siglip2_cache.store.io.location import join, lies_in, parse_location, relative_to, relocate


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("s3://b/c/", "s3://b/c"),
        ("S3://b//c/./d", "s3://b/c/d"),
        ("memory://b/x/{0..3}.tar", "memory://b/x/{0..3}.tar"),
        ("file:///data/c", "/data/c"),
        ("/data/../c", "/c"),
        ("~/c", str(Path("~/c").expanduser())),
    ],
)
def test_a_location_is_kept_in_one_spelling(given: str, kept: str) -> None:
    location = parse_location(given)
    assert str(location) == kept
    assert parse_location(str(location)) == location
    assert pickle.loads(pickle.dumps(location)) == location


@pytest.mark.parametrize(
    "given",
    [
        "s3://AKIA:hidden@b/c",
        "s3://hidden@b/c",
        "gs://b:hidden/c",
        "az://c/x?sv=1&sig=hidden",
        "s3://b/c?X-Amz-Signature=hidden",
    ],
)
def test_a_url_with_credentials_is_refused_and_not_shown(given: str) -> None:
    with pytest.raises(SettingError) as raised:
        parse_location(given)
    assert "hidden" not in str(raised.value)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("ftp://h/c", r"ftp://h/c has an unsupported protocol; expected .*s3://"),
        ("s3:///c", r"s3:///c names no location; expected s3://BUCKET/PATH"),
        ("s3://b/../c", r"names no location"),
    ],
)
def test_other_urls_are_refused_with_what_is_expected(given: str, reason: str) -> None:
    with pytest.raises(SettingError, match=reason):
        parse_location(given)


def test_a_protocol_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(protocol: str) -> None:
        raise ImportError(protocol)

    monkeypatch.setattr(locations.fsspec, "get_filesystem_class", missing)
    with pytest.raises(SettingError, match=r"pip install 'siglip2-cache\[gcs\]'"):
        parse_location("gs://b/c")


@pytest.mark.parametrize(
    ("location", "folder", "way"),
    [
        ("s3://b/c/d", "s3://b/c", "d"),
        ("s3://b/c", "s3://b/c", ""),
        ("s3://b/cd", "s3://b/c", None),
        ("s3://b/c", "s3://b", "c"),
        ("memory://b/c/d", "s3://b/c", None),
        ("/b/c/d", "s3://b/c", None),
        ("s3://b/c/d", "/", None),
        ("/b/c/d", "/b", "c/d"),
        ("/b", "/b", ""),
        ("/bc", "/b", None),
    ],
)
def test_the_way_from_a_folder_to_what_is_below_it(
    location: str, folder: str, way: str | None
) -> None:
    assert relative_to(parse_location(location), parse_location(folder)) == way
    assert lies_in(parse_location(location), parse_location(folder)) == (way is not None)


def test_a_way_is_followed_by_name_and_not_out_of_the_bucket() -> None:
    folder = parse_location("s3://b/c/d")
    assert str(join(folder, "e/../../x#1.jpg")) == "s3://b/c/x#1.jpg"
    assert join(Path("/data"), "../x") == Path("/data/../x")  # a link may stand there
    with pytest.raises(FileNotFoundError, match="leads out of the bucket"):
        join(folder, "../../../x")


@pytest.mark.parametrize(
    ("recorded", "roots", "found"),
    [
        ("/data/coco/t.jsonl", {"/data/coco": "s3://b/coco"}, "s3://b/coco/t.jsonl"),
        ("/data/coco", {"/data/coco": "s3://b/coco"}, "s3://b/coco"),
        ("s3://b/coco/{0..3}.tar", {"s3://b": "/mnt/b"}, "/mnt/b/coco/{0..3}.tar"),
        ("gs://b/coco", {"gs://b": "s3://c/d", "gs://b/coco": "s3://x"}, "s3://x/"),
        ("s3://b/coco", {"s3://b/co": "/mnt"}, "s3://b/coco"),
        ("s3://b/new/coco", {"s3://b": "s3://b/new"}, "s3://b/new/coco"),
    ],
)
def test_a_corpus_moves_between_disks_and_stores(
    recorded: str, roots: dict[str, str], found: str
) -> None:
    assert str(relocate(recorded, roots)) == found


def test_a_path_given_as_upath_is_one_of_this_machine() -> None:
    assert type(parse_location(UPath("/a/b"))) is type(Path("/a/b"))
    assert parse_location(UPath("file:///a/b")) == Path("/a/b")


def test_a_password_in_a_url_of_another_protocol_is_not_shown() -> None:
    with pytest.raises(SettingError, match=r"^ftp://\.\.\.@host/x has an unsupported protocol"):
        parse_location("ftp://me:hidden@host/x")
