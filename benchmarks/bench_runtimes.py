"""How fast, large and exact a student is in each runtime, whole and made smaller, on the CPU.

    python benchmarks/bench_runtimes.py [--arch base-patch16-224] [--processor FOLDER] [--corpus FOLDER]
        [--repeats 10] [--json] [--quick]

The student has a true architecture and random weights, and is measured whole, and with half of its layers
and the vocabulary of the captions (`student new`). Each runtime runs in a process of its own, and starts from
pictures that are decoded and from texts: resizing and tokenizing count. Loading starts after the imports.
Embeddings are compared with those of the training code on all pictures and captions, and on texts that a
wrong tokenizer gives away: capitals, umlauts, Chinese, 200 words.

The corpus is a folder like shared/data/coco288 (captions.jsonl, images/); None: generated photographs.
"""

import argparse
import importlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from arguments import benchmark_parser
from hardware import machine
from make_checkpoint import ARCHS, make_checkpoint
from numpy.typing import NDArray
from photographs import draw_photograph
from PIL import Image

from siglip2_cache.images.pixels import decode_rgb, resize
from siglip2_cache.siglip import (
    Checkpoint,
    SquashRecipe,
    TextTokenizer,
    embed_image_pixels,
    embed_token_ids,
    load_model,
    logit_scale_and_bias,
    resolve_checkpoint,
)
from siglip2_cache.siglip.files import write_json
from siglip2_cache.student.export.export import export_model, write_settings
from siglip2_cache.student.export.model_card import CacheSummary, ModelCard
from siglip2_cache.student.runtimes.held_out import HeldOut
from siglip2_cache.student.runtimes.onnx_files import write_graphs
from siglip2_cache.student.runtimes.onnx_student import SUFFIXES
from siglip2_cache.student.smaller.new import NewStudentConfig, new_student

Rows = NDArray[np.float32]

BATCH = 32
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
RUNTIMES = ("transformers", "sentence-transformers", "onnx float32", "onnx int8")
IMPORTS = {
    "transformers": ["transformers.models.siglip.modeling_siglip", "transformers.models.auto"],
    "sentence-transformers": [
        "sentence_transformers",
        "transformers.models.siglip.modeling_siglip",
    ],
    "onnx": ["onnxruntime", "tokenizers", "transformers.models.siglip.image_processing_siglip"],
}
"""What a runtime imports as it loads a student, which is not counted."""

HARD = {
    "capitals": "A Red CAT on a Roof",
    "padding": "cat",
    "umlauts": "Zwei Füchse im Grünen über der Straße",
    "Chinese": "一张猫和狗坐在沙发上的照片",
    "200 words": "a dog runs over the wide green field " * 25,
}
CARD = ModelCard(
    name="student",
    student="student",
    teachers=["teacher"],
    cache=CacheSummary(samples=1, captions=1, texts=1, views=1, corpora=("folder",)),
    objectives={"soft": 1.0},
    steps=1,
    global_batch_size=1,
    towers="both",
)


class Runtime(NamedTuple):
    """A loaded student: functions from texts, and from pictures, to embeddings."""

    embed_texts: Callable[[list[str]], Any]
    embed_images: Callable[[list[Image.Image]], Any]


