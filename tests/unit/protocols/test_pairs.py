"""Samples of any corpus become images, texts and classes; files of benchmarks become samples."""

import json
from pathlib import Path
from typing import Any

import pytest

from siglip2_cache.errors import SettingError, SourceError
from siglip2_cache.precompute.planning.prompts import Prompt
from siglip2_cache.precompute.sources import Caption, Problem, Sample
from siglip2_cache.protocols.classes import prompts_for
from siglip2_cache.protocols.karpathy import read_karpathy
from siglip2_cache.protocols.pairs import collect, make_pairs
from siglip2_cache.protocols.xm3600 import read_xm3600


def sample(path: str, *captions: Caption, **more: Any) -> Sample:
    return Sample(key=path, path=path, captions=captions, place=path, **more)


EN, DE, PLAIN = Caption("A dog", "en"), Caption("ein Hund", "de"), Caption("a DOG")


def test_equal_texts_are_one_and_pairs_keep_their_languages(tmp_path: Path) -> None:
    samples = [sample("a.png", EN, DE), sample("b.png", PLAIN), sample("c.png")]
    found = make_pairs(samples, tmp_path, [], str.lower)
    assert found.texts == ["A dog", "ein Hund"]
    eval_set = found.eval_set
    assert eval_set.langs == ("de", "en", None)
    pairs = zip(eval_set.image_P, eval_set.text_P, eval_set.lang_P, strict=True)
    assert [tuple(map(int, pair)) for pair in pairs] == [(0, 0, 1), (0, 1, 0), (1, 0, 2)]
    assert [ref.row for ref in found.refs] == [0, 1, 2]
    assert [ref.location.path for ref in found.refs] == [tmp_path / f"{n}.png" for n in "abc"]
    assert not eval_set.has_prompts


def test_a_caption_that_is_equal_in_two_languages_is_a_pair_of_both(tmp_path: Path) -> None:
    samples = [sample("a.png", Caption("Taxi", "en"), Caption("TAXI", "de"), Caption("taxi", "en"))]
    found = make_pairs(samples, tmp_path, [], str.lower)
    assert (found.texts, found.eval_set.langs) == (["Taxi"], ("de", "en"))
    assert sorted(found.eval_set.lang_P.tolist()) == [0, 1]
    assert found.eval_set.image_P.tolist() == found.eval_set.text_P.tolist() == [0, 0]


def test_labels_have_the_class_of_their_prompts_and_others_have_none(tmp_path: Path) -> None:
    samples = [sample(f"{i}.png", label=label) for i, label in enumerate(("cat", None, "Dog", "x"))]
    prompts = [
        Prompt(label=label, template="", lang=None, text=text)
        for label, text in (("cat", "a cat"), ("Dog", "a dog"), ("dog", "A DOG"), ("cat", "cats"))
    ]
    found = make_pairs(samples, tmp_path, prompts, str.lower).eval_set
    classes = dict(zip(found.prompt_Q.tolist(), found.class_Q.tolist(), strict=True))
    cat, dog = found.label_N[0], found.label_N[2]
    assert found.label_N.tolist() == [cat, -1, dog, -1]
    assert classes == {0: cat, 1: dog, 2: cat}
    assert (found.num_labelled, found.unprompted) == (3, ("x",))


def test_rows_of_one_image_are_one_and_a_choice_is_seeded() -> None:
    rows = [sample("a.png", EN), sample("b.png", label="cat"), sample("a.png", DE, label="dog")]
    items = [*rows, Problem(place="p", reason="r")]
    samples, labels, problems = collect(items, max_images=None, seed=0)
    assert [(x.path, x.captions, x.label) for x in samples] == [
        ("a.png", (EN, DE), "dog"),
        ("b.png", (), "cat"),
    ]
    assert (labels, len(problems)) == ({"cat", "dog"}, 1)
    # Members of an archive are apart, unless they say that they are one image.
    members = [sample("a.tar", offset=i, length=1, image_id=name) for i, name in enumerate("xxy")]
    assert len(collect(members, max_images=None, seed=0)[0]) == 2
    many = [sample(f"{i}.png", label=f"class {i}") for i in range(9)]
    assert len(collect(many, max_images=4, seed=0)[1]) == 9  # also those that were not drawn
    chosen = {
        seed: [x.path for x in collect(many, max_images=4, seed=seed)[0]] for seed in range(5)
    }
    assert all(len(paths) == 4 and paths == sorted(paths) for paths in chosen.values())
    assert len(set(map(tuple, chosen.values()))) > 1


