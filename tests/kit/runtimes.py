"""The demo's larger model and a cache of generated scenes, as exports for other runtimes are tried on."""

from pathlib import Path
from typing import Any

from kit.fakes import config_of
from siglip2_cache.demo.corpus import CorpusConfig, write_corpus
from siglip2_cache.precompute.build import build
from siglip2_cache.student.runtimes.export import RuntimesConfig

STUDENT = Path(__file__).parents[2] / "demo" / "checkpoints" / "teacher"


def build_cache(root: Path, *, num_images: int = 240) -> Path:
    """Return a new cache of scenes by that model, of which a few are held out; ROOT/corpus has them."""
    write_corpus(CorpusConfig(num_images=num_images, held_out=True), root / "corpus")
    build(config_of(root / "corpus" / "captions.jsonl", root / "cache", STUDENT))
    return root / "cache"


def export_settings(cache: Path, out: Path, **more: Any) -> RuntimesConfig:
    """Return the settings of an export of that model to ONNX."""
    named = {"model": str(STUDENT), "out": out, "to": ("onnx",), "check": cache}
    return RuntimesConfig(**named | {"decode_workers": 0} | more)
