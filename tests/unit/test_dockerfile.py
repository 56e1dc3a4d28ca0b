"""What a local lab reads of a Dockerfile, and what it leaves to an engine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.labs import dockerfile
from testbed.labs.composefile import interpolate
from testbed.labs.dockerfile import Copy, HealthCheck, Image

OURS = """\
# comment
FROM debian:trixie-slim
RUN apt-get update \\
 && apt-get install -y --no-install-recommends python3 \\
 # in between
 && rm -rf /var/lib/apt/lists/*
ARG VERSION=2
ENV A=1 B="two words" C=$VERSION
WORKDIR /srv
WORKDIR app
COPY common/*.py server/*.py ./
COPY --chown=1:1 one.txt other.txt
STOPSIGNAL 2
USER nobody
HEALTHCHECK --interval=1m30s --retries=5 CMD ["python3", "check.py"]
ENTRYPOINT ["python3"]
CMD ["server.py"]
"""


def read(text: str) -> tuple[Image, list[str]]:
    return dockerfile.read(text, expand=interpolate)


def test_everything_that_matters_to_a_program_is_read() -> None:
    image, problems = read(OURS)
    assert problems == []
    assert image == Image(
        environment={"A": "1", "B": "two words", "C": "2"},
        workdir="/srv/app",
        copies=(
            Copy(line=11, sources=("common/*.py", "server/*.py"), target="/srv/app/"),
            Copy(line=12, sources=("one.txt",), target="/srv/app/other.txt"),
        ),
        entrypoint=("python3",),
        command=("server.py",),
        health_check=HealthCheck(test=("python3", "check.py"), interval_s=90.0, retries=5),
        stop_signal="SIGINT",
        user="nobody",
        python=True,
    )


def test_a_line_for_the_shell_is_run_by_one() -> None:
    image, _ = read("FROM debian\nCMD exec sleep 5\nHEALTHCHECK CMD test -f x\n")
    assert image.command == ("/bin/sh", "-c", "exec sleep 5")
    assert image.health_check == HealthCheck(test=("/bin/sh", "-c", "test -f x"))


def test_a_python_image_has_python_and_a_health_check_can_be_taken_off() -> None:
    image, problems = read("FROM --platform=linux/amd64 docker.io/library/python:3.12-slim\nHEALTHCHECK NONE")
    assert (image.python, image.health_check, problems) == (True, None, [])


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("RUN pip install flask", "`pip install flask` cannot be run without an engine"),
        ("RUN apt-get update && apt-get install -y curl python3 jq", "installs curl, jq"),
        ("RUN rm -rf / ", "cannot be run"),
        ("FROM debian", "several stages"),
        ("COPY --from=build /a /b", "copies from another image"),
        ("ADD https://example.org/a /a", "downloads"),
        ("COPY alone", "needs a source and a target"),
        ('SHELL ["bash"]', "cannot be followed"),
        ("VOLUME /data", "keeps no volumes"),
        ("HEALTHCHECK --often=1s CMD a", "unknown option --often"),
        ("HEALTHCHECK --interval=often CMD a", "'often' is not a duration"),
        ("ENV A=${B:?needed}", "variable B is not set: needed"),
    ],
)
def test_what_cannot_be_followed_is_told_with_its_line(line: str, problem: str) -> None:
    _, problems = read(f"FROM debian\n\n{line}\n")
    (told,) = problems
    assert told.startswith("line 3: ")
    assert problem in told


def test_every_problem_is_told() -> None:
    _, problems = read("FROM nobody/none\nRUN make\nONBUILD RUN x\n")
    assert [problem.partition(":")[0] for problem in problems] == ["line 1", "line 2", "line 3"]
    assert read("CMD a")[1] == ["line 1: no FROM"]


@pytest.mark.parametrize(
    ("text", "duration_s"), [("0", 0), ("1s", 1), ("1m30s", 90), ("500ms", 0.5), ("1.5h", 5400), ("2us", 2e-6)]
)
def test_a_duration_is_read_as_go_writes_it(text: str, duration_s: float) -> None:
    assert dockerfile.duration_s(text) == pytest.approx(duration_s)


@pytest.mark.parametrize("text", ["", "1", "s", "1 s", "1d", "-1s", "1s2"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        dockerfile.duration_s(text)


@given(st.text(alphabet="FROMUNCPYADENV debian:/\\\n\"'[]#$={}.-a&;|"))
def test_no_text_is_too_odd_to_be_judged(text: str) -> None:
    image, problems = read(text)
    assert isinstance(image, Image)
    assert all(problem.startswith("line ") for problem in problems)
