"""C12: the TCP/IP stack maps onto OSI."""

from __future__ import annotations

from testbed.judge.claims import Finding, Outcome, Row
from testbed.observe.wire import layers
from testbed.paper.context import THERE, Context

_OSI = {
    "Ethernet": ("link", "1-2 physical, data link"),
    "IPv4": ("internet", "3 network"),
    "IPv6": ("internet", "3 network"),
    "TCP": ("transport", "4 transport, part of 5 session"),
    "payload": ("application", "5-7 session, presentation, application"),
}


def stack(context: Context) -> Outcome:
    """C12: the TCP/IP stack maps onto OSI."""
    with context.lab.capture(THERE) as capture:
        context.impair(THERE, delay="1ms")
        context.paper_client("Test message")
        context.heal()
    context.keep_capture("C12.pcapng", capture.capture)
    message = next(each for each in capture.packets if each.data.endswith(b"Test message"))
    parts = layers(message)
    whole = len(message.data)
    rows = [
        Row(condition=each.name, held=each.name in _OSI,
            values={"bytes": str(len(each.data)), "share": f"{100 * len(each.data) / whole:.0f} %",
                    **dict(zip(("TCP/IP layer", "OSI layers"), _OSI.get(each.name, ("?", "?")), strict=True)),
                    "fields": ", ".join(f"{name} {value}" for name, value in each.fields[:6])})
        for each in parts
    ]  # fmt: skip
    context.keep("C12-message.txt", "\n".join(f"{each.name}: {each.data.hex(' ')}" for each in parts) + "\n")
    payload = len(parts[-1].data)
    return Outcome(
        finding=Finding.HOLDS if [each.name for each in parts] == ["Ethernet", "IPv4", "TCP", "payload"]
        else Finding.BREAKS,
        sentence=f"One message of {payload} bytes goes as {whole} bytes: three headers of "
        f"{', '.join(str(len(each.data)) for each in parts[:-1])} bytes, each a layer of TCP/IP; OSI's three upper "
        "layers have no header of their own here, the application is all of them.",
        rows=rows, mechanism={"bytes": whole, "payload": payload},
    )  # fmt: skip
