"""Embeddings in files of each kind: recognised, read, and refused in one line."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kit.embeddings import pairs, write_clip_retrieval, write_tar

from siglip2_cache.errors import SourceError
from siglip2_cache.precompute.importing.config import EmbeddingColumns
from siglip2_cache.precompute.importing.embeddings import Embeddings
from siglip2_cache.precompute.importing.files import SourceFiles
from siglip2_cache.precompute.importing.open import open_embeddings
from siglip2_cache.precompute.planning.spill import Scratch

VECTORS = np.arange(6, dtype=np.float32).reshape(3, 2) + 1
KEYS = ["a", "b", "c"]


def opened(path: Path, **columns: Any) -> Embeddings:
    return open_embeddings(path, EmbeddingColumns(**columns), SourceFiles(Scratch()))


def images_of(source: Embeddings) -> dict[Any, list[float]]:
    found: dict[Any, list[float]] = {}
    for frame in source.images():
        values = source.vectors("image", frame)
        found |= dict(zip(frame.select("name", "view").rows(), values.tolist(), strict=True))
    return found


def texts_of(source: Embeddings) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for frame in source.texts():
        found |= dict(zip(frame["name"], source.vectors("text", frame).tolist(), strict=True))
    return found


def refused(path: Path, **columns: Any) -> str:
    def read() -> None:
        source = opened(path, **columns)
        images_of(source)
        texts_of(source)

    with pytest.raises(SourceError) as caught:
        read()
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(pa.list_(pa.float64()), id="list of doubles"),
        pytest.param(pa.large_list(pa.float32()), id="large list"),
        pytest.param(pa.list_(pa.float16(), 2), id="fixed size, half"),
    ],
)
def test_parquet_gives_the_vector_of_each_key_and_view(tmp_path: Path, kind: Any) -> None:
    rows = pa.array(VECTORS.tolist(), pa.list_(pa.float32())).cast(kind)
    path = tmp_path / "e.parquet"
    pq.write_table(pa.table({"key": KEYS, "view": [0, 1, 0], "embedding": rows}), path)
    found = images_of(opened(path))
    assert found == {("a", 0): [1, 2], ("b", 1): [3, 4], ("c", 0): [5, 6]}
    assert opened(path).embed_dim == 2


def test_one_parquet_may_hold_images_and_texts_and_null_is_no_vector(tmp_path: Path) -> None:
    columns = {
        "id": [7, 8],  # a number is a key too
        "caption": ["one", "two"],
        "image_embedding": [[1.0, 2.0], None],
        "text_embedding": [[3.0, 4.0], [5.0, 6.0]],
    }
    pq.write_table(pa.table(columns), tmp_path / "e.parquet")
    source = opened(tmp_path / "e.parquet")
    found = images_of(source)
    assert found["7", 0] == [1, 2]
    assert np.isnan(found["8", 0]).all()
    assert texts_of(source) == {"one": [3, 4], "two": [5, 6]}


def test_columns_of_other_names_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"who": KEYS, "what": VECTORS.tolist()}), tmp_path / "e.parquet")
    found = images_of(opened(tmp_path / "e.parquet", key="who", embedding="what"))
    assert found["b", 0] == [3, 4]
    message = refused(tmp_path / "e.parquet")
    assert message.startswith(
        f"{tmp_path}/e.parquet has no column of vectors; its columns are who, what;"
    )
    assert "has no column 'nothing' that fits" in refused(tmp_path / "e.parquet", key="nothing")


def test_a_folder_of_parquet_files_of_images_and_texts_is_one_source(tmp_path: Path) -> None:
    pq.write_table(pa.table({"key": KEYS, "embedding": VECTORS.tolist()}), tmp_path / "i.parquet")
    texts = pa.table({"text": ["x"], "embedding": [[7.0, 8.0]]})
    pq.write_table(texts, tmp_path / "t.parquet")
    pq.write_table(pa.table({"other": [1]}), tmp_path / "u.parquet")  # is not used
    source = opened(tmp_path)
    assert len(images_of(source)) == 3
    assert texts_of(source) == {"x": [7, 8]}
    assert source.kind == "parquet"


def test_vectors_of_another_width_are_an_error_with_their_row(tmp_path: Path) -> None:
    path = tmp_path / "e.parquet"
    pq.write_table(pa.table({"key": KEYS, "embedding": [[1.0, 2.0], [1.0, 2.0], [1.0]]}), path)
    assert refused(path) == (
        f"{path}: column 'embedding' has a vector of width 1 in row 2, and 2 in the rows before"
    )
    pq.write_table(pa.table({"key": KEYS, "embedding": VECTORS.tolist()}), path)
    pq.write_table(pa.table({"text": ["x"], "embedding": [[1.0]]}), tmp_path / "t.parquet")
    assert refused(tmp_path) == (
        f"{tmp_path}/t.parquet: column 'embedding' has vectors of width 1, {path}: column 'embedding' of 2; "
        "images and texts of a teacher have one width"
    )


@pytest.mark.parametrize("ending", [".txt", ".json", ".parquet", "_keys.npy"])
def test_an_array_takes_its_names_from_the_file_beside_it(tmp_path: Path, ending: str) -> None:
    np.save(tmp_path / "v.npy", VECTORS.astype(np.float16))
    match ending:
        case ".txt":
            (tmp_path / "v.txt").write_text("\ufeffa\nb\r\nc\n")
        case ".json":
            (tmp_path / "v.json").write_text('\ufeff["a", "b", "c"]')
        case ".parquet":
            pq.write_table(pa.table({"key": KEYS}), tmp_path / "v.parquet")
        case _:
            np.save(tmp_path / "v_keys.npy", np.array(KEYS))
    for path in (tmp_path / "v.npy", tmp_path):
        found = images_of(opened(path))
        assert found.keys() == {(key, 0) for key in KEYS}
        assert found["c", 0] == [5, 6]
    assert opened(tmp_path).kind == "numpy"


def test_an_array_whose_name_begins_with_text_holds_texts(tmp_path: Path) -> None:
    np.save(tmp_path / "texts.npy", VECTORS)
    (tmp_path / "texts.txt").write_text("a\nb\nc")
    assert texts_of(opened(tmp_path))["b"] == [3, 4]


def test_an_npz_holds_one_array_of_vectors_and_one_of_keys(tmp_path: Path) -> None:
    np.savez(tmp_path / "e.npz", vectors=VECTORS, keys=np.array(KEYS))
    assert images_of(opened(tmp_path / "e.npz"))["a", 0] == [1, 2]
    np.savez(tmp_path / "f.npz", vectors=VECTORS)
    assert "expected one array (rows, width) of vectors" in refused(tmp_path / "f.npz")


class Evil:
    def __reduce__(self) -> Any:
        return (exec, ("raise SystemExit('code of a pickle was run')",))


def test_pickles_are_refused_and_none_of_their_code_runs(tmp_path: Path) -> None:
    pickled = np.array([[Evil()]], dtype=object)
    np.save(tmp_path / "v.npy", pickled, allow_pickle=True)
    (tmp_path / "v.txt").write_text("a")
    assert refused(tmp_path / "v.npy") == (
        f"{tmp_path}/v.npy cannot be read as an array (it is pickled, and pickle is never loaded)"
    )
    np.savez(tmp_path / "e.npz", vectors=pickled, keys=np.array(["a"]))
    assert "pickle is never loaded" in refused(tmp_path / "e.npz")
    np.save(tmp_path / "w.npy", VECTORS)
    np.save(tmp_path / "w_keys.npy", np.array([Evil()] * 3, object), allow_pickle=True)
    assert "pickle is never loaded" in refused(tmp_path / "w.npy")
    (tmp_path / "x.npy").write_bytes(pickle.dumps(Evil()))
    (tmp_path / "x.txt").write_text("a")
    assert "cannot be read as an array" in refused(tmp_path / "x.npy")


def test_what_cannot_be_imported_is_said_in_one_line(tmp_path: Path) -> None:
    assert refused(tmp_path / "gone").startswith(f"there is no {tmp_path}/gone; expected Parquet")
    assert refused(tmp_path).startswith(f"{tmp_path} holds no embeddings; expected Parquet")
    np.save(tmp_path / "v.npy", VECTORS)
    assert "v.npy has no keys beside it; write them to v.txt" in refused(tmp_path / "v.npy")
    (tmp_path / "v.txt").write_text("a\nb\n")
    assert refused(tmp_path / "v.npy") == (
        f"{tmp_path}/v.npy has 3 vectors and 2 names; there is one name for each vector"
    )
    np.save(tmp_path / "n.npy", np.arange(3))
    (tmp_path / "n.txt").write_text("a")
    assert "n.npy is int64 of shape (3,), expected floats of shape (rows, width)" in refused(
        tmp_path / "n.npy"
    )
    (tmp_path / "p.parquet").write_bytes(b"PAR1")
    assert "p.parquet cannot be read as Parquet" in refused(tmp_path / "p.parquet")


def test_a_folder_of_clip_retrieval_names_images_by_path_and_texts_by_caption(
    tmp_path: Path,
) -> None:
    images, texts = pairs(5, 4)
    paths = [f"/x/{i}.jpg" for i in range(5)]
    folder = write_clip_retrieval(tmp_path / "out", paths, list("abcde"), images, texts)
    source = opened(folder)
    assert source.kind == "clip-retrieval"
    np.testing.assert_allclose(images_of(source)["/x/4.jpg", 0], images[4], atol=1e-3)
    np.testing.assert_allclose(texts_of(source)["d"], texts[3], atol=1e-3)
    (folder / "metadata" / "metadata_1.parquet").unlink()
    assert "img_emb_1.npy has no metadata_1.parquet" in refused(folder)


def test_images_alone_are_enough_of_clip_retrieval(tmp_path: Path) -> None:
    images, _ = pairs(3, 4)
    source = opened(write_clip_retrieval(tmp_path / "o", ["a", "b", "c"], [], images, None))
    assert len(images_of(source)) == 3
    assert texts_of(source) == {}


def test_the_digest_is_of_the_bytes_and_not_of_names_or_order(tmp_path: Path) -> None:
    digests: list[str] = []
    for folder, names in (("one", ("a", "b")), ("two", ("d", "c"))):
        (tmp_path / folder).mkdir()
        for i, name in enumerate(names):
            table = pa.table({"key": [str(i)], "embedding": [[float(i), 1.0]]})
            pq.write_table(table, tmp_path / folder / f"{name}.parquet")
        digests.append(opened(tmp_path / folder).digest())
    assert digests[0] == digests[1]
    pq.write_table(table, tmp_path / "two" / "e.parquet")
    assert opened(tmp_path / "two").digest() != digests[0]


def test_tars_without_embeddings_are_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "t.tar", {"a.jpg": b"x", "a.npz": b"not a zip"})
    assert refused(path) == (
        f"{path} has no KEY.npz or KEY.pth.gz with image_emb, as DataCompDR has"
    )


def test_a_vector_beyond_float32_is_not_finite(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.array([[1e300, 1.0]]))
    (tmp_path / "v.txt").write_text("a")
    assert not np.isfinite(images_of(opened(tmp_path))["a", 0]).all()
