"""The S3 of the tests is one, fails as told, and says what was asked of it."""

import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from threading import Barrier
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore.exceptions import ClientError
from kit import run_s3
from kit.patience import PATIENCE_S, wait_until
from kit.s3 import KEY_ID, S3, SECRET, Fault, Kind, make_client
from s3fs import S3FileSystem
from werkzeug.test import create_environ

_PART = 5 * 2**20  # bytes; S3 takes no smaller one, but as the last


@pytest.fixture
def client(s3: S3) -> Iterator[Any]:
    """A client that tries once, and counts as one."""
    client = make_client(s3.endpoint)
    yield client
    client.close()


def error_of(act: Callable[[], Any]) -> tuple[int, str]:
    """Return the status and the code of an error of S3."""
    with pytest.raises(ClientError) as caught:
        act()
    told = caught.value.response
    return told["ResponseMetadata"]["HTTPStatusCode"], told["Error"]["Code"]


def outcome_of(act: Callable[[], Any]) -> str:
    """Return the code of the error of S3, or ``done``."""
    try:
        act()
    except ClientError as error:
        return error.response["Error"]["Code"]
    return "done"


def connect(s3: S3) -> HTTPConnection:
    return HTTPConnection(urlsplit(s3.endpoint).netloc, timeout=PATIENCE_S)


def accepts(s3: S3) -> bool:
    connection = connect(s3)
    try:
        connection.connect()
    except ConnectionRefusedError:
        return False
    finally:
        connection.close()
    return True


def ask(client: Any, connection: HTTPConnection, s3: S3, key: str) -> HTTPResponse:
    """Get an object without a library that hides what happens."""
    url = client.generate_presigned_url("get_object", Params={"Bucket": s3.bucket, "Key": key})
    connection.request("GET", url.removeprefix(s3.endpoint))
    return connection.getresponse()


def test_s3fs_and_boto3_find_the_server_and_the_credentials_in_the_environment(s3: S3) -> None:
    import boto3

    S3FileSystem().pipe_file(f"{s3.bucket}/folder/a", b"of s3fs")
    client = boto3.client("s3")
    client.put_object(Bucket=s3.bucket, Key="folder/b", Body=b"of boto3")
    client.close()
    assert s3.counts() == {"put": 2}
    assert (s3.read("folder/a"), s3.read("folder/b")) == (b"of s3fs", b"of boto3")
    assert (os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]) == (
        KEY_ID,
        SECRET,
    )


@pytest.mark.parametrize("nth", [1, 2])
def test_each_test_has_an_empty_bucket_a_healthy_server_and_a_clean_log(s3: S3, nth: int) -> None:
    assert (s3.keys(), s3.requests()) == ([], [])
    s3.write("a", b"a")
    s3.inject(Fault("access-denied"))
    s3.refuse_for(None)


def test_what_an_earlier_test_left_running_neither_counts_nor_takes_a_fault(
    s3: S3, client: Any
) -> None:
    left = {"Bucket": s3.bucket, "Key": "a", "Body": b"a"}
    client.put_object(**left)
    s3.reset()
    s3.inject(Fault("slow-down", times=1))
    assert outcome_of(lambda: client.put_object(**left)) == "NoSuchBucket"
    assert s3.counts() == {}
    here = {**left, "Bucket": s3.bucket}
    assert outcome_of(lambda: client.put_object(**here)) == "SlowDown"


def begin_upload(s3: S3, client: Any, key: str) -> dict[str, Any]:
    """Upload an object in two parts, all but the end; return what ends it."""
    place = {"Bucket": s3.bucket, "Key": key}
    place["UploadId"] = client.create_multipart_upload(**place)["UploadId"]
    parts = []
    for number, body in enumerate((b"1" * _PART, b"2"), 1):
        etag = client.upload_part(**place, PartNumber=number, Body=body)["ETag"]
        parts.append({"PartNumber": number, "ETag": etag})
    return {**place, "MultipartUpload": {"Parts": parts}}


