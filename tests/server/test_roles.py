"""API keys: their file, the roles of their holders, and a file that changes while the server runs."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from metaspec_server.core.keys import ApiKeyError, ApiKeys, Role
from metaspec_testing.servers import RunningServer, running_server

KEYS = """\
# KEY, or NAME: KEY ROLE,ROLE
all-roles-0123456789
optimiser: infer-key-0123456789 infer
prometheus: scrape-key-0123456789 metrics
deployment: control-key-0123456789 control, metrics
"""
ALL, INFER, METRICS, CONTROL = (
    f"{name}-key-0123456789".replace("all-key", "all-roles") for name in ("all", "infer", "scrape", "control")
)
LOAD = "/v2/repository/models/diffractionnet/load"
SEPARATOR = "has a colon, a comma or the like in its key"


def roles(text: str, path: Path) -> dict[str, tuple[str | None, set[str]]]:
    """Name and roles by key, for the keys that a text names."""
    path.write_text(text)
    keys = ApiKeys(path)
    found = {word: keys.find(word.encode()) for word in text.replace(":", " ").split()}
    return {word: (caller.name, set(caller.roles)) for word, caller in found.items() if caller is not None}


def test_lines_of_the_file(tmp_path: Path) -> None:
    assert roles(KEYS, tmp_path / "keys") == {
        ALL: (None, {"infer", "control", "metrics"}),
        INFER: ("optimiser", {"infer"}),
        METRICS: ("prometheus", {"metrics"}),
        CONTROL: ("deployment", {"control", "metrics"}),
    }
    odd = "\ufeff  base64+/0123456789== \n\n#\nname: third-key-0123456789\n"
    (tmp_path / "keys").write_text(odd)
    keys = ApiKeys(tmp_path / "keys")
    for key, name in (("base64+/0123456789==", None), ("third-key-0123456789", "name")):
        caller = keys.find(key.encode())
        assert caller is not None
        assert (caller.name, caller.roles) == (name, frozenset(Role))
    assert keys.find(b"") is None
    assert keys.find(b"third-key-012345678") is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "secret-key-0123456789 admin",
            "line 2 of .* has an unknown role; expected KEY, or NAME: KEY ROLE,ROLE with these spaces, of the roles infer",
        ),
        ("name secret-key-0123456789", "line 2 of .* has a key shorter than 16 characters; expected KEY, or NAME: KEY"),
        ("name-of-the-caller secret-key-0123456789", "line 2 of .* has an unknown role"),
        ("name : secret-key-0123456789 infer", "line 2 of .* has a key shorter than 16"),
        (": secret-key-0123456789 infer", "line 2 of .* has an empty name"),
        (
            "name:secret-key-0123456789",
            f"line 2 of .* {SEPARATOR}; expected KEY, or NAME: KEY ROLE,ROLE with these spaces",
        ),
        ("name:secret-key-0123456789 infer", SEPARATOR),
        ("secret-key-0123456789:infer", SEPARATOR),
        ("secret-key-0123456789: infer", "has a key shorter than 16"),
        ("secret-key-0123456789: infer,control,metrics", SEPARATOR),
        ("secret-key-0123456789,infer", SEPARATOR),
        ("secret-key-0123456789;infer", SEPARATOR),
        ("secret-key-0123456789|metrics", SEPARATOR),
        ("secret-key-0123456789=infer", SEPARATOR),
        ("secret-key-0123456789\0", SEPARATOR),
        ("secret-key-0123456789 ,", "line 2 of .* has an empty role; expected KEY, or NAME: KEY ROLE,ROLE"),
        ("secret-key-0123456789 infer,", "has an empty role"),
        ("secret-key-0123456789 ,infer", "has an empty role"),
        ("secret-key-0123456789 infer,,metrics", "has an empty role"),
        ("secret-key-0123456789 INFER", "has an unknown role"),
        ("secret-key-0123456789 infer # all others refused", "has an unknown role"),
        ("all-roles-0123456789 infer", "line 2 of .* has the key of a line before it"),
    ],
)
def test_lines_that_are_refused_name_no_key(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "keys").write_text(f"{ALL}\n{line}\n")
    with pytest.raises(ApiKeyError, match=message) as error:
        ApiKeys(tmp_path / "keys")
    assert "0123456789" not in str(error.value)


def test_no_key_is_in_memory_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(KEYS)
    assert "0123456789" not in repr(vars(ApiKeys(tmp_path / "keys")))


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(KEYS)
    return path


@pytest.fixture(scope="module")
def guarded(small_repository: Path, keys: Path) -> Iterator[RunningServer]:
    """A server that requires keys."""
    flags = ("--repository", str(small_repository), "--api-keys", str(keys), "--log-level", "info")
    with running_server(*flags, "--log-format", "json") as server:
        yield server


def ask(server: RunningServer, method: str, path: str, key: str | None) -> httpx.Response:
    with server.client() as client:
        return client.request(method, path, headers={"X-API-Key": key} if key else {})


SETTINGS = ("/v2/logging", "/v2/trace/setting", "/v2/models/diffractionnet/trace/setting")
ROUTES = [
    ("GET", "/v2/models/diffractionnet", (Role.INFER,)),
    ("POST", "/v2/repository/index", (Role.INFER,)),
    ("POST", "/predict", (Role.INFER,)),
    ("GET", "/metrics", (Role.METRICS,)),
    ("POST", LOAD, (Role.CONTROL,)),
    ("GET", "/v2/systemsharedmemory/status", (Role.CONTROL,)),
    *(("GET", path, (Role.INFER, Role.CONTROL)) for path in SETTINGS),
    *(("POST", path, (Role.CONTROL,)) for path in SETTINGS),
    ("HEAD", "/v2/logging", (Role.INFER, Role.CONTROL)),
    ("POST", "/v2/models/diffractionnet/trace/setting/", (Role.CONTROL,)),
    ("DELETE", "/v2/trace/setting", (Role.CONTROL,)),
]


@pytest.mark.parametrize(("method", "path", "sufficient"), ROUTES)
def test_each_role_may_do_its_own(guarded: RunningServer, method: str, path: str, sufficient: tuple[Role, ...]) -> None:
    holders = {ALL: set(Role), INFER: {Role.INFER}, METRICS: {Role.METRICS}, CONTROL: {Role.CONTROL, Role.METRICS}}
    for key, has in holders.items():
        answer = ask(guarded, method, path, key)
        if has & set(sufficient):
            assert answer.status_code not in (401, 403), answer.text
        else:
            assert answer.status_code == 403
            refusal = f"this API key has no role {' or '.join(sufficient)}, only {', '.join(sorted(has))}"
            assert refusal in answer.text or method == "HEAD"
    assert ask(guarded, method, path, None).status_code == 401
    assert ask(guarded, method, path, INFER.upper()).status_code == 401


def test_a_caller_without_the_role_unloads_no_model(guarded: RunningServer) -> None:
    for path in (
        LOAD.replace("load", "unload"),
        LOAD.replace("load", "unload") + "/",
        "/v2//repository/models/x/unload",
    ):
        assert ask(guarded, "POST", path, INFER).status_code in (403, 404)
    assert ask(guarded, "GET", "/v2/models/diffractionnet/ready", INFER).status_code == 200


def test_the_document_names_roles_and_headers(guarded: RunningServer) -> None:
    document = guarded.get("/openapi.json").json()
    schemes = document["components"]["securitySchemes"]
    assert schemes["bearer"]["scheme"] == "bearer"
    assert schemes["header"]["name"] == "X-API-Key"
    for path, method, role in (("/predict", "post", "infer"), ("/metrics", "get", "metrics")):
        operation = document["paths"][path][method]
        assert f"`{role}`" in operation["description"]
        assert {"401", "403"} <= operation["responses"].keys()
        assert {"bearer": []} in operation["security"]
    assert "`control`" in document["paths"]["/v2/repository/models/{model}/load"]["post"]["description"]
    settings = document["paths"]["/v2/models/{model}/trace/setting"]
    assert "`infer` or `control`" in settings["get"]["description"]
    assert "`control`" in settings["post"]["description"]
    assert "security" not in document["paths"]["/v2/health/live"]["get"]


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def replace(path: Path, text: str) -> None:
    path.with_suffix(".new").write_text(text)
    os.replace(path.with_suffix(".new"), path)


def test_keys_change_while_the_server_runs(guarded: RunningServer, keys: Path) -> None:
    """Added, revoked, broken and removed; the log says what happened, and no key."""

    def status(key: str) -> int:
        return ask(guarded, "GET", "/v2", key).status_code

    def logged(text: str) -> int:
        return sum(text in line for line in list(guarded.log))

    new = "new-key-0123456789012"
    assert status(new) == 401
    replace(keys, KEYS.replace(INFER, new))
    until(lambda: status(new) == 200)
    assert status(INFER) == 401, "revoked at the same moment"
    replace(keys, "short\n")
    until(
        lambda: status(new) == 200 and logged("these spaces, of the roles infer, control, metrics; the keys that") == 1
    )
    keys.unlink()
    until(lambda: status(new) == 200 and logged("cannot be read: No such file or directory; the keys") == 1)
    replace(keys, KEYS)
    until(lambda: status(INFER) == 200)
    assert status(new) == 401
    until(lambda: logged("API keys read again") == 2)  # the log comes through a pipe
    assert logged("stay valid") == 2, "each once"
    requests = [line for line in map(json.loads, list(guarded.log)) if line["event"] == "request"]
    assert "optimiser" in {line.get("caller") for line in requests if line["status"] == 200}
    assert not any("0123456789" in line for line in guarded.log)


@pytest.mark.slow
def test_a_file_that_is_just_being_written_gives_and_takes_nothing(guarded: RunningServer, keys: Path) -> None:
    """An editor, or the shell, empties a file and then writes it, in pieces."""
    new = "cut-key-0123456789012"

    def status(key: str, path: str = "/v2") -> int:
        return ask(guarded, "GET", path, key).status_code

    def logged(text: str) -> int:
        return sum(text in line for line in list(guarded.log))

    until(lambda: status(ALL) == 200)
    with keys.open("w") as file:
        file.write(f"deployment: {new}")
        file.flush()
        until(lambda: logged("has no end, as if it were being written; the keys that it had before stay valid") == 1)
        assert (status(new), status(ALL)) == (401, 200)
        file.write(" infer\n")
    until(lambda: status(new) == 200)
    assert (status(new, "/metrics"), status(ALL)) == (403, 401)
    keys.write_text("")
    until(lambda: logged("has no keys in it, expected one per line; the keys") == 1)
    assert status(new) == 200
    keys.unlink()
    os.mkfifo(keys)
    until(lambda: logged("cannot be read: it is a named pipe, expected a regular file; the keys") == 1)
    assert status(new) == 200
    replace(keys, KEYS)
    until(lambda: status(ALL) == 200)


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_a_file_that_is_none(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "keys"
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "device":
            path.symlink_to("/dev/zero")
    with pytest.raises(
        ApiKeyError, match=rf"--api-keys: .*keys cannot be read: it is a .*{kind}, expected a regular file"
    ):
        ApiKeys(path)


def test_without_keys_strangers_control_nothing(small_repository: Path) -> None:
    with running_server("--repository", str(small_repository), "--host", "0.0.0.0") as server:
        server.url = server.url.replace("0.0.0.0", "127.0.0.1")
        answer = server.post(LOAD)
        assert answer.status_code == 403
        assert (
            "no API keys, and its address is no loopback address; --model-control allows it" in answer.json()["error"]
        )
        assert server.get("/v2/models/diffractionnet").status_code == 200


def test_pages_of_other_sites_control_nothing(server: RunningServer) -> None:
    """A browser sends their requests to this machine, too, with an Origin."""
    answer = server.post(LOAD, headers={"Origin": "https://elsewhere.example"})
    assert answer.status_code == 403
    assert "pages in a browser" in answer.json()["error"]
    for path in SETTINGS:
        assert server.post(path, headers={"Origin": "https://elsewhere.example"}).status_code == 403
        assert server.post(path).status_code == 200
    assert server.post("/v2/repository/index", headers={"Origin": "https://elsewhere.example"}).status_code == 200
    assert server.post(LOAD).status_code == 200
