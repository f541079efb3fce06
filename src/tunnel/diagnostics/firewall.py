"""
Which nftables rule eats a datagram: a ruleset as ``nft -j list ruleset`` tells it, walked the way
the kernel does.

    Firewall(words).losses(datagram, hooks=INBOUND)  ->  Loss, ...

Not all that a rule can ask is known here (limits, marks, iptables' own matches). What is not known
may be or not be: a rule that would accept then only leaves a doubt about what comes behind it, and
one that would drop counts if it names our very port.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tunnel.types import Address

INBOUND = ("ingress", "prerouting", "input")
OUTBOUND = ("output", "postrouting", "egress")
FORWARDED_IN = ("ingress", "prerouting", "forward")  # between which ``device`` is where it came in
FORWARDED_OUT = ("forward", "postrouting", "egress")

_DEEPEST = 16  # chains that jump to each other, as in the kernel (NFT_JUMP_STACK_SIZE)
_CONDITIONS = {"limit", "quota", "connlimit", "ct count", "meter", "xt"}
"""Statements that may stop a rule, in ways that are not known here."""

_IPTABLES_COMMENT = {"type": "match", "name": "comment"}
_IPTABLES_REJECT = {"type": "target", "name": "REJECT"}
_VERDICTS = {"accept", "drop", "reject", "return", "jump", "goto", "queue"}

_Words = Mapping[str, Any]
_Key = tuple[str, str, str]
"""Family, table, and chain or set."""


@dataclass(frozen=True)
class Datagram:
    """
    The first UDP datagram of a flow, as rules see it; None for what is not known, or not to matter.

    Attributes:
        device: It comes in, or goes out, by that.
    """

    port: int | None
    family: int = 4
    source: Address | None = None
    destination: Address | None = None
    device: str | None = None

    def words(self, *, inbound: bool) -> dict[str, Any]:
        """What is known, by nft's names."""
        ip = "ip" if self.family == 4 else "ip6"
        known = {
            "meta l4proto": "udp",
            "meta nfproto": f"ipv{self.family}",
            "meta protocol": ip,
            "meta pkttype": "host",
            "ip protocol": "udp" if self.family == 4 else None,
            "ip6 nexthdr": "udp" if self.family == 6 else None,
            "udp dport": self.port,
            "th dport": self.port,
            f"{ip} saddr": self.source,
            f"{ip} daddr": self.destination,
            "ct state": "new",
            "ct direction": "original",
            "ct status": "",
        }
        for key in ("iif", "iifname") if inbound else ("oif", "oifname"):
            known[f"meta {key}"] = self.device
        return {name: value for name, value in known.items() if value is not None}


@dataclass(frozen=True)
class Loss:
    """
    Where a datagram ends.

    Attributes:
        handle: The rule's, None where it is the chain's policy.
        sure: No rule that is not understood here could have saved it.
    """

    family: str
    table: str
    chain: str
    handle: int | None
    sure: bool

    def __str__(self) -> str:
        what = "the policy" if self.handle is None else f"the rule with handle {self.handle}"
        return f"{what} of chain {self.family} {self.table} {self.chain}"


_End = Loss | Literal["accept"] | None
"""Where a chain ends; None if behind its last rule."""


class Firewall:
    """A ruleset: `words` are what ``nft -j list ruleset`` has printed, parsed."""

    def __init__(self, words: _Words) -> None:
        self._bases: list[_Words] = []
        self._rules: dict[_Key, list[_Words]] = {}
        self._sets: dict[_Key, Sequence[Any]] = {}
        for entry in words.get("nftables", []):
            for kind, one in entry.items():
                if kind == "chain" and one.get("type") == "filter":
                    self._bases.append(one)
                elif kind == "rule":
                    self._rules.setdefault(_key(one, one["chain"]), []).append(one)
                elif kind in ("set", "map"):
                    self._sets[_key(one, one["name"])] = one.get("elem", [])

    def losses(self, datagram: Datagram, *, hooks: Iterable[str]) -> list[Loss]:
        """Every base chain of `hooks` in which it ends: one that accepts it does not save it from
        the others."""
        hooks = frozenset(hooks)
        inbound = "prerouting" in hooks
        families = ("inet", "netdev", "ip" if datagram.family == 4 else "ip6")
        found = []
        for chain in self._bases:
            device = chain.get("dev", datagram.device)
            if chain["hook"] not in hooks or chain["family"] not in families:
                continue
            if datagram.device not in (device if isinstance(device, list) else [device]):
                continue
            walk = _Walk(self._rules, self._sets, datagram.words(inbound=inbound))
            found.append(walk.base(chain))
        return [loss for loss in found if loss is not None]


