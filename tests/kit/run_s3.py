"""An S3 server that fails as told, in a process of its own.

python run_s3.py PARENT_PID

It prints two ports of the loopback: one where requests are counted and fail as told, and a quiet one, which
also takes orders under /_kit/. It ends when its parent does, however that ends. moto keeps the objects.
"""

import contextlib
import io
import json
import os
import random
import socket
import struct
import sys
import time
from collections import Counter
from dataclasses import asdict
from http.client import HTTPMessage
from pathlib import Path
from threading import Lock, Thread, Timer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

sys.path.insert(0, str(Path(__file__).parents[1]))

from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from moto.s3.models import FakeKey
from werkzeug.datastructures import Headers
from werkzeug.serving import ThreadedWSGIServer
from werkzeug.test import create_environ, run_wsgi_app

from kit.s3 import ERRORS, Fault, Kind, Request

_HOST = "127.0.0.1"
_URL = f"http://{_HOST}"
_UNMET = (
    412,
    "PreconditionFailed",
    "At least one of the pre-conditions you specified did not hold",
    "<Condition>If-None-Match</Condition>",
)
_GONE = (404, "NoSuchBucket", "The specified bucket does not exist")
_OURS_TO_SAY = ("connection", "content-length", "date", "server", "transfer-encoding")


class Answer(NamedTuple):
    status: int
    headers: Headers
    body: bytes


def error_answer(status: int, code: str, message: str, more: str = "") -> Answer:
    """Return an error as S3 words it."""
    body = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{code}</Code><Message>{message}</Message>{more}<RequestId>KIT</RequestId></Error>"
    )
    return Answer(status, Headers({"Content-Type": "application/xml"}), body.encode())


def recognise(method: str, path: str, headers: HTTPMessage) -> Request:
    """Return what a request asks for."""
    parts = urlsplit(path)
    query = parse_qs(parts.query, keep_blank_values=True)
    bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
    kind = _kind_in_bucket(method, query) if not key else _kind_of_key(method, query, headers)
    if kind == "list":
        key = query.get("prefix", [""])[0]
    return Request(
        kind=kind, method=method, path=path, bucket=bucket, key=key, range=headers.get("Range")
    )


def _kind_in_bucket(method: str, query: dict[str, list[str]]) -> Kind:
    if method == "POST" and "delete" in query:
        return "delete"
    about_the_bucket = {"location", "uploads", "versioning", "tagging", "acl", "policy"}
    return "list" if method == "GET" and not about_the_bucket & query.keys() else "other"


def _kind_of_key(method: str, query: dict[str, list[str]], headers: HTTPMessage) -> Kind:
    is_new = headers.get("If-None-Match") == "*"
    match method:
        case "GET" if not {"uploadId", "tagging", "acl"} & query.keys():
            return "get-range" if "Range" in headers else "get"
        case "HEAD":
            return "head"
        case "PUT" if "partNumber" in query:
            return "part"
        case "PUT" if "x-amz-copy-source" in headers:
            return "copy-new" if is_new else "copy"
        case "PUT" if not {"tagging", "acl"} & query.keys():
            return "put-new" if is_new else "put"
        case "POST" if "uploads" in query:
            return "upload"
        case "POST" if "uploadId" in query:
            return "complete-new" if is_new else "complete"
        case "DELETE" if "uploadId" in query:
            return "abort"
        case "DELETE":
            return "delete"
        case _:
            return "other"


class Objects:
    """moto, one request at a time.

    Its check of a condition and its write are two steps, where S3 takes one: without the lock, two of 32
    who created one object of 200 kB were both told that they did. It costs little: moto is plain Python.
    """

    def __init__(self, app: Any = None) -> None:
        self._app = app or DomainDispatcherApplication(create_backend_app)
        self._lock = Lock()
        self._ask(create_environ("/", _URL))  # it loads itself with the first request

    def answer(self, environ: dict[str, Any], kind: Kind) -> Answer:
        with self._lock:
            if kind == "copy-new":  # a condition that moto does not know
                signed = {"Authorization": environ["HTTP_AUTHORIZATION"]}
                head = create_environ(environ["RAW_URI"], _URL, method="HEAD", headers=signed)
                if self._ask(head).status == 200:
                    return error_answer(*_UNMET)
            return self._ask(environ)

    def reset(self) -> None:
        with self._lock:
            self._ask(create_environ("/moto-api/reset", _URL, method="POST"))

    def _ask(self, environ: dict[str, Any]) -> Answer:
        body, status, headers = run_wsgi_app(self._app, environ, buffered=True)
        return Answer(int(status.split()[0]), headers, b"".join(body))


