"""The published tokenizer and processor files of SigLIP 2, whole and small."""

import json
from pathlib import Path

import pytest

REAL_PROCESSOR = Path(__file__).resolve().parents[3] / "shared" / "data" / "siglip2_base_processor"
"""As published, with 256,000 tokens, where they are; reading them takes seconds."""

SMALL_PROCESSOR = Path(__file__).resolve().parents[1] / "data" / "siglip2-processor"
"""The same with some 2,000 tokens; see make_small_processor.py."""

needs_real_processor = pytest.mark.skipif(
    not REAL_PROCESSOR.is_dir(), reason=f"the published tokenizer is not in {REAL_PROCESSOR}"
)


def num_tokens(processor: Path) -> int:
    """Ids of a tokenizer's vocabulary."""
    return len(json.loads((processor / "tokenizer.json").read_text("utf-8"))["model"]["vocab"])