class _Walk:
    """One datagram's way from one base chain on."""

    def __init__(
        self,
        rules: Mapping[_Key, Sequence[_Words]],
        sets: Mapping[_Key, Sequence[Any]],
        known: Mapping[str, Any],
    ) -> None:
        self._rules, self._sets, self._known = rules, sets, known
        self._doubt = False

    def base(self, chain: _Words) -> Loss | None:
        end = self._chain(_key(chain, chain["name"]), depth=0)
        if isinstance(end, Loss):
            return end
        if end is None and chain.get("policy") == "drop":
            return Loss(chain["family"], chain["table"], chain["name"], None, not self._doubt)
        return None

    def _chain(self, key: _Key, *, depth: int) -> _End:
        """Where it ends; None if it comes out behind the last rule."""
        for rule in self._rules.get(key, ()) if depth < _DEEPEST else ():
            verdict, holds, names_port = self._judge(rule)
            kind = next(iter(verdict), None)
            if kind is None or holds is False:
                continue
            if kind in ("drop", "reject"):
                if holds or names_port:
                    return Loss(*key, rule.get("handle"), sure=bool(holds) and not self._doubt)
                continue
            ended, end = self._follow(kind, verdict[kind], key, holds=bool(holds), depth=depth)
            if ended:
                return end
        return None

    def _judge(self, rule: _Words) -> tuple[_Words, bool | None, bool]:
        """A rule's verdict, empty where it has none; whether it holds; whether it names our
        port."""
        verdict: _Words = {}
        holds: bool | None = True
        names_port = False
        for statement in rule["expr"]:
            ((kind, value),) = statement.items()
            if kind == "match":
                one = self._match(value, rule)
                names_port |= one is True and _field(value["left"]).endswith(" dport")
                holds = _both(holds, one)
            elif kind == "vmap":
                verdict, one = self._choose(value, rule)
                holds = _both(holds, one)
            elif value == _IPTABLES_REJECT:
                verdict = {"reject": None}
            elif kind in _CONDITIONS and value != _IPTABLES_COMMENT:
                holds = _both(holds, None)
            elif kind in _VERDICTS:
                verdict = statement
        return verdict, holds, names_port

    def _follow(
        self, kind: str, value: Any, key: _Key, *, holds: bool, depth: int
    ) -> tuple[bool, _End]:
        """Whether the way through this chain ends at a verdict that drops nothing itself, and
        where."""
        end: _End = "accept"
        if kind in ("jump", "goto"):
            end = self._chain((*key[:2], value["target"]), depth=depth + 1)
        elif kind == "return":
            end = None
        if not holds:
            self._doubt |= end == "accept" or kind == "return"
            return False, None
        return kind != "jump" or end is not None, end

    def _choose(self, vmap: _Words, rule: _Words) -> tuple[_Words, bool | None]:
        """The verdict that a map has for it; no verdict where it is in none of its keys."""
        data = vmap["data"]
        elements = self._elements(data, rule)
        value = self._known.get(_field(vmap["key"]))
        if value is None or elements is None:
            # It may be any of them; only whether one would save it matters.
            verdicts = [verdict for _, verdict in elements or ()]
            return next((one for one in verdicts if "accept" in one), {}), None
        for key, verdict in elements:
            if self._within(value, key, rule):
                return verdict, True
        return {}, False

    def _match(self, match: _Words, rule: _Words) -> bool | None:
        field = _field(match["left"])
        if _is_foreign(match["left"], self._known):
            return False
        value = self._known.get(field)
        if value is None:
            return None
        if match["op"] in ("==", "in", "!="):
            found = self._within(value, match["right"], rule)
            return found if found is None or match["op"] != "!=" else not found
        right = match["right"]
        if not (isinstance(value, int) and isinstance(right, int)):
            return None
        holds = {"<": value < right, ">": value > right, "<=": value <= right, ">=": value >= right}
        return holds.get(match["op"])

    def _within(self, value: Any, right: Any, rule: _Words) -> bool | None:
        """Whether a value is what stands on the right of a match."""
        elements = self._elements(right, rule)
        if elements is not None:
            found = [self._within(value, one, rule) for one in elements]
            return True if True in found else None if None in found else False
        match right:
            case {"elem": {"val": one}}:
                return self._within(value, one, rule)
            case {"prefix": {"addr": address, "len": length}}:
                network = ipaddress.ip_network(f"{address}/{length}", strict=False)
                return network.version == _version(value) and value in network
            case {"range": [low, high]}:
                first, last = _like(value, low), _like(value, high)
                return None if first is None or last is None else bool(first <= value <= last)
            case str() if right.endswith("*"):
                return str(value).startswith(right[:-1])
        same = _like(value, right)
        return None if same is None else bool(same == value)

    def _elements(self, right: Any, rule: _Words) -> Sequence[Any] | None:
        """Those of a list or set; None for what is neither."""
        match right:
            case list():
                return right
            case {"set": list(elements)}:
                return elements
            case str() if right.startswith("@"):
                return self._sets.get((rule["family"], rule["table"], right[1:]), ())
        return None


def _key(one: _Words, name: str) -> _Key:
    return one["family"], one["table"], name


def _field(left: Any) -> str:
    """``udp dport``, ``meta iifname``: what a match looks at; empty where that is not one field."""
    match left:
        case {"payload": {"protocol": protocol, "field": field}}:
            return f"{protocol} {field}"
        case {"meta": {"key": key}}:
            return f"meta {key}"
        case {"ct": {"key": key}}:
            return f"ct {key}"
    return ""


def _is_foreign(left: Any, known: Mapping[str, Any]) -> bool:
    """A field of a header that the datagram has not: such a match never holds."""
    match left:
        case {"payload": {"protocol": protocol}}:
            return protocol not in ("udp", "th", "ether", known["meta protocol"])
    return False


def _both(one: bool | None, other: bool | None) -> bool | None:
    if one is False or other is False:
        return False
    return None if one is None or other is None else True


def _version(value: Any) -> int | None:
    return getattr(value, "version", None)


def _like(value: Any, text: Any) -> Any:
    """`text` as something that `value` can be compared with, None where it cannot be."""
    if isinstance(value, str | int):
        return text if type(text) is type(value) else None
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return address if address.version == value.version else None
