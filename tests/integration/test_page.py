"""The page in a real headless Chromium: it opens, asks for nothing, shows every picture, obeys the keys.

Screenshots go to the folder that SIGLIP2_CACHE_SCREENSHOTS names, or to a temporary one.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from kit.browser import Page, chromium_page, find_chromium
from kit.fakes import draw_image, write_table_corpus
from kit.reports import build_cache, image_item, keys_of, report_of, text_item
from PIL import Image

from siglip2_cache.neighbors.page import write_page
from siglip2_cache.neighbors.report import Caption, Group, Item

HOSTILE = (
    "</script><script>window.hit = 1</script><img src='http://127.0.0.1:9/' onerror='hit = 1'>"
)
NUM_IMAGES = 30
FOCUSED = "document.activeElement"
CARD_AT = (
    f"(c => [[...document.querySelectorAll('.group')].indexOf(c.closest('.group')), "
    f"[...c.closest('.group').querySelectorAll('.card')].indexOf(c)])({FOCUSED})"
)


@pytest.fixture(scope="module")
def chromium() -> str:
    found = find_chromium()
    if found is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on PATH")
    return found


@pytest.fixture(scope="module")
def html(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of every kind of row, of pictures of every kind."""
    root = tmp_path_factory.mktemp("page")
    lines = [
        {"image": f"{i:03d}.png", "key": f"k{i:03d}", "captions": [f"picture {i}", "Bild"]}
        for i in range(NUM_IMAGES)
    ]
    lines[1]["captions"] = [HOSTILE]
    lines[2]["captions"] = ["\u202eright to left", "a word " * 1500]
    lines[3]["captions"] = ["صورة قطة 🐈"]
    table = write_table_corpus(root / "corpus", lines)
    Image.new("RGB", (1, 4000), (90, 30, 30)).save(table.parent / "004.png")
    draw_image(5, (2000, 1200)).save(table.parent / "005.png")
    (table.parent / "006.png").write_bytes(b"")
    cache = build_cache(table, root / "cache", tiny_checkpoint, num_views=2, shard_rows=16)
    (table.parent / "007.png").unlink()
    draw_image(99).save(table.parent / "008.png")
    rows = list(keys_of(cache).values())

    def found(first: int) -> tuple[Item, ...]:
        order = [*rows[first:], *rows[:first]]
        return tuple(
            image_item(cache, row, 0.9 - 0.07 * i, remarks=("own caption",) if i == 1 else ())
            for i, row in enumerate(order[:20])
        )

    texts = [text_item(text, "en", row=i, cosine=0.1 - 0.02 * i) for i, text in enumerate("abc")]
    german = (Caption("ein Bild", "de"),)
    groups = [
        Group(query=text_item(HOSTILE, "en"), items=found(1)),
        Group(query=image_item(cache, rows[9], view=1, captions=german), items=(*texts,)),
        Group(query=None, heading="cluster 1: 3 images", items=found(0)[:3]),
        Group(query=image_item(cache, rows[3]), items=()),
        *(Group(query=image_item(cache, row), items=found(row)) for row in rows),
    ]
    write_page(report_of(cache, *groups), cache, root / "page.html")
    return root / "page.html"