class Faults:
    """The faults in force, and how often the turn of each came."""

    def __init__(self, faults: list[Fault]) -> None:
        self._faults = faults
        self._num_concerned = [0] * len(faults)
        self._num_done = [0] * len(faults)
        self._num_asked: Counter[tuple[str, ...]] = Counter()

    def meet(self, request: Request) -> tuple[Fault | None, float]:
        """Return what goes wrong with a request, and the seconds that its answer waits.

        The first fault in their order whose turn it is; delays add up and stand beside it.
        """
        asked = (request.method, request.path, str(request.range))
        self._num_asked[asked] += 1
        hit, seconds = None, 0.0
        for i, fault in enumerate(self._faults):
            if not fault.concerns(request):
                continue
            self._num_concerned[i] += 1
            chance = random.Random(f"{fault.seed} {i} {asked} {self._num_asked[asked]}").random()
            is_its_turn = (
                self._num_concerned[i] % fault.every == 0
                and chance < fault.share
                and (fault.times is None or self._num_done[i] < fault.times)
            )
            if not is_its_turn:
                continue
            if fault.what == "delay":
                seconds += fault.seconds
            elif hit is None:
                hit = fault
            else:
                continue
            self._num_done[i] += 1
        return hit, seconds


class Front:
    """What clients see: faults, a log, a port that can be shut."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self.lock = Lock()
        self.faults = Faults([])
        self.log: list[Request] = []
        self.num_at_once = 0
        self.gone: set[str] = set()
        # Bound and never listening, so that the port stays ours while connections are refused.
        self._holder = socket.socket()
        self._holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._holder.bind((_HOST, 0))
        self.port: int = self._holder.getsockname()[1]
        self._server: Server | None = None
        self._timer = Timer(0, self.accept)
        self._turn = Lock()
        self.accept()

    def accept(self) -> None:
        with self._turn:
            self._timer.cancel()
            if self._server is None:
                self._server = Server(self, self.port, ClientHandler)

    def refuse(self, seconds: float | None) -> None:
        with self._turn:
            self._timer.cancel()
            if self._server is not None:
                self._server.stop()
                self._server = None
            if seconds is not None:
                self._timer = Timer(seconds, self.accept)
                self._timer.start()

    def obey(self, order: str, told: Any) -> Any:
        """Do what the quiet endpoint was told under /_kit/."""
        match order:
            case "refuse":
                self.refuse(told)
            case "accept":
                self.accept()
            case "reset":
                self.objects.reset()
                self.accept()
            case _:
                assert order in ("faults", "forget", "requests"), order
        with self.lock:
            if order == "faults":
                self.faults = Faults([Fault(**fields) for fields in told])
            if order == "reset":
                self.gone.add(told)
                self.faults = Faults([])
            if order in ("forget", "reset"):
                self.log.clear()
            return [asdict(request) for request in self.log] if order == "requests" else None


class Server(ThreadedWSGIServer):
    """Listens from the start, in a thread."""

    def __init__(self, front: Front, port: int, handler: type[MotoRequestHandler]) -> None:
        # A socket of ours, as its own one looks up the name of this machine, which may take seconds.
        with socket.create_server((_HOST, port), backlog=256) as listening:
            super().__init__(_HOST, port, app=None, handler=handler, fd=listening.fileno())  # type: ignore[arg-type]
        self.front = front
        self._connections: set[socket.socket] = set()
        self._thread = Thread(target=self.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Listen no more and end every connection."""
        self.shutdown()
        self._thread.join()  # which closes the socket last of all
        for connection in list(self._connections):
            with contextlib.suppress(OSError):  # it ended by itself
                connection.shutdown(socket.SHUT_RDWR)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)


