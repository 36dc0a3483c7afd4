"""Make tests/data/img2dataset: a tiny output of the real img2dataset in three of its formats.

Not run by the tests. In an environment of its own, for img2dataset pulls in much:

    pip install img2dataset && python tests/data/make_img2dataset.py [OUT]

Serves six drawings of 32 x 32 pixels over the loopback, one of which is not there, and lets
img2dataset 1.47 download them in shards of three rows.
"""

import functools
import http.server
import json
import os
import sys
import tempfile
import threading
from pathlib import Path

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # it would ask the network for a newer version

import cv2
import numpy as np
from img2dataset import download

FORMATS = ("webdataset", "files", "parquet")
MISSING = 2  # its drawing is not served


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def draw(seed: int) -> np.ndarray:
    """Return a drawing, (32, 32, 3) uint8 in OpenCV's order of channels."""
    rng = np.random.default_rng(seed)
    image = np.full((32, 32, 3), rng.integers(0, 256, 3), np.uint8)
    centre, colour = rng.integers(8, 24, 2).tolist(), rng.integers(0, 256, 3).tolist()
    return cv2.circle(image, centre, 7, colour, thickness=-1)


def main(out: Path) -> None:
    with tempfile.TemporaryDirectory() as work:
        site = Path(work, "site")
        site.mkdir()
        for i in range(6):
            if i != MISSING:
                cv2.imwrite(str(site / f"{i}.png"), draw(i))
        handler = functools.partial(_Quiet, directory=str(site))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        rows = [
            {
                "url": f"http://127.0.0.1:{server.server_port}/{i}.png",
                "caption": f"Drawing {i}\nof a disc",  # a caption may have two lines
            }
            for i in range(6)
        ]
        table = Path(work, "urls.json")
        table.write_text(json.dumps(rows))
        for output_format in FORMATS:
            download(
                url_list=str(table),
                input_format="json",
                url_col="url",
                caption_col="caption",
                output_format=output_format,
                output_folder=str(out / output_format),
                resize_mode="no",
                encode_quality=80,
                number_sample_per_shard=3,
                processes_count=1,
                thread_count=1,  # the rows in their order
                oom_shard_count=5,
                retries=0,
            )
        server.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("img2dataset"))
