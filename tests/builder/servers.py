"""Servers that sources and modules come from: a Go module proxy and a git host, real protocols on loopback."""

import base64
import datetime as dt
import hashlib
import io
import json
import os
import ssl
import subprocess
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@contextmanager
def listening(handler: type[BaseHTTPRequestHandler], tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """Serve on a loopback port until the block ends; yields the port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass
class Proxy:
    """A module proxy (https://go.dev/ref/mod#goproxy-protocol) with the modules it was given."""

    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    url: str = ""
    broken: bool = False

    def add(self, module: str, version: str, files: Mapping[str, str]) -> str:
        """Offer a module; returns its lines of a go.sum."""
        out = io.BytesIO()
        hashed = ""
        with zipfile.ZipFile(out, "w") as zipped:
            for name in sorted(files):
                path = f"{module}@{version}/{name}"
                zipped.writestr(path, files[name])
                hashed += f"{hashlib.sha256(files[name].encode()).hexdigest()}  {path}\n"
        at = f"/{module}/@v/{version}"
        self.files[f"{at}.zip"] = out.getvalue()
        self.files[f"{at}.mod"] = files["go.mod"].encode()
        self.files[f"{at}.info"] = json.dumps({"Version": version}).encode()
        mod = f"{hashlib.sha256(files['go.mod'].encode()).hexdigest()}  go.mod\n"
        return f"{module} {version} {_h1(hashed)}\n{module} {version}/go.mod {_h1(mod)}\n"


def _h1(text: str) -> str:
    """Return Go's dirhash, algorithm h1 (golang.org/x/mod/sumdb/dirhash)."""
    return f"h1:{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


@contextmanager
def module_proxy() -> Iterator[Proxy]:
    """Serve a module proxy."""
    proxy = Proxy()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            proxy.asked.append(self.path)
            body = proxy.files.get(self.path)
            self.send_response(500 if proxy.broken else 404 if body is None else 200)
            self.send_header("content-length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            return

    with listening(Handler) as port:
        proxy.url = f"http://127.0.0.1:{port}"
        yield proxy


@dataclass
class GitHost:
    """Bare repositories under ``folder``, served by git's own http backend over https."""

    folder: Path
    url: str = ""
    ca: Path = Path()
    asked: list[str] = field(default_factory=list)
    failures: list[int] = field(default_factory=list)
    redirect: str | None = None

    def git(self, *words: str, cwd: Path) -> str:
        """Run git as an author would."""
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "GIT_CONFIG_NOSYSTEM": "1",
            **{f"GIT_{who}_{what}": "a@example.com" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
            **{f"GIT_{who}_DATE": "2020-01-01T00:00:00Z" for who in ("AUTHOR", "COMMITTER")},
        }
        return subprocess.run(
            ["git", *words], cwd=cwd, env=env, check=True, capture_output=True, text=True, timeout=30
        ).stdout.strip()

    def repository(self, name: str, files: Mapping[str, str]) -> Path:
        """Make a repository with one commit on ``main``; returns its work tree, whose pushes go to the host."""
        tree = self.folder / f"{name}-tree"
        tree.mkdir()
        self.git("init", "-q", "-b", "main", cwd=tree)
        self.git("init", "-q", "--bare", "-b", "main", str(self.folder / f"{name}.git"), cwd=tree)
        self.git("remote", "add", "origin", str(self.folder / f"{name}.git"), cwd=tree)
        self.commit(tree, files)
        return tree

    def commit(self, tree: Path, files: Mapping[str, str]) -> str:
        """Commit and push; returns the commit's id."""
        for path, content in files.items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_text(content)
        self.git("add", "-A", cwd=tree)
        self.git("commit", "-q", "--allow-empty", "-m", "x", cwd=tree)
        self.git("push", "-q", "origin", "main", cwd=tree)
        return self.git("rev-parse", "HEAD", cwd=tree)


@contextmanager
def git_host(folder: Path) -> Iterator[GitHost]:
    """Serve git over https with a certificate of our own, for ``git.example.test``, ``localhost`` and 127.0.0.1."""
    host = GitHost(folder)
    backend = Path(host.git("--exec-path", cwd=folder)) / "git-http-backend"

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host.asked.append(self.path)
            length = int(self.headers.get("content-length") or 0)
            body = self.rfile.read(length)
            if host.failures or host.redirect:
                self.send_response(host.failures.pop(0) if host.failures else 302)
                self.send_header("location", f"{host.redirect}{self.path}")
                self.send_header("content-length", "0")
                self.end_headers()
                return
            parts = urlsplit(self.path)
            env = {
                "PATH": os.environ["PATH"],
                "GIT_PROJECT_ROOT": str(folder),
                "GIT_HTTP_EXPORT_ALL": "1",
                "GIT_PROTOCOL": self.headers.get("git-protocol", ""),
                "PATH_INFO": unquote(parts.path),
                "QUERY_STRING": parts.query,
                "REQUEST_METHOD": self.command,
                "CONTENT_TYPE": self.headers.get("content-type", ""),
                "CONTENT_LENGTH": str(length),
                "HTTP_CONTENT_ENCODING": self.headers.get("content-encoding", ""),
                "REMOTE_ADDR": "127.0.0.1",
            }
            said = subprocess.run([backend], input=body, env=env, capture_output=True, check=False, timeout=30).stdout
            head, _, content = said.partition(b"\r\n\r\n")
            headers = dict(line.split(": ", 1) for line in head.decode().splitlines())
            self.send_response(int(headers.pop("Status", "200").split()[0]))
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            return

    host.ca, key = certificate(folder)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(host.ca, key)
    with listening(Handler, tls) as port:
        host.url = f"https://localhost:{port}"
        yield host


def certificate(folder: Path) -> tuple[Path, Path]:
    """Make a self-signed certificate that is its own root; returns the paths of certificate and key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "ca.pem", folder / "key.pem"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths
