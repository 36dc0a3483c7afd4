"""Names in a corpus: classes, and folders of storage systems."""

import pytest

from siglip2_cache.precompute.sources.image_files import class_of, is_system_folder


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("1.jpg", None),
        ("cat/1.jpg", "cat"),
        ("cat/siamese/1.jpg", "cat"),
        ("train/cat/1.jpg", "cat"),
        ("val/cat/1.jpg", "cat"),
        ("Test/cat/siamese/1.jpg", "cat"),
        ("train2017/1.jpg", None),
        ("validation/1.jpg", None),
        ("dev/1.jpg", None),
        ("images/1.jpg", None),
        ("images/train/cat/1.jpg", "cat"),
        ("train/images/1.jpg", None),
        ("data/JPEGImages/1.jpg", None),
        ("trained-dogs/1.jpg", "trained-dogs"),
    ],
)
def test_a_class_is_the_first_folder_that_is_neither_a_split_nor_a_container(
    path: str, expected: str | None
) -> None:
    assert class_of(path, ["train", "val", "annotations", "images"]) == expected


def test_beside_folders_of_other_classes_train_is_a_class() -> None:
    assert class_of("train/1.jpg", ["bus", "car", "train"]) == "train"
    assert class_of("train/cat/1.jpg", ["bus", "car", "train"]) == "cat"
    assert class_of("test/1.jpg", ["test", "captions"]) is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("@eaDir", True),
        ("$RECYCLE.BIN", True),
        ("#recycle", True),
        (".Trash-1000", True),
        (".Trashes", True),
        ("__MACOSX", True),
        (".AppleDouble", True),
        ("System Volume Information", True),
        ("recycle", False),
        (".Trash-can", False),
        ("macosx", False),
    ],
)
def test_folders_of_storage_systems_are_known(name: str, expected: bool) -> None:
    assert is_system_folder(name) is expected
