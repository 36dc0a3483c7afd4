"""Write siglip2-processor: the published tokenizer with some 2,000 of its 256,000 tokens.

    python tests/data/make_small_processor.py PUBLISHED

PUBLISHED is a folder with the tokenizer and processor files of google/siglip2-base-patch16-224 (Apache 2.0).
The files stay as published but for tokens and merges: texts of the tests have the same tokens as there, by
other ids. It is read in milliseconds, not in seconds.
"""

import json
import re
import shutil
import string
import sys
from pathlib import Path

from siglip2_cache.student.smaller.vocabulary import cut_vocabulary

OUT = Path(__file__).parent / "siglip2-processor"
ROOT = Path(__file__).parents[2]


def main(published: Path) -> None:
    tests = "".join(path.read_text("utf-8") for path in sorted((ROOT / "tests").rglob("*.py")))
    golden = json.loads((published / "golden_ids.json").read_text())
    texts = [*string.printable, *(text for text, _ in golden), (ROOT / "README.md").read_text()]
    texts += re.findall(r"[^\x00-\x7f]+", tests)
    spec = json.loads((published / "tokenizer.json").read_text("utf-8"))
    cut, old_ids = cut_vocabulary(spec, [text.lower() for text in texts])
    assert old_ids[:4].tolist() == [0, 1, 2, 3]
    OUT.mkdir(exist_ok=True)
    written = json.dumps(cut, ensure_ascii=False, separators=(",", ":"))
    (OUT / "tokenizer.json").write_text(written, "utf-8")
    for path in published.glob("*token*map.json"):
        shutil.copyfile(path, OUT / path.name)
    shutil.copyfile(published / "preprocessor_config.json", OUT / "preprocessor_config.json")
    config = json.loads((published / "tokenizer_config.json").read_text("utf-8"))
    new_id = {str(old): str(new) for new, old in enumerate(old_ids.tolist())}
    added = config["added_tokens_decoder"]
    config["added_tokens_decoder"] = {new_id[old]: token for old, token in added.items()}
    (OUT / "tokenizer_config.json").write_text(json.dumps(config, indent=1), "utf-8")
    print(f"{len(old_ids):,} tokens, {len(written):,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
