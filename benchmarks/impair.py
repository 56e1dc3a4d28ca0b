"""How long a change of impairment takes, from the call to the verified read-back, beside other tools.

The stack is the paper's. We change ``client -> server``; the rivals change the traffic of ``client``'s own
interface, or toward it, so that nobody's qdisc is in another's way. All of them take turns on the same running
stack. The rivals need this kernel's netem. Where it has none they change a qdisc that it does have, and their
figure is the time of the mechanism: starting programs in containers costs what it costs. The host engine likewise.

Each is measured with one rule, and again among 250 at the same port.
"""

from __future__ import annotations

import functools
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import common
from benchmarks.common import BenchmarkError, Check, Report, timed
from benchmarks.rivals import call, called, last_line, programs
from testbed import units
from testbed.backends.docker import images
from testbed.backends.docker.engine import OWNER_LABEL, ROLE_LABEL, RUN_LABEL
from testbed.backends.docker.lab import ComposeLab
from testbed.backends.docker.runs import owner
from testbed.errors import EnvironmentUnfitError
from testbed.lab.ports import Port
from testbed.netem import qdisc, readback
from testbed.spec.impairment import Impairment

MOST_S = 0.005
LEAST_TIMES_FASTER = 15.0

# In turn: a change in place, another, and one that needs a fresh netem, because the rate vanishes.
CHANGES = tuple(
    Impairment.parse(words)
    for words in ({"delay": "10ms"}, {"delay": "40ms", "loss": "2%"}, {"delay": "20ms", "rate": "8mbit"})
)

RULES = 250
_FIRST_OTHER_PORT = 20_000

_ROUNDS, _QUICK_ROUNDS = 20, 6
_AMONG_ROUNDS, _QUICK_AMONG_ROUNDS = 100, 40
_OURS_A_TURN = 3
_DEVICE = "eth0"
_RIVAL_ROLE = "rival"


@dataclass(frozen=True)
class Case:
    """A setting that is measured on a stack of its own; its figures stand under its name."""

    engine: str

    @property
    def name(self) -> str:
        """The prefix of each figure's name."""
        return self.engine


CASES = (Case("carried"), Case("host"))


@dataclass
class Contestant:
    """One way to change an impairment and to know that it is in force."""

    name: str
    words: str
    """What it does, where that is not simply the same; empty otherwise."""
    change: Callable[[int], object]
    """Make the n-th change and read it back. Raises if it is not there."""
    took_s: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    """What was said in turns that failed; they have no time."""

    def turn(self) -> None:
        """Change once, and keep the time."""
        self.took_s.append(timed(functools.partial(self.change, len(self.took_s))))

    def tolerant_turn(self) -> None:
        """The same, but a failure is counted: tcconfig fails while someone else's container starts."""
        try:
            self.turn()
        except BenchmarkError as error:
            self.failures.append(str(error))

    @property
    def median_s(self) -> float:
        """The median so far."""
        return median(self.took_s)

    def describe(self) -> str:
        """The median, and the number of its samples."""
        notes = [self.words] if self.words else []
        if self.failures:
            notes.append(f"failed in {len(self.failures)} of {len(self.failures) + len(self.took_s)} turns")
        figure = f"{1000 * self.median_s:.0f} ms" if self.took_s else "no figure"
        return f"{figure} ({'; '.join(notes)})" if notes else figure


def measure(report: Report) -> None:
    """Every case that this machine allows; raises EnvironmentUnfitError if it allows none."""
    refused: list[str] = []
    for case in CASES:
        try:
            _measure_case(report, case)
        except EnvironmentUnfitError as error:
            refused.append(f"{case.name}: not measured. {error}")
    if len(refused) == len(CASES):
        raise EnvironmentUnfitError("\n".join(refused))
    for line in refused:
        report.note(line)


