"""A folder that clip-retrieval serves: arrays and metadata as its inference writes them, indexes beside them.

Source: clip_retrieval/clip_inference/writer.py and clip_retrieval/clip_back.py of rom1504/clip-retrieval.
The back end reads indices_paths.json, image.index, text.index and metadata/*.parquet, sorted by name and
concatenated: the number of a vector in an index is its row there. Each image is a row, with its first
caption; the images' other captions follow, in text.index only.

Shape letters in this file: B = rows of a block, D = embed_dim.
"""

import json
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from ...formatting import format_bytes
from ...progress import TaskProgress
from ...store.cache import Cache
from ...store.io.location import join
from ...store.targets.blocks import read_blocks
from .files import NpyArray, ParquetFile
from .rows import describe_rows, find_lines

_MAX_INDEX_BYTES = 2**33
"""Of one index, which is made and served in memory. clip-retrieval index makes a compressed one."""

_METADATA = pa.schema(
    [
        pa.field("image_path", pa.string()),
        pa.field("caption", pa.string()),
        pa.field("key", pa.string()),
        pa.field("label", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("row", pa.int64()),
        pa.field("text_row", pa.int64()),
    ]
)


def write_clip_retrieval(
    cache: Cache, teacher: str, view: int, folder: Path, out: Path, progress: TaskProgress
) -> list[dict[str, Any]]:
    """Write the folder; return what was written, as values for JSON for each modality.

    Args:
        cache: the cache.
        teacher: name of the teacher.
        view: view of the images.
        folder: empty folder to write to.
        out: where it will be.
        progress: shows the rows.
    """
    return _Writer(cache, teacher, view, folder, out, progress).write()


class _Writer:
    def __init__(
        self,
        cache: Cache,
        teacher: str,
        view: int,
        folder: Path,
        out: Path,
        progress: TaskProgress,
    ) -> None:
        self._cache, self._teacher, self._view = cache, teacher, view
        self._folder, self._out, self._progress = folder, out, progress
        self._images, self._texts = cache.image_targets(teacher), cache.text_targets(teacher)
        self._embed_dim = self._images.shape[-1]
        for name in ("img_emb", "text_emb", "metadata"):
            (folder / name).mkdir()

    def write(self) -> list[dict[str, Any]]:
        """Write everything."""
        image = _Vectors(self._folder, "img_emb", self._embed_dim)
        text = _Vectors(self._folder, "text_emb", self._embed_dim)
        num_rows = self._cache.manifest.count("image")
        self._progress.start("writing images", num_rows)
        rows: list[NDArray[np.int64]] = []
        lines = self._open_part(0, image, text)
        for block in read_blocks(self._images, view=self._view):
            rows.append(block.rows_B)
            self._write_block(lines, text, block.rows_B, is_first=True)
            image.write(block.values_BD)
        lines.close()
        self._progress.start("writing other captions", num_rows)
        lines = self._open_part(1, text)
        for rows_B in rows:
            self._write_block(lines, text, rows_B, is_first=False)
        lines.close()
        name = f"{self._cache.root.name} {self._teacher}"
        paths = json.dumps({name: str(self._out.absolute())}, indent=1)
        (self._folder / "indices_paths.json").write_text(f"{paths}\n", "utf-8")
        return [vectors.finish(self._out) for vectors in (image, text)]

    def _open_part(self, number: int, *arrays: "_Vectors") -> ParquetFile:
        """Return the table of a part, and begin a file of each array."""
        for array in arrays:
            array.open_part(number)
        return ParquetFile(
            self._folder / "metadata" / f"metadata_{number}.parquet",
            _METADATA,
            self._embed_dim,
            column=None,
            about={"teacher": self._teacher, "view": self._view},
        )

    def _write_block(
        self, lines: ParquetFile, text: "_Vectors", rows_B: NDArray[np.int64], *, is_first: bool
    ) -> None:
        """Write images with their first captions, or their other captions."""
        pairs = self._pairs(rows_B, is_first=is_first)
        lines.write_lines(pairs.select(_METADATA.names).to_arrow().cast(_METADATA))
        text.write(self._text_values(pairs["text_row"]))
        self._progress.advance(len(rows_B))

    def _pairs(self, rows_B: NDArray[np.int64], *, is_first: bool) -> pl.DataFrame:
        """Return a line for each image with its first caption, or for each other caption."""
        captions = self._captions(rows_B)
        number = pl.int_range(pl.len()).over("row")
        captions = captions.filter(number == 0 if is_first else number > 0)
        images = pl.DataFrame(pl.from_arrow(self._describe(rows_B)))
        how = "left" if is_first else "inner"
        found = images.join(captions, on="row", how=how, maintain_order="left")
        return found.with_columns(pl.col("caption").fill_null(""))

    def _captions(self, rows_B: NDArray[np.int64]) -> pl.DataFrame:
        """Return row, text_row and caption of the captions with a target, in the order of the corpus."""
        found = find_lines(self._cache, "captions", "row", rows_B)
        found = found.unique(["row", "text_row"], keep="first", maintain_order=True)
        found = found.filter(pl.Series(self._texts.available(found["text_row"].to_numpy())))
        texts = find_lines(self._cache, "texts", "text_row", found["text_row"].to_numpy())
        return found.join(texts, on="text_row", how="left", maintain_order="left").select(
            "row", "text_row", caption="text"
        )

    def _describe(self, rows_B: NDArray[np.int64]) -> pa.Table:
        """Return row, key, label, width, height, and the image's path if it is a file of its own."""
        frame = pl.DataFrame(
            pl.from_arrow(describe_rows(self._cache, self._teacher, "image", rows_B))
        )
        samples = find_lines(self._cache, "samples", "row", rows_B, ("row", "offset", "row_group"))
        is_file = samples.select(
            "row", is_file=pl.col("offset").is_null() & pl.col("row_group").is_null()
        )
        frame = frame.join(is_file, on="row", how="left", maintain_order="left")
        roots = {name: self._cache.corpus_root(name) for name in frame["source"].unique()}
        paths = [
            str(join(roots[source], path)) if is_file else key
            for source, path, is_file, key in frame.select(
                "source", "path", "is_file", "key"
            ).iter_rows()
        ]
        frame = frame.with_columns(pl.Series("image_path", paths, pl.String))
        return frame.select("row", "key", "label", "width", "height", "image_path").to_arrow()

    def _text_values(self, text_rows: pl.Series) -> NDArray[np.float16]:
        """Return targets of text rows, zeros where there is none."""
        values_BD = np.zeros((len(text_rows), self._embed_dim), np.float16)
        is_there = text_rows.is_not_null().to_numpy()
        values_BD[is_there] = self._texts.read(text_rows.drop_nulls().to_numpy())
        return values_BD


class _Vectors:
    """The arrays and the index of one modality."""

    def __init__(self, folder: Path, name: str, embed_dim: int) -> None:
        self._folder, self._name, self._embed_dim = folder, name, embed_dim
        self._array: NpyArray | None = None
        self._num_rows = 0
        self._index: Any = faiss.IndexScalarQuantizer(
            embed_dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
        )

    def open_part(self, number: int) -> None:
        self._close_part()
        path = self._folder / self._name / f"{self._name}_{number}.npy"
        self._array = NpyArray(path, self._embed_dim)

    def write(self, values_BD: NDArray[np.float16]) -> None:
        assert self._array is not None
        self._array.write(values_BD)
        self._num_rows += len(values_BD)
        if self._index is not None and self._num_rows * self._embed_dim * 2 > _MAX_INDEX_BYTES:
            self._index = None
        elif self._index is not None:
            self._index.add(values_BD.astype(np.float32))

    def finish(self, out: Path) -> dict[str, Any]:
        """Write the index; return the files."""
        self._close_part()
        modality = "image" if self._name == "img_emb" else "text"
        names = [
            f"{self._name}/{path.name}" for path in sorted((self._folder / self._name).iterdir())
        ]
        if self._index is not None:
            faiss.write_index(self._index, str(self._folder / f"{modality}.index"))
            names.append(f"{modality}.index")
        return {
            "modality": modality,
            "files": [str(out / name) for name in names],
            "num_bytes": sum((self._folder / name).stat().st_size for name in names),
            "rows": self._num_rows,
            "has_index": self._index is not None,
        }

    def _close_part(self) -> None:
        if self._array is not None:
            self._array.close()


def serve_lines(out: Path, parts: list[dict[str, Any]]) -> list[str]:
    """Return what was written and how to serve it, as lines for people."""
    lines = [
        f"{part['modality'] + 's':<10} {part['rows']:,} vectors, {format_bytes(part['num_bytes'])}"
        for part in parts
    ]
    if not all(part["has_index"] for part in parts):
        lines.append(
            f"index      too large for memory: clip-retrieval index --embeddings_folder {out} "
            f"--index_folder {out}"
        )
    lines.append(
        f"serve      clip-retrieval back --indices_paths {out / 'indices_paths.json'} --clip_model MODEL "
        "--enable_mclip_option False --provide_aesthetic_embeddings False"
    )
    return lines
