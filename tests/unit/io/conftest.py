"""A hub in miniature: what huggingface_hub asks of its server, answered on this machine."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

SHA = "a" * 40


@dataclass
class Repo:
    """A repository: files by revision, who may see it, and what was sent to it."""

    files: dict[str, dict[str, bytes]] = field(default_factory=lambda: {SHA: {}})
    refs: dict[str, str] = field(default_factory=lambda: {"main": SHA})
    gated: bool = False
    locked: bool = False  # gated, but its listing is shown, as the hub does
    private: bool = False
    received: dict[str, dict[str, bytes]] = field(default_factory=dict)


class Hub(ThreadingHTTPServer):
    """The server; ``requests`` lists what was asked, ``tokens`` what may write."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, Repo] = {}
        self.requests: list[str] = []
        self.may_write = True
        self.broken = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def add(self, name: str, files: dict[str, bytes], **more: Any) -> Repo:
        self.repos[name] = Repo({SHA: files}, **more)
        return self.repos[name]


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(b"")

    do_HEAD = do_GET  # noqa: N815 - the name that http.server calls

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def _answer(self, body: bytes) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        if self.server.broken:
            self._send(500, b"")
            return
        if path == "/api/repos/create":
            self._create(json.loads(body))
            return
        if path == "/api/validate-yaml":
            self._send(200, b'{"errors": [], "warnings": []}')
            return
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(\w+)/(.+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/(\w+)/(.+)", path)
        found = api or file
        repo = self.server.repos.get(found[1]) if found else None
        if found is None or repo is None:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif repo.gated or (file and repo.locked):
            self._send(403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif file:
            self._file(repo, file[2], file[3])
        elif api and self.command == "POST":
            self._write(repo, api[1], api[2], api[3], body)
        elif api:
            self._read(repo, api[1], api[2] or "revision", api[3] or "main")

    def _create(self, asked: dict[str, Any]) -> None:
        name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
        if not self.server.may_write:
            self._send(403, b"{}")
            return
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        self.server.add(name, {}, private=private)
        self._send(200, json.dumps({"url": f"{self.server.url}/{name}"}).encode())

    def _read(self, repo: Repo, name: str, what: str, revision: str) -> None:
        commit = repo.refs.get(revision, revision)
        if commit not in repo.files:
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            return
        files = repo.files[commit]
        answer: object = {
            "id": name,
            "sha": commit,
            "private": repo.private,
            "siblings": [{"rfilename": file} for file in files],
        }
        if what == "tree":
            answer = [
                {"type": "file", "path": file, "size": len(raw), "oid": _oid(raw)}
                for file, raw in files.items()
            ]
        self._send(200, json.dumps(answer).encode())

    def _file(self, repo: Repo, commit: str, name: str) -> None:
        raw = repo.files[commit][name]
        self._send(200, raw, {"ETag": f'"{_oid(raw)}"', "X-Repo-Commit": commit})

    def _write(self, repo: Repo, name: str, what: str, branch: str, body: bytes) -> None:
        if not self.server.may_write:
            self._send(403, b"{}")
        elif what == "branch":
            known = branch in repo.refs
            repo.refs.setdefault(branch, SHA)
            self._send(409 if known else 201, b"{}")
        elif what == "preupload":
            asked = json.loads(body)["files"]
            modes = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked
            ]
            self._send(200, json.dumps({"files": modes}).encode())
        else:
            received = repo.received.setdefault(branch, {})
            for line in body.splitlines():
                part = json.loads(line)
                if part["key"] == "file":
                    received[part["value"]["path"]] = base64.b64decode(part["value"]["content"])
            answer = {"commitUrl": f"{self.server.url}/{name}/commit/{SHA}", "commitOid": SHA}
            self._send(200, json.dumps(answer).encode())

    def _send(self, code: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _oid(raw: bytes) -> str:
    return hashlib.sha1(raw).hexdigest()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on this machine that huggingface_hub talks to, with a cache of its own."""
    from huggingface_hub import constants

    server = Hub()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    harnesses = str(tmp_path / "agents.json")
    monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", harnesses, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()