def _measure_case(report: Report, case: Case) -> None:
    with ExitStack() as stack:
        lab = stack.enter_context(ComposeLab(common.STACK, netem=case.engine, say=report.say))
        link = lab.link("client -> server")
        ours = Contestant("testbed", "", lambda number: link.impair(CHANGES[number % len(CHANGES)]))
        rivals = _rivals(report, case, lab, stack)
        first_s = timed(functools.partial(ours.change, -1))  # attaches the port; the changes after it count
        rounds = _QUICK_ROUNDS if report.quick else _ROUNDS
        report.say(f"{case.name}: {rounds} rounds of {', '.join(tool.name for tool in (ours, *rivals))}")
        for _ in range(rounds):
            for contestant in (*rivals, ours):
                for _ in range(_OURS_A_TURN):
                    ours.turn()
                if contestant is not ours:
                    contestant.tolerant_turn()
        crowded = _among_many(report, case, lab, stack)
    descriptions = {rival.name: rival.describe() for rival in rivals}
    report.check(
        Check(
            name=f"{case.name}: one change, median of {len(ours.took_s)}",
            value=1000 * ours.median_s,
            bound=1000 * MOST_S,
            unit="ms",
            rivals=descriptions,
        )
    )
    for rival in rivals:
        if rival.failures:
            report.note(f"{case.name}: {rival.name} failed with: {rival.failures[-1]}")
    measured = [rival for rival in rivals if rival.took_s]
    fastest = min(measured, key=lambda rival: rival.median_s, default=None)
    report.check(
        Check(
            name=f"{case.name}: times faster than the fastest rival",
            value=None if fastest is None else fastest.median_s / ours.median_s,
            bound=LEAST_TIMES_FASTER,
            unit="×",
            at_least=True,
            rivals={} if fastest is None else {"fastest": fastest.name},
        )
    )
    for among, others in crowded:
        report.check(
            Check(
                name=f"{among.name}: one change among {RULES} rules at its port, median of {len(among.took_s)}",
                value=1000 * among.median_s,
                bound=1000 * MOST_S,
                unit="ms",
                bound_words=among.words,
                rivals={rival.name: rival.describe() for rival in others},
            )
        )
    report.note(
        f"{case.name}: our slowest change took {1000 * max(ours.took_s):.1f} ms; the first one of a link, which "
        f"attaches its port and is not among them, {1000 * first_s:.0f} ms."
    )


# --- among many ------------------------------------------------------------------------------------


def _among_many(
    report: Report, case: Case, lab: ComposeLab, stack: ExitStack
) -> list[tuple[Contestant, list[Contestant]]]:
    """One change beside many other rules at the port, by testbed and by rivals."""
    port_words = [f"client -> server tcp/{_FIRST_OTHER_PORT + number}" for number in range(1, RULES)]
    report.say(f"{case.name}: {RULES} rules at the server's port")
    for number, words in enumerate(port_words):
        lab.link(words).impair(delay=f"{50 + number}ms")
    link = lab.link("client -> server")
    port = lab.ports.of(link.ref)
    if port is None or len(port.applied) != RULES:
        raise BenchmarkError(f"{RULES} rules were asked, the port has {0 if port is None else len(port.applied)}")
    ours = Contestant(case.name, "", lambda number: link.impair(CHANGES[number % len(CHANGES)]))
    rivals = _exec_among_many(lab, stack)
    mechanisms = [(ours, rivals)]
    if case.engine == "carried" and (mechanism := _host_mechanism(lab)):
        mechanisms.append((mechanism, rivals))
    for _ in range(_QUICK_AMONG_ROUNDS if report.quick else _AMONG_ROUNDS):
        for contestant in (rival for rival, _ in mechanisms):
            contestant.turn()
    for _ in range(_QUICK_ROUNDS):
        for rival in rivals:
            rival.tolerant_turn()
    lab.heal()
    return mechanisms


def _host_mechanism(lab: ComposeLab) -> Contestant | None:
    """The host engine's way in this kernel, with a qdisc that it has: agent, tc, and one qdisc read back."""
    port = Port.of(lab.attach("client", "lan", to_count=True))
    if port.channel.call("capabilities")["host_netem"] is None:
        return None  # it is measured itself
    minors = [0x10 + number for number in range(RULES)]
    lines = [f"qdisc replace dev {port.device} root handle 1: htb default 0"]
    for minor in minors:
        lines += [
            qdisc.make_class(port.device, minor),
            f"qdisc replace dev {port.device} parent 1:{minor:x} handle {minor:x}: {_tbf_line(0)}",
        ]
    _answered(port, lines)

    def change(number: int) -> None:
        place = f"dev {port.device} parent 1:{minors[0]:x}"
        read = qdisc.get(port.device, minors[0])
        shown = _answered(port, [f"qdisc replace {place} handle {minors[0]:x}: {_tbf_line(number)}", read])
        if not _tbf_holds(number, shown[0][0]):
            raise BenchmarkError(f"asked for {_tbf_line(number)}, found {shown}")

    return Contestant("host", "a tbf in place of netem, which this kernel lacks", change)


def _answered(port: Port, lines: Sequence[qdisc.TcLine]) -> Any:
    answer = port.channel.call("tc", port=port.name, lines=list(lines), answer_within_s=30.0)
    if answer["complaints"]:
        raise BenchmarkError(f"tc refused: {answer['complaints'][0]}")
    return answer["shown"]


