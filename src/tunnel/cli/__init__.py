"""
The command ``tunnel``: one file a verb, and one way to report a failure.

Imports the facade, rpc, diagnostics, cluster and config; nothing of the operating system.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence

import click

from tunnel.cli import (
    bench,
    capture,
    config,
    decode,
    demo,
    doctor,
    down,
    drops,
    explain,
    fdb,
    neighbour,
    network,
    peer,
    ping,
    reload,
    route,
    status,
    up,
)
from tunnel.errors import TunnelError

SECTIONS = {
    "Run a node": (up.up, reload.reload, down.down, config.config),
    "See and change one that runs": (
        status.status,
        peer.peer,
        route.route,
        neighbour.neighbour,
        fdb.fdb,
    ),
    "Look after a cluster": (network.network,),
    "Look closer": (
        doctor.doctor,
        drops.drops,
        explain.explain,
        ping.ping,
        capture.capture,
        decode.decode,
    ),
    "Try it out": (demo.demo, bench.bench),
}
"""All verbs, in the order in which --help shows them."""


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # where the results should have gone


class _Verbs(click.Group):
    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        for title, verbs in SECTIONS.items():
            rows = [(verb.name or "", verb.get_short_help_str(limit=68)) for verb in verbs]
            with formatter.section(title):
                formatter.write_dl(rows)


@click.group(cls=_Verbs, invoke_without_command=True)
@click.version_option(package_name="tunnel", message="%(prog)s %(version)s")
@click.pass_context
def verbs(context: click.Context) -> None:
    """A VXLAN overlay network in user space: no kernel module, any Linux."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for _section in SECTIONS.values():
    for _verb in _section:
        verbs.add_command(_verb)


def main(args: Sequence[str] | None = None) -> int:
    """
    Runs `args`, those of the process by default, and returns its exit code.

    0 is well; 1 a tunnel that failed while it ran, or a check that did; 2 words or a machine that
    do not let it start; 130 Ctrl-C. Each failure is one line on stderr.
    """
    try:
        return verbs.main(args, prog_name="tunnel", standalone_mode=False) or 0
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
        if error.errno not in _NO_ROOM:
            raise
        return _fail(f"cannot write: {os.strerror(error.errno).lower()}", code=1)


def _fail(text: str, *, code: int) -> int:
    print(f"tunnel: {text}", file=sys.stderr)
    return code