KARPATHY: dict[str, Any] = {
    "dataset": "coco",
    "images": [
        {
            "filepath": "val2014",
            "filename": f"COCO_val2014_{i:012d}.jpg",
            "imgid": i,
            "cocoid": i,
            "split": split,
            "sentids": [2 * i, 2 * i + 1],
            "sentences": [
                {
                    "tokens": ["a", "dog"],
                    "raw": f"A dog {j} of {i}.",
                    "imgid": i,
                    "sentid": 2 * i + j,
                }
                for j in range(2)
            ],
        }
        for i, split in enumerate(("test", "restval", "test", "val"))
    ],
}


def written(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def test_a_split_of_karpathy_has_its_images_with_all_their_sentences(tmp_path: Path) -> None:
    data = written(tmp_path / "dataset_coco.json", KARPATHY)
    found = list(read_karpathy(data, tmp_path, "test"))
    assert [(x.path, [c.text for c in x.captions]) for x in found if isinstance(x, Sample)] == [
        (f"val2014/COCO_val2014_{i:012d}.jpg", [f"A dog 0 of {i}.", f"A dog 1 of {i}."])
        for i in (0, 2)
    ]
    flickr = {"dataset": "flickr30k", "images": [dict(x) for x in KARPATHY["images"]]}
    for image in flickr["images"]:
        del image["filepath"], image["cocoid"]
    data = written(tmp_path / "dataset_flickr30k.json", flickr)
    [one] = read_karpathy(data, tmp_path, "val")
    assert isinstance(one, Sample)
    assert one.path == "COCO_val2014_000000000003.jpg"


def test_what_is_wrong_with_a_file_of_karpathy_is_named(tmp_path: Path) -> None:
    data = written(tmp_path / "d.json", KARPATHY)
    with pytest.raises(
        SettingError,
        match=r"no image of split 'tset'; it has restval \(1\), test \(2\), val \(1\)$",
    ):
        list(read_karpathy(data, tmp_path, "tset"))
    data = written(tmp_path / "d.json", {"images": [{"file_name": "a.jpg", "id": 1}]})
    with pytest.raises(SourceError, match=r"entry 1 has no filename and split; expected dataset_"):
        list(read_karpathy(data, tmp_path, "test"))
    broken = [dict(x) for x in KARPATHY["images"]]
    broken[0] |= {"sentences": [{"raw": 7}, {"raw": "fine"}]}
    broken[2] |= {"filename": ".."}
    data = written(tmp_path / "d.json", {"images": [*broken, 5]})
    found = list(read_karpathy(data, tmp_path, "test"))
    assert [c.text for x in found if isinstance(x, Sample) for c in x.captions] == ["fine"]
    assert sum(isinstance(x, Problem) for x in found) == 3


def test_a_line_of_xm3600_has_the_captions_of_every_language(tmp_path: Path) -> None:
    lines = [
        {
            "image/key": f"00{i}f",
            "image/locale": "en",
            "en": {"caption": [f"one {i}", f"two {i}"], "caption/tokenized": ["one", "two"]},
            "quz": {"caption": [f"huk {i}"], "caption/tokenized": ["huk"]},
        }
        for i in range(2)
    ]
    data = tmp_path / "captions.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines) + "[]\n", "utf-8")
    first, second, problem = read_xm3600(data, tmp_path / "images")
    assert isinstance(first, Sample)
    assert isinstance(second, Sample)
    assert first.path == "000f.jpg"
    assert second.captions == (
        Caption("one 1", "en"),
        Caption("two 1", "en"),
        Caption("huk 1", "quz"),
    )
    assert isinstance(problem, Problem)
    data.write_text('{"image": "a.jpg"}\n')
    with pytest.raises(
        SourceError, match=r"line 1 has no image/key; expected captions\.jsonl of Crossmodal-3600"
    ):
        list(read_xm3600(data, tmp_path))


def test_a_class_has_the_80_templates_with_its_name() -> None:
    prompts = prompts_for(["cat", "dog", "cat"], labels=None, templates=None)
    assert len(prompts) == 160
    texts = {prompt.text for prompt in prompts if prompt.label == "dog"}
    assert {"a bad photo of a dog.", "itap of my dog.", "a tattoo of the dog."} <= texts
    assert len(texts) == 80
    assert prompts_for([], labels=None, templates=None) == []


def names_of(tmp_path: Path, name: str, text: str, found: list[str]) -> dict[str, str]:
    (tmp_path / name).write_text(text)
    (tmp_path / "templates.txt").write_text("{}\n")
    templates = tmp_path / "templates.txt"
    prompts = prompts_for(found, labels=tmp_path / name, templates=templates)
    return {prompt.label: prompt.text for prompt in prompts}


def test_names_are_found_by_label_by_number_or_in_sorted_order(tmp_path: Path) -> None:
    ids = ["n02084071", "n01440764", "n02084071"]
    expected = {"n01440764": "tench", "n02084071": "dog"}
    assert names_of(tmp_path, "names.txt", "tench\ndog\n", ids) == expected
    assert names_of(tmp_path, "names.json", '["tench", "dog"]', ids) == expected
    assert names_of(tmp_path, "names.json", json.dumps(expected), ids) == expected
    table = "label,name\nn02084071,dog\nn01440764,tench\n"
    assert names_of(tmp_path, "names.csv", table, ids) == expected
    assert names_of(tmp_path, "names.txt", "tench\ndog\nowl\n", ["1", "0"]) == {
        "0": "tench",
        "1": "dog",
        "2": "owl",
    }


@pytest.mark.parametrize(
    ("name", "text"),
    [("names.txt", "crane\nowl\ncrane\ndog\n"), ("names.json", '["crane", "owl", "crane", "dog"]')],
)
@pytest.mark.parametrize("found", [["n1", "n2", "n3", "n4"], ["0", "1", "2", "3"]])
def test_a_list_matched_by_position_may_repeat_a_name_and_its_labels_are_one_class(
    tmp_path: Path, name: str, text: str, found: list[str]
) -> None:
    assert names_of(tmp_path, name, text, found) == dict(
        zip(found, ["crane", "owl", "crane", "dog"], strict=True)
    )
    prompts = prompts_for(found, labels=tmp_path / name, templates=tmp_path / "templates.txt")
    samples = [sample(f"{label}.png", label=label) for label in found]
    eval_set = make_pairs(samples, tmp_path, prompts, str).eval_set
    first, owl, second, dog = eval_set.label_N.tolist()
    assert first == second
    assert len({first, owl, dog}) == 3
    assert sorted(eval_set.class_Q.tolist()) == sorted([first, owl, dog])
    with pytest.raises(SourceError, match=r"label 'crane' is there twice: .* 1 and .* 3$"):
        names_of(tmp_path, name, text, ["crane", "owl", "dog"])
    with pytest.raises(SettingError, match=r"names 4 classes, none of them .* it needs 3 names"):
        names_of(tmp_path, name, text, ["n1", "n2", "n3"])


def test_names_that_fit_no_label_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"names 3 classes, none of them a label .* needs 2 "):
        names_of(tmp_path, "names.txt", "a\nb\nc\n", ["x", "y"])
    with pytest.raises(SettingError, match="but no image has a label"):
        names_of(tmp_path, "names.txt", "a\n", [])
    with pytest.raises(
        SettingError, match=r"WordNet ids, such as n01440764; give the names .* --labels FILE"
    ):
        prompts_for(["n01440764"], labels=None, templates=None)


def test_an_image_of_an_archive_keeps_its_place(tmp_path: Path) -> None:
    [ref] = make_pairs(
        [sample("a.tar", member="x.png", offset=512, length=9, num_bytes=2048)], tmp_path, [], str
    ).refs
    assert ref.location.offset == 512
    assert (ref.location.member, ref.location.file_bytes) == ("x.png", 2048)
