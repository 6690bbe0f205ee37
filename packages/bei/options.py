"""The settings as options of a command line. Settings.load converts and checks a value, wherever it comes from."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from bei.settings import Group
from bei.settings.reference import Setting, settings_of

Function = TypeVar("Function", bound=Callable[..., Any])
_OTHER_NAMES = {"drain_seconds": ["--drain-timeout"]}


class Command(click.Command):
    """A command whose help has a heading for each group of settings."""

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(context):
            heading = parameter.heading if isinstance(parameter, _Option) else "Options"
            record = parameter.get_help_record(context)
            sections.setdefault(heading, []).extend([record] if record else [])
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)


class _Option(click.Option):
    def __init__(self, *arguments: Any, heading: str, **options: Any):
        super().__init__(*arguments, **options)
        self.heading = heading


def of_settings(*groups: type[Group]) -> Callable[[Function], Function]:
    """One option for each setting of these groups."""

    def decorate(function: Function) -> Function:
        for setting in reversed(settings_of(*groups)):
            function = _option(setting)(function)
        return function

    return decorate


def joined(context: click.Context, parameter: click.Parameter, given: Sequence[str]) -> str | None:
    """The values of a repeated option as one variable holds them; None if it is not given."""
    return ",".join(given) if given else None


def in_help(help: str, default: str | None) -> str:
    return f"{help}  [default: {default}]" if default is not None else help


def _option(setting: Setting) -> Callable[[Function], Function]:
    options: dict[str, Any] = {"cls": _Option, "heading": setting.group.rstrip("."), "default": None}
    options["help"] = in_help(setting.help, setting.default)
    names = [setting.flag, *_OTHER_NAMES.get(setting.name, ())]
    if setting.is_switch:
        return click.option(f"{setting.flag}/--no-{setting.flag[2:]}", setting.name, **options)
    if setting.is_repeatable:
        options |= {"multiple": True, "callback": joined, "help": f"{setting.help} Repeatable."}
    return click.option(*names, setting.name, metavar=setting.values, **options)
