"""Proxies of the environment: none for this machine, one for others, and one line for settings that are none."""

from __future__ import annotations

import numpy as np
import pytest

from metaspec import AsyncSurrogate, ServerUnreachable, Surrogate
from metaspec._transport.proxies import proxy_for
from metaspec_testing.scripted import good, scripted

PROXY = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize(
    "environment",
    [
        {"HTTP_PROXY": PROXY},
        {"ALL_PROXY": "socks5://127.0.0.1:9"},
        {"all_proxy": "ftp://nonsense"},
        {"HTTP_PROXY": PROXY, "NO_PROXY": "localhost,127.0.0.1,::1/128"},
        {"HTTP_PROXY": PROXY, "NO_PROXY": "localhost,[::1]"},
        {"HTTP_PROXY": PROXY, "NO_PROXY": "127.0.0.0/8"},
    ],
)
async def test_this_machine_is_reached_without_a_proxy(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with scripted(good(1), good(1)) as server:
        with Surrogate(server.url, retries=0) as surrogate:
            assert len(surrogate.predict(np.zeros((128, 128)))) == 1
        async with AsyncSurrogate(server.url, retries=0) as asynchronous:
            assert len(await asynchronous.predict(np.zeros((128, 128)))) == 1
    for url in ("http://localhost:8000", "http://[::1]:8000", "http://a.localhost"):
        assert proxy_for(url) is None


async def test_others_are_reached_through_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted(good(1), good(1)) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url.removeprefix("http://"))
        with Surrogate("http://metaspec.invalid", retries=0) as surrogate:
            assert len(surrogate.predict(np.zeros((128, 128)))) == 1
        async with AsyncSurrogate("http://metaspec.invalid", retries=0) as asynchronous:
            assert len(await asynchronous.predict(np.zeros((128, 128)))) == 1
    assert proxy.asked == ["http://metaspec.invalid/v2/models/diffractionnet/infer"] * 2


@pytest.mark.parametrize(
    ("no_proxy", "direct"),
    [
        ("", False),
        ("*", True),
        ("lab.example", True),
        (".lab.example", True),
        ("b.example", False),
        ("server.lab.example:8000", True),
        ("10.0.0.0/8", False),
    ],
)
def test_exceptions(no_proxy: str, direct: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", PROXY)
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert proxy_for("http://server.lab.example:8000") == (None if direct else PROXY)
    assert proxy_for("https://server.lab.example:8000") is None
    assert proxy_for("http://10.1.2.3:8000") == (None if no_proxy in ("*", "10.0.0.0/8") else PROXY)


async def test_a_proxy_that_does_not_answer_is_named(nobody: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://someone:secret@{nobody}")
    named = rf"^no connection to http://metaspec\.invalid through the proxy http://{nobody}: "
    with Surrogate("http://metaspec.invalid", retries=0) as surrogate, pytest.raises(ServerUnreachable, match=named):
        surrogate.metadata()
    async with AsyncSurrogate("http://metaspec.invalid", retries=0) as asynchronous:
        with pytest.raises(ServerUnreachable, match=named):
            await asynchronous.metadata()


@pytest.mark.parametrize("kind", [Surrogate, AsyncSurrogate])
@pytest.mark.parametrize(
    "proxy", ["ftp://someone:secret@proxy:3128", "http://", "http://proxy:99999", "http://[::1", "htp:/proxy"]
)
def test_settings_that_are_no_proxy(kind: type, proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", proxy)
    with pytest.raises(ValueError, match=r"^https_proxy must be http://host:port.*add it to NO_PROXY$") as caught:
        kind("https://server.lab.example")
    assert "secret" not in str(caught.value)
    kind("http://server.lab.example")


def test_a_socks_proxy_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metaspec._transport.proxies.find_spec", lambda name: None)
    monkeypatch.setenv("ALL_PROXY", "socks5://proxy:1080")
    with pytest.raises(ImportError, match=r"^ALL_PROXY is a SOCKS proxy, which needs socksio: pip install .*NO_PROXY$"):
        Surrogate("http://server.lab.example")
