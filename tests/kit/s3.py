"""An S3 on this machine that can be made to fail, and says what was asked of it.

run_s3.py is the server, in a process of its own: moto behind a front that obeys these faults and keeps a
log. A test has it as the fixture ``s3``; a program writes ``with started() as s3: ...``.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Literal, get_args

from kit.patience import PATIENCE_S

KEY_ID = "AKIAFAKEIDOFTHETESTS"
SECRET = "fake/secret/of/the/tests/which/nobody/shows"
"""Credentials that no output, log or file may hold."""

REGION = "us-east-1"

Kind = Literal[
    "get",
    "get-range",
    "head",
    "list",
    "put",
    "put-new",  # -new: If-None-Match: *, to be refused with 412 where there is an object
    "copy",
    "copy-new",
    "upload",  # the beginning of one in parts
    "part",
    "complete",
    "complete-new",
    "abort",
    "delete",
    "other",  # buckets, tags, ...
]

What = Literal[
    "slow-down",
    "internal-error",
    "conflict",
    "access-denied",
    "delay",
    "cut-answer",
    "lose-answer",
    "lose-request",
]

ERRORS = {  # status, code and message, as S3 words them
    "slow-down": (503, "SlowDown", "Please reduce your request rate."),
    "internal-error": (
        500,
        "InternalError",
        "We encountered an internal error. Please try again.",
    ),
    "conflict": (
        409,
        "ConditionalRequestConflict",
        "The conditional request cannot succeed due to a conflicting operation against this resource.",
    ),
    "access-denied": (403, "AccessDenied", "Access Denied"),
}


@dataclass(slots=True, kw_only=True)
class Request:
    """One request as the server saw it."""

    kind: Kind
    method: str
    path: str
    """With the query, quoted as it came."""

    bucket: str
    key: str
    """Of a listing, its prefix."""

    range: str | None
    """``bytes=0-9``, if one was asked for."""

    status: int | None = None
    """None where the client got no answer, or not yet."""

    num_bytes_in: int = 0
    num_bytes_out: int = 0
    """Bytes of the bodies, received and sent."""

    fault: What | None = None
    """What was done to it; a delay is none."""

    num_at_once: int = 1
    """Requests under way when it came, itself among them."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong, with which requests, and how often: by default with every one."""

    what: What
    """An error of ERRORS instead of an answer; ``delay`` before the answer; ``cut-answer`` in the middle of
    its body; ``lose-answer``: done, and the connection ended without a word; ``lose-request``: the
    connection ended in the middle of the request, and nothing done."""

    kinds: tuple[Kind, ...] = ()
    """All when empty."""

    key: str = "*"
    """A pattern of the shell, for the whole key; ``*`` takes slashes too."""

    every: int = 1
    """Every n-th of these requests; the n-th is the first."""

    share: float = 1.0
    """The part of these requests, drawn from the seed and from what is asked the how-manieth time: the same
    ones in whatever order they come, and a repeated request has a new chance."""

    seed: int = 0
    times: int | None = None
    """At most so many times."""

    seconds: float = 0.0
    """Of a delay."""

    reset: bool = True
    """Whether a connection ends with RST; else with FIN, as of a server that closes it."""

    def __post_init__(self) -> None:
        assert self.what in get_args(What), self.what
        assert set(self.kinds) <= set(get_args(Kind)), self.kinds
        assert self.every >= 1, self.every
        assert 0 <= self.share <= 1, self.share
        assert (self.seconds > 0) == (self.what == "delay"), self.seconds

    def concerns(self, request: Request) -> bool:
        """Whether it is about such requests, be its turn or not."""
        return (not self.kinds or request.kind in self.kinds) and fnmatchcase(request.key, self.key)