def _exec_among_many(lab: ComposeLab, stack: ExitStack) -> list[Contestant]:
    """``docker exec tc`` where the interface has as many classes; nothing where there is no docker client."""
    docker = shutil.which("docker")
    if docker is None:
        return []
    beside = stack.enter_context(_tools_beside(docker, lab, images.ensure_netem(lab.engine, lambda _text: None)))
    clear = [docker, "exec", beside, "tc", "qdisc", "delete", "dev", _DEVICE, "root"]
    call(clear)  # what the other rivals left; nothing is as good
    shaper, why_not = _shaper(docker, beside)
    places = [("parent", f"1:{0x10 + number:x}", "handle", f"{0x10 + number:x}:") for number in range(RULES)]
    lines = [f"qdisc replace dev {_DEVICE} root handle 1: htb default 0"]
    for place in places:
        words = " ".join(place)
        lines += [
            f"class replace dev {_DEVICE} parent 1: classid {place[1]} htb rate 1gbit quantum 60000",
            f"qdisc replace dev {_DEVICE} {words} {shaper.line(0)}",
        ]
    text = "\n".join(lines)
    called(clear)
    called([docker, "exec", beside, "sh", "-c", f"tc -batch - <<'E'\n{text}\nE"])

    def change(number: int) -> None:
        place = places[0]
        replace = ["tc", "qdisc", "replace", "dev", _DEVICE, *place, *shaper.line(number).split()]
        called([docker, "exec", beside, *replace])
        show = ["tc", "-j", "qdisc", "show", "dev", _DEVICE, "parent", place[1]]
        document = json.loads(called([docker, "exec", beside, *show]))
        if len(document) != 1 or not shaper.holds(number, document[0]):
            raise BenchmarkError(f"asked for {shaper.line(number)}, found {document}")

    words = "" if shaper.kind == "netem" else f"{shaper.kind}, as netem was refused: {why_not}"
    return [Contestant("docker exec", words, change)]


# --- the rivals ------------------------------------------------------------------------------------


def _rivals(report: Report, case: Case, lab: ComposeLab, stack: ExitStack) -> list[Contestant]:
    """Every rival that can run here; a line in the report for each that cannot."""
    present: list[Contestant] = []
    for prepare in (_docker_rivals, _tcconfig):
        try:
            present += prepare(report, lab, stack)
        except EnvironmentUnfitError as error:
            report.note(f"{case.name}: {error}")
    return present


@dataclass(frozen=True)
class _Shaper:
    """A qdisc for a rival: the words of the n-th change, and whether a read-back shows it."""

    kind: str
    line: Callable[[int], str]
    holds: Callable[[int, dict[str, Any]], bool]


def _netem_line(number: int) -> str:
    return f"netem {qdisc.netem(CHANGES[number % len(CHANGES)])}"


def _netem_holds(number: int, shown: dict[str, Any]) -> bool:
    # A rate that is not named any more stays in a netem that is changed in place: this rival leaves that open.
    change = CHANGES[number % len(CHANGES)]
    return all(difference.field == "rate" for difference in readback.differences(change, shown))


def _tbf_rate_bps(number: int) -> int:
    return 1_000_000 * (1 + number % 7)


def _tbf_line(number: int) -> str:
    return f"tbf rate {_tbf_rate_bps(number)}bit burst 32kb latency 50ms"


def _tbf_holds(number: int, shown: dict[str, Any]) -> bool:
    return math.isclose(8 * shown["options"]["rate"], _tbf_rate_bps(number))


_SHAPERS = (_Shaper("netem", _netem_line, _netem_holds), _Shaper("tbf", _tbf_line, _tbf_holds))


def _docker_rivals(report: Report, lab: ComposeLab, stack: ExitStack) -> list[Contestant]:
    """``docker exec`` into a container that has tc, and a throw-away container beside one that has not."""
    docker = shutil.which("docker")
    if docker is None:
        raise EnvironmentUnfitError("docker exec, docker run: not measured. No docker client on PATH")
    image = images.ensure_netem(lab.engine, report.say)
    beside = stack.enter_context(_tools_beside(docker, lab, image))
    shaper, why_not = _shaper(docker, beside)
    words = "" if shaper.kind == "netem" else f"{shaper.kind}, as netem was refused: {why_not}"

    def exec_change(number: int) -> None:
        called([docker, "exec", beside, "tc", *_replace(shaper, number)])
        _verify(shaper, number, called([docker, "exec", beside, "tc", "-j", "qdisc", "show", "dev", _DEVICE]))

    def run_change(number: int) -> None:
        both = f"tc {' '.join(_replace(shaper, number))} && tc -j qdisc show dev {_DEVICE}"
        shown = called([*_run_words(docker, lab), "--rm", "--entrypoint", "sh", image, "-c", both])
        _verify(shaper, number, shown)

    return [Contestant("docker exec", words, exec_change), Contestant("docker run --rm", words, run_change)]


