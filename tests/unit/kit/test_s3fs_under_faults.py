"""What s3fs does by itself when a store fails: what our own retries build on, and cannot take for granted."""

import aiohttp
import botocore.exceptions
import pytest
from kit.s3 import S3, Fault
from s3fs import S3FileSystem


def file_system(*, retries: int) -> S3FileSystem:
    """Return an s3fs that tries so many times itself, and lets botocore try once."""
    fs = S3FileSystem(config_kwargs={"retries": {"total_max_attempts": 1}})
    fs.retries = retries
    return fs


def test_a_create_whose_answer_was_lost_is_taken_for_that_of_another(s3: S3) -> None:
    """aiohttp repeats a PUT by itself (client.py, IDEMPOTENT_METHODS), with every other retry off."""
    s3.inject(Fault("lose-answer", ("put-new",), times=1))
    with pytest.raises(FileExistsError):
        file_system(retries=1).pipe_file(f"{s3.bucket}/a", b"mine", mode="create")
    assert s3.read("a") == b"mine"
    assert [request.status for request in s3.requests()] == [None, 412]


def test_the_end_of_an_upload_in_parts_is_not_repeated(s3: S3) -> None:
    s3.inject(Fault("lose-answer", ("complete-new",), times=1))
    data = bytes(10 * 2**20 + 1)
    with pytest.raises(FileNotFoundError, match="upload"):  # it then aborts what is complete
        file_system(retries=5).pipe_file(f"{s3.bucket}/a", data, chunksize=5 * 2**20, mode="create")
    assert s3.keys() == ["a"]
    assert s3.counts() == {"upload": 1, "part": 3, "complete-new": 1, "abort": 1}


def test_it_waits_where_it_is_told_to_slow_down_but_not_for_a_head(s3: S3) -> None:
    s3.write("a", b"0123456789")
    fs = file_system(retries=2)
    s3.inject(Fault("slow-down", every=2))
    assert fs.cat_file(f"{s3.bucket}/a", start=0, end=5) == b"01234"
    assert fs.cat_file(f"{s3.bucket}/a", start=5, end=10) == b"56789"
    assert [request.status for request in s3.requests()] == [206, 503, 206]
    with pytest.raises(OSError, match="Service Unavailable"):
        fs.exists(f"{s3.bucket}/a")  # a head has no body that says SlowDown


def test_it_does_not_repeat_after_other_errors_of_the_server(s3: S3) -> None:
    fs = file_system(retries=5)
    s3.inject(Fault("internal-error", every=2), Fault("conflict"))
    for told in ("ConditionalRequestConflict", "internal error"):
        with pytest.raises(OSError, match=told):
            fs.pipe_file(f"{s3.bucket}/a", b"a", mode="create")
    assert [request.status for request in s3.requests()] == [409, 500]


def test_a_cut_range_is_read_again_and_a_cut_chunk_of_a_large_object_is_not(s3: S3) -> None:
    s3.write("a", bytes(300))
    fs = file_system(retries=2)
    s3.inject(Fault("cut-answer", ("get-range",), times=1))
    assert fs.cat_file(f"{s3.bucket}/a", start=0, end=100) == bytes(100)
    s3.inject(Fault("cut-answer", ("get-range",), times=1))
    with pytest.raises(aiohttp.ClientPayloadError):
        fs.cat_file(f"{s3.bucket}/a", chunksize=100)


def test_what_it_raises_at_last_is_often_no_oserror(s3: S3) -> None:
    s3.write("a", bytes(300))
    fs = file_system(retries=1)
    s3.inject(Fault("cut-answer"))
    with pytest.raises(aiohttp.ClientPayloadError) as cut:
        fs.cat_file(f"{s3.bucket}/a", start=0, end=100)
    with s3.refusing(), pytest.raises(botocore.exceptions.EndpointConnectionError) as refused:
        fs.cat_file(f"{s3.bucket}/a", start=0, end=100)
    assert not isinstance(cut.value, OSError)
    assert not isinstance(refused.value, OSError)


def test_it_believes_its_own_old_listing(s3: S3) -> None:
    fs = S3FileSystem()
    s3.write("a", b"a")
    assert fs.ls(s3.bucket) == [f"{s3.bucket}/a"]
    s3.write("b", b"b")
    assert not fs.exists(f"{s3.bucket}/b")
    assert S3FileSystem(use_listings_cache=False).exists(f"{s3.bucket}/b")