class S3:
    """The server as a test sees it; everything here neither fails nor counts."""

    def __init__(self, port: int, quiet_port: int) -> None:
        self.endpoint = f"http://127.0.0.1:{port}"
        """Where clients go: it counts, and fails as told."""

        self.quiet_endpoint = f"http://127.0.0.1:{quiet_port}"
        """The same objects, with neither."""

        self.bucket = ""
        self._quiet_port = quiet_port
        self._num_buckets = 0

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}"

    @property
    def environment(self) -> dict[str, str]:
        """What boto3, s3fs and their like need to find the server, and nothing of its user's own."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def reset(self) -> None:
        """Go back to a healthy server that holds one empty, new bucket and has heard nothing."""
        self._ask("POST", "reset", self.bucket)
        self._num_buckets += 1
        self.bucket = f"bucket-{self._num_buckets}"  # new, because clients remember listings
        self.client.create_bucket(Bucket=self.bucket)

    def inject(self, *faults: Fault) -> None:
        """Let these go wrong from now on, and nothing else; each counts from here."""
        self._ask("POST", "faults", [asdict(fault) for fault in faults])

    def requests(self, *kinds: Kind) -> list[Request]:
        """Return what was asked since the last ``forget``, in the order in which it came."""
        found = [Request(**fields) for fields in self._ask("GET", "requests")]
        return [request for request in found if not kinds or request.kind in kinds]

    def counts(self) -> Counter[str]:
        """Return how many requests of each kind there were since the last ``forget``."""
        return Counter(request.kind for request in self.requests())

    def num_bytes_out(self) -> int:
        """Return how many bytes of bodies went to clients since the last ``forget``."""
        return sum(request.num_bytes_out for request in self.requests())

    def forget(self) -> None:
        """Forget the requests so far."""
        self._ask("POST", "forget")

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """End all connections and refuse new ones."""
        self.refuse_for(None)
        try:
            yield
        finally:
            self._ask("POST", "accept")

    def refuse_for(self, seconds: float | None) -> None:
        """End all connections and refuse new ones for a while, None: until ``reset``."""
        self._ask("POST", "refuse", seconds)

    def keys(self, prefix: str = "") -> list[str]:
        """Return the keys of the bucket, sorted."""
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=prefix
        )
        return [entry["Key"] for page in pages for entry in page.get("Contents", ())]

    def read(self, key: str) -> bytes:
        """Return an object of the bucket."""
        return self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()

    def write(self, key: str, data: bytes) -> None:
        """Put an object into the bucket, whatever was there."""
        self.client.put_object(Bucket=self.bucket, Key=key, Body=data)

    def delete(self, *keys: str) -> None:
        """Delete objects of the bucket."""
        for key in keys:
            self.client.delete_object(Bucket=self.bucket, Key=key)

    @cached_property
    def client(self) -> Any:
        """A client of boto3 at the quiet endpoint."""
        return make_client(self.quiet_endpoint)

    def close(self) -> None:
        if "client" in self.__dict__:
            self.client.close()

    def _ask(self, method: str, what: str, told: Any = None) -> Any:
        connection = HTTPConnection("127.0.0.1", self._quiet_port, timeout=PATIENCE_S)
        try:
            connection.request(method, f"/_kit/{what}", json.dumps(told).encode())
            answer = connection.getresponse()
            body = answer.read()
            assert answer.status == 200, f"{what}: {answer.status} {body.decode()}"
            return json.loads(body)
        finally:
            connection.close()


def make_client(endpoint: str, *, num_tries: int = 1) -> Any:
    """Return a client of boto3 that tries each request so many times."""
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=KEY_ID,
        aws_secret_access_key=SECRET,
        region_name=REGION,
        config=Config(
            retries={"total_max_attempts": num_tries}, max_pool_connections=64, proxies={}
        ),
    )


@contextmanager
def started() -> Iterator[S3]:
    """Start a server, which ends with this block, or soon after this process if it is killed."""
    script = Path(__file__).with_name("run_s3.py")
    process = subprocess.Popen(
        [sys.executable, str(script), str(os.getpid())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        ports = process.stdout.readline().split()
        assert len(ports) == 2, f"run_s3.py did not start: exit status {process.wait(10)}"
        s3 = S3(*map(int, ports))
        try:
            yield s3
        finally:
            s3.close()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
