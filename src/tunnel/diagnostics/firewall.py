"""
Which nftables rule drops a datagram: evaluates a ruleset as the kernel does.

    Firewall(ruleset).blockers(datagram, hooks=INBOUND)  ->  [Blocker, ...]

Some conditions cannot be evaluated here (limits, marks, iptables' own matches). They may hold or
not: a rule that would accept then makes later results uncertain, and a rule that would drop counts
only if it names the datagram's port.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tunnel.types import Address

INBOUND = ("ingress", "prerouting", "input")
OUTBOUND = ("output", "postrouting", "egress")
FORWARDED_IN = ("ingress", "prerouting", "forward")  # `Datagram.device` is where it came in
FORWARDED_OUT = ("forward", "postrouting", "egress")  # `Datagram.device` is where it leaves

_MAX_DEPTH = 16  # chains that jump to each other, as in the kernel (NFT_JUMP_STACK_SIZE)
_CONDITIONS = {"limit", "quota", "connlimit", "ct count", "meter", "xt"}
"""Statements that may end a rule, by conditions that cannot be evaluated here."""

_IPTABLES_COMMENT = {"type": "match", "name": "comment"}
_IPTABLES_REJECT = {"type": "target", "name": "REJECT"}
_VERDICTS = {"accept", "drop", "reject", "return", "jump", "goto", "queue"}

_Json = Mapping[str, Any]
_Key = tuple[str, str, str]
"""Family, table, and chain or set."""


@dataclass(frozen=True)
class Datagram:
    """
    The first UDP datagram of a flow. None stands for what is unknown or does not matter.

    Attributes:
        port: Destination port.
        device: The device by which it enters or leaves.
    """

    port: int | None
    family: int = 4
    source: Address | None = None
    destination: Address | None = None
    device: str | None = None

    def fields(self, *, inbound: bool) -> dict[str, Any]:
        """Returns the known fields by nft's names."""
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
class Blocker:
    """
    A rule, or the policy of a chain, that drops a datagram.

    Attributes:
        handle: The rule's handle, None for the chain's policy.
        certain: Whether no rule that cannot be evaluated could have accepted it before.
    """

    family: str
    table: str
    chain: str
    handle: int | None
    certain: bool

    def __str__(self) -> str:
        what = "the policy" if self.handle is None else f"the rule with handle {self.handle}"
        return f"{what} of chain {self.family} {self.table} {self.chain}"


_Result = Blocker | Literal["accept"] | None
"""What a chain decides, None after its last rule."""


class Firewall:
    """A ruleset: the parsed output of ``nft -j list ruleset``."""

    def __init__(self, ruleset: _Json) -> None:
        self._base_chains: list[_Json] = []
        self._rules: dict[_Key, list[_Json]] = {}
        self._sets: dict[_Key, Sequence[Any]] = {}
        for entry in ruleset.get("nftables", []):
            for kind, content in entry.items():
                if kind == "chain" and content.get("type") == "filter":
                    self._base_chains.append(content)
                elif kind == "rule":
                    self._rules.setdefault(_key(content, content["chain"]), []).append(content)
                elif kind in ("set", "map"):
                    self._sets[_key(content, content["name"])] = content.get("elem", [])

    def blockers(self, datagram: Datagram, *, hooks: Iterable[str]) -> list[Blocker]:
        """Returns what drops it in each base chain of `hooks`: a chain that accepts it does not
        prevent another from dropping it."""
        hooks = frozenset(hooks)
        fields = datagram.fields(inbound="prerouting" in hooks)
        results = [
            _Evaluation(self._rules, self._sets, fields).base_chain(chain)
            for chain in self._base_chains
            if _applies(chain, datagram, hooks)
        ]
        return [blocker for blocker in results if blocker is not None]


def _applies(chain: _Json, datagram: Datagram, hooks: frozenset[str]) -> bool:
    families = ("inet", "netdev", "ip" if datagram.family == 4 else "ip6")
    devices = chain.get("dev", datagram.device)
    if chain["hook"] not in hooks or chain["family"] not in families:
        return False
    return datagram.device in (devices if isinstance(devices, list) else [devices])


