"""The proxy for an address, from the environment variables HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY.

httpx reads them itself, but refuses networks such as 127.0.0.0/8 in NO_PROXY, which curl and Go accept, and sends even requests
to this machine through the proxy.
"""

from __future__ import annotations

import os
from contextlib import suppress
from importlib.util import find_spec
from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx


def proxy_for(url: str) -> str | None:
    """URL of the proxy for requests to an address; None to connect directly, as always to this machine.

    Raises:
        ValueError: the proxy is not a URL of HTTP or SOCKS 5; the variable is named.
        ImportError: a SOCKS proxy needs the package socksio, which is not installed; the variable is named.
    """
    parts = urlsplit(url)
    host, proxies = parts.hostname or "", getproxies()
    kind = next((kind for kind in (parts.scheme, "all") if proxies.get(kind)), None)
    if kind is None or is_loopback(host) or _excepted(parts.netloc.rpartition("@")[2], host, proxies.get("no", "")):
        return None
    proxy = proxies[kind] if "://" in proxies[kind] else f"http://{proxies[kind]}"
    name = next((name for name in os.environ if name.lower() == f"{kind}_proxy"), f"the system's {kind} proxy")
    advice = f"to connect to {host} directly, add it to NO_PROXY"
    try:
        found = httpx.Proxy(proxy).url
        valid = bool(found.host) and 0 < (found.port or 80) < 2**16 and found.path == "/"  # htp:/host is a host htp
    except (ValueError, httpx.InvalidURL):
        valid = False
    if not valid:
        shown = without_password(proxy)
        raise ValueError(
            f"{name} must be http://host:port, https://host:port or socks5://host:port, got {shown!r}; {advice}"
        )
    if proxy.startswith("socks5") and find_spec("socksio") is None:
        raise ImportError(
            f'{name} is a SOCKS proxy, which needs socksio: pip install "httpx[socks]"; {advice}', name="socksio"
        )
    return proxy


def without_password(proxy: str) -> str:
    """URL of a proxy for messages."""
    scheme, _, address = proxy.partition("://")
    return f"{scheme}://{address.rpartition('@')[2]}"


def is_loopback(host: str) -> bool:
    """Whether a host is this machine."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _excepted(address: str, host: str, no_proxy: str) -> bool:
    """Whether NO_PROXY names an address, host:port: its host, the end of its name, or its network."""
    if proxy_bypass(address):
        return True
    for entry in no_proxy.split(","):
        with suppress(ValueError):  # a name
            if ip_address(host) in ip_network(entry.strip().strip("[]"), strict=False):
                return True
    return False
