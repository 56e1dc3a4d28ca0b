"""The replay of a failed test in virtual time, in words. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from testbed.units import format_time


def lines(replayed: Mapping[str, Any]) -> Iterator[str]:
    """What is said of it. ``replayed``: as the results file has it."""
    folders = ", ".join(dict.fromkeys(str(PurePath(path).parent) for path in replayed["captures"])) or "no file"
    if replayed["same"]:
        count = f"{replayed['packets']} packets at {len(replayed['captures'])} ports"
        yield f"replayed, identical: all {count} are in {folders}"
    else:
        yield f"replayed, and not identical ({'; '.join(replayed['differences'])}); its packets are in {folders}"
    if (tcp_info := replayed["tcp_info"]) is not None:
        if not tcp_info["series"]:
            yield "TCP_INFO: nothing was seen of any connection"
            return
        yield f"TCP_INFO, read every {format_time(tcp_info['every_s'])}, is in the report" + (
            "" if tcp_info["same"] else f"; reading it moved packets: {'; '.join(tcp_info['differences'][:1])}"
        )
