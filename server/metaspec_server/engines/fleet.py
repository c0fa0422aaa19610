"""A fleet of inference servers: their addresses, and which of them are alive.

Each server is probed four times a second, in a thread of its own. So one that is dead, stopped or cut off is known within a
second, and one that answers again is back as soon. A host name stands for all its addresses, and is looked up again and again.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import threading
from collections.abc import Callable, Sequence
from typing import TypeAlias

__all__ = ["PROBE_INTERVAL", "Fleet", "Member", "Probe", "addresses_of"]

log = logging.getLogger(__name__)

PROBE_INTERVAL = 0.25
"""Seconds between two probes of a server."""

_PROBE_TIMEOUT = 0.6  # seconds for the answer to a probe
_LOOK_UP_INTERVAL = 5.0  # seconds between look-ups of host names

Probe: TypeAlias = Callable[[float], bool]
"""Whether a server answers within a number of seconds."""


class Member:
    """A server of a fleet.

    Attributes:
        address: its address, host:port.
        alive: whether it answered the last probe.
        in_flight: number of calls to it that have not been answered.
        returns: number of times that it answered again; connections from before may be dead.
        probed: set after its first probe.
        removed: set when it no longer belongs to the fleet.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.alive, self.in_flight, self.returns = False, 0, 0
        self.probed, self.removed = threading.Event(), threading.Event()

    def watch(self, probe: Probe) -> None:
        """Probe it until it is removed; blocks."""
        while not self.removed.wait(PROBE_INTERVAL if self.probed.is_set() else 0):
            alive, first = probe(_PROBE_TIMEOUT), not self.probed.is_set()
            if not alive and (self.alive or first):
                log.warning("the server at %s does not answer, and is left out until it does", self.address)
            elif alive and not (self.alive or first):
                self.returns += 1
                log.warning("the server at %s answers again", self.address)
            self.alive = alive
            self.probed.set()


class Fleet:
    """Servers behind some addresses. It watches them while somebody uses it.

    Args:
        addresses: addresses of the servers, host:port; a host name stands for all its addresses.
        connect: function from an address to the probe of that server.
    """

    def __init__(self, addresses: Sequence[str], connect: Callable[[str], Probe]) -> None:
        self._addresses, self._connect = addresses, connect
        self._members: dict[str, Member] = {}
        self._users = 0
        self._unused = threading.Event()
        self._lock = threading.Lock()

    @property
    def members(self) -> list[Member]:
        """Its servers, alive or not."""
        return list(self._members.values())

    def enter(self) -> None:
        """Use the fleet. Blocks until each server has been probed once."""
        with self._lock:
            self._users += 1
            first = self._users == 1
            if first:
                self._unused = threading.Event()
        if first:
            self._look_up(self._unused)
            threading.Thread(target=self._watch_names, args=[self._unused], name="fleet", daemon=True).start()
        for member in self.members:
            member.probed.wait(2 * _PROBE_TIMEOUT)

    def leave(self) -> None:
        """Use it no longer. The last one ends its threads."""
        with self._lock:
            self._users -= 1
            if not self._users:
                self._unused.set()
                self._keep([])

    def _watch_names(self, unused: threading.Event) -> None:
        while not unused.wait(_LOOK_UP_INTERVAL):
            self._look_up(unused)

    def _look_up(self, unused: threading.Event) -> None:
        """Watch the servers that the names stand for now; those from before where a name is not known at the moment."""
        try:
            found = [one for address in self._addresses for one in addresses_of(address)]
        except (OSError, UnicodeError) as error:
            log.warning("%s: the addresses are not known: %s", ",".join(self._addresses), error)
            return
        with self._lock:
            if not unused.is_set():
                self._keep(found)

    def _keep(self, addresses: Sequence[str]) -> None:
        for address in self._members.keys() - set(addresses):
            self._members.pop(address).removed.set()
        for address in addresses:
            if address not in self._members:
                member = self._members[address] = Member(address)
                probe = self._connect(address)
                threading.Thread(target=member.watch, args=[probe], name=f"probe {address}", daemon=True).start()


def addresses_of(address: str) -> list[str]:
    """Addresses that a host:port stands for: itself, or all IPv4 addresses of a host name (IPv6 where it has no others).

    Raises:
        OSError: the host name is not known.
    """
    host, _, port = address.rpartition(":")
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        found = {(info[0], str(info[4][0])) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
        version4 = sorted(f"{one}:{port}" for family, one in found if family == socket.AF_INET)
        return version4 or sorted(f"[{one}]:{port}" for family, one in found if family == socket.AF_INET6)
    return [address]
