"""What any web server is expected to do: compression, HEAD, slashes, prefixes of proxies, TLS, Unix sockets, CORS."""

from __future__ import annotations

import gzip
import http.client
import os
import re
import signal
import socket
import ssl
import stat
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from pydantic import ValidationError

from metaspec import ServerUnreachable, Surrogate
from metaspec_server.http.compression import Coding, choose_coding
from metaspec_server.ops.listening import listening
from metaspec_server.settings import Settings
from metaspec_testing.nginx import NGINX, running_nginx
from metaspec_testing.servers import RunningServer, free_port, running_server
from metaspec_testing.small_models import Array, Expected

JSON, NPY = "application/json", "application/x-npy"
PAGES = ("/", "/docs", "/openapi.json", "/static/page.js", "/static/swagger-ui-bundle.js")


def settings_of(**values: Any) -> Settings:
    return Settings(**values)


def raw(server: RunningServer, method: str, path: str, **options: Any) -> tuple[httpx.Response, bytes]:
    """The answer, and its body as it was sent."""
    with server.client() as client, client.stream(method, path, **options) as response:
        return response, b"".join(response.iter_raw())


@pytest.mark.parametrize(
    ("accept", "coding"),
    [
        ("", Coding(None)),
        ("gzip, deflate, br, zstd", Coding("gzip")),
        ("deflate", Coding("deflate")),
        ("br, GZIP ; q=0.5", Coding("gzip")),
        ("x-gzip", Coding("gzip")),
        ("gzip;q=0.2, deflate;q=0.8", Coding("deflate")),
        ("gzip;q=0", Coding(None)),
        ("gzip;q=0.000, *;q=1", Coding("deflate")),
        ("gzip;q=nonsense", Coding(None)),
        ("*", Coding("gzip")),
        ("identity, gzip;q=0.5", Coding(None)),
        ("identity;q=0.5, gzip", Coding("gzip", numbers=True)),
        ("gzip, identity;q=0", Coding("gzip", numbers=True, identity=False)),
        ("gzip, *;q=0", Coding("gzip", numbers=True, identity=False)),
        ("br, identity;q=0", Coding(None, identity=False)),
        ("*;q=0", Coding(None, identity=False)),
    ],
)
def test_the_coding_follows_the_qualities(accept: str, coding: Coding) -> None:
    assert choose_coding(accept) == coding


@pytest.mark.parametrize(("coding", "window"), [("gzip", 31), ("deflate", 15)])
@pytest.mark.parametrize("path", ["/v2/models/diffractionnet", "/static/swagger-ui-bundle.js"])
def test_text_is_compressed(server: RunningServer, path: str, coding: str, window: int) -> None:
    plain, body = raw(server, "GET", path, headers={"Accept-Encoding": "identity"})
    answer, sent = raw(server, "GET", path, headers={"Accept-Encoding": coding})
    assert "Content-Encoding" not in plain.headers
    assert len(body) == int(plain.headers["Content-Length"])
    assert answer.headers["Content-Encoding"] == coding
    assert zlib.decompress(sent, window) == body
    assert len(sent) < len(body) / 2
    assert answer.headers.get("Content-Length", str(len(sent))) == str(len(sent))
    assert plain.headers["Vary"] == answer.headers["Vary"] == "Accept-Encoding"


def test_a_large_answer_is_compressed_in_pieces(server: RunningServer, expected: Expected) -> None:
    structures = np.random.default_rng(1).integers(0, 2, (100, 128, 128), dtype=np.uint8)
    headers = {"Accept": JSON, "Content-Type": "application/octet-stream", "Accept-Encoding": "gzip"}
    content = np.packbits(structures).tobytes()
    answer, sent = raw(server, "POST", "/predict", headers=headers, content=content)
    assert (answer.headers["Transfer-Encoding"], answer.headers["Content-Encoding"]) == ("chunked", "gzip")
    plain = server.post("/predict", headers={**headers, "Accept-Encoding": "identity"}, content=content)
    assert gzip.decompress(sent) == plain.content
    np.testing.assert_allclose(plain.json()["spectra"], expected(structures), atol=1e-5)


