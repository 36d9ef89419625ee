"""Who may reach the server, and which pages may use it.

The page has the user's microphone, so no other page may use its socket: a browser tells the page by `Origin`, which
has to be the server's own address as `Host` gives it. A page of elsewhere whose name was made to point here (DNS
rebinding) has the same in both; on loopback therefore only loopback's own names are taken for `Host`.
"""

import socket
from ipaddress import ip_address
from urllib.parse import urlsplit


def is_loopback(host: str) -> bool:
    """Whether a name or address means this machine alone."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(host, None)
    except OSError:
        return False
    return all(ip_address(str(address[0]).partition("%")[0]).is_loopback for *_, address in found)


def check_host(host: str, *, allow_remote: bool) -> None:
    """Check the address to listen on.

    Raises:
        ValueError: others could reach it, and that wasn't asked for.
    """
    if allow_remote or is_loopback(host):
        return
    raise ValueError(
        f"--host {host} isn't this machine alone, and the server asks nobody for a password and encrypts nothing; nor "
        "do browsers give a page the microphone but on https or localhost. Leave --host out and reach it through "
        "ssh -L 8765:localhost:8765 THIS_MACHINE, or give --allow-remote behind a proxy with TLS and passwords"
    )


def why_not_host(host: str | None, *, allow_remote: bool) -> str | None:
    """Why a request with this `Host` is refused; None if it isn't."""
    name = _hostname(host)
    if name is None:
        return "the request has no valid Host header"
    if allow_remote or name == "localhost" or _is_loopback_address(name):
        return None
    return f"the server is reached as localhost or 127.0.0.1, not as {name}"


def why_not_origin(origin: str | None, host: str | None) -> str | None:
    """Why a WebSocket of a page of this `Origin` is refused; None if it isn't."""
    if origin is None:
        return "the WebSocket has no Origin header: give http://HOST:PORT, the server's address"
    try:
        page = urlsplit(origin)
    except ValueError:
        return f"the Origin {origin[:100]!r} is no address"
    if page.scheme in ("http", "https") and page.netloc and host and page.netloc.lower() == host.lower():
        return None
    return f"a page of {origin[:100]} may not use this server: open the server's own page"


def _hostname(host: str | None) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname if host else None
    except ValueError:
        return None


def _is_loopback_address(name: str) -> bool:
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False
