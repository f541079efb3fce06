"""
The command ``tunnel``: one file per verb, and one way to report a failure.

    control   the options --name, --control and --json, and requests to a running node
    output    JSON, tables and durations

Imports everything below, but nothing of the operating system. A verb is imported when it runs, so
that ``tunnel --version`` and ``tunnel status`` start fast.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click
from click.shell_completion import CompletionItem

from tunnel.errors import TunnelError

SECTIONS = {
    "Run a node": {
        "up": "Join this host to an overlay, until SIGTERM or Ctrl-C.",
        "reload": "Make a running node read its --config file again.",
        "down": "Stop a running node, as SIGTERM does.",
        "config": "Work with configuration files.",
    },
    "See and change a running node": {
        "status": "Show the state of a running node and of its peers.",
        "peer": "List, add and remove the peers of a running node.",
        "route": "List the routes of a running node.",
        "neighbour": "List the VTEPs behind the prefixes of the overlay.",
        "fdb": "List, add and remove MACs of a node with --mode tap.",
    },
    "Administer a cluster": {
        "network": "Administer the network in a store.",
    },
    "Diagnose": {
        "doctor": "Check for common faults, and say how to fix them.",
        "drops": "Show how many packets were dropped, why, and what to do.",
        "explain": "Trace the path of one packet without sending it.",
        "ping": "Measure round trips to NODE through the data path.",
        "capture": "Show packets as they pass a running node, until Ctrl-C.",
        "decode": "Explain captured packets header by header.",
    },
    "Try it out": {
        "demo": "Show an overlay between two network namespaces of this host.",
        "bench": "Measure throughput and latency of an overlay.",
    },
}
"""The verbs and what each does, in the order in which --help lists them. The verb NAME is
``tunnel.cli.NAME.NAME``."""

_VERBS = {name: text for verbs in SECTIONS.values() for name, text in verbs.items()}
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class _Verbs(click.Group):
    """A group that imports a verb when it is used, and lists all of them without an import."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _VERBS:
            return None
        verb: click.Command = getattr(import_module(f"tunnel.cli.{cmd_name}"), cmd_name)
        return verb

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, verbs in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl(list(verbs.items()))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        matching = [name for name in _VERBS if name.startswith(incomplete)]
        return [
            *(CompletionItem(name, help=_VERBS[name]) for name in matching),
            *click.Command.shell_complete(self, ctx, incomplete),
        ]


@click.group(cls=_Verbs, invoke_without_command=True)
@click.version_option(package_name="tunnel", message="%(prog)s %(version)s")
@click.pass_context
def verbs(context: click.Context) -> None:
    """A VXLAN overlay network in user space: no kernel module, any Linux."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def main(args: Sequence[str] | None = None) -> int:
    """
    Runs the command with `args`, by default those of the process, and returns its exit code.

    0 is success; 1 a tunnel that failed after its start, or a check that failed; 2 arguments or a
    host that do not allow the start; 130 Ctrl-C. Each failure is one line on stderr.
    """
    try:
        result: Any = verbs.main(args, prog_name="tunnel", standalone_mode=False)
        return result or 0
    except TunnelError as error:
        return _fail(str(error), code=2)
    except click.UsageError as error:
        verb = error.ctx.command_path if error.ctx else "tunnel"
        return _fail(f'{error.format_message().rstrip(".")} (see "{verb} --help")', code=2)
    except click.ClickException as error:
        return _fail(error.format_message(), code=error.exit_code)
    except click.Abort:
        return 130
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        return _fail(f"cannot write: {os.strerror(error.errno).lower()}", code=1)


def _fail(text: str, *, code: int) -> int:
    print(f"tunnel: {text}", file=sys.stderr)
    return code
