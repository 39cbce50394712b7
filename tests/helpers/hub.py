"""A stand-in of the Hugging Face hub's endpoints on the loopback: what `snapshot_download` asks for."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """One public repository, of which `files` are the contents by name. fetched: the names that were asked for."""

    def __init__(self, repository, files):
        self.repository, self.files, self.fetched = repository, files, []
        self.revisions = {"main": COMMIT, "v1": COMMIT, COMMIT: COMMIT}

    def answer(self, path):
        """Status, headers and body for a path."""
        parts = unquote(urlsplit(path).path).strip("/").split("/")
        is_api = parts[:2] == ["api", "models"]
        owner, name, kind, revision, *rest = [*(parts[2:] if is_api else parts), "", "revision", "main"][:5]
        if f"{owner}/{name}" != self.repository:
            return 401, {"X-Error-Code": "RepoNotFound"}, b"Invalid username or password."
        if revision not in self.revisions:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        if is_api:
            files = [
                {
                    "type": "file",
                    "path": file,
                    "rfilename": file,
                    "size": len(content),
                    "oid": digest(content),
                }
                for file, content in self.files.items()
            ]
            about = {"id": self.repository, "sha": COMMIT, "siblings": files}
            return (
                200,
                {"Content-Type": "application/json"},
                json.dumps(files if kind == "tree" else about).encode(),
            )
        content = self.files[rest[0]]
        self.fetched.append(rest[0])
        return 200, {"ETag": f'"{digest(content)}"', "X-Repo-Commit": COMMIT}, content


def digest(content):
    return hashlib.sha1(content).hexdigest()


@contextmanager
def serve(hub):
    """The address of the hub, until the end of the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            status, headers, body = hub.answer(self.path)
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
