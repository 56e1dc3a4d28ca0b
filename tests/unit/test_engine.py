"""The engine's client, up to the point where an engine is needed."""

from __future__ import annotations

import socket
import sys
from types import SimpleNamespace
from typing import Any, cast

import docker
import docker.errors
import pytest
import requests
from docker.models.containers import Container

from testbed import ComposeLab
from testbed.backends.choice import decide
from testbed.backends.docker.agents import ROLES, start_ports_agent
from testbed.backends.docker.connecting import EnginePlace, NoEngineError, NoPermissionError
from testbed.backends.docker.engine import Engine, RefusedError, pause, refusals_raised
from testbed.backends.docker.streams import Demultiplexed
from testbed.errors import EnvironmentUnfitError

# --- which programs run in a container ---------------------------------------------------------------


class _Refusing(Container):
    """A container whose programs the engine does not list."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__()
        self._status, self._reason = status, reason

    def top(self, **_options: Any) -> Any:
        answer = requests.Response()
        answer.status_code = self._status
        raise docker.errors.APIError("no list", response=answer, explanation=self._reason)


class _Restless(Container):
    """A container that the engine fails to pause at first."""

    def __init__(self, *statuses: int) -> None:
        super().__init__()
        self.statuses = list(statuses)

    def pause(self) -> None:
        if self.statuses:
            answer = requests.Response()
            answer.status_code = self.statuses.pop(0)
            raise docker.errors.APIError("unable to freeze", response=answer)


class _Engine(Engine):
    """An engine that knows one thing: whether the container runs."""

    rootless = False

    def __init__(self, *, running: bool, rootless: bool = False) -> None:
        self._running, self.rootless = running, rootless

    def state(self, container: Container) -> dict[str, Any]:
        return {"State": {"Running": self._running}}


@pytest.mark.parametrize(
    ("status", "running"),
    [
        (404, False),
        (409, False),
        (409, True),  # it ended before the one question and was started again before the other
        (500, False),  # it ended while the engine was looking
    ],
)
def test_a_container_that_does_not_run_has_no_programs(status: int, running: bool) -> None:
    assert _Engine(running=running).leaders(_Refusing(status, "container c0ffee is not running")) == []


def test_an_engine_that_cannot_list_programs_is_not_taken_for_a_container_without_any() -> None:
    reason = 'ps: exec: "ps": executable file not found in $PATH'
    with pytest.raises(EnvironmentUnfitError, match=r"sending a signal needs: ps: exec: .* not found.*procps"):
        _Engine(running=True).leaders(_Refusing(500, reason))


def test_of_a_rootless_engine_it_is_said_what_lists_programs_there() -> None:
    engine = _Engine(running=True, rootless=True)
    with pytest.raises(EnvironmentUnfitError, match=r"unable to get all container pids\. A rootless .* cgroup v2"):
        engine.leaders(_Refusing(500, "unable to get all container pids"))


class _Listing(Container):
    """A container whose programs the engine lists."""

    def __init__(self, rows: list[list[str]]) -> None:
        super().__init__()
        self._rows = rows

    def top(self, **_options: Any) -> Any:
        return {"Processes": self._rows}


def test_of_podman_the_programs_are_in_the_order_of_their_start_and_others_in_the_namespace_have_no_number() -> None:
    rows = [
        ["31", "0", "4002", "sleep 5"],
        ["1", "0", "4711", "server"],
        ["32", "31", "4003", "sleep 5"],
        ["9", "0", "4001", "sleep 5"],
        ["40", "0", "?", "python3 -m agent signal"],
    ]
    engine = _Engine(running=True)
    engine.is_podman = True
    leaders = [(4711, "server"), (4001, "sleep 5"), (4002, "sleep 5"), (0, "python3 -m agent signal")]
    assert engine.leaders(_Listing(rows)) == leaders


# --- engines whose root is not the machine's ---------------------------------------------------------


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("users", ["", "host"])
def test_an_agent_has_the_users_of_the_network_it_works_on(role: str, users: str) -> None:
    options = ROLES[role].options(beside="c0ffee", users=users)
    if ROLES[role].network == "host":
        assert options["userns_mode"] == "host"
    else:  # in namespaces of a container of the user's: in its user namespace as well
        assert (options["userns_mode"] or "") == users


class _Client:
    """An engine that refuses all containers."""

    def __init__(self) -> None:
        self.containers = self

    def create(self, *_arguments: Any, **_options: Any) -> Any:
        raise docker.errors.APIError("400 Client Error", explanation="cannot share the host's network namespace")


class _Unwilling(Engine):
    def __init__(self) -> None:
        self._client: Any = _Client()

    def describe(self) -> str:
        return "Docker Engine 1.2.3 at /socket, rootless"


def test_an_engine_that_starts_no_agent_is_told_in_words_of_ours() -> None:
    with pytest.raises(
        RefusedError, match=r"^Docker Engine 1\.2\.3 at /socket, rootless does .*agent `ports`, .*: cannot share"
    ):
        start_ports_agent(_Unwilling(), "image", tag="x")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (docker.errors.APIError("400 Client Error", explanation="no such driver"), "engine refuses: no such driver$"),
        (requests.exceptions.ConnectionError("Connection aborted"), "does not answer any more: Connection aborted$"),
    ],
)
def test_whatever_the_client_raises_is_told_as_an_unfit_machine(error: Exception, text: str) -> None:
    @refusals_raised()
    def ask() -> None:
        raise error

    with pytest.raises(EnvironmentUnfitError, match=text):
        ask()


def test_an_engine_that_stops_answering_while_a_stack_starts_is_an_unfit_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def silent(_lab: ComposeLab) -> None:
        raise requests.exceptions.ReadTimeout("Read timed out.")

    monkeypatch.setattr(ComposeLab, "topology", property(silent))
    with pytest.raises(RefusedError, match=r"the Docker engine does not answer any more: Read timed out\."):
        ComposeLab("compose.yaml").up()


# --- an attached stream ------------------------------------------------------------------------------


def test_the_answer_that_a_stream_came_with_is_closed_before_its_socket() -> None:
    here, there = socket.socketpair()
    closed: list[str] = []
    holder = SimpleNamespace(
        _sock=here,
        _response=SimpleNamespace(close=lambda: closed.append("answer")),
        close=lambda: closed.append("socket"),
    )
    with here, there:
        Demultiplexed(holder).close()
    assert closed == ["answer", "socket"]


def test_a_stream_on_a_socket_of_its_own_needs_no_answer() -> None:
    here, there = socket.socketpair()
    with there:
        Demultiplexed(here).close()
        assert there.recv(1) == b""
    assert here.fileno() == -1


# --- no engine, or not for us ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "kind", "message"),
    [
        (
            PermissionError(13, "Permission denied"),
            NoPermissionError,
            r"refuses this user \(permission denied on its socket\).*usermod -aG docker",
        ),
        (FileNotFoundError(2, "No such file"), NoEngineError, r"no Docker engine answers .*Start one"),
        (ConnectionRefusedError(111, "Connection refused"), NoEngineError, r"no Docker engine answers"),
    ],
)
def test_an_engine_that_is_not_there_or_refuses_us_is_told_apart(
    monkeypatch: pytest.MonkeyPatch, reason: OSError, kind: type[EnvironmentUnfitError], message: str
) -> None:
    def from_env(**_options: Any) -> None:
        raise docker.errors.DockerException(f"Error while fetching server API version: {reason!r}")

    monkeypatch.setattr(docker, "from_env", from_env)
    with pytest.raises(EnvironmentUnfitError, match=message) as caught:
        Engine()
    assert type(caught.value) is kind


# --- an engine that was named ------------------------------------------------------------------------


def test_an_engine_that_is_named_and_does_not_answer_is_not_passed_over_for_the_local_lab(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    with pytest.raises(NoEngineError, match=r"answers at DOCKER_HOST='unix:///nowhere/docker\.sock' "):
        Engine()
    chosen, why = decide("auto")
    assert chosen == "compose"
    assert "DOCKER_HOST='unix:///nowhere/docker.sock'" in why


@pytest.mark.parametrize(
    ("podman", "rootless", "kind"),
    [(False, False, "compose"), (False, True, "compose"), (True, False, "compose"), (True, True, "within")],
)
def test_where_no_container_can_enter_the_engines_network_links_are_impaired_within_the_receivers(
    monkeypatch: pytest.MonkeyPatch, podman: bool, rootless: bool, kind: str
) -> None:
    def connect(self: Engine) -> None:
        self.is_podman, self._security, self.version = podman, ["name=rootless"] * rootless, "1"
        self.place = EnginePlace(url="", machine=None)

    monkeypatch.setattr(Engine, "__init__", connect)
    chosen, why = decide("auto")
    assert chosen == kind
    assert why.startswith("Podman 1" if podman else "Docker Engine 1")


@pytest.mark.parametrize(
    ("info", "rootless"),
    [
        ({"SecurityOptions": ["name=seccomp,profile=default"]}, False),
        ({"SecurityOptions": ["name=seccomp,profile=default", "name=rootless"]}, True),  # Docker's
        ({"SecurityOptions": ["name=seccomp,profile=default"], "Rootless": True}, True),  # Podman 4.3's
        ({"SecurityOptions": None, "Rootless": False}, False),
    ],
)
def test_whether_an_engine_is_rootless_is_read_as_docker_tells_it_and_as_podman_does(
    monkeypatch: pytest.MonkeyPatch, info: dict[str, Any], rootless: bool
) -> None:
    client = SimpleNamespace(info=lambda: info, version=lambda: {"Version": "1"}, api=SimpleNamespace())
    monkeypatch.setattr("testbed.backends.docker.engine.connected", lambda *_arguments, **_more: client)
    engine = Engine({})
    assert engine.rootless is rootless
    assert engine.describe().endswith(", rootless") is rootless


def test_a_container_whose_end_was_not_awaited_is_gone_if_the_engine_knows_it_no_more() -> None:
    class Vanishing:
        id = "gone"

        def wait(self, **_arguments: object) -> None:
            raise docker.errors.APIError("500 Server Error", explanation="does not exist in database")

    class Knowing(Engine):
        def __init__(self, known: dict[str, Any]) -> None:
            self._known = known

        def state(self, container: Any) -> dict[str, Any]:
            return self._known

    assert Knowing({}).await_removed(cast(Any, Vanishing()), 1)
    assert not Knowing({"Status": "running"}).await_removed(cast(Any, Vanishing()), 1)


def test_an_engine_behind_ssh_names_the_extra_that_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "ssh://nobody@127.0.0.1")
    monkeypatch.setitem(sys.modules, "paramiko", None)
    for name in ("docker.transport.sshconn", "paramiko"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delattr("docker.api.client.SSHHTTPAdapter", raising=False)
    with pytest.raises(
        NoEngineError, match=r"ssh://, which needs paramiko. Install it: pip install 'pytest-testbed\[ssh\]'"
    ):
        Engine()


# --- pausing -----------------------------------------------------------------------------------------


def test_an_engine_that_fails_to_pause_is_asked_again_and_one_that_refuses_is_not() -> None:
    container = _Restless(500, 500)
    pause(container)
    assert container.statuses == []
    for statuses, left in (([500] * 9, 4), ([409, 500], 1)):
        container = _Restless(*statuses)
        with pytest.raises(docker.errors.APIError):
            pause(container)
        assert len(container.statuses) == left