def main() -> None:
    parser = benchmark_parser(__doc__, quick="a tiny student, few pictures, one repeat")
    parser.add_argument("--arch", choices=sorted(ARCHS), default="base-patch16-224")
    parser.add_argument("--processor", type=Path, default=SHARED / "siglip2_base_processor")
    parser.add_argument("--corpus", type=Path, default=SHARED / "coco288")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--runtime", choices=RUNTIMES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--inputs", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.runtime:
        print(json.dumps(measure(args)))
        return
    if args.quick:
        args.arch, args.repeats = "tiny-patch16-64", 1
    print(machine("torch", "transformers", "sentence-transformers", "onnxruntime"))
    with tempfile.TemporaryDirectory(prefix="bench-runtimes-") as folder:
        work = Path(folder)
        pictures, captions = read_corpus(args.corpus, 8 if args.quick else 288)
        inputs = write_inputs(work / "inputs", pictures, [*HARD.values(), *captions])
        processor = args.processor if args.processor.is_dir() else None
        whole = make_checkpoint(args.arch, work / "whole", processor, dtype="float32")
        found: dict[str, dict[str, dict[str, Any]]] = {}
        for name, student in (("whole", whole), ("smaller", smaller(work, whole, captions))):
            found[name] = compare(args, work / f"exports of {name}", student, inputs)
    show(args, found, len(pictures), len(captions), has_real_tokenizer=processor is not None)
    if args.json:
        print(json.dumps({"arch": args.arch, "repeats": args.repeats, **found}))


def read_corpus(folder: Path, most: int) -> tuple[list[bytes], list[str]]:
    """Return encoded pictures and their captions."""
    if not folder.is_dir():
        return [draw_photograph(seed) for seed in range(most)], ["a photo of a cat", "two red dogs"]
    lines = (folder / "captions.jsonl").read_text("utf-8").splitlines()[:most]
    records = [json.loads(line) for line in lines]
    pictures = [(folder / record["image"]).read_bytes() for record in records]
    return pictures, list(dict.fromkeys(c for record in records for c in record["captions"]))


def write_inputs(folder: Path, pictures: list[bytes], texts: list[str]) -> Path:
    folder.mkdir()
    for number, picture in enumerate(pictures):
        decode_rgb(picture).save(folder / f"{number:04d}.png")
    (folder / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    return folder


def smaller(work: Path, whole: Path, captions: list[str]) -> Path:
    """Return a student with half of the layers, and the tokens of the captions."""
    texts, out = work / "captions.txt", work / "smaller"
    texts.write_text("\n".join(captions), encoding="utf-8")
    config = json.loads((whole / "config.json").read_text())
    halves = {
        f"{name}_layers": str(config[f"{name}_config"]["num_hidden_layers"] // 2)
        for name in ("vision", "text")
    }
    new_student(NewStudentConfig(model=str(whole), out=out, vocabulary=(str(texts),), **halves))
    return out


def compare(
    args: argparse.Namespace, out: Path, student: Path, inputs: Path
) -> dict[str, dict[str, Any]]:
    """Export a student, and measure and check each runtime, in turn."""
    checkpoint = resolve_checkpoint(str(student))
    model = load_model(checkpoint, device="cpu", compute_dtype="float32")
    pixels_N, texts = read_pixels(inputs, checkpoint), read_texts(inputs)
    expected = {
        "texts": in_batches(
            texts,
            lambda part: embed_token_ids(
                model,
                torch.from_numpy(TextTokenizer(checkpoint)(part)),
                compute_dtype="float32",
            ),
        ),
        "images": in_batches(
            pixels_N,
            lambda part: embed_image_pixels(
                model, checkpoint, torch.from_numpy(part), compute_dtype="float32"
            ),
        ),
    }
    export(out, model, checkpoint, pixels_N[:64])
    found: dict[str, dict[str, Any]] = {}
    for runtime in RUNTIMES:
        arguments = ["--runtime", runtime, "--folder", out, "--inputs", inputs]
        command = [sys.executable, __file__, *arguments, "--repeats", args.repeats]
        done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, check=True)
        numbers = json.loads(done.stdout.splitlines()[-1])
        with np.load(out / f"{runtime}.npz") as rows:
            cosines = {kind: (rows[kind] * expected[kind]).sum(axis=1) for kind in expected}
        numbers["image_cosine"] = float(cosines["images"].min())
        numbers["text_cosine"] = float(cosines["texts"].min())
        numbers["hard"] = dict(zip(HARD, cosines["texts"].tolist(), strict=False))
        numbers["megabytes"] = sum(map(size_of, files_of(out, runtime))) / 1e6
        found[runtime] = numbers
    others = expected["texts"] @ expected["texts"].T
    found["transformers"]["other_texts"] = float(np.median(others))
    return found


def in_batches(values: Any, embed: Callable[[Any], Any]) -> Rows:
    """Return the unit rows of all values, in float32."""
    parts = [np.asarray(embed(values[i : i + BATCH])) for i in range(0, len(values), BATCH)]
    rows = np.concatenate(parts).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def read_pixels(inputs: Path, checkpoint: Checkpoint) -> NDArray[np.uint8]:
    recipe = checkpoint.image
    assert isinstance(recipe, SquashRecipe), "NaFlex is not measured"
    resized = [resize(p, recipe.size, recipe.resample) for p in read_pictures(inputs)]
    return np.stack([np.array(picture) for picture in resized])


def read_pictures(inputs: Path) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in sorted(inputs.glob("*.png"))]