class QuietHandler(MotoRequestHandler):
    """Passes requests on to moto, and orders to the front."""

    disable_nagle_algorithm = True  # or a body waits for the client's word on its head, 40 ms
    server: Server

    def run_wsgi(self) -> None:
        environ, body = self.make_environ(), self.read_body()
        front = self.server.front
        if self.path.startswith("/_kit/"):
            told = front.obey(self.path.removeprefix("/_kit/"), json.loads(body))
            self.send(Answer(200, Headers(), json.dumps(told).encode()))
        else:
            request = recognise(self.command, self.path, self.headers)
            self.send(front.objects.answer(with_body(environ, body), request.kind))

    def read_body(self, share: float = 1.0) -> bytes:
        """Return the body that was sent, or its beginning."""
        if "Transfer-Encoding" in self.headers:
            return self.make_environ()["wsgi.input"].read()
        return self.rfile.read(int(int(self.headers.get("Content-Length", 0)) * share))

    def send(self, answer: Answer, share: float = 1.0) -> None:
        """Send an answer, or its head and the beginning of its body."""
        self.send_response(answer.status)
        for name, value in answer.headers:
            if name.lower() not in _OURS_TO_SAY:
                self.send_header(name, value)
        if self.command == "HEAD":
            self.send_header("Content-Length", answer.headers.get("Content-Length", "0"))
        elif answer.status not in (204, 304):
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[: int(len(answer.body) * share)])

    def log_request(self, *_: Any) -> None:
        pass


class ClientHandler(QuietHandler):
    """Counts requests and lets them fail as told."""

    def run_wsgi(self) -> None:
        request = recognise(self.command, self.path, self.headers)
        if request.bucket in self.server.front.gone:  # asked by what an earlier test left running
            self.read_body()
            self.send(error_answer(*_GONE))
        else:
            self.serve(request)

    def serve(self, request: Request) -> None:
        """Do what a request asks for, and what is to go wrong with it."""
        front, environ = self.server.front, self.make_environ()
        with front.lock:
            front.num_at_once += 1
            request.num_at_once = front.num_at_once
            fault, seconds = front.faults.meet(request)
            request.fault = fault.what if fault else None
            front.log.append(request)
        answer, share, body = None, 1.0, b""
        try:
            body = self.read_body(0.5 if request.fault == "lose-request" else 1.0)
            if request.fault in ERRORS:
                answer = error_answer(*ERRORS[request.fault])
            elif request.fault != "lose-request":
                answer = front.objects.answer(with_body(environ, body), request.kind)
            if request.fault == "lose-answer":
                answer = None
            share = 0.5 if request.fault == "cut-answer" else 1.0
            time.sleep(seconds)
        finally:
            with front.lock:  # before the client hears of it: then the log and the client agree
                front.num_at_once -= 1
                request.num_bytes_in = len(body)
                if answer is not None:
                    request.status = answer.status
                    request.num_bytes_out = int(len(answer.body) * share)
        if answer is not None:
            self.send(answer, share)
        if answer is None or share < 1:
            self.end_connection(reset=fault is None or fault.reset)

    def end_connection(self, *, reset: bool) -> None:
        """End the connection in the middle of things."""
        self.close_connection = True
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())  # at once, whoever else still holds the socket


def with_body(environ: dict[str, Any], body: bytes) -> dict[str, Any]:
    """Return the environment of a request whose body has been read."""
    environ = {**environ, "wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}
    environ.pop("HTTP_TRANSFER_ENCODING", None)
    return environ


def keep_values() -> None:
    """Let moto hold what an object is beside the file that it keeps it in.

    It reads the whole file for each range of it: 36 ms for a kilobyte of 38 MB.
    """
    in_file = FakeKey.value

    def read(key: Any) -> bytes:
        if "kept" not in key.__dict__:
            key.__dict__["kept"] = in_file.fget(key)
        return key.__dict__["kept"]

    def write(key: Any, value: bytes) -> None:
        key.__dict__.pop("kept", None)
        in_file.fset(key, value)

    FakeKey.value = property(read, write)  # type: ignore[assignment]


def main() -> None:
    keep_values()
    front = Front(Objects())
    quiet = Server(front, 0, QuietHandler)
    print(front.port, quiet.port, flush=True)
    parent = int(sys.argv[1])
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(0)


if __name__ == "__main__":
    main()
