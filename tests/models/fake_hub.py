"""The hubs on 127.0.0.1, with the endpoints that a download needs: tests run the hubs' own client libraries.

One server speaks for both: Hugging Face's paths begin with an owner or `/api/models`, ModelScope's with `/api/v1`.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote

COMMIT = "c" * 40


@dataclass
class FakeHub:
    """`repos` maps the id of a model or data set to its folder, `denied` an id to (status, error code); the connection
    breaks once, `break_at` bytes into a weight file; `requests` is the log."""

    repos: dict[str, Path]
    denied: dict[str, tuple[int, str]] = field(default_factory=dict)
    break_at: int | None = None
    requests: list[str] = field(default_factory=list)
    url: str = ""


@contextmanager
def serve(hub: FakeHub) -> Iterator[FakeHub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            hub.requests.append(f"{self.command} {self.path} {self.headers.get('Range', '')}".strip())
            path = self.path.partition("?")[0]
            if found := re.fullmatch(r"/api/(?:models|datasets)/([^/]+/[^/]+)(/revision/([^/]+))?", path):
                self.describe(found[1], found[3] or "main", body)
            elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
                self.tree(found[1], found[2], body)
            elif found := re.fullmatch(r"/(?:datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                self.file(found[1], found[2], unquote(found[3]), body)
            elif found := re.fullmatch(r"/api/v1/datasets/([^/]+/[^/]+)/repo/tree", path):
                self.modelscope_tree(found[1], body)
            elif found := re.fullmatch(r"/api/v1/datasets/([^/]+/[^/]+)/repo", path):
                asked = parse_qs(self.path.partition("?")[2])
                self.modelscope_file(found[1], asked["Revision"][0], asked["FilePath"][0], body)
            else:
                self.fail(404, "EntryNotFound")

        def describe(self, name: str, revision: str, body: bool) -> None:
            if self.refused(name, revision):
                return
            files = [{"rfilename": file} for file in self.files(name)]
            content = {"id": name, "modelId": name, "sha": COMMIT, "siblings": files, "private": False, "tags": []}
            self.send(json.dumps(content).encode(), body)

        def tree(self, name: str, revision: str, body: bool) -> None:
            if self.refused(name, revision):
                return
            entries = []
            for path in sorted(hub.repos[name].iterdir()):
                digest = hashlib.sha1(path.read_bytes()).hexdigest()
                entries.append({"type": "file", "path": path.name, "size": path.stat().st_size, "oid": digest})
            self.send(json.dumps(entries).encode(), body)

        def file(self, name: str, revision: str, file: str, body: bool) -> None:
            if self.refused(name, revision):
                return
            path = hub.repos[name] / file
            if not path.is_file():
                self.fail(404, "EntryNotFound")
                return
            content = path.read_bytes()
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            start = int(asked[1]) if asked else 0
            end = int(asked[2]) + 1 if asked and asked[2] else len(content)
            digest = hashlib.sha256(content).hexdigest()
            headers = {"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            if asked:
                headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
            self.send(content[start:end], body, 206 if asked else 200, headers, weights=path.suffix == ".safetensors")

        def files(self, name: str) -> list[str]:
            folder = hub.repos[name]
            return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())

        def modelscope_tree(self, name: str, body: bool) -> None:
            revision = parse_qs(self.path.partition("?")[2])["Revision"][0]
            if self.modelscope_refused(name, revision):
                return
            entries = []
            for file in self.files(name):
                content = (hub.repos[name] / file).read_bytes()
                digest = hashlib.sha256(content).hexdigest()
                entries.append({"Path": file, "Type": "blob", "Size": len(content), "Sha256": digest})
            self.send_json({"Code": 200, "Success": True, "Data": {"Files": entries}}, body)

        def modelscope_file(self, name: str, revision: str, file: str, body: bool) -> None:
            if self.modelscope_refused(name, revision):
                return
            content = (hub.repos[name] / file).read_bytes()
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            start = int(asked[1]) if asked else 0
            end = int(asked[2]) + 1 if asked and asked[2] else len(content)
            headers = {"Accept-Ranges": "bytes"}
            if asked:
                headers["Content-Range"] = f"bytes {start}-{min(end, len(content)) - 1}/{len(content)}"
            self.send(content[start:end], body, 206 if asked else 200, headers)

        def modelscope_refused(self, name: str, revision: str) -> bool:
            if name in hub.repos and revision == "master":
                return False
            status = hub.denied.get(name, (404, ""))[0]
            self.send_json({"Code": status, "Success": False, "Message": "not found"}, True, status)
            return True

        def send_json(self, content: object, body: bool, status: int = 200) -> None:
            self.send(json.dumps(content).encode(), body, status, {"Content-Type": "application/json"})

        def refused(self, name: str, revision: str) -> bool:
            if name in hub.denied:
                self.fail(*hub.denied[name])
            elif name not in hub.repos:
                self.fail(404, "RepoNotFound")
            elif revision not in ("main", COMMIT):
                self.fail(404, "RevisionNotFound")
            else:
                return False
            return True

        def fail(self, status: int, code: str) -> None:
            self.send(b"", True, status, {"X-Error-Code": code, "X-Error-Message": code})

        def send(
            self,
            content: bytes,
            body: bool,
            status: int = 200,
            headers: dict[str, str] | None = None,
            weights: bool = False,
        ) -> None:
            self.send_response(status)
            for key, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
                self.send_header(key, value)
            self.end_headers()
            if not body:
                return
            if weights and hub.break_at is not None:
                content = content[: hub.break_at]
                hub.break_at = None
                self.close_connection = True
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Quiet; `requests` is the log."""

    return Handler