def read_texts(inputs: Path) -> list[str]:
    return json.loads((inputs / "texts.json").read_text("utf-8"))


def export(out: Path, model: Any, checkpoint: Checkpoint, calibration_N: NDArray[np.uint8]) -> None:
    """Write OUT/transformers, which sentence-transformers loads too, and OUT/onnx."""
    out.mkdir()
    export_model(model, checkpoint, out / "transformers", card=CARD)
    (out / "onnx").mkdir()
    write_settings(model.config, checkpoint, out / "onnx")
    scale, bias = logit_scale_and_bias(checkpoint)
    write_json(out / "onnx" / "export.json", {"logit_scale": scale, "logit_bias": bias})
    none = np.empty(0, np.int64)
    calibration = HeldOut(
        pixels_N=calibration_N, grids_N2=None, texts=[], image_P=none, text_P=none, picture_N=none
    )
    for precision in ("float32", "int8"):
        used = calibration if precision == "int8" else None
        write_graphs(lambda: model, checkpoint, out / "onnx", precision, calibration=used)


def files_of(out: Path, runtime: str) -> list[Path]:
    """Return the weights that a runtime reads, of both towers."""
    if not runtime.startswith("onnx"):
        return [out / "transformers" / "model.safetensors"]
    end = SUFFIXES[runtime.split()[1]]
    names = (f"{tower}_model{end}.onnx*" for tower in ("text", "vision"))
    return [path for name in names for path in (out / "onnx" / "onnx").glob(name)]