@pytest.mark.parametrize("how", ["put", "copy", "complete"])
def test_what_may_only_be_created_anew_is_refused_where_it_is(
    s3: S3, client: Any, how: str
) -> None:
    s3.write("source", b"other")
    place = {"Bucket": s3.bucket, "Key": "a", "IfNoneMatch": "*"}

    def create() -> None:
        if how == "put":
            client.put_object(**place, Body=b"other")
        elif how == "copy":
            client.copy_object(**place, CopySource=f"{s3.bucket}/source")
        else:
            client.complete_multipart_upload(**begin_upload(s3, client, "a"), IfNoneMatch="*")

    s3.write("a", b"first")
    assert error_of(create) == (412, "PreconditionFailed")
    assert s3.read("a") == b"first"
    s3.delete("a")
    create()
    assert s3.read("a") != b"first"
    assert s3.counts()[f"{how}-new"] == 2


@pytest.mark.parametrize("how", ["put", "copy"])
def test_of_many_who_create_one_object_one_wins(s3: S3, client: Any, how: str) -> None:
    s3.write("source", b"source")
    barrier = Barrier(32)

    def create(key: str) -> str:
        place = {"Bucket": s3.bucket, "Key": key, "IfNoneMatch": "*"}
        barrier.wait()
        if how == "put":
            return outcome_of(lambda: client.put_object(**place, Body=b"x"))
        return outcome_of(lambda: client.copy_object(**place, CopySource=f"{s3.bucket}/source"))

    with ThreadPoolExecutor(32) as threads:
        for name in ("a", "b"):
            outcomes = Counter(threads.map(create, [name] * 32))
            assert outcomes == {"done": 1, "PreconditionFailed": 31}


def test_no_two_requests_are_in_moto_at_once() -> None:
    inside, most_inside = [0], [0]

    def app(_: Any, start_response: Any) -> list[bytes]:
        inside[0] += 1
        most_inside[0] = max(most_inside[0], inside[0])
        time.sleep(0.01)  # as if between its look and its write
        inside[0] -= 1
        start_response("200 OK", [])
        return []

    objects = run_s3.Objects(app)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: objects.answer(create_environ("/b/a"), "put-new"), range(4)))
    assert most_inside == [1]


def test_ranges_and_listings_are_those_of_s3(s3: S3, client: Any) -> None:
    for key in ("x/0", "x/1", "x/y/2", "z"):
        s3.write(key, b"0123456789")

    def read(range_: str) -> bytes:
        return client.get_object(Bucket=s3.bucket, Key="z", Range=range_)["Body"].read()

    assert [read("bytes=2-4"), read("bytes=8-"), read("bytes=-3")] == [b"234", b"89", b"789"]
    assert error_of(lambda: read("bytes=10-")) == (416, "InvalidRange")
    paginator = client.get_paginator("list_objects_v2")
    pages = paginator.paginate(
        Bucket=s3.bucket, Prefix="x/", Delimiter="/", PaginationConfig={"PageSize": 2}
    )
    found = [
        (
            [e["Key"] for e in p.get("Contents", ())],
            [e["Prefix"] for e in p.get("CommonPrefixes", ())],
        )
        for p in pages
    ]
    assert found == [(["x/0", "x/1"], []), ([], ["x/y/"])]


