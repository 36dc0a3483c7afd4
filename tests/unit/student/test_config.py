"""Settings of a training: what a file and flags make of them, and the words of every refusal."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from siglip2_cache.errors import SettingError
from siglip2_cache.student.config import TrainConfig
from siglip2_cache.student.config_file import (
    as_plain,
    make_config,
    read_resolved,
    to_yaml,
)

NEEDED = {"cache": Path("C"), "student": "S", "out": Path("R")}


def config_of(**settings: Any) -> TrainConfig:
    return TrainConfig(**{**NEEDED, **settings})


def from_file(tmp_path: Path, text: str, **flags: Any) -> TrainConfig:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return make_config(path, {**NEEDED, **flags})


# -- values


@pytest.mark.parametrize(
    ("settings", "refusal"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"global_batch_size": 0}, "global_batch_size must be at least 1, got 0"),
        ({"micro_batch_size": 0}, "micro_batch_size must be at least 1, got 0"),
        ({"views_per_step": 0}, "views_per_step must be at least 1, got 0"),
        ({"max_num_patches": 0}, "max_num_patches must be at least 1, got 0"),
        ({"bank_size": -1}, "bank_size must be at least 0, got -1"),
        ({"bank_threshold": -1.5}, "bank_threshold must be at least -1, got -1.5"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0, got -0.1"),
        ({"warmup_steps": -1}, "warmup_steps must be at least 0, got -1"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"decode_workers": -1}, "decode_workers must be at least 0, got -1"),
        ({"eval_samples": -1}, "eval_samples must be at least 0, got -1"),
        ({"save_every": 0}, "save_every must be at least 1, got 0"),
        ({"keep_checkpoints": 0}, "keep_checkpoints must be at least 1, got 0"),
        ({"lr": 0.0}, "lr must be above 0, got 0.0"),
        ({"lr": float("nan")}, "lr must be above 0, got nan"),
        ({"projection_lr": 0.0}, "projection_lr must be above 0, got 0.0"),
        ({"clip_norm": 0.0}, "clip_norm must be above 0, got 0.0"),
        ({"clip_norm": float("inf")}, "clip_norm must be above 0, got inf"),
        ({"epochs": 0.0}, "epochs must be above 0, got 0.0"),
        ({"decode": "fast"}, "decode 'fast' is not one of exact, scaled"),
        ({"sample_timeout": 0.0}, "sample_timeout must be above 0, got 0.0"),
        ({"teacher_scale": 0.0}, "teacher_scale must be above 0, got 0.0"),
        ({"towers": "sound"}, "towers 'sound' is not one of both, image, text"),
        ({"projection": "two"}, "projection 'two' is not one of auto, learned, pca, none"),
        ({"positives": "some"}, "positives 'some' is not one of all, weighed, above=P"),
        ({"positives": "above"}, "positives 'above' is not one of all, weighed, above=P"),
        *(
            (
                {"positives": f"above={p}"},
                f"positives 'above={p}' needs a probability from 0 to below 1, such as above=0.1",
            )
            for p in ("x", "1", "-0.1", "nan", "")
        ),
        (
            {"select": "best"},
            "select 'best' is not one of all, keep=SHARE, keys=FILE, learnability",
        ),
        (
            {"select": "keys="},
            "select 'keys=' is not one of all, keep=SHARE, keys=FILE, learnability",
        ),
        (
            {"select": "learnability", "towers": "image"},
            "select learnability compares whole images and texts of the student, and towers is image; leave "
            "one of them out",
        ),
        (
            {"select": "learnability", "patch_dropout": 0.5},
            "select learnability compares whole images and texts of the student, and patch_dropout is 0.5; "
            "leave one of them out",
        ),
        ({"super_batch": 1}, "super_batch must be at least 2, got 1"),
        *(
            (
                {"select": f"keep={share}"},
                f"select 'keep={share}' needs a share above 0 to 1, such as keep=0.5",
            )
            for share in ("x", "0", "1.5", "nan", "")
        ),
        (
            {"ignore_similar": 1.0},
            "ignore_similar must be at least -1 and below 1, got 1.0",
        ),
        ({"bank_labels": "firm"}, "bank_labels 'firm' is not one of soft, hard"),
        (
            {"check_pixels": "now"},
            "check_pixels 'now' is not one of always, first-epoch, never",
        ),
        ({"dtype": "float16"}, "dtype 'float16' is not one of auto, float32, bfloat16"),
        ({"weights": {"cosin": 1.0}}, "weights has no term 'cosin'; did you mean cosine?"),
        (
            {"weights": {"xyz": 1.0}},
            "weights has no term 'xyz'; known are soft, cosine, contrastive, bank, image_bank, affinity, "
            "relations, patch, drrho, drrho_sigmoid",
        ),
        ({"weights": {"soft": -1.0}}, "weights.soft must be at least 0, got -1.0"),
        ({"weights": {"soft": float("nan")}}, "weights.soft must be at least 0, got nan"),
        (
            {"steps": 3, "epochs": 1.5},
            "steps 3 and epochs 1.5 both say how long: give one",
        ),
        (
            {"val_share": 0.1, "val_keys": "a*"},
            "val_share 0.1 and val_keys 'a*' both say what is held out: give one",
        ),
        (
            {"teacher_text": "T"},
            "teacher_text goes with towers image: else the student has its own",
        ),
        (
            {"image_tower": "T"},
            "image_tower goes with towers text: else the student has its own",
        ),
        (
            {"towers": "text", "patch_dropout": 0.5},
            "patch_dropout goes with an image tower, and towers text trains none; leave it out",
        ),
        (
            {"towers": "text", "pixels": "kept"},
            "pixels goes with an image tower, and towers text trains none; leave it out",
        ),
        (
            {"towers": "text", "weights": {"bank": 1.0}},
            "weights.bank goes with an image tower, and towers text trains none; leave it out",
        ),
        (
            {"weights": {"patch": 1.0}, "patch_dropout": 0.5},
            "weights.patch compares all patches of an image, and patch_dropout 0.5 drops some; leave one of "
            "them out",
        ),
        (
            {"towers": "image", "projection": "learned"},
            "projection learned goes with towers both: an image tower alone must come out in the "
            "space of the teacher's texts; take pca, or none where widths are equal",
        ),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_name_and_value(
    settings: dict[str, Any], refusal: str
) -> None:
    with pytest.raises(SettingError) as refused:
        config_of(**settings)
    assert str(refused.value) == refusal


# -- files and flags


def test_flags_override_a_file_one_weight_at_a_time(tmp_path: Path) -> None:
    text = "lr: 3e-4\nseed: 7\nweights: {soft: 2, cosine: 5}\n"
    config = from_file(tmp_path, text, lr=1e-3, weights={"cosine": 0.5}, seed=None)
    assert (config.lr, config.seed) == (1e-3, 7)
    assert config.weights == {"soft": 2.0, "cosine": 0.5}
    text = "caption_weights: {kind:alt: 0, language:de: 2}\ncorpus_roots: {/a: /b}\n"
    given = {"caption_weights": {"language:de": 1.0}, "corpus_roots": {"/c": "/d"}}
    config = from_file(tmp_path, text, **given)
    assert config.caption_weights == {"kind:alt": 0.0, "language:de": 1.0}
    assert config.corpus_roots == {"/a": "/b", "/c": "/d"}


@pytest.mark.parametrize("flags", [{"steps": 9}, {"epochs": 2.0}])
def test_a_flag_that_says_how_long_overrides_either_way_of_the_file(
    tmp_path: Path, flags: dict[str, Any]
) -> None:
    for text in ("steps: 5", "epochs: 0.5"):
        config = from_file(tmp_path, text, **flags)
        assert (config.steps, config.epochs) == (flags.get("steps"), flags.get("epochs"))


def test_numbers_are_taken_as_yaml_writes_them(tmp_path: Path) -> None:
    # YAML 1.1, which PyYAML reads, takes 1e-5 for a text: it lacks the dot.
    text = "lr: 1e-5\nepochs: 2\nweights: {soft: 1e-1, cosine: 3}\nout: R2"
    config = from_file(tmp_path, text, out=None)
    assert (config.lr, config.epochs, config.out) == (1e-5, 2.0, Path("R2"))
    assert config.weights == {"soft": 0.1, "cosine": 3.0}
    assert type(config.epochs) is float


def test_a_file_without_settings_gives_the_defaults(tmp_path: Path) -> None:
    assert from_file(tmp_path, "# nothing yet\n") == config_of()
    assert from_file(tmp_path, "lr:\nseed: null\n") == config_of()


def test_what_a_run_writes_down_gives_the_same_settings_again(tmp_path: Path) -> None:
    config = config_of(
        cache=tmp_path / "c\u00e4che",
        weights={"soft": 1 / 3, "cosine": 115.58428452718766 / 3, "contrastive": 0.1, "bank": 1e-7},
        lr=1e-5,
        steps=30,
        corpus_roots={"/old": "/new"},
        val_keys="yes",
        teacher_scale=115.58428452718766,
        teacher_bias=-16.777,
        towers="image",
        teacher_text="1e5",
    )
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config, config), encoding="utf-8")
    assert make_config(path, {}) == config
    assert as_plain(make_config(path, {})) == as_plain(config)
    assert as_plain(config).keys() == {each.name for each in dataclasses.fields(TrainConfig)}


def test_what_the_program_decided_is_written_but_not_read_as_if_it_had_been_given(
    tmp_path: Path,
) -> None:
    given = config_of(lr=3e-4, epochs=2.0, weights={"soft": 2.0})
    decided = dataclasses.replace(
        given,
        teacher="one",
        teacher_scale=21.9,
        weights={"soft": 2.0, "cosine": 7.3},
        steps=40,
        epochs=None,
        max_num_patches=64,
    )
    text = to_yaml(given, decided)
    (tmp_path / "config.yaml").write_text(text)
    assert make_config(tmp_path / "config.yaml", {}) == given
    assert read_resolved(text) == as_plain(decided)
    assert list(yaml.safe_load(text)) == [*NEEDED, "epochs", "lr", "weights", "resolved"]


def test_a_flag_that_says_what_is_held_out_overrides_either_way_of_the_file(tmp_path: Path) -> None:
    for text in ("val_share: 0.1", "val_keys: a*"):
        config = from_file(tmp_path, text, val_keys="b*")
        assert (config.val_share, config.val_keys) == (None, "b*")


def test_the_home_folder_is_meant_by_a_tilde_in_every_path_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    text = (
        "cache: ~/c\nout: ~/r\nstudent: ~/s\nteacher_text: ~/t\ntowers: image\ncache_dir: ~/d\n"
        "corpus_roots: {~/a: ~/b}"
    )
    (tmp_path / "run.yaml").write_text(text)
    config = make_config(tmp_path / "run.yaml", {})
    assert (config.cache, config.out) == (tmp_path / "c", tmp_path / "r")
    assert (config.student, config.teacher_text) == (f"{tmp_path}/s", f"{tmp_path}/t")
    assert config.cache_dir == tmp_path / "d"
    assert config.corpus_roots == {f"{tmp_path}/a": f"{tmp_path}/b"}


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("lr: 1\nsteps: 2\nlr: 1", "run.yaml names 'lr' twice, in lines 1 and 3; remove one"),
        ("weights: {soft: 1, soft: 2}", "names 'soft' twice, in lines 1 and 1; remove one"),
        ("? [1, 2]\n: 3\n", "cannot be read as YAML: while constructing a mapping"),
        ("learning_rate: 1", "has an unknown setting 'learning_rate'; "),
        ("step: 5", "has an unknown setting 'step'; did you mean steps?"),
        ("global_batchsize: 5", "'global_batchsize'; did you mean global_batch_size?"),
        ("qqq: 5", "has an unknown setting 'qqq'; known are cache, student, out, "),
        ("- 1", "has no settings; write lines such as 'steps: 1000'"),
        ("a: [", "cannot be read as YAML: while parsing"),
        ("steps: 1.5", "run.yaml: steps must be a whole number, got 1.5"),
        ("steps: true", "run.yaml: steps must be a whole number, got True"),
        ("lr: fast", "run.yaml: lr must be a number, got 'fast'"),
        ("lr: true", "run.yaml: lr must be a number, got True"),
        ("towers: 2", "run.yaml: towers must be a text, got 2"),
        ("compile: 1", "run.yaml: compile must be true or false, got 1"),
        ("weights: 3", "run.yaml: weights must be names with values, got 3"),
        (
            "weights: {soft: much}",
            "run.yaml: weights must be names with values, got {'soft': 'much'}",
        ),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_what_is_wrong(
    tmp_path: Path, text: str, refusal: str
) -> None:
    with pytest.raises(SettingError) as refused:
        from_file(tmp_path, text)
    assert refusal in str(refused.value)
    assert str(tmp_path / "run.yaml") in str(refused.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"there is no file .*run\.yaml; --config needs a YAML"):
        make_config(tmp_path / "run.yaml", NEEDED)


@pytest.mark.parametrize(
    ("missing", "said"), [("cache", "CACHE"), ("student", "--student"), ("out", "--out")]
)
def test_what_is_missing_is_named_as_the_command_line_calls_it(missing: str, said: str) -> None:
    given = {name: value for name, value in NEEDED.items() if name != missing}
    with pytest.raises(SettingError) as refused:
        make_config(None, given)
    expected = f"{said} is missing: name it, or {missing} in a file given by --config"
    assert str(refused.value) == expected