class _Evaluation:
    """Evaluates one base chain for one datagram, whose known fields are `fields`."""

    def __init__(
        self,
        rules: Mapping[_Key, Sequence[_Json]],
        sets: Mapping[_Key, Sequence[Any]],
        fields: Mapping[str, Any],
    ) -> None:
        self._rules, self._sets, self._fields = rules, sets, fields
        self._certain = True

    def base_chain(self, chain: _Json) -> Blocker | None:
        result = self._chain(_key(chain, chain["name"]), depth=0)
        if isinstance(result, Blocker):
            return result
        if result is None and chain.get("policy") == "drop":
            return Blocker(chain["family"], chain["table"], chain["name"], None, self._certain)
        return None

    def _chain(self, key: _Key, *, depth: int) -> _Result:
        for rule in self._rules.get(key, ()) if depth < _MAX_DEPTH else ():
            verdict, holds, names_port = self._rule(rule)
            kind = next(iter(verdict), None)
            if kind is None or holds is False:
                continue
            if kind in ("drop", "reject"):
                if holds or names_port:
                    certain = bool(holds) and self._certain
                    return Blocker(*key, rule.get("handle"), certain)
                continue
            leaves, result = self._follow(kind, verdict[kind], key, holds=bool(holds), depth=depth)
            if leaves:
                return result
        return None

    def _rule(self, rule: _Json) -> tuple[_Json, bool | None, bool]:
        """Returns the verdict, empty if there is none; whether the rule holds, None if that is
        unknown; and whether it names the datagram's port."""
        verdict: _Json = {}
        holds: bool | None = True
        names_port = False
        for statement in rule["expr"]:
            ((kind, value),) = statement.items()
            if kind == "match":
                matches = self._match(value, rule)
                names_port |= matches is True and _field(value["left"]).endswith(" dport")
                holds = _both(holds, matches)
            elif kind == "vmap":
                verdict, matches = self._verdict_map(value, rule)
                holds = _both(holds, matches)
            elif value == _IPTABLES_REJECT:
                verdict = {"reject": None}
            elif kind in _CONDITIONS and value != _IPTABLES_COMMENT:
                holds = _both(holds, None)
            elif kind in _VERDICTS:
                verdict = statement
        return verdict, holds, names_port

    def _follow(
        self, kind: str, value: Any, key: _Key, *, holds: bool, depth: int
    ) -> tuple[bool, _Result]:
        """Returns whether a verdict other than drop ends this chain, and with which result."""
        result: _Result = "accept"
        if kind in ("jump", "goto"):
            result = self._chain((*key[:2], value["target"]), depth=depth + 1)
        elif kind == "return":
            result = None
        if not holds:
            if result == "accept" or kind == "return":
                self._certain = False
            return False, None
        return kind != "jump" or result is not None, result

    def _verdict_map(self, vmap: _Json, rule: _Json) -> tuple[_Json, bool | None]:
        """Returns the verdict for the datagram, empty if no key matches."""
        elements = self._elements(vmap["data"], rule)
        value = self._fields.get(_field(vmap["key"]))
        if value is None or elements is None:
            # Any of them may match; only whether one would accept matters.
            verdicts = [verdict for _, verdict in elements or ()]
            return next((one for one in verdicts if "accept" in one), {}), None
        for key, verdict in elements:
            if self._contains(key, value, rule):
                return verdict, True
        return {}, False

    def _match(self, match: _Json, rule: _Json) -> bool | None:
        """Returns whether a match holds, None if that is unknown."""
        if _is_foreign(match["left"], self._fields):
            return False
        value, right = self._fields.get(_field(match["left"])), match["right"]
        if value is None:
            return None
        if match["op"] in ("==", "in", "!="):
            found = self._contains(right, value, rule)
            return found if found is None or match["op"] != "!=" else not found
        if not (isinstance(value, int) and isinstance(right, int)):
            return None
        holds = {"<": value < right, ">": value > right, "<=": value <= right, ">=": value >= right}
        return holds.get(match["op"])

    def _contains(self, right: Any, value: Any, rule: _Json) -> bool | None:
        """Returns whether the right side of a match equals or contains a value."""
        elements = self._elements(right, rule)
        if elements is not None:
            found = [self._contains(element, value, rule) for element in elements]
            return True if True in found else None if None in found else False
        match right:
            case {"elem": {"val": element}}:
                return self._contains(element, value, rule)
            case {"prefix": {"addr": address, "len": length}}:
                network = ipaddress.ip_network(f"{address}/{length}", strict=False)
                return network.version == getattr(value, "version", None) and value in network
            case {"range": [low, high]}:
                first, last = _comparable(low, value), _comparable(high, value)
                return None if first is None or last is None else bool(first <= value <= last)
            case str() if right.endswith("*"):
                return str(value).startswith(right[:-1])
        same = _comparable(right, value)
        return None if same is None else bool(same == value)

    def _elements(self, right: Any, rule: _Json) -> Sequence[Any] | None:
        """Returns the elements of a list or set, None for anything else."""
        match right:
            case list():
                return right
            case {"set": list(elements)}:
                return elements
            case str() if right.startswith("@"):
                return self._sets.get((rule["family"], rule["table"], right[1:]), ())
        return None


def _key(entry: _Json, name: str) -> _Key:
    return entry["family"], entry["table"], name


def _field(left: Any) -> str:
    """Returns what a match looks at, like ``udp dport``; empty if that is not a single field."""
    match left:
        case {"payload": {"protocol": protocol, "field": field}}:
            return f"{protocol} {field}"
        case {"meta": {"key": key}}:
            return f"meta {key}"
        case {"ct": {"key": key}}:
            return f"ct {key}"
    return ""


def _is_foreign(left: Any, fields: Mapping[str, Any]) -> bool:
    """Returns whether the match is on a header that the datagram lacks; it never holds."""
    match left:
        case {"payload": {"protocol": protocol}}:
            return protocol not in ("udp", "th", "ether", fields["meta protocol"])
    return False


def _both(one: bool | None, other: bool | None) -> bool | None:
    if one is False or other is False:
        return False
    return None if one is None or other is None else True


def _comparable(text: Any, value: Any) -> Any:
    """Returns `text` as the type of `value`, None if it cannot be compared with it."""
    if isinstance(value, str | int):
        return text if type(text) is type(value) else None
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return address if address.version == value.version else None
