import socket

import psutil
import pytest

from lora_dist.distributed import network
from lora_dist.distributed.network import interface_towards


def own_addresses() -> list[tuple[str, str]]:
    """Interface and IPv4 address of all that are not loopback and are up."""
    entries = [(name, entry) for name, own in psutil.net_if_addrs().items() for entry in own]
    up = psutil.net_if_stats()
    return [
        (name, entry.address)
        for name, entry in entries
        if entry.family == socket.AF_INET and not entry.address.startswith("127.") and up[name].isup
    ]


def test_an_address_of_this_machine_leads_to_the_interface_that_has_it() -> None:
    if not (addresses := own_addresses()):
        pytest.skip("needs a network interface")
    assert [interface_towards(address) for _, address in addresses] == [name for name, _ in addresses]


def test_a_loopback_address_leads_to_the_interface_of_the_default_route(monkeypatch: pytest.MonkeyPatch) -> None:
    if not (addresses := own_addresses()):
        pytest.skip("needs a network interface")
    name, address = addresses[0]
    monkeypatch.setattr(network, "FAR_AWAY", address)
    assert interface_towards("127.0.1.1") == name
    assert interface_towards("localhost") == name


def test_without_a_route_there_is_no_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "FAR_AWAY", "127.0.0.1")
    assert interface_towards("127.0.1.1") is None
    assert interface_towards("256.0.0.1") is None
