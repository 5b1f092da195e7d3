"""The `brume` command."""
import errno
import importlib
import logging
import sys
from pathlib import Path
from typing import Any

import click

from control.kernel.errors import Error

#: Command -> the module under control.cli that has it. Imported when it is used.
COMMANDS = {"up": "cloud", "down": "cloud", "status": "cloud", "env": "cloud", "demo": "demo", "images": "images",
            "policy": "policy", "plan": "plan", "drain": "drain", "undrain": "drain", "simulate": "simulate",
            "replicas": "replicas", "audit": "audit", "backup": "backup", "restore": "backup", "certificate": "machines",
            "join": "machines", "watch": "watch", "doctor": "doctor", "etcd": "etcd",
            "control": "roles", "agent": "roles", "journal": "roles"}


class Brume(click.Group):
    """Finds commands by COMMANDS and turns the errors that a user can mend into one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return getattr(importlib.import_module(f"control.cli.{COMMANDS[cmd_name]}"), cmd_name)

    def invoke(self, ctx: click.Context) -> Any:
        from control.cli.session import RestError
        try:
            return super().invoke(ctx)
        except (Error, RestError) as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise click.ClickException(f"no space is left for {error.filename or 'what has to be written'}: free some, and "
                                           "run this again") from error
            if not isinstance(error, PermissionError):
                raise
            raise click.ClickException(f"{error.filename}: permission denied; a cloud's files are root's: use sudo") from error


@click.group(cls=Brume, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="brume")
@click.option("--state-dir", type=click.Path(path_type=Path), envvar="BRUME_STATE_DIR",
              help="Where the cloud keeps all it has.  [default: /var/lib/brume]")
@click.option("-v", "--verbose", is_flag=True, help="Say more of what is done.")
@click.pass_context
def main(ctx: click.Context, state_dir: Path | None, verbose: bool) -> None:
    """Brume: an infrastructure cloud in one program.

    `brume up` starts a cloud on this machine, `brume demo` makes a virtual machine in it, and
    `eval "$(brume env)"` points any OpenStack client at it.
    """
    ctx.obj = state_dir
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(message)s", stream=sys.stderr)


if __name__ == "__main__":
    main()
