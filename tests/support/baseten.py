"""A stand-in of Baseten's API on loopback, for `truss push`: its GraphQL, and the bucket that takes the archive."""

import base64
import io
import json
import re
import tarfile
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

BUCKET = "pushed"


@dataclass(frozen=True)
class Push:
    """A model's config as it was validated, its config.yaml as it was sent, the archive, and its key."""

    config: dict[str, Any]
    file: str
    archive: bytes
    authorization: str

    def unpack(self, folder: Path) -> Path:
        with tarfile.open(fileobj=io.BytesIO(self.archive)) as tar:
            tar.extractall(folder, filter="data")
        return folder


@dataclass
class Baseten:
    """The address, the parts of each uploaded archive, and what was pushed, by the name of the model; one at a time."""

    url: str
    parts: defaultdict[str, dict[int, bytes]] = field(default_factory=lambda: defaultdict(dict))
    pushes: dict[str, Push] = field(default_factory=dict)
    validated: dict[str, Any] = field(default_factory=dict)

    def query(self, asked: dict[str, Any], authorization: str) -> dict[str, Any]:
        """The data of an answer to a query of truss."""
        query, variables = asked["query"], asked.get("variables") or {}
        if "create_model_from_truss" in query:
            name, key = (re.search(rf'{of}: "([^"]*)"', query)[1] for of in (r"\bname", "s3_key"))
            file = base64.b64decode(variables["rawConfig"]).decode()
            archive = b"".join(of for _, of in sorted(self.parts[f"/{BUCKET}/{key}"].items()))
            self.pushes[name] = Push(self.validated, file, archive, authorization)
            oracle = {"id": "model", "name": name, "hostname": "model.invalid"}
            return {"create_model_from_truss": {"model_version": {"id": "version", "oracle": oracle}}}
        if "truss_validation" in query:
            self.validated = json.loads(base64.b64decode(re.search(r'config: "([^"]*)"', query)[1]))
            return {"truss_validation": {"success": True, "details": "{}"}}
        if "model_s3_upload_credentials" in query:
            keys = dict.fromkeys(("aws_access_key_id", "aws_secret_access_key", "aws_session_token"), "key")
            place = {"s3_bucket": BUCKET, "s3_key": f"{len(self.pushes)}.tar"}
            return {"model_s3_upload_credentials": {**keys, **place, "endpoint_url": self.url, "region_name": "any"}}
        if "teams" in query:
            return {"teams": [{"id": "team", "name": "team", "default": True}]}
        if "models" in query:
            return {"models": []}
        raise AssertionError(query)


@contextmanager
def baseten() -> Iterator[Baseten]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.baseten = Baseten(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.baseten
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        url, body = urlsplit(self.path), self._body()
        if url.path == "/graphql/":
            data = self.server.baseten.query(json.loads(body), self.headers["authorization"])
            self._answer(json.dumps({"data": data}).encode())
        elif "uploadId" in parse_qs(url.query):
            self._answer(b"<CompleteMultipartUploadResult><ETag>e</ETag></CompleteMultipartUploadResult>")
        else:
            self._answer(b"<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>")

    def do_PUT(self) -> None:
        url = urlsplit(self.path)
        number = int(parse_qs(url.query).get("partNumber", ["1"])[0])
        self.server.baseten.parts[url.path][number] = self._body()
        self._answer(b"", etag='"e"')

    def _body(self) -> bytes:
        if "content-length" in self.headers:
            body = self.rfile.read(int(self.headers["content-length"]))
        else:
            body = b"".join(self._chunks())
        if "aws-chunked" in self.headers.get("content-encoding", ""):
            body = _unchunked(body)
        return body

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _answer(self, body: bytes, **headers: str) -> None:
        self.send_response(200)
        for name, value in {**headers, "content-length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def _unchunked(body: bytes) -> bytes:
    """The content of S3's own chunks, each of which may be signed."""
    found, place = [], 0
    while True:
        line = body.index(b"\r\n", place)
        size = int(body[place:line].split(b";")[0], 16)
        if not size:
            return b"".join(found)
        found.append(body[line + 2 : line + 2 + size])
        place = line + 2 + size + 2
