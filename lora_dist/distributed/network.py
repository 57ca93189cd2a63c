"""Find the network interface of this machine that leads to the other machines."""

import socket
from ipaddress import ip_address

import psutil

FAR_AWAY = "192.0.2.1"
"""An address that no machine has (RFC 5737), so it is reached through the default route."""


def interface_towards(host: str) -> str | None:
    """Return the interface through which packets to `host` leave this machine; None without a route.

    If `host` is this machine, its name may resolve to a loopback address (127.0.1.1 on Debian), which other machines
    cannot reach. The interface of the default route is returned then.
    """
    for target in (host, FAR_AWAY):
        address = _local_address(target)
        if address is not None and not ip_address(address).is_loopback:
            interfaces = psutil.net_if_addrs().items()
            return next((name for name, own in interfaces if address in {entry.address for entry in own}), None)
    return None


def _local_address(host: str) -> str | None:
    """Return the source address of packets to `host`, by looking up the route without sending anything."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except OSError:  # an unknown host name, or no route
        return None