def test_numbers_are_compressed_only_for_those_who_want_it(server: RunningServer, structures: Array) -> None:
    headers = {"Accept": NPY, "Content-Type": "application/octet-stream"}
    content = np.packbits(structures).tobytes()
    answers = {
        accept: raw(server, "POST", "/predict", headers={**headers, "Accept-Encoding": accept}, content=content)
        for accept in ("gzip, deflate", "gzip, identity;q=0")
    }
    default, plain = answers["gzip, deflate"]
    asked, sent = answers["gzip, identity;q=0"]
    assert "Content-Encoding" not in default.headers
    assert asked.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(sent) == plain


def test_what_is_not_compressed(server: RunningServer) -> None:
    wants = {"Accept-Encoding": "gzip"}
    assert "Content-Encoding" not in server.get("/v2/health/live", headers=wants).headers, "it is tiny"
    part, body = raw(server, "GET", "/static/page.js", headers=wants | {"Range": "bytes=0-2000"})
    assert part.status_code == 206
    assert "Content-Encoding" not in part.headers
    assert len(body) == 2001
    refused = server.get("/contract", headers={"Accept-Encoding": "br, identity;q=0"})
    assert refused.status_code == 406
    assert "gzip, deflate, identity" in refused.json()["detail"]


@pytest.mark.parametrize("path", ["/", "/docs", "/static/page.js"])
def test_errors_of_files_are_problem_documents(server: RunningServer, path: str) -> None:
    size = len(server.get(path).content)
    asked = {
        f"bytes={size}-": (416, f"Range: expected a range within its {size} bytes, got 'bytes={size}-'"),
        "bytes=a-b": (400, "Range: expected bytes=FIRST-LAST, got 'bytes=a-b'"),
    }
    for value, (status, detail) in asked.items():
        for accept in ("identity", "gzip", "gzip, identity;q=0"):
            answer = server.get(path, headers={"Range": value, "Accept-Encoding": accept})
            assert answer.status_code == answer.json()["status"] == status
            assert answer.headers["Content-Type"] == "application/problem+json"
            assert answer.json()["detail"] == detail
            assert answer.headers.get("Content-Range") == (f"bytes */{size}" if status == 416 else None)
        with server.client() as client:
            head = client.head(path, headers={"Range": value})
        assert (head.status_code, head.content) == (status, b"")
    part = server.get(path, headers={"Range": "bytes=2-9", "Accept-Encoding": "identity"})
    assert (part.status_code, part.content) == (206, server.get(path).content[2:10])
    for unit in ("lines=2-9", "lines", "seconds=a-b"):
        whole = server.get(path, headers={"Range": unit})
        assert (whole.status_code, len(whole.content)) == (200, size), "an unknown unit is ignored"


@pytest.mark.parametrize(
    ("method", "path", "status", "allow", "detail"),
    [
        ("GET", "/nothing", 404, None, "there is nothing at '/nothing'; /docs lists the routes"),
        ("GET", "/static/nothing.js", 404, None, "there is nothing at '/static/nothing.js'; /docs lists the routes"),
        ("GET", "/static", 404, None, "there is nothing at '/static'; /docs lists the routes"),
        ("GET", "/static//etc/passwd", 404, None, "there is nothing at '/static//etc/passwd'; /docs lists the routes"),
        ("GET", "/v2/nothing", 404, None, "there is nothing at '/v2/nothing'; /docs lists the routes"),
        ("PUT", "/", 405, "GET, HEAD", "the method must be GET or HEAD"),
        ("POST", "/static/page.js", 405, "GET, HEAD", "the method must be GET or HEAD"),
        ("DELETE", "/openapi.json", 405, "GET, HEAD", "the method must be GET or HEAD"),
        ("GET", "/predict", 405, "POST", "the method must be POST"),
        ("OPTIONS", "/predict", 405, "POST", "the method must be POST"),
        ("PATCH", "/v2/logging", 405, "GET, HEAD, POST", "the method must be GET or HEAD or POST"),
        ("GET", "/v2/models/m/infer", 405, "POST", "the method must be POST"),
    ],
)
def test_what_does_not_exist_is_a_problem_document(
    server: RunningServer, method: str, path: str, status: int, allow: str | None, detail: str
) -> None:
    with server.client() as client:
        answer = client.request(method, path)
    assert (answer.status_code, answer.headers.get("Allow")) == (status, allow)
    if path.startswith("/v2"):
        assert answer.json() == {"error": detail}
    else:
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert answer.json()["detail"] == detail
        assert answer.json()["status"] == status


