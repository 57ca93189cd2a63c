"""Which of this machine's network interfaces leads to the other machines."""

import socket
from ipaddress import ip_address

import psutil

FAR_AWAY = "192.0.2.1"
"""An address that no machine has (RFC 5737): the way to it is the default route."""


def interface_towards(host: str) -> str | None:
    """The interface through which packets to `host` leave this machine; None if there is no way.

    Where `host` is this machine, its name may stand for a loopback address (127.0.1.1 on Debian), at which no other
    machine could answer; then it is the interface of the default route.
    """
    for target in (host, FAR_AWAY):
        address = _local_address(target)
        if address is not None and not ip_address(address).is_loopback:
            interfaces = psutil.net_if_addrs().items()
            return next((name for name, own in interfaces if address in {entry.address for entry in own}), None)
    return None


def _local_address(host: str) -> str | None:
    """The address that packets to `host` carry as their sender's; asks for the route and sends nothing."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except OSError:  # an unknown name, or a network that no route leads to
        return None
