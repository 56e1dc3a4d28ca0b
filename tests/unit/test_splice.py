"""The splice's description against tc's output: what is there is found, and what is missing is named."""

from __future__ import annotations

from typing import Any

from testbed.agent import splice
from testbed.agent.splice import Device, Redirect

ALL = [*splice.joined("vec0", "vec1"), *splice.past("tapB", "veth1")]
WITHIN = splice.within("eth0", "tapA", "tapB")


def shown(redirect: Redirect, **changed: Any) -> dict[str, Any]:
    """A filter as ``tc -j filter show`` has it."""
    action = {"kind": "mirred", "mirred_action": "redirect", "direction": redirect.into, "to_dev": redirect.target}
    return {
        "kind": "bpf" if redirect.once else "u32",
        "protocol": redirect.protocol,
        "pref": redirect.priority,
        "options": {"actions": [{**action, **changed}]},
    }


def everything(but: Redirect | None = None) -> dict[str, list[dict[str, Any]]]:
    """All of it, or all but one."""
    tables: dict[str, list[dict[str, Any]]] = {}
    for line in ALL:
        if line is not but:
            tables.setdefault(line.show(), []).append(shown(line))
    return tables


def test_the_lines_make_each_qdisc_once_and_first() -> None:
    lines = list(splice.lines(ALL))
    made = {"vec0": "clsact", "vec1": "ingress", "tapB": "clsact", "veth1": "ingress"}
    assert lines[:4] == [f"qdisc add dev {device} {kind}" for device, kind in made.items()]
    assert [line.split()[0] for line in lines[4:]] == ["filter"] * 4


def test_what_is_there_is_not_missing_and_each_that_is_gone_is_named() -> None:
    assert splice.missing(ALL, everything()) == []
    for line in ALL:
        assert splice.missing(ALL, everything(but=line)) == [f"{line} is gone"]
    assert len(splice.missing(ALL, {})) == len(ALL)


def test_within_a_host_packets_from_a_tap_pass_and_a_filter_that_would_lead_them_round_again_is_none() -> None:
    *into, back = WITHIN
    assert [(line.protocol, line.once, "bytecode" in line.put()) for line in into] == [
        ("ip", True, True),
        ("ipv6", True, True),
    ]
    assert (back.into, back.once) == ("ingress", False)
    for line in into:
        assert line.is_in([shown(line)])
        assert not line.is_in([{**shown(line), "kind": "u32"}])
    assert not any(line.once for line in splice.within("eth0", "ifb")), "an ifb's packets pass every filter"


def test_a_filter_that_leads_elsewhere_is_none() -> None:
    one = ALL[0]
    for changed in ({"to_dev": "other"}, {"direction": "ingress"}, {"mirred_action": "mirror"}, {"kind": "gact"}):
        assert splice.missing([one], {one.show(): [shown(one, **changed)]}) == [f"{one} is gone"]


def test_a_device_is_to_be_there_up_joined_and_where_it_belongs() -> None:
    assert splice.amiss(Device(name="tapB", flags=splice.IFF_UP, master="br0"), master="br0") == []
    assert splice.amiss(Device(name="tapB", flags=None), master="br0") == ["tapB is gone"]
    assert splice.amiss(Device(name="tapB", flags=0, carrier=False, master="br0"), master="br0") == ["tapB is down"]
    (far,) = splice.amiss(Device(name="veth1", flags=splice.IFF_UP, carrier=False), far_end="the host's own end of it")
    assert far == "veth1 has no carrier: the host's own end of it is down"
    (astray,) = splice.amiss(Device(name="tapB", flags=splice.IFF_UP), master="br0")
    assert astray == "tapB is on no bridge, but belongs on br0"