@pytest.fixture(scope="module")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    named = os.environ.get("SIGLIP2_CACHE_SCREENSHOTS")
    folder = Path(named) if named else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def tab(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium_page(chromium, tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(tab: Page, html: Path) -> Page:
    """The page, opened anew in a window of a desk."""
    tab.events.clear()
    tab.look()
    tab.open(html)
    return tab


def show_all(page: Page) -> None:
    """Scroll through the whole page, as a reader would, until every picture has been decoded."""
    page.evaluate(
        """(async () => {
            for (const group of document.querySelectorAll(".group")) {
                group.scrollIntoView();
                await new Promise(requestAnimationFrame);
            }
            for (let tries = 0; document.querySelector("img[data-picture]:not([src])"); tries++) {
                if (tries > 200) throw new Error("pictures that never came");
                await new Promise(done => setTimeout(done, 20));
            }
            await Promise.all([...document.querySelectorAll("img[src]")].map(img => img.decode()));
        })()"""
    )


def test_it_says_nothing_to_the_console_and_asks_for_nothing_but_itself(
    page: Page, html: Path
) -> None:
    show_all(page)
    page.press("Tab", "Tab", "Tab", "Enter")
    assert page.complaints() == []
    outgoing = [url for url in page.requests() if not url.startswith("data:")]
    assert outgoing == [html.as_uri()]


def test_every_thumbnail_is_decoded_and_has_a_text(page: Page) -> None:
    show_all(page)
    shown = page.evaluate(
        "[...document.querySelectorAll('img[data-picture]')]"
        ".map(img => [img.naturalWidth, img.naturalHeight, img.alt.length])"
    )
    assert len(shown) > 500
    assert all(min(sizes) > 0 for sizes in shown)
    assert max(max(sizes[:2]) for sizes in shown) == 320
    stored = page.evaluate("JSON.parse(document.getElementById('pictures').textContent).length")
    assert stored == NUM_IMAGES - 2 + 1  # one was rejected, one is gone; one has two views


def test_far_rows_wait_with_their_pictures_until_they_come_near(page: Page) -> None:
    page.evaluate("new Promise(done => setTimeout(done, 200))")
    assert page.evaluate("document.querySelectorAll('.group:last-child img[src]').length") == 0
    assert page.evaluate("document.querySelectorAll('.group:first-child img[src]').length") > 10


def test_a_caption_that_is_a_script_is_text(page: Page) -> None:
    page.evaluate("document.querySelector('.card').click()")
    assert (
        page.evaluate("document.getElementById('detail-captions').textContent") == "en " + HOSTILE
    )
    assert page.evaluate("typeof window.hit") == "undefined"
    assert HOSTILE in page.evaluate("document.querySelector('.tile.quote').textContent")
    assert page.evaluate("document.scripts.length") == 3


def test_the_policy_stops_whatever_would_get_past_the_escapes(page: Page) -> None:
    stopped = page.evaluate(
        """(async () => {
            const stopped = [];
            addEventListener("securitypolicyviolation", e => stopped.push(e.effectiveDirective));
            const script = document.createElement("script");
            script.textContent = "window.hit = 1";
            document.body.append(script);
            new Image().src = "http://127.0.0.1:9/a.png";
            await fetch("http://127.0.0.1:9/").catch(() => null);
            await new Promise(done => setTimeout(done, 100));
            return [...stopped.sort(), typeof window.hit];
        })()"""
    )
    assert stopped == ["connect-src", "img-src", "script-src-elem", "undefined"]


def test_tab_visits_each_row_once_and_arrows_move_within_and_between_rows(page: Page) -> None:
    visited: list[str] = []
    for _ in range(4):
        page.press("Tab")
        visited.append(page.evaluate(f"{FOCUSED}.id || {FOCUSED}.className"))
    assert visited == ["skip", "filter", "card is-text", "card"]
    assert page.evaluate(CARD_AT) == [1, 0]
    for keys, expected in [
        (["ArrowUp"], [0, 0]),
        (["ArrowLeft", "ArrowUp"], [0, 0]),  # there is nothing further
        (["ArrowRight", "ArrowRight"], [0, 2]),
        (["End"], [0, 20]),
        (["ArrowDown"], [1, 3]),  # a shorter row: its last
        (["ArrowDown", "ArrowDown", "ArrowDown"], [4, 0]),
        (["End", "Home"], [4, 0]),
    ]:
        page.press(*keys)
        assert page.evaluate(CARD_AT) == expected, keys
    page.press("ArrowRight", "Tab")
    assert page.evaluate(CARD_AT) == [5, 0]
    page.evaluate(
        "document.querySelectorAll('.group')[4].querySelector('[tabindex=\"0\"]').focus()"
    )
    assert page.evaluate(CARD_AT) == [4, 1]  # where the reader left the row


def test_a_card_that_is_moved_to_is_never_behind_the_query(page: Page) -> None:
    page.press("Tab", "Tab", "Tab", "End", *["ArrowLeft"] * 12)
    assert page.evaluate(CARD_AT) == [0, 8]
    left, right = page.evaluate(
        f"[{FOCUSED}.getBoundingClientRect().left, "
        "document.querySelector('.query').getBoundingClientRect().right]"
    )
    assert left >= right


def test_enter_opens_the_details_and_escape_goes_back(page: Page, shots: Path) -> None:
    page.press("Tab", "Tab", "Tab", "ArrowRight", "ArrowRight", "Enter")
    dialog = "document.getElementById('detail')"
    assert page.evaluate(f"{dialog}.open")
    assert page.evaluate("document.getElementById('detail-name').textContent") == "k002"
    told = page.evaluate(f"{dialog}.textContent")
    assert "row 2 · cosine 0.8300" in told
    assert "own caption" in told
    assert "a word " * 1499 + "a word" in told
    assert page.evaluate("document.getElementById('detail-picture').decode().then(() => true)")
    page.screenshot(shots / "detail.png")
    page.press("ArrowRight")
    assert page.evaluate("document.getElementById('detail-name').textContent") == "k003"
    page.press("Escape")
    assert not page.evaluate(f"{dialog}.open")
    assert page.evaluate(CARD_AT) == [0, 3]


def test_what_is_missing_says_why_in_its_details(page: Page) -> None:
    page.evaluate("[...document.querySelectorAll('.group .tile.none')][0].closest('.card').click()")
    assert page.evaluate("document.getElementById('detail-picture').hidden")
    reason = page.evaluate("document.getElementById('detail-reason').textContent")
    assert reason == "rejected by tiny: empty: 0 bytes"


def test_the_filter_leaves_the_rows_in_which_a_key_or_a_caption_matches(page: Page) -> None:
    shown = "[...document.querySelectorAll('.group:not([hidden])')].length"
    page.evaluate("document.getElementById('filter').focus()")
    page.type("قطة")
    num_rows = page.evaluate("document.querySelectorAll('.group').length")
    num_shown = page.evaluate(shown)
    assert 1 < num_shown < num_rows
    assert page.evaluate("document.getElementById('count').textContent") == (
        f"{num_shown} of {num_rows} rows"
    )
    page.evaluate("document.getElementById('filter').select()")
    page.type("no such word")
    assert page.evaluate(shown) == 0
    page.evaluate("document.getElementById('filter').select()")
    page.type("K029")
    assert page.evaluate(shown) > 0


CONTRASTS = """(() => {
    const parse = text => text.match(/[\\d.]+/g).map(Number);
    const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
        .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const ground = element => {
        const color = parse(getComputedStyle(element).backgroundColor);
        return color[3] === 0 ? ground(element.parentElement) : color;
    };
    const names = ["h1", ".where", ".teacher", ".summary li", ".keys", ".cosine", ".role", ".caption",
        ".name", ".lang", ".caption .lang", ".remark", ".remark.fault", ".quote", ".none .reason",
        ".group h2:not(.unseen)", "p.empty", "#filter"];
    return names.map(name => {
        const element = document.querySelector(name);
        const pair = [parse(getComputedStyle(element).color), ground(element)].map(light);
        return [name, (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05)];
    });
})()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_good_contrast(page: Page, scheme: str, shots: Path) -> None:
    page.look(is_dark=scheme == "dark")
    page.screenshot(shots / f"{scheme}.png")
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(20, 22, 24)") == (scheme == "dark")
    assert {name: ratio for name, ratio in page.evaluate(CONTRASTS) if ratio < 4.5} == {}


def test_on_a_phone_only_rows_scroll_sideways(page: Page, shots: Path) -> None:
    page.look(width=360, height=740, scale=2)
    show_all(page)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.evaluate("document.querySelector('.row').scrollWidth") > 1000
    page.evaluate("scrollTo(0, 0); document.querySelector('.row').scrollLeft = 300")
    left = page.evaluate("document.querySelector('.query').getBoundingClientRect().left")
    assert left == 0  # the query stays in sight
    page.screenshot(shots / "phone.png")
    page.evaluate("document.querySelectorAll('.card')[2].click()")
    page.screenshot(shots / "phone-detail.png")
    box = page.evaluate("document.getElementById('detail').getBoundingClientRect().toJSON()")
    assert box["left"] >= 0
    assert box["right"] <= 360


@pytest.mark.slow
def test_a_page_of_200_queries_and_20_neighbors_each_opens_at_once(
    tab: Page, tiny_checkpoint: Path, tmp_path: Path, shots: Path
) -> None:
    (tmp_path / "corpus").mkdir()
    for i in range(4000):
        photograph(i).save(tmp_path / "corpus" / f"{i:04d}.jpg", quality=80)
        (tmp_path / "corpus" / f"{i:04d}.txt").write_text(f"a photograph of scene {i}")
    cache = build_cache(tmp_path / "corpus", tmp_path / "cache", tiny_checkpoint)
    items = [
        Item(kind="image", row=i, key=f"{i:04d}", captions=(Caption(f"scene {i}"),), cosine=0.5)
        for i in range(4000)
    ]
    groups = [
        Group(query=items[20 * i], items=tuple(items[20 * i : 20 * i + 20])) for i in range(200)
    ]
    path = tmp_path / "page.html"
    started = time.monotonic()
    write_page(report_of(cache, *groups), cache, path)
    written_s = time.monotonic() - started
    tab.events.clear()
    tab.look()
    opened_s = tab.open(path)
    tab.screenshot(shots / "large.png")
    started = time.monotonic()
    show_all(tab)
    shown_s = time.monotonic() - started
    print(
        f"{path.stat().st_size / 1e6:.1f} MB, written in {written_s:.1f} s, opened in {opened_s:.2f} s, "
        f"scrolled through in {shown_s:.1f} s"
    )
    assert tab.evaluate("document.querySelectorAll('.card').length") == 4200
    assert path.stat().st_size < 60e6
    assert opened_s < 20  # 1 s where nothing else runs
    assert tab.complaints() == []


def photograph(seed: int) -> Image.Image:
    """A picture that costs about as many bytes as a photograph does."""
    drawn = np.random.default_rng(seed)
    small = drawn.integers(0, 256, (12, 16, 3), np.uint8)
    fine = drawn.normal(0, 9, (240, 320, 1))
    smooth = np.asarray(Image.fromarray(small).resize((320, 240), Image.Resampling.BICUBIC))
    return Image.fromarray((smooth + fine).clip(0, 255).astype(np.uint8))
