# SPDX-License-Identifier: Apache-2.0
"""A hub on the loopback device that can be told, answer by answer, to cut, lie, corrupt, throttle and refuse."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PAGE = b"<!doctype html><title>Sign in</title>"


@dataclass
class Hub:
    """What the server has, what it shall do wrong, and what it was asked.

    Attributes:
        files: (repository, name) -> bytes.
        faults: name -> what the next answers for this file do; when they are used up the answers are right.
        always: what every answer does, where `faults` has nothing.
        lfs: names whose hash is listed as SHA-256; the others are listed with git's hash.
        secret: the token that is wanted, or empty.
        asked: (path, headers) of each request.
        sent: bytes of bodies that left.
    """

    files: dict[tuple[str, str], bytes] = field(default_factory=dict)
    faults: dict[str, list[str]] = field(default_factory=dict)
    always: str = ""
    lfs: tuple[str, ...] = (".safetensors", ".bin", ".model")
    secret: str = ""
    address: str = ""
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    sent: int = 0

    def listing(self, repo: str) -> list[dict[str, Any]]:
        found = []
        for (place, name), body in self.files.items():
            if place != repo:
                continue
            git = hashlib.sha1(b"blob %d\0" % len(body) + body, usedforsecurity=False).hexdigest()
            item: dict[str, Any] = {"type": "file", "path": name, "size": len(body), "oid": git}
            if name.endswith(self.lfs):
                item["lfs"] = {"oid": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 130}
            found.append(item)
        return [{"type": "directory", "path": "onnx", "oid": "f" * 40}, *found]

    def ranges(self, name: str) -> list[str | None]:
        """The Range header of each request for a file."""
        return [headers.get("Range") for path, headers in self.asked if path.endswith(f"/{name}")]


class _Handler(BaseHTTPRequestHandler):
    server: Any

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        hub: Hub = self.server.hub
        hub.asked.append((self.path, dict(self.headers)))
        path = unquote(self.path.partition("?")[0])
        if hub.secret and self.headers.get("Authorization") != f"Bearer {hub.secret}":
            self._answer(401, b"", {"X-Error-Code": "GatedRepo"})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision/main|tree/(\w+))", path):
            listing = hub.listing(found[1])
            name = "revision" if found[2] == "revision/main" else "tree"
            known = [1 for repo, _ in hub.files if repo == found[1]]
            value = {"sha": COMMIT} if name == "revision" else listing
            self._file(name, json.dumps(value).encode() if known else None)
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/(\w+)/(.+)", path):
            self._file(found[3], hub.files.get((found[1], found[3])))
        else:
            self._answer(404, b"")

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None, *, length: int | None = -1) -> None:
        self.send_response(status)
        told = len(body) if length == -1 else length
        for key, value in ({"Content-Length": str(told)} if told is not None else {}).items():
            self.send_header(key, value)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()
        self.server.hub.sent += len(body)
        self.wfile.write(body)

    def _file(self, name: str, body: bytes | None) -> None:
        hub: Hub = self.server.hub
        faults = hub.faults.get(name)
        fault, _, value = (faults.pop(0) if faults else hub.always).partition(":")
        if body is None:
            return self._answer(404, b"")
        if fault == "corrupt":
            at = int(value)
            body = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        asked = None if fault in ("whole", "whole cut", "gzip") else asked
        begin, end = (int(asked[1]), int(asked[2]) + 1) if asked else (0, len(body))
        begin = 1 if fault == "other range" else begin
        status, headers, part = 200, {"Content-Type": "application/octet-stream"}, body[begin:end]
        if asked:
            status, headers["Content-Range"] = 206, f"bytes {begin}-{end - 1}/{len(body)}"
        return self._faulty(fault, value, status, headers, part, len(body))

    def _faulty(self, fault: str, value: str, status: int, headers: dict[str, str], part: bytes, size: int) -> None:
        if fault in ("cut", "whole cut"):
            self._answer(status, part[: int(value)], headers, length=len(part))
        elif fault == "short":
            self._answer(status, part[: int(value)], headers)
        elif fault == "long":
            self._answer(status, part, headers, length=len(part) + int(value))
        elif fault == "unsaid":
            self._answer(status, part, headers, length=None)
        elif fault == "page":
            self._answer(200, PAGE, {"Content-Type": "text/html; charset=utf-8"})
        elif fault == "gzip":
            self._answer(200, gzip.compress(part), headers | {"Content-Encoding": "gzip"})
        elif fault == "coded range":
            self._answer(206, gzip.compress(part), {"Content-Range": f"bytes 0-{size - 1}/{size}", "Content-Encoding": "gzip"})
        elif fault == "brotli":
            self._answer(200, part, headers | {"Content-Encoding": "br"})
        elif fault == "other size":
            self._answer(206, part, {"Content-Range": f"bytes 0-{size - 1}/{size + 5}"})
        elif fault == "status":
            code, _, wait = value.partition(" ")
            self._answer(int(code), b"busy", {"Retry-After": wait} if wait else {})
        elif fault == "hang up":
            self.close_connection = True
        elif fault == "stall":
            self._answer(status, part[: int(value)], headers, length=len(part))
            self.server.stop.wait(5)
        elif fault == "slow":
            self._slowly(status, part, headers, float(value))
        elif fault in ("to", "moved"):
            self._answer(302 if fault == "to" else 308, b"", {"Location": value.replace("{path}", self.path)})
        else:
            self._answer(status, part, headers)

    def _slowly(self, status: int, part: bytes, headers: dict[str, str], seconds: float) -> None:
        self._answer(status, b"", headers, length=len(part))
        piece = 1 + len(part) // 1000
        for at in range(0, len(part), piece):
            self.wfile.write(part[at : at + piece])
            self.server.hub.sent += len(part[at : at + piece])
            time.sleep(seconds)


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True

    def handle_error(self, *args: Any) -> None:
        pass  # a client that hung up


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serve at a free port of 127.0.0.1; `hub.address` is where."""
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.hub, server.stop = hub, threading.Event()  # type: ignore[attr-defined]
        hub.address = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        try:
            yield hub
        finally:
            server.stop.set()  # type: ignore[attr-defined]
            server.shutdown()
