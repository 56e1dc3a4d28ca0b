"""The ``testbed`` command. Exit status: 0 good, 1 a negative verdict, 2 wrong use or an unfit machine."""

from __future__ import annotations

import signal
import sys

import click

from testbed.backends.docker.connecting import NoEngineError
from testbed.commands import (
    ab,
    baseline,
    clean,
    compare,
    completion,
    envelope,
    hosts,
    importing,
    init,
    kernel,
    links,
    machine,
    merge,
    paper,
    replay,
    results,
    schema,
    stack,
    watch,
)
from testbed.commands.console import ERR
from testbed.commands.options import example
from testbed.errors import EnvironmentUnfitError, ServiceFailedError, TestbedError, UserError
from testbed.text import shortened, visible

_WITHOUT_ENGINE = (
    "`testbed shell`, `testbed exec` and `testbed prove` with --lab local need none: theirs lasts as long as they run."
)


def main() -> None:
    """Run the command and exit with its status."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)  # through every `with`, as Ctrl-C
    try:
        status = cli(standalone_mode=False)
    except click.exceptions.Exit as exit_:
        status = exit_.exit_code
    except click.ClickException as error:
        ERR.print(shortened(visible(_usage(error)), 2_000), markup=False, soft_wrap=True)
        status = 2
    except click.Abort:
        status = 130
    except NoEngineError as error:
        ERR.print(f"testbed: {error} {_WITHOUT_ENGINE}", style="red", markup=False, soft_wrap=True)
        status = 2
    except (UserError, EnvironmentUnfitError, ServiceFailedError) as error:
        ERR.print(f"testbed: {error}", style="red", markup=False, soft_wrap=True)
        status = 2
    except TestbedError as error:
        ERR.print(f"testbed: {error}", style="red", markup=False, soft_wrap=True)
        status = 1
    sys.exit(status or 0)


def _usage(error: click.ClickException) -> str:
    """What is wrong with the command line, and how the command is used."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    usage = [context.get_usage(), f"Try '{context.command_path} -h' for help.", ""] if context is not None else []
    return "\n".join([*usage, f"Error: {error.format_message()}"])


def _end(number: int, _frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)  # taking down must not be cut short
    sys.exit(128 + number)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="pytest-testbed")
@example("""testbed demo
             testbed up && testbed impair "client <-> server" lossy && testbed show; testbed down""")
def cli() -> None:
    """Network regression testing for programs that run in containers."""


_TESTS = (paper, results, merge, replay, baseline, ab, envelope, compare)
for _module in (stack, hosts, links, watch, machine, *_TESTS, kernel, init, importing, clean, schema, completion):
    for _command in _module.COMMANDS:
        cli.add_command(_command)


if __name__ == "__main__":
    main()