def test_requests_are_counted_by_kind_with_keys_ranges_and_bytes(s3: S3, client: Any) -> None:
    place = {"Bucket": s3.bucket, "Key": "folder/ä b"}
    client.put_object(**place, Body=b"0123456789")
    client.put_object(**{**place, "Key": "new"}, Body=b"1", IfNoneMatch="*")
    client.get_object(**place)["Body"].read()
    client.get_object(**place, Range="bytes=1-3")["Body"].read()
    client.head_object(**place)
    client.list_objects_v2(Bucket=s3.bucket, Prefix="folder/")
    client.copy_object(**{**place, "Key": "copy"}, CopySource=f"{s3.bucket}/new")
    client.complete_multipart_upload(**begin_upload(s3, client, "parts"))
    upload = client.create_multipart_upload(**place)["UploadId"]
    client.abort_multipart_upload(**place, UploadId=upload)
    client.delete_object(**place)
    client.get_bucket_location(Bucket=s3.bucket)
    kinds: list[Kind] = ["put", "put-new", "get", "get-range", "head", "list", "copy", "upload"]
    kinds += ["part", "part", "complete", "upload", "abort", "delete", "other"]
    assert [request.kind for request in s3.requests()] == kinds
    [ranged] = s3.requests("get-range")
    assert (ranged.key, ranged.range, ranged.status) == ("folder/ä b", "bytes=1-3", 206)
    assert (ranged.num_bytes_out, ranged.num_at_once) == (3, 1)
    [put, get] = s3.requests("put", "get")
    assert (put.num_bytes_in, get.num_bytes_out) == (10, 10)
    [listing] = s3.requests("list")
    assert (listing.bucket, listing.key) == (s3.bucket, "folder/")
    assert s3.num_bytes_out() == sum(request.num_bytes_out for request in s3.requests())
    s3.forget()
    assert s3.counts() == {}


def test_every_nth_request_of_a_kind_and_a_key_fails(s3: S3, client: Any) -> None:
    s3.write("a/0", b"0")
    s3.write("b", b"1")
    s3.inject(Fault("slow-down", ("get",), key="a/*", every=3, times=2))

    def get(key: str) -> str:
        return outcome_of(lambda: client.get_object(Bucket=s3.bucket, Key=key)["Body"].read())

    assert [get("b") for _ in range(3)] == ["done"] * 3
    client.head_object(Bucket=s3.bucket, Key="a/0")
    assert [get("a/0") for _ in range(9)] == ["done", "done", "SlowDown"] * 2 + ["done"] * 3
    assert [request.fault for request in s3.requests("get")].count("slow-down") == 2


def test_a_share_of_the_requests_fails_the_same_ones_in_any_order() -> None:
    def failing(order: list[int]) -> set[tuple[int, int]]:
        faults = run_s3.Faults([Fault("slow-down", share=0.3, seed=5)])
        hits = set()
        for repeat in range(2):
            for i in order:
                request = run_s3.recognise("GET", f"/bucket/{i}", {})  # type: ignore[arg-type]
                if faults.meet(request)[0] is not None:
                    hits.add((repeat, i))
        return hits

    forward = failing(list(range(500)))
    assert failing(list(reversed(range(500)))) == forward
    first, second = ({i for repeat, i in forward if repeat == n} for n in (0, 1))
    assert 110 < len(first) < 190
    assert 15 < len(first & second) < 80  # a repeated request has a new chance


@pytest.mark.parametrize(
    ("what", "status", "code"),
    [
        ("slow-down", 503, "SlowDown"),
        ("internal-error", 500, "InternalError"),
        ("conflict", 409, "ConditionalRequestConflict"),
        ("access-denied", 403, "AccessDenied"),
    ],
)
def test_an_error_is_the_one_of_s3_and_nothing_is_done(
    s3: S3, client: Any, what: Any, status: int, code: str
) -> None:
    s3.inject(Fault(what))
    put = lambda: client.put_object(Bucket=s3.bucket, Key="a", Body=b"a")  # noqa: E731
    assert error_of(put) == (status, code)
    assert s3.keys() == []