def size_of(path: Path) -> int:
    return path.stat().st_size


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Load one runtime; return its times, and write its embeddings of all inputs beside the export."""
    pictures, texts = read_pictures(args.inputs), read_texts(args.inputs)
    load = loader(args.runtime, args.folder)
    started = time.perf_counter()
    runtime = load()
    load_s = time.perf_counter() - started
    many_texts, many = (texts * BATCH)[:BATCH], (pictures * BATCH)[:BATCH]
    found = {
        "load_s": load_s,
        "text_ms": 1e3 * seconds(lambda: runtime.embed_texts(texts[:1]), args.repeats),
        "image_ms": 1e3 * seconds(lambda: runtime.embed_images(pictures[:1]), args.repeats),
        "texts_per_s": BATCH / seconds(lambda: runtime.embed_texts(many_texts), args.repeats),
        "images_per_s": BATCH / seconds(lambda: runtime.embed_images(many), args.repeats),
    }
    np.savez(
        args.folder / f"{args.runtime}.npz",
        texts=in_batches(texts, runtime.embed_texts),
        images=in_batches(pictures, runtime.embed_images),
    )
    return found


def seconds(act: Callable[[], object], repeats: int) -> float:
    """Return the median time of a call, after one that is not counted."""
    act()
    times: list[float] = []
    for _ in range(repeats):
        started = time.perf_counter()
        act()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def loader(name: str, folder: Path) -> Callable[[], Runtime]:
    """Import a runtime; return the function that loads the student."""
    for module in IMPORTS[name.split()[0]]:
        importlib.import_module(module)
    if name == "transformers":
        return lambda: load_transformers(folder / "transformers")
    if name == "sentence-transformers":
        from sentence_transformers import SentenceTransformer

        def load() -> Runtime:
            model: Any = SentenceTransformer(str(folder / "transformers"), device="cpu")

            def embed(inputs: list[Any]) -> Any:
                return model.encode(inputs, batch_size=BATCH, show_progress_bar=False)

            return Runtime(embed, embed)

        return load
    return lambda: load_onnx(folder / "onnx", name.split()[1])


def load_transformers(folder: Path) -> Runtime:
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    model: Any = AutoModel.from_pretrained(folder).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    processor: Any = AutoImageProcessor.from_pretrained(folder)
    settings: Any = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}

    @torch.inference_mode()
    def texts(given: list[str]) -> Any:
        return model.get_text_features(tokenizer(given, **settings)["input_ids"]).pooler_output

    @torch.inference_mode()
    def images(given: list[Image.Image]) -> Any:
        return model.get_image_features(**processor(given, return_tensors="pt")).pooler_output

    return Runtime(texts, images)


def load_onnx(folder: Path, precision: str) -> Runtime:
    from onnxruntime import InferenceSession
    from tokenizers import Tokenizer
    from transformers import AutoImageProcessor

    tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
    processor: Any = AutoImageProcessor.from_pretrained(folder)
    text, vision = (
        InferenceSession(folder / "onnx" / f"{tower}_model{SUFFIXES[precision]}.onnx")
        for tower in ("text", "vision")
    )

    def texts(given: list[str]) -> Any:
        ids = np.array([encoding.ids for encoding in tokenizer.encode_batch(given)], np.int64)
        return text.run(["text_embeds"], {"input_ids": ids})[0]

    def images(given: list[Image.Image]) -> Any:
        pixels = processor(given, return_tensors="np")["pixel_values"]
        return vision.run(["image_embeds"], {"pixel_values": pixels})[0]

    return Runtime(texts, images)


def show(
    args: argparse.Namespace,
    found: dict[str, dict[str, dict[str, Any]]],
    num_pictures: int,
    num_captions: int,
    *,
    has_real_tokenizer: bool,
) -> None:
    columns = {
        "load_s": ("load s", ".2f"),
        "text_ms": ("1 text ms", ".1f"),
        "image_ms": ("1 image ms", ".1f"),
        "texts_per_s": ("texts/s", ".1f"),
        "images_per_s": ("images/s", ".1f"),
        "megabytes": ("MB", ".1f"),
    }
    tokenizer = "the published tokenizer" if has_real_tokenizer else "a small tokenizer"
    print(f"\n{args.arch} with {tokenizer}, batches of {BATCH}, medians of {args.repeats}")
    print(f"{'':<31}" + "".join(f"{title:>12}" for title, _ in columns.values()))
    for student, runtimes in found.items():
        for runtime, numbers in runtimes.items():
            cells = (f"{numbers[name]:>12{form}}" for name, (_, form) in columns.items())
            print(f"{f'{student}, {runtime}':<31}" + "".join(cells))
    print(
        f"\nleast cosine to the training code, on {num_pictures} pictures and {num_captions} captions "
        f"(two captions have {found['whole']['transformers']['other_texts']:.4f}, the median)"
    )
    names = ["pictures", "texts", *HARD]
    print(f"{'':<31}" + "".join(f"{name:>12}" for name in names))
    for student, runtimes in found.items():
        for runtime, numbers in runtimes.items():
            values = [numbers["image_cosine"], numbers["text_cosine"], *numbers["hard"].values()]
            cells = "".join(f"{value:>12.6f}" for value in values)
            print(f"{f'{student}, {runtime}':<31}" + cells)


if __name__ == "__main__":
    main()
