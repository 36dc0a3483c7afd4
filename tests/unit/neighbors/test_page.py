"""The page as text: what is escaped, what stands in it once, what is said, how it is written."""

import base64
import errno
import hashlib
import io
import json
import os
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from kit.fakes import write_folder_corpus
from kit.reports import build_cache, image_item, report_of, text_item
from PIL import Image

from siglip2_cache.errors import CacheError, DiskFullError, SettingError
from siglip2_cache.neighbors.page import refuse_unwritable, render_page, write_page
from siglip2_cache.neighbors.report import Caption, Group, Item, Report
from siglip2_cache.neighbors.thumbnails import Picture, Thumbnail

HOSTILE = (
    "</script><script>alert('x')</script><img src=x onerror=\"y\"> & \u2028 \u202e \0 {{ 7*7 }} 🐈"
)


class Parsed(HTMLParser):
    """A page as a browser reads it: its elements, and the text of each script and style."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.raw: list[tuple[str, str | None, str]] = []
        self.text = ""
        self._within: tuple[str, str | None] | None = None
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._within = (tag, dict(attrs).get("id")) if tag in ("script", "style") else None

    def handle_endtag(self, tag: str) -> None:
        self._within = None

    def handle_data(self, data: str) -> None:
        if self._within is not None:
            self.raw.append((*self._within, data))
        else:
            self.text += data

    def of(self, tag: str, name: str = "") -> list[dict[str, str | None]]:
        """The attributes of the elements of a kind, or of those of a class."""
        return [a for t, a in self.elements if t == tag and name in (a.get("class") or "")]

    def table(self, name: str) -> Any:
        """The JSON block of this id."""
        [text] = [text for _, found, text in self.raw if found == name]
        return json.loads(text)


def picture(color: int = 0) -> Thumbnail:
    sink = io.BytesIO()
    Image.new("RGB", (3, 2), (color, 0, 0)).save(sink, "WEBP", lossless=True)
    return Thumbnail(data=sink.getvalue(), width=3, height=2)


def image(row: int, cosine: float | None = None, **more: Any) -> Item:
    more.setdefault("key", f"photos/{row:04d}")
    return Item(kind="image", row=row, cosine=cosine, **more)


def report(*groups: Group, **more: Any) -> Report:
    told: dict[str, Any] = {"title": "Neighbors", "teachers": ("tiny",), "summary": ("2 queries",)}
    return Report(cache=Path("/data/photos"), groups=groups, **(told | more))


def render(found: Report, thumbnails: dict[Picture, Thumbnail] | None = None) -> str:
    if thumbnails is None:
        items = [item for group in found.groups for item in (group.query, *group.items) if item]
        thumbnails = {(item.row, item.view): picture(item.row) for item in items if item.row}
    return "".join(render_page(found, thumbnails))


def test_nothing_of_a_corpus_is_ever_markup() -> None:
    captions = (Caption(HOSTILE, HOSTILE), Caption("plain", "en"))
    file = Path(f"/home/{HOSTILE.replace('/', '').replace(chr(0), '')}.png")
    groups = (
        Group(
            query=image(1, key=HOSTILE, captions=captions),
            items=(
                image(2, 0.5, key=HOSTILE, captions=captions, remarks=(HOSTILE,)),
                text_item(HOSTILE, HOSTILE, row=3, cosine=0.1),
                image(4, 0.1, key=HOSTILE, captions=captions),
            ),
        ),
        Group(query=Item(kind="image", file=file), items=(), heading=HOSTILE),
    )
    found = report(*groups, title=HOSTILE, teachers=(HOSTILE,), summary=(HOSTILE,))
    fault = Thumbnail(state="unreadable", reason=HOSTILE)
    pictures: dict[Picture, Thumbnail] = {(1, 0): picture(), (2, 0): picture()}
    page = Parsed(render(found, {**pictures, (4, 0): fault, file: fault}))
    assert [attrs.get("id") for attrs in page.of("script")] == ["items", "pictures", None]
    assert {attrs.get("id") for attrs in page.of("img")} == {None, "detail-picture"}
    assert not [attrs for _, attrs in page.elements if any(name.startswith("on") for name in attrs)]
    assert "49" not in page.text.split()
    assert page.text.count("alert('x')") >= 10
    items = page.table("items")
    assert items[0]["captions"] == [[HOSTILE, HOSTILE], ["plain", "en"]]
    assert "\u202e" not in items[0]["name"]  # a key is one line that turns nothing around


def test_a_json_block_holds_no_character_that_could_end_it_or_its_line() -> None:
    html = render(report(Group(query=image(1, captions=(Caption(HOSTILE),)), items=())))
    [block] = [text for _, name, text in Parsed(html).raw if name == "items"]
    assert not {"<", ">", "&", "\u2028", "\u2029"} & set(block)


def test_a_picture_stands_in_the_file_once_however_often_it_is_shown() -> None:
    groups = [Group(query=image(1), items=(image(2, 0.9), image(3, 0.8), image(1, 0.7)))] * 5
    thumbnails: dict[Picture, Thumbnail] = {
        (1, 0): picture(1),
        (2, 0): picture(2),
        (3, 0): picture(2),  # a copy of it under another key
    }
    html = render(report(*groups), thumbnails)
    page = Parsed(html)
    assert html.count("data:image/webp;base64,") == 2
    shown = [attrs["data-picture"] for attrs in page.of("img") if "data-picture" in attrs]
    assert shown == ["0", "1", "1", "0"] * 5
    assert [item["name"] for item in page.table("items")] == [f"photos/000{i}" for i in (1, 2, 3)]
    for data, row in zip(page.table("pictures"), (1, 2), strict=True):
        assert base64.b64decode(data.partition(",")[2]) == thumbnails[row, 0].data


def test_a_long_caption_is_cut_on_its_cards_and_whole_in_the_table() -> None:
    text = "wort " * 2000
    groups = [Group(query=None, items=(image(1, captions=(Caption(text, "de"),)),))] * 20
    html = render(report(*groups))
    page = Parsed(html)
    assert page.table("items")[0]["captions"] == [[text, "de"]]
    assert len(html) - len(text) < 80_000
    [alt] = {attrs["alt"] for attrs in page.of("img") if "data-picture" in attrs}
    assert alt is not None
    assert alt.endswith("wort…")
    assert len(alt) < 300


def test_the_policy_lets_only_this_style_and_this_script_run() -> None:
    html = render(report(Group(query=image(1), items=(image(2, 0.5),))))
    page = Parsed(html)
    [policy] = [a["content"] for a in page.of("meta") if "http-equiv" in a]
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:; ")
    assert "unsafe" not in policy
    for tag, name, text in page.raw:
        if name is None:
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            assert f"{tag}-src 'sha256-{digest}'" in policy
    assert not [a for _, a in page.elements if "style" in a]  # the policy would refuse them
    assert "://" not in html


def test_every_image_has_a_text_in_its_place() -> None:
    group = Group(
        query=image(1, captions=(Caption("a cat", "en"), Caption("eine Katze", "de"))),
        items=(image(2, 0.5),),
    )
    shown = [a for a in Parsed(render(report(group))).of("img") if "data-picture" in a]
    assert [a["alt"] for a in shown] == ["a cat", "photos/0002"]
    assert [a.get("lang") for a in shown] == ["en", None]


def test_a_row_has_one_tab_stop() -> None:
    groups = (
        Group(query=image(1), items=(image(2, 0.5), image(3, 0.4))),
        Group(query=None, items=(image(2), image(3)), heading="cluster 1"),
    )
    cards = Parsed(render(report(*groups))).of("button", "card")
    assert [card["tabindex"] for card in cards] == ["0", "-1", "-1", "0", "-1"]


def test_a_cosine_has_a_bar_relative_to_the_largest_of_its_row() -> None:
    cosines = (0.8, 0.4, 0.0, -0.25)
    group = Group(query=image(1), items=tuple(image(2 + i, c) for i, c in enumerate(cosines)))
    page = Parsed(render(report(group)))
    assert [a["width"] for a in page.of("rect", "value")] == ["100", "50", "0", "0"]
    for text in ("0.8000", "0.4000", "0.0000", "\N{MINUS SIGN}0.2500"):
        assert text in page.text.split()


def test_a_row_of_negative_cosines_has_no_bars() -> None:
    group = Group(query=image(1), items=(image(2, -0.1), image(3, float("nan"))))
    page = Parsed(render(report(group)))
    assert [a["width"] for a in page.of("rect", "value")] == ["0", "0"]


def test_pictures_that_are_not_sound_say_so_and_are_counted() -> None:
    thumbnails: dict[Picture, Thumbnail] = {
        (1, 0): picture(),
        (2, 0): Thumbnail(state="rejected", reason="rejected by tiny: empty: 0 bytes"),
        (3, 0): Thumbnail(state="unreadable", reason="no such file"),
        (4, 0): Thumbnail(data=picture().data, state="changed", reason="the file changed since"),
    }
    group = Group(query=image(1), items=tuple(image(row, 0.5) for row in (2, 3, 4)))
    page = Parsed(render(report(group), thumbnails))
    words = " ".join(page.text.split())
    assert "no picture rejected by tiny: empty: 0 bytes" in words
    assert "no picture no such file" in words
    assert [a["title"] for a in page.of("span", "fault")] == ["the file changed since"]
    assert (
        "of 4 pictures: 1 changed since the teacher saw it, 1 rejected by the teacher, 1 "
        "unreadable now" in words
    )


def test_captions_carry_their_language_and_find_their_own_direction() -> None:
    group = Group(query=text_item("صورة قطة", "ar"), items=(image(1, 0.1),))
    page = Parsed(render(report(group)))
    assert {"dir": "auto", "lang": "ar"} in page.of("span")
    assert "Row 1: صورة قطة" in page.text


def test_a_report_of_nothing_says_so() -> None:
    assert "No results." in render(report())
    assert "No results." in render(report(Group(query=image(1), items=())))


# -- writing


def test_a_page_is_written_whole_from_a_cache(tiny_checkpoint: Path, tmp_path: Path) -> None:
    corpus = write_folder_corpus(tmp_path / "corpus", 4)
    cache = build_cache(corpus, tmp_path / "cache", tiny_checkpoint)
    group = Group(query=image_item(cache, 0), items=(image_item(cache, 3, 0.5),))
    path = tmp_path / "page.html"
    path.write_text("an earlier page")
    write_page(report_of(cache, group), cache, path)
    page = Parsed(path.read_text("utf-8"))
    assert len(page.table("pictures")) == 2
    assert "Picture 0" in page.text
    assert {child.name for child in tmp_path.iterdir()} == {"corpus", "cache", "page.html"}


@pytest.mark.parametrize(
    ("raised", "expected", "message"),
    [
        (
            OSError(errno.ENOSPC, "No space left"),
            DiskFullError,
            r"no space left .*page\.html; free",
        ),
        (
            OSError(errno.EROFS, "Read-only"),
            SettingError,
            r"page\.html: the folder .* not writable",
        ),
        (OSError(errno.EIO, "Input/output error"), SettingError, r"page\.html: Input/output error"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
def test_a_page_that_cannot_be_finished_leaves_the_earlier_one(
    raised: BaseException,
    expected: type[BaseException],
    message: str | None,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = build_cache(write_folder_corpus(tmp_path / "a", 2), tmp_path / "c", tiny_checkpoint)
    path = tmp_path / "page.html"
    path.write_text("an earlier page")

    def fail(_: int) -> None:
        raise raised

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(expected, match=message):
        write_page(report_of(cache), cache, path)
    assert path.read_text() == "an earlier page"
    assert not list(tmp_path.glob("*.partial"))


def test_a_place_for_no_page_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def message_of(path: Path) -> str:
        with pytest.raises(CacheError) as refused:
            refuse_unwritable(path)
        assert isinstance(refused.value, SettingError)
        return str(refused.value)

    assert f"there is no folder {tmp_path / 'no'}; make it" in message_of(
        tmp_path / "no" / "p.html"
    )
    assert "it is a folder; name a file in it" in message_of(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        assert f"{name}: it is not a regular file; name another" in message_of(tmp_path / name)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    assert f"the folder {tmp_path} is not writable" in message_of(tmp_path / "p.html")
    monkeypatch.undo()
    refuse_unwritable(tmp_path / "p.html")
    (tmp_path / "p.html").touch()
    (tmp_path / "page").symlink_to("p.html")
    refuse_unwritable(tmp_path / "page")


def test_names_that_are_not_utf_8_do_not_break_the_page(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    cache = build_cache(write_folder_corpus(tmp_path / "a", 2), tmp_path / "c", tiny_checkpoint)
    file = tmp_path / os.fsdecode(b"caf\xe9.png")
    Image.new("RGB", (9, 9)).save(tmp_path / "plain.png")
    os.rename(tmp_path / "plain.png", file)
    group = Group(query=Item(kind="image", file=file), items=(image_item(cache, 1, 0.5),))
    write_page(report_of(cache, group), cache, tmp_path / "page.html")
    page = Parsed((tmp_path / "page.html").read_text("utf-8"))
    assert page.table("items")[0]["name"] == "caf\\udce9.png"
