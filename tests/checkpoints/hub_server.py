"""A hub on this machine: the part of the API that downloads use, and the faults that networks have."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

CONFIG = json.dumps({"model_type": "internvl_chat"}).encode()


def shards(count: int = 2, size: int = 300_000) -> dict[str, bytes]:
    """A checkpoint in several files, with code and extras that nobody should download."""
    names = [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
    index = {"weight_map": {f"layer.{number}": name for number, name in enumerate(names)}}
    return {
        "config.json": CONFIG,
        "tokenizer.json": b'{"version": "1.0"}',
        "tokenizer_config.json": b'{"a": 1}',
        "preprocessor_config.json": b"{}",
        "model.safetensors.index.json": json.dumps(index).encode(),
        **{name: bytes([number]) * size for number, name in enumerate(names, start=1)},
        "modeling_internvl_chat.py": b"raise SystemExit",
        "pytorch_model.bin": b"pickled",
        "README.md": b"read me",
        "examples/image1.jpg": b"jpeg",
    }


@dataclass
class Hub:
    """Repositories by name and revision; what to break; what was asked."""

    repositories: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    endpoint: str = ""
    statuses: dict[str, tuple[int, str]] = field(default_factory=dict)
    cuts: dict[str, list[int]] = field(default_factory=dict)
    """File name: after how many bytes each of the next answers breaks off."""
    faults: dict[str, list[int]] = field(default_factory=dict)
    """File name: the status of each of the next downloads."""
    claimed_sizes: dict[str, int] = field(default_factory=dict)
    ignores_ranges: bool = False
    commit_of_main: str = "a" * 40
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    """Method, path, Range."""

    def add(self, repository: str, files: dict[str, bytes], commit: str | None = None) -> str:
        commit = commit or self.commit_of_main
        self.repositories.setdefault(repository, {})[commit] = files
        return commit

    def counts(self) -> Counter[str]:
        """How often each file was downloaded."""
        return Counter(path.rpartition("/")[2] for method, path, _ in self.requests if method == "GET")

    def ranges(self, file: str) -> list[str]:
        return [asked for method, path, asked in self.requests if method == "GET" and path.endswith(file)]

    def files(self, repository: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commits = self.repositories[repository]
        commit = self.commit_of_main if revision == "main" else revision
        return (commit, commits[commit]) if commit in commits else None


def etag_of(data: bytes) -> str:
    """SHA-256 for large files, the git blob's SHA-1 for small ones, as the hub does."""
    if len(data) > 1000:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet; two would wait for each other's acknowledgement

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def log_message(self, *args: object) -> None:
        pass

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range", "")))
        api = path.removeprefix("/api/models/")
        repository, rest = split(api if api != path else path.lstrip("/"))
        if repository in self.hub.statuses:
            self.refuse(*self.hub.statuses[repository])
        elif repository not in self.hub.repositories:
            self.refuse(404, "RepoNotFound")
        elif api != path:
            self.describe(repository, rest.removeprefix("revision/"))
        else:
            revision, _, name = rest.removeprefix("resolve/").partition("/")
            self.serve(repository, revision, name)

    def describe(self, repository: str, revision: str) -> None:
        found = self.hub.files(repository, revision)
        if found is None:
            return self.refuse(404, "RevisionNotFound")
        commit, files = found
        siblings = [
            {"rfilename": name, "size": self.hub.claimed_sizes.get(name, len(data))}
            for name, data in files.items()
        ]
        body = json.dumps({"id": repository, "sha": commit, "siblings": siblings}).encode()
        return self.reply(200, body, {"Content-Type": "application/json"})

    def serve(self, repository: str, revision: str, name: str) -> None:
        found = self.hub.files(repository, revision)
        if found is None or name not in found[1]:
            return self.refuse(404, "EntryNotFound")
        if self.command == "GET" and self.hub.faults.get(name):
            return self.refuse(self.hub.faults[name].pop(0), "")
        commit, files = found
        data = files[name]
        headers = {"ETag": f'"{etag_of(data)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if size := self.hub.claimed_sizes.get(name):
            headers["X-Linked-Size"] = str(size)
        asked = self.headers.get("Range")
        if not asked or self.hub.ignores_ranges:
            return self.reply(200, data, headers, name)
        start = int(asked.removeprefix("bytes=").rstrip("-"))
        if start >= len(data):
            return self.refuse(416, "")
        headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        return self.reply(206, data[start:], headers, name)

    def refuse(self, status: int, code: str) -> None:
        self.reply(status, b"{}", {"X-Error-Code": code} if code else {})

    def reply(self, status: int, body: bytes, headers: dict[str, str], name: str = "") -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        cuts = self.hub.cuts.get(name)
        if cuts:
            self.wfile.write(body[: cuts.pop(0)])
            self.close_connection = True
        else:
            self.wfile.write(body)


def split(path: str) -> tuple[str, str]:
    owner, name, *rest = path.split("/")
    return f"{owner}/{name}", "/".join(rest)


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    handler = type("HubHandler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