@contextmanager
def _tools_beside(docker: str, lab: ComposeLab, image: str) -> Iterator[str]:
    """A container with tc in the client's network, for as long as the block; its id."""
    words = [*_run_words(docker, lab), "--detach", "--rm", "--init", "--entrypoint", "sleep", image, "infinity"]
    container = called(words).strip()
    try:
        yield container
    finally:
        called([docker, "rm", "--force", container])


def _run_words(docker: str, lab: ComposeLab) -> list[str]:
    """``docker run`` beside the client. The lab's labels are on it: what is cut short goes away with the lab."""
    labels = {RUN_LABEL: lab.run_id, OWNER_LABEL: owner(), ROLE_LABEL: _RIVAL_ROLE}
    label_words = [word for key, value in labels.items() for word in ("--label", f"{key}={value}")]
    client = lab.hosts["client"].container.id
    return [docker, "run", "--network", f"container:{client}", "--cap-add", "NET_ADMIN", *label_words]


def _shaper(docker: str, beside: str) -> tuple[_Shaper, str]:
    """The first qdisc that this kernel has, and its errors for the ones before."""
    refused: list[str] = []
    for shaper in _SHAPERS:
        try:
            called([docker, "exec", beside, "tc", *_replace(shaper, 0)])
        except BenchmarkError as error:
            refused.append(_refusal(str(error).splitlines()[-1]))
            continue
        return shaper, "; ".join(refused)
    raise EnvironmentUnfitError(f"docker exec, docker run: not measured. No qdisc to change: {'; '.join(refused)}")


def _replace(shaper: _Shaper, number: int) -> list[str]:
    return ["qdisc", "replace", "dev", _DEVICE, "root", "handle", "1:", *shaper.line(number).split()]


def _verify(shaper: _Shaper, number: int, shown: str) -> None:
    root = next((row for row in json.loads(shown) if row.get("root") and row["kind"] == shaper.kind), None)
    if root is None or not shaper.holds(number, root):
        raise BenchmarkError(f"asked for {shaper.line(number)}, found {shown.strip()}")


def _tcconfig(report: Report, lab: ComposeLab, stack: ExitStack) -> list[Contestant]:
    """Rival: tcconfig's ``tcset --docker`` and ``tcshow --docker``, on the host side of the veth."""
    if missing := [tool for tool in ("tc", "ip") if shutil.which(tool) is None]:
        raise EnvironmentUnfitError(f"tcconfig: not measured. It needs {' and '.join(missing)} on this machine")
    if os.geteuid() != 0:
        raise EnvironmentUnfitError("tcconfig: not measured. It must be run as root")
    tools = programs(report)
    stack.enter_context(_namespace_folder())
    client = str(lab.hosts["client"].container.name)

    def set_words(number: int) -> list[str]:
        return [str(tools / "tcset"), client, "--docker", "--overwrite", *_tcset_words(CHANGES[number % len(CHANGES)])]

    tried = call(set_words(0))
    # It exits with 0 even if tc refused: what it prints tells.
    refusals = [line.strip() for line in tried.stderr.splitlines() if "stderr=" in line or "Error" in line]
    refusal = _refusal(refusals[0].removeprefix("stderr=")) if refusals else ""
    if tried.returncode and not refusal:
        raise EnvironmentUnfitError(f"tcconfig: not measured. {last_line(tried)}")

    def change(number: int) -> None:
        call(set_words(number)) if refusal else called(set_words(number))
        shown = json.loads(called([str(tools / "tcshow"), client, "--docker"]))
        if not refusal and not any("delay" in rule for rule in _tcshow_rules(shown)):
            raise BenchmarkError(f"tcset was asked for a delay, tcshow shows {shown}")

    words = f"netem was refused: {refusal}; its time until it has said all it says" if refusal else ""
    return [Contestant("tcconfig", words, change)]


def _tcset_words(impairment: Impairment) -> list[str]:
    words: list[str] = []
    if impairment.delay_s:
        words += ["--delay", units.format_time(impairment.delay_s)]
    if impairment.loss_ratio:
        words += ["--loss", units.format_ratio(impairment.loss_ratio)]
    if impairment.rate_bps:
        words += ["--rate", f"{impairment.rate_bps / 1e6:g}Mbps"]
    return words


def _tcshow_rules(shown: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for device in shown.values():
        for direction in device.values():
            yield from direction.values()


@contextmanager
def _namespace_folder() -> Iterator[None]:
    """Remove the folder of named network namespaces if tcconfig made it."""
    folder = Path("/var/run/netns")
    was_there = folder.is_dir()
    try:
        yield
    finally:
        if not was_there and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _refusal(line: str) -> str:
    """The kernel's reason, as a part of a sentence."""
    return line.removeprefix("Error: ").rstrip(".")


if __name__ == "__main__":
    common.run("One impairment change, from the call to the verified read-back", measure)
