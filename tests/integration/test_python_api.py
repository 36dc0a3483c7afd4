"""The public names, in a script without a ``__main__`` guard and in an interpreter without a file."""

import sys
from pathlib import Path

import pytest
from kit import processes
from kit.fakes import write_folder_corpus

import siglip2_cache

_SCRIPT = """
from siglip2_cache import (
    BuildConfig, Callbacks, EvalConfig, LossTerm, PlanConfig, TermValue, TrainConfig, build, evaluate,
    register_term, train,
)

corpus, teacher, student = {corpus!r}, {teacher!r}, {student!r}
print("begun")
summary = build(
    BuildConfig(plan=PlanConfig(sources=(corpus,)), cache="cache", teacher=teacher, decode_workers=1)
)
print(summary.num_images, "images")


def margin(inputs, objective):
    cosine_N = (inputs.image_ND * inputs.image_ND).sum(-1)
    return TermValue((2 - cosine_N).sum() / inputs.counts.num_images)


register_term(LossTerm(name="margin", compute=margin, default_weight=lambda scale: 0.5))
steps, evaluations = [], []
trained = train(
    TrainConfig(
        cache="cache", student=student, out="run", steps=4, global_batch_size=8, val_share=0.25,
        eval_every=2, decode_workers=1, device="cpu",
    ),
    callbacks=Callbacks(on_step=steps.append, on_eval=evaluations.append),
)
print(trained.steps, "steps", len(steps), len(evaluations), round(steps[-1]["margin"], 4))
found = evaluate(EvalConfig(model="run/model", cache="cache", device="cpu", decode_workers=1)).found
print(sorted(found["columns"]))
"""


@pytest.mark.parametrize("has_file", [True, False])
def test_build_train_and_evaluate_from_python_with_a_term_of_ones_own(
    has_file: bool, tiny_checkpoint: Path, tiny_student: Path, tmp_path: Path
) -> None:
    corpus = write_folder_corpus(tmp_path / "corpus", 24, captions=2)
    names = {"corpus": corpus, "teacher": tiny_checkpoint, "student": tiny_student}
    script = _SCRIPT.format(**{name: str(path) for name, path in names.items()})
    (tmp_path / "script.py").write_text(script)
    command = [sys.executable, "script.py" if has_file else "-"]
    with (tmp_path / "script.py").open() as file:
        ran = processes.run(command, cwd=tmp_path, stdin=file)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == [  # once: decoding processes do not run the script again
        "begun",
        "24 images",
        "4 steps 4 2 1.0",
        "['model', 'teacher']",
    ]


def test_every_public_name_is_there() -> None:
    for name in siglip2_cache.__all__:
        assert getattr(siglip2_cache, name) is not None
    assert set(siglip2_cache.__all__) <= set(dir(siglip2_cache))
