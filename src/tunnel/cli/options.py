"""Click's options, made from the table of all options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from tunnel.config.option import Group, Option
from tunnel.config.options import COMMAND_OPTIONS, OPTIONS

Command = TypeVar("Command", bound=Callable[..., Any])


def option_groups(*groups: Group) -> Callable[[Command], Command]:
    """Adds the options of these groups, in the order of the table."""
    options = [option for option in OPTIONS.values() if option.group in groups]

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = _click_option(option)(command)
        return command

    return decorate


def command_option(name: str, *flags: str, **settings: Any) -> Callable[[Command], Command]:
    """Adds one of the options that only a command has."""
    return _click_option(COMMAND_OPTIONS[name], *flags, **settings)


def _click_option(option: Option, *flags: str, **settings: Any) -> Callable[[Command], Command]:
    # The value is passed on as it is given: tunnel.config parses it, so that a flag, a variable, a
    # file and a program get the same error for the same fault.
    flag = f"--{option.name}"
    settings |= {"envvar": option.variables, "help": _help(option)}
    if option.metavar:
        settings["metavar"] = option.metavar
    if option.repeatable:
        settings["multiple"] = True
    match option.kind:
        case "integer":
            settings["type"] = int
        case "switch":
            flag, settings["default"] = f"{flag}/--no-{option.name}", None
        case "flag":
            settings |= {"is_flag": True, "default": None}
        case "count":
            settings["count"] = True
    if option.implied is not None:
        settings |= {"is_flag": False, "flag_value": option.implied}
    return click.option(*flags, flag, **settings)


def _help(option: Option) -> str:
    repeat = " May be repeated." if option.repeatable else ""
    default = f"  [default: {option.default_help}]" if option.default_help else ""
    return f"{option.help}{repeat}{default}"
