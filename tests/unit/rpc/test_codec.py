"""Values to JSON and back: every class that a client returns, older and newer nodes, and faults."""

import json
from dataclasses import fields
from ipaddress import ip_address, ip_network
from typing import Any, get_args

import pytest

from tunnel.diagnostics import Finding, Level, Outcome, PathTrace, TraceLayer, TraceStep
from tunnel.errors import CodecError
from tunnel.events import Event, MacChanged, PathChanged, PeerUp, StoreLost, SubnetsChanged
from tunnel.rpc.codec import decode, decode_event, encode, encode_event
from tunnel.status import (
    Drop,
    FdbEntry,
    MacSource,
    Neighbour,
    PeerState,
    PeerStatus,
    Route,
    Status,
    StoreStatus,
    TaskHealth,
    Traffic,
)
from tunnel.types import Endpoint, Mac

END = Endpoint("2001:db8::2", 4789)
MAC = Mac.parse("02:00:5e:00:53:01")
PREFIXES = (ip_network("10.2.0.0/16"), ip_network("fd00:2::/64"))
PEER = PeerStatus(
    endpoint=END,
    address=ip_address("2001:db8::2"),
    mac=MAC,
    prefixes=PREFIXES,
    state=PeerState.UP,
    state_age=5.0,
    rtt=0.001,
    loss=None,
    path_mtu=1430,
    trains=True,
    outbound=Traffic(1, 100),
    inbound=Traffic(2, 200),
    drops={"spoofed": 1},
    last_drop="spoofed",
)
STATUS = Status(
    name="tunnel1",
    device=None,
    vni=1,
    endpoints=("[2001:db8::1]:8472",),
    mac=MAC,
    mtu=1430,
    offloads=frozenset({"tso", "gro"}),
    workers=2,
    uptime=9.5,
    peers=(PEER,),
    drops={},
    subnets=PREFIXES,
    store=StoreStatus("http://192.0.2.9:2379", True, 1.0, "", 7, None, None, ("one",)),
    tasks=(TaskHealth("prober", healthy=False, failures=2, why="OSError"),),
)
VALUES: list[Any] = [
    STATUS,
    Drop("spoofed", "inbound", 3, "a meaning", {END: 3}),
    Route(PREFIXES[0], END, None),
    FdbEntry(MAC, 7, END, static=False, age=3),
    Neighbour(None, MacSource.UNKNOWN, 0.0),
    PathTrace(
        "icmp",
        "outbound",
        (TraceStep("route", "10.2.0.0/16", Outcome.ENDS, "why"),),
        (TraceLayer("UDP", 8, {"source": "1"}),),
        "route",
    ),
    Finding("peers", Level.WARNING, "a text", "an advice"),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_value_comes_back_as_it_was(value: Any) -> None:
    assert decode(type(value), json.loads(json.dumps(encode(value)))) == value


EVENTS: list[Event] = [
    PeerUp(END),
    PathChanged(END, None),
    MacChanged(END, MAC, MAC),
    SubnetsChanged(PREFIXES, ()),
    StoreLost("http://192.0.2.9:2379", "no answer"),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_comes_back_as_it_was(event: Event) -> None:
    assert decode_event(json.loads(json.dumps(encode_event(event)))) == event


def test_every_event_has_a_name_of_its_own() -> None:
    assert len({kind.__name__ for kind in get_args(Event)}) == len(get_args(Event))


def test_a_newer_node_may_say_more() -> None:
    assert decode(Route, {**encode(Route(PREFIXES[0], END, True)), "metric": 7}).kernel is True
    assert decode_event({"event": "SomethingNew", "endpoint": "192.0.2.2"}) is None


def test_an_older_node_may_say_less() -> None:
    words = encode(STATUS)
    for name in ("subnets", "mode", "store", "tasks", "phase", "pid", "netns"):
        del words[name]
    old = decode(Status, words)
    assert (old.mode, old.store, old.phase) == ("tun", None, "open")
    assert {field.name for field in fields(old)} >= {"pid", "netns"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"vni": "1"}, "Status.vni is '1', not of type int"),
        ({"vni": True}, "Status.vni is True"),
        ({"mac": 7}, "Status.mac is 7, not text"),
        ({"mac": "x"}, "Status.mac is 'x', not an? Mac"),
        ({"peers": {}}, "Status.peers is {}, not a list"),
        ({"peers": [{"endpoint": "::1:"}]}, r"Status.peers\[0\].endpoint is '::1:'"),
        ({"drops": []}, "Status.drops is "),
        ({"drops": {"spoofed": "many"}}, r"Status.drops\[spoofed\] is 'many'"),
        ({"store": 3}, "Status.store is 3, not a map"),
        ({"offloads": 3}, "Status.offloads is 3, not a list"),
    ],
)
def test_a_wrong_value_is_named(change: dict[str, Any], says: str) -> None:
    with pytest.raises(CodecError, match=says) as caught:
        decode(Status, {**encode(STATUS), **change})
    assert "compare tunnel --version" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_long_wrong_value_is_cut() -> None:
    with pytest.raises(CodecError) as caught:
        decode(Status, {**encode(STATUS), "vni": "x" * 10_000})
    assert len(str(caught.value)) < 250