@pytest.mark.parametrize("reset", [True, False])
def test_an_answer_is_cut_in_the_middle_of_its_body(s3: S3, client: Any, reset: bool) -> None:
    s3.write("a", bytes(1_000_000))
    s3.inject(Fault("cut-answer", ("get",), times=1, reset=reset))
    connection = connect(s3)
    answer = ask(client, connection, s3, "a")
    assert answer.headers["Content-Length"] == "1000000"
    with pytest.raises((ConnectionResetError, HTTPException)) as caught:
        answer.read()
    assert isinstance(caught.value, ConnectionResetError) == reset
    connection.close()
    [request] = s3.requests("get")
    assert (request.status, request.num_bytes_out) == (200, 500_000)
    assert len(client.get_object(Bucket=s3.bucket, Key="a")["Body"].read()) == 1_000_000


@pytest.mark.parametrize("reset", [True, False])
def test_an_object_is_stored_and_its_writer_never_hears_of_it(
    s3: S3, client: Any, reset: bool
) -> None:
    s3.inject(Fault("lose-answer", ("put-new",), times=1, reset=reset))
    put = {"Bucket": s3.bucket, "Key": "a", "Body": b"mine", "IfNoneMatch": "*"}
    with pytest.raises(Exception, match="Connection"):
        client.put_object(**put)
    assert s3.read("a") == b"mine"
    assert error_of(lambda: client.put_object(**put)) == (412, "PreconditionFailed")
    assert [request.status for request in s3.requests("put-new")] == [None, 412]


def test_a_request_is_lost_on_its_way_and_nothing_is_stored(s3: S3, client: Any) -> None:
    s3.inject(Fault("lose-request", ("put",), times=1))
    put = {"Bucket": s3.bucket, "Key": "a", "Body": bytes(100_000)}
    with pytest.raises(Exception, match="Connection"):
        client.put_object(**put)
    assert s3.keys() == []
    client.put_object(**put)
    assert s3.keys() == ["a"]
    assert [request.num_bytes_in for request in s3.requests()] == [50_000, 100_000]


def test_answers_wait_beside_other_faults(s3: S3, client: Any) -> None:
    s3.inject(Fault("delay", ("head",), seconds=0.1), Fault("access-denied", key="a"))
    started = time.monotonic()
    assert error_of(lambda: client.head_object(Bucket=s3.bucket, Key="a"))[0] == 403
    assert time.monotonic() - started >= 0.1

    def four_at_once() -> int:
        with ThreadPoolExecutor(4) as threads:
            ask = lambda _: error_of(lambda: client.head_object(Bucket=s3.bucket, Key="a"))  # noqa: E731
            list(threads.map(ask, range(4)))
        return max(request.num_at_once for request in s3.requests())

    wait_until(lambda: four_at_once() > 1, "requests that wait beside each other")
    assert four_at_once() <= 4


def test_connections_are_refused_for_a_while(s3: S3, client: Any) -> None:
    s3.write("a", b"a")
    open_one = connect(s3)
    ask(client, open_one, s3, "a").read()
    with s3.refusing():
        with pytest.raises((ConnectionError, HTTPException)):  # an open one ends
            ask(client, open_one, s3, "a")
        assert not accepts(s3)
        assert s3.read("a") == b"a"
    open_one.close()
    assert client.get_object(Bucket=s3.bucket, Key="a")["Body"].read() == b"a"
    started = time.monotonic()
    s3.refuse_for(0.4)
    wait_until(lambda: accepts(s3), "the server to listen again")
    assert time.monotonic() - started >= 0.4
    assert client.get_object(Bucket=s3.bucket, Key="a")["Body"].read() == b"a"


def test_the_server_ends_with_its_parent_however_that_ends() -> None:
    script = Path(run_s3.__file__)
    parent = subprocess.Popen(
        ["sh", "-c", f'"{sys.executable}" "{script}" $$ & wait'], stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    ports = parent.stdout.readline().split()
    socket.create_connection(("127.0.0.1", int(ports[0])), timeout=PATIENCE_S).close()
    parent.kill()
    parent.wait()
    assert parent.stdout.read() == b""  # which ends with the last process that could write
    parent.stdout.close()
    wait_until(lambda: not listens(int(ports[0])), "its port to be free")


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S).close()
    except ConnectionError:
        return False
    return True