def test_a_cached_file_stays_valid(server: RunningServer) -> None:
    answer = server.get("/static/page.js", headers={"Accept-Encoding": "gzip"})
    assert answer.headers["ETag"].startswith('W/"')
    again = server.get("/static/page.js", headers={"Accept-Encoding": "gzip", "If-None-Match": answer.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["Vary"] == "Accept-Encoding"


def test_http_1_0_gets_no_chunks(server: RunningServer) -> None:
    host, port = server.address.split(":")
    with socket.create_connection((host, int(port)), 30) as connection:
        connection.sendall(b"GET /static/swagger-ui-bundle.js HTTP/1.0\r\nHost: x\r\nAccept-Encoding: gzip\r\n\r\n")
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        body = answer.read()
    assert answer.getheader("Transfer-Encoding") is None
    assert len(body) == int(answer.getheader("Content-Length") or 0)


def test_head_on_every_get_route(server: RunningServer) -> None:
    documented = server.get("/openapi.json").json()["paths"]
    names = {"model": "diffractionnet", "version": "1"}
    paths = [
        re.sub(r"{(\w+)}", lambda match: names.get(match[1], "none"), path)
        for path, methods in documented.items()
        if "get" in methods
    ]
    with server.client(headers={"Accept-Encoding": "identity"}) as client:  # all on one connection
        for path in [*paths, *PAGES]:
            head, get = client.head(path), client.get(path)
            assert (head.status_code, head.content) == (get.status_code, b""), path
            for name in ("Content-Type", "Content-Security-Policy", "Vary"):
                assert head.headers.get(name) == get.headers.get(name), path
            assert int(head.headers["Content-Length"]) > 0, path
            if path in PAGES:  # others count requests
                assert head.headers["Content-Length"] == str(len(get.content)), path
        assert client.head("/predict").status_code == 405
        assert client.head("/v2/models/none").status_code == 404


def test_a_slash_at_the_end(server: RunningServer, structures: Array, expected: Expected) -> None:
    for path in ("/v2/", "/v2/health/ready/", "/v2/models/diffractionnet/", "/contract/", "/openapi.json/"):
        assert server.get(path).content == server.get(path[:-1]).content
    answer = server.post("/predict/?dtype=float32", json={"structures": structures.tolist()}).raise_for_status().json()
    np.testing.assert_allclose(answer["spectra"], expected(structures), atol=1e-5)
    body = {"inputs": [{"name": "structure", "shape": [1, 1, 128, 128], "datatype": "FP32", "data": [0] * 128**2}]}
    assert server.post("/v2/models/diffractionnet/infer/", json=body).status_code == 200
    redirect = server.get("/docs/?q=1")
    assert (redirect.status_code, redirect.headers["Location"]) == (308, "../docs?q=1"), "its links are relative"


@pytest.fixture(scope="module")
def prefixed(small_repository: Path) -> Iterator[RunningServer]:
    """A server behind a prefix that its proxy leaves on the path, with keys, and pages of one origin that may call it."""
    with running_server(
        "--repository", str(small_repository), "--root-path", "/lab/metaspec/", "--cors-origins", "https://lab.example"
    ) as running:
        yield running


def test_a_prefix(prefixed: RunningServer) -> None:
    assert prefixed.url.endswith("/lab/metaspec")
    address = prefixed.url.removesuffix("/lab/metaspec")
    with httpx.Client(base_url=address, timeout=60) as client:
        for path in ("/", "/docs", "/contract", "/v2/health/ready", "/static/page.js"):
            assert client.get("/lab/metaspec" + path).status_code == 200, path
            assert client.get(path).content == client.get("/lab/metaspec" + path).content, "a proxy may have removed it"
        assert client.get("/lab/metaspec").headers["Location"] == "/lab/metaspec/"
        assert client.get("/lab/metaspecs").status_code == 404
        assert client.get("/openapi.json").json()["servers"] == [{"url": "/lab/metaspec"}]
        unknown = client.get("/lab/metaspec/v2/models/none").json()
        assert list(unknown) == ["error"], "errors below /v2 are those of the protocol, with a prefix, too"
    with Surrogate(prefixed.url) as surrogate:
        assert surrogate.predict(np.zeros((1, 128, 128), np.uint8)).values.shape == (1, 4, 301)


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
@pytest.mark.parametrize("stripped", [True, False])
def test_behind_nginx(
    server: RunningServer,
    prefixed: RunningServer,
    tmp_path: Path,
    stripped: bool,
    structures: Array,
    expected: Expected,
) -> None:
    port, upstream = free_port(), (server if stripped else prefixed).address.partition("/")[0]
    location = f"""
      server {{
        listen 127.0.0.1:{port};
        location /lab/metaspec/ {{ proxy_pass http://{upstream}{"/" if stripped else ""}; }}
      }}"""
    with running_nginx(tmp_path, port, location), httpx.Client(timeout=60, follow_redirects=True) as client:
        url = f"http://127.0.0.1:{port}/lab/metaspec"
        page, documentation = client.get(url), client.get(f"{url}/docs/")
        for answer, links in ((page, ("static/page.js", "docs")), (documentation, ("static/docs.js", "openapi.json"))):
            assert answer.headers["Content-Type"].startswith("text/html")
            for link in links:
                assert client.get(answer.url.join(link)).status_code == 200
        answer = client.post(f"{url}/predict/", json={"structures": structures.tolist()}).raise_for_status()
        np.testing.assert_allclose(answer.json()["spectra"], expected(structures), atol=1e-5)


def test_cross_origin(prefixed: RunningServer, server: RunningServer) -> None:
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key,content-type"}
    with prefixed.client() as client:
        allowed = client.options("/predict", headers=asks | {"Origin": "https://lab.example"})
        assert allowed.status_code == 200
        assert allowed.headers["Access-Control-Allow-Origin"] == "https://lab.example"
        refused = client.options("/predict", headers=asks | {"Origin": "https://evil.example"})
        assert (refused.status_code, refused.json()["detail"]) == (400, "Disallowed CORS origin")
        assert "Access-Control-Allow-Origin" not in refused.headers
        answer = client.get("/contract", headers={"Origin": "https://lab.example"})
        assert answer.headers["Access-Control-Allow-Origin"] == "https://lab.example"
        assert "MetaSpec-Version" in answer.headers["Access-Control-Expose-Headers"]
        assert "Origin" in answer.headers["Vary"]
        assert "Access-Control-Allow-Credentials" not in {**answer.headers, **allowed.headers}
        evil = client.get("/contract", headers={"Origin": "https://evil.example"})
        assert "Access-Control-Allow-Origin" not in evil.headers
    closed = server.get("/contract", headers={"Origin": "https://lab.example"})
    assert not [name for name in closed.headers if name.lower().startswith("access-control")], "off by default"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cors_origins": "https://a.example,*"}, "or \\* alone"),
        ({"cors_origins": "https://a.example/page"}, "without a path, got 'https://a.example/page'"),
        ({"cors_origins": "a.example"}, "expected origins such as"),
        ({"root_path": "metaspec"}, "expected a path such as /metaspec"),
        ({"root_path": "/a//b"}, "expected a path such as /metaspec"),
        ({"root_path": "//a"}, "expected a path such as /metaspec"),
        ({"root_path": "/../a"}, "no \\. or \\.\\. alone; got '/\\.\\./a'"),
        ({"root_path": "/a/./b"}, "no \\. or \\.\\. alone"),
        ({"root_path": "/a/.."}, "no \\. or \\.\\. alone"),
        ({"root_path": "/a?b=1"}, "got '/a\\?b=1'"),
        ({"root_path": "/a b"}, "got '/a b'"),
        ({"tls_key": "key.pem"}, "expected --tls-cert, too"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        settings_of(**settings)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files: the authority, a certificate of 127.0.0.1, its key, and another key."""
    authority, folder = trustme.CA(), tmp_path_factory.mktemp("certificate")
    issued, other = authority.issue_cert("127.0.0.1"), authority.issue_cert("127.0.0.1")
    files = {name: folder / f"{name}.pem" for name in ("authority", "certificate", "key", "other", "both")}
    authority.cert_pem.write_to_path(files["authority"])
    issued.cert_chain_pems[0].write_to_path(files["certificate"])
    issued.private_key_pem.write_to_path(files["key"])
    other.private_key_pem.write_to_path(files["other"])
    issued.private_key_and_cert_chain_pem.write_to_path(files["both"])
    return files


def test_tls(
    small_repository: Path, certificate: dict[str, Path], monkeypatch: pytest.MonkeyPatch, structures: Array
) -> None:
    flags = ["--tls-cert", str(certificate["certificate"]), "--tls-key", str(certificate["key"])]
    with running_server("--repository", str(small_repository), *flags) as server:
        assert server.url.startswith("https://127.0.0.1:")
        with pytest.raises(ServerUnreachable, match="certificate"), Surrogate(server.url) as stranger:
            stranger.predict(structures)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate["authority"]))
        with Surrogate(server.url) as surrogate:
            assert surrogate.predict(structures).values.shape == (5, 4, 301)
        head = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
        with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), 30) as plain:
            plain.sendall(head)
            assert not plain.recv(100).startswith(b"HTTP/1.1 200")
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(30)
        assert server.log == []


@pytest.mark.parametrize(
    ("cert", "key", "message"),
    [
        ("absent", "key", r"--tls-cert: .*absent.* cannot be read: No such file or directory"),
        ("certificate", "absent", r"--tls-key: .*absent.* cannot be read"),
        ("folder", "key", r"--tls-cert: .*folder.* cannot be read: it is a folder, expected a regular file"),
        ("pipe", "key", r"--tls-cert: .*pipe.* cannot be read: it is a named pipe"),
        ("certificate", "pipe", r"--tls-key: .*pipe.* cannot be read: it is a named pipe"),
        (
            "certificate",
            "other",
            r"--tls-key: .*other\.pem does not have the private key of the certificate in .*certif",
        ),
        (
            "certificate",
            "rsa",
            r"--tls-key: .*rsa\.pem does not have the private key of the certificate in .*certificate",
        ),
        ("certificate", "encrypted", r"--tls-key: .*encrypted\.pem has an encrypted private key, expected one without"),
        ("certificate", "old encrypted", r"--tls-key: .*old encrypted\.pem has an encrypted private key"),
        ("certificate", "damaged", r"--tls-key: .*damaged\.pem has a private key that cannot be used"),
        ("certificate", "certificate", r"--tls-key: .*certificate\.pem has no private key in PEM format"),
        ("certificate", None, r"--tls-cert: .*certificate\.pem has no private key .*; --tls-key names the file"),
        ("key", "key", r"--tls-cert: .*key\.pem has no certificate in PEM format"),
        ("binary", "key", r"--tls-cert: .*binary\.pem has no certificate in PEM format"),
        ("damaged", "key", r"--tls-cert: .*damaged\.pem has a damaged certificate"),
    ],
)
def test_certificates_that_are_refused(
    certificate: dict[str, Path], cert: str, key: str | None, message: str, tmp_path: Path
) -> None:
    key_of = serialization.load_pem_private_key(certificate["key"].read_bytes(), None)
    rsa_key = rsa.generate_private_key(65537, 1024)
    passphrase = serialization.BestAvailableEncryption(b"passphrase")

    def pem(key: Any, style: serialization.PrivateFormat, encryption: Any) -> bytes:
        return bytes(key.private_bytes(serialization.Encoding.PEM, style, encryption))

    contents = {
        "encrypted": pem(key_of, serialization.PrivateFormat.PKCS8, passphrase),
        "old encrypted": pem(rsa_key, serialization.PrivateFormat.TraditionalOpenSSL, passphrase),
        "rsa": pem(rsa_key, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
        "binary": ssl.PEM_cert_to_DER_cert(certificate["certificate"].read_text()),
        "damaged": b"".join(
            b"-----BEGIN %b-----\nAAAA\n-----END %b-----\n" % (k, k) for k in (b"CERTIFICATE", b"PRIVATE KEY")
        ),
    }
    files = certificate | {name: tmp_path / f"{name}.pem" for name in ("absent", "folder", "pipe", *contents)}
    for name, content in contents.items():
        files[name].write_bytes(content)
    files["folder"].mkdir()
    os.mkfifo(files["pipe"])
    settings = settings_of(tls_cert=files[cert], tls_key=files[key] if key else None, port=0)
    with pytest.raises(OSError, match=message) as refused, listening(settings):
        pass
    assert "\n" not in str(refused.value)


def test_a_certificate_and_its_key_in_one_file(certificate: dict[str, Path]) -> None:
    with listening(settings_of(tls_cert=certificate["both"], port=0)) as listener:
        assert listener.tls is not None
        assert listener.url.startswith("https://127.0.0.1:")


def test_a_missing_certificate_ends_with_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "metaspec_server", "--port", "0", "--tls-cert", str(tmp_path / "none.pem")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == (
        f"metaspec-serve: --tls-cert: {tmp_path}/none.pem cannot be read: No such file or directory\n"
    )


def test_a_unix_socket(
    small_repository: Path, tmp_path: Path, structures: Array, expected: Expected, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, path = tmp_path / "home", tmp_path / "metaspec.sock"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    with socket.socket(socket.AF_UNIX) as killed:  # the file of a server that was killed
        killed.bind(str(path))
    with running_server("--repository", str(small_repository), "--uds", str(path)) as server:
        assert server.url == f"unix:{path}"
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://x", timeout=60) as client:
            answer = client.post("/predict", json={"structures": structures.tolist()}).raise_for_status().json()
            np.testing.assert_allclose(answer["spectra"], expected(structures), atol=1e-5)
        with pytest.raises(OSError, match="another server listens there"), listening(settings_of(uds=path)):
            pass
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(30)
    assert not path.exists()
    assert not list(home.iterdir()), "nothing is kept about its use, such as ONNX Runtime's telemetry"


def test_a_file_that_is_no_socket_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("kept")
    with pytest.raises(OSError, match="there is a file, which is not a socket"), listening(settings_of(uds=file)):
        pass
    assert file.read_text() == "kept"
    with (
        pytest.raises(OSError, match="--uds: cannot listen on"),
        listening(settings_of(uds=tmp_path / "no" / "such" / "folder")),
    ):
        pass


def test_the_socket_of_the_next_server_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "metaspec.sock"
    with listening(settings_of(uds=path)):
        os.unlink(path)
        with socket.socket(socket.AF_UNIX) as following:
            following.bind(str(path))
            inode = path.stat().st_ino
    assert path.stat().st_ino == inode
