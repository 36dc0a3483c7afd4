"""A Hugging Face hub on this machine, as far as a push needs it; it says what it got."""

import base64
import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_ofthetest"


@dataclass
class Hub:
    """What is on the hub."""

    url: str = ""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict[str, dict[str, bytes]])
    """Content by path, by repository."""

    private: set[str] = field(default_factory=set[str])
    commits: list[str] = field(default_factory=list[str])
    refuses_commits: bool = False

    def answer(self, method: str, path: str, body: bytes, token: str | None) -> tuple[int, Any]:
        """Return status and JSON of a request."""
        if token != TOKEN:
            return 401, {"error": "Invalid credentials"}
        path = path.partition("?")[0]
        if path == "/api/whoami-v2":
            return 200, {"type": "user", "name": "tester", "orgs": []}
        if path == "/api/validate-yaml":  # of a model card
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'tester'}/{asked['name']}"
            if name in self.files:
                return 409, {"error": "exists", "url": f"{self.url}/{name}"}
            self.files[name] = {".gitattributes": b""}
            if asked.get("private") or asked.get("visibility") == "private":
                self.private.add(name)
            return 200, {"url": f"{self.url}/{name}", "name": name}
        name, _, rest = path.removeprefix("/api/models/").partition("/")
        end, _, rest = rest.partition("/")
        name = f"{name}/{end}"
        if name not in self.files:
            return 404, {"error": "Repository not found"}
        if method == "GET" and rest.startswith("tree"):
            found = self.files[name]
            return 200, [
                {"type": "file", "path": p, "size": len(b), "oid": "0" * 40}
                for p, b in found.items()
            ]
        if method == "GET":
            siblings = [{"rfilename": each} for each in self.files[name]]
            return 200, {"id": name, "siblings": siblings, "sha": "0" * 40, "private": False}
        if rest.startswith("preupload"):
            asked = [each["path"] for each in json.loads(body)["files"]]
            modes = [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in asked]
            return 200, {"files": modes}
        assert rest.startswith("commit"), rest
        if self.refuses_commits:
            return 403, {"error": "this organisation has no storage left"}
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "header":
                self.commits.append(entry["value"]["summary"])
            elif entry["key"] == "deletedFile":
                del self.files[name][entry["value"]["path"]]
            else:
                content = base64.b64decode(entry["value"]["content"])
                self.files[name][entry["value"]["path"]] = content
        return 200, {"commitUrl": f"{self.url}/{name}/commit/{'1' * 40}", "commitOid": "1" * 40}


@contextmanager
def running_hub() -> Generator[Hub]:
    """Return a hub that answers at its url within a ``with`` block."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer("GET")

        def do_POST(self) -> None:
            self._answer("POST")

        def _answer(self, method: str) -> None:
            size = self.headers.get("Content-Length")
            body = self.rfile.read(int(size)) if size else self._chunks()
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            status, found = hub.answer(method, self.path, body, token)
            data = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _chunks(self) -> bytes:
            body = b""
            while self.headers.get("Transfer-Encoding") == "chunked":
                size = int(self.rfile.readline(), 16)
                body += self.rfile.read(size)
                self.rfile.readline()
                if not size:
                    break
            return body

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
