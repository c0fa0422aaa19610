"""The socket that the server listens on: TCP or a Unix domain socket, with or without TLS."""

from __future__ import annotations

import errno
import os
import socket
import ssl
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from metaspec_server.blocking import read_file
from metaspec_server.settings import Settings

__all__ = ["Listener", "listening"]

_BACKLOG = 2048
_MODE = 0o660  # of the file of a Unix domain socket: its owner and group may connect
_LARGEST_PEM = 2**20  # bytes
_PROBE = 2.0  # seconds that another server has to take a connection


@dataclass(frozen=True)
class Listener:
    """A socket that listens: callers may connect from now on.

    Attributes:
        socket: the socket.
        url: address as a URL, or as `unix:/path`.
        tls: certificate and settings of TLS; None for plain HTTP.
        file: path of a Unix domain socket.
        identity: number and time of that file, by which it is told from the next server's.
    """

    socket: socket.socket
    url: str
    tls: ssl.SSLContext | None
    file: Path | None = None
    identity: tuple[int, int] | None = None

    def close(self) -> None:
        """Close the socket and remove its file."""
        self.socket.close()
        if self.file is not None:
            with suppress(OSError):  # it has been removed
                if _identity(self.file) == self.identity:
                    self.file.unlink()


@contextmanager
def listening(settings: Settings) -> Iterator[Listener]:
    """Listen where the settings say, until the block ends.

    Args:
        settings: settings of the server.

    Raises:
        OSError: the certificate or its key cannot be used, or the address cannot be had. The message is one line for the user.
    """
    tls = _tls_context(settings.tls_cert, settings.tls_key) if settings.tls_cert else None
    if settings.uds is not None:
        bound, path = _unix_socket(settings.uds), settings.uds.absolute()
        listener = Listener(bound, f"unix:{path}", tls, path, _identity(path))
    else:
        bound = _tcp_socket(settings.host, settings.port)
        host, port = bound.getsockname()[:2]
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        listener = Listener(bound, f"{'https' if tls else 'http'}://{address}", tls)
    try:
        yield listener
    finally:
        listener.close()


def _tcp_socket(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise OSError(f"cannot listen on {host}:{port}: {error.strerror}") from None
    return listener


def _unix_socket(path: Path) -> socket.socket:
    if not hasattr(socket, "AF_UNIX"):
        raise OSError("--uds: this system has no Unix domain sockets")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale_file(path)
        mask = os.umask(0o777 & ~_MODE)  # so that nobody else can connect in between
        try:
            listener.bind(os.fspath(path))
        finally:
            os.umask(mask)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise OSError(f"--uds: cannot listen on {path}: {error.strerror or error}") from None
    return listener


def _identity(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_ino, status.st_mtime_ns  # numbers of inodes are used again


def _remove_stale_file(path: Path) -> None:
    """Remove the socket file of a server that was killed.

    Raises:
        OSError: there is another file, or a server that listens.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EEXIST, "there is a file, which is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except TimeoutError:  # it listens, but its queue is full
            pass
    raise OSError(errno.EADDRINUSE, "another server listens there")


def _tls_context(certificate: Path, key: Path | None) -> ssl.SSLContext:
    """Settings of TLS with a certificate and its key, which may be in the same file.

    Raises:
        OSError: they cannot be used. The message names the flag and the file that is wrong.
    """
    chain = _pem("--tls-cert", certificate)
    keys, of_key = (_pem("--tls-key", key), f"--tls-key: {key}") if key else (chain, f"--tls-cert: {certificate}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if "-----BEGIN CERTIFICATE-----" not in chain:
        raise OSError(f"--tls-cert: {certificate} has no certificate in PEM format, -----BEGIN CERTIFICATE-----")
    if "PRIVATE KEY-----" not in keys:
        advice = "" if key else "; --tls-key names the file that has it"
        raise OSError(f"{of_key} has no private key in PEM format, -----BEGIN PRIVATE KEY-----{advice}")
    if "ENCRYPTED" in keys:  # nobody is there to be asked for its passphrase
        raise OSError(
            f"{of_key} has an encrypted private key, expected one without a passphrase (openssl pkey decrypts it)"
        )
    try:
        context.load_verify_locations(cadata=chain)
    except ssl.SSLError as error:
        raise OSError(f"--tls-cert: {certificate} has a damaged certificate: {_reason(error)}") from None
    try:
        context.load_cert_chain(certificate, key, password="")
    except ssl.SSLError as error:
        if (
            "MISMATCH" in (error.reason or "") or error.reason == "NO_CERTIFICATE_ASSIGNED"
        ):  # the latter: of another kind
            raise OSError(f"{of_key} does not have the private key of the certificate in {certificate}") from None
        raise OSError(f"{of_key} has a private key that cannot be used: {_reason(error)}") from None
    return context


def _pem(flag: str, path: Path) -> str:
    try:
        return read_file(path, _LARGEST_PEM).decode("ascii", "replace")
    except OSError as error:
        raise OSError(f"{flag}: {path} cannot be read: {error.strerror}") from None


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or "not in PEM format").lower().replace("_", " ")
