"""The command line's parts: the settings as options, help in groups with examples, and refusals with the command that
works. Settings.load converts and checks a value, wherever it comes from."""

import sys
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import click

from bei import processes
from bei.errors import SetupError, printable, refusing, short
from bei.files import expanded
from bei.settings import Group
from bei.settings.reference import Setting, settings_of

Function = TypeVar("Function", bound=Callable[..., Any])
_OTHER_NAMES = {"drain_seconds": ["--drain-timeout"]}
_FLAGS_OF_OTHERS = ("--model", "--model-id", "--model-name", "--model-name-or-path", "--model-path")
"""Flags by which other programs name the model."""
_OWN_FLAGS = ("--help", "--version")
_NO_COMMAND = (
    "a command comes first, such as `bei serve MODEL`. The flags of TEI are those of the program "
    "`text-embeddings-router`; a container runs it with --entrypoint text-embeddings-router"
)
_ALIKE = 0.8
_WHOLE = 1000  # characters of a sentence, so that none is cut
_MESSAGE = 2000  # characters of a refusal

config = click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="The deployment: a Truss config.yaml with a trt_llm block.  [default: BEI_CONFIG, else config.yaml]",
)
configs = click.option(
    "--config",
    type=click.Path(path_type=Path),
    multiple=True,
    help="The deployment: a Truss config.yaml with a trt_llm block. Repeatable: one server serves several models.  "
    "[default: BEI_CONFIG, else config.yaml]",
)
model = click.argument("model", metavar="[MODEL]", required=False)
models = click.argument("models", metavar="[MODEL]...", nargs=-1)
log_level = click.option(
    "--log-level",
    default="info",
    show_default=True,
    help="The lowest level of log lines: debug, info, warning or error.",
)


def one_line_errors(run: Callable[[], Any]) -> Any:
    """Prints a SetupError as one line on stderr and exits with status 2."""
    try:
        with refusing():
            return run()
    except SetupError as exc:
        click.echo(f"bei: {printable(str(exc))[:_MESSAGE]}", err=True)
        sys.exit(2)


class Program(click.Group):
    """A program whose commands stand under headings, and are imported when they are named. `places` maps the name of a
    command to its place (`bei.bench.command:bench`), `headings` a heading to the names below it."""

    def __init__(
        self, *arguments: Any, places: Mapping[str, str], headings: Mapping[str, Sequence[str]], **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self._places, self._headings = places, headings

    def invoke(self, context: click.Context) -> Any:
        processes.keep_libraries_isolated()
        return one_line_errors(lambda: super(Program, self).invoke(context))

    def parse_args(self, context: click.Context, words: list[str]) -> list[str]:
        """Raises UsageError for a flag without a command, with what takes flags."""
        try:
            return super().parse_args(context, words)
        except click.NoSuchOption as exc:
            if get_close_matches(exc.option_name, _OWN_FLAGS, 1, _ALIKE):
                raise
            context.fail(printable(f"No such option {exc.option_name}: {_NO_COMMAND}"))

    def list_commands(self, context: click.Context) -> list[str]:
        return [name for names in self._headings.values() for name in names]

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name in self._places and name not in self.commands:
            module, _, function = self._places[name].partition(":")
            self.add_command(getattr(import_module(module), function), name)
        return super().get_command(context, name)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        for heading, names in self._headings.items():
            commands = ((name, self.get_command(context, name)) for name in names)
            with formatter.section(heading):
                formatter.write_dl([(name, of.get_short_help_str(_WHOLE)) for name, of in commands if of is not None])

    def resolve_command(
        self, context: click.Context, words: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Raises UsageError for a model in the place of a command, with the command that serves it, and for another
        word, with the closest command: click itself knows only those that are imported."""
        name = words[0]
        if self.get_command(context, name) is None and not (name.startswith("-") or context.resilient_parsing):
            if name.endswith((".yaml", ".yml")):
                context.fail(printable(f"{name} is a config, no command; serve it with: bei serve --config {name}"))
            if "/" in name or expanded(name).is_dir():
                context.fail(printable(f"{name} is a model, no command; serve it with: bei serve {name}"))
            close = get_close_matches(name, self.list_commands(context), 1)
            context.fail(f"No such command {short(name)}." + (f" Did you mean {short(close[0])}?" if close else ""))
        return super().resolve_command(context, words)


class Command(click.Command):
    """A command whose help has a heading for each group of settings, and examples."""

    def __init__(self, *arguments: Any, examples: Sequence[str], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.examples = examples

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Examples"):
            formatter.write("".join(f"{'':{formatter.current_indent}}{example}\n" for example in self.examples))
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(context):
            heading = parameter.heading if isinstance(parameter, _Option) else "Options"
            record = parameter.get_help_record(context) if isinstance(parameter, click.Option) else None
            sections.setdefault(heading, []).extend([record] if record else [])
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)

    def parse_args(self, context: click.Context, words: list[str]) -> list[str]:
        """Raises UsageError for a flag that other programs name the model by, with the command that works."""
        given = list(words)
        try:
            return super().parse_args(context, words)
        except click.NoSuchOption as exc:
            takes = any(isinstance(one, click.Argument) and one.name in ("model", "models") for one in self.params)
            if takes and get_close_matches(exc.option_name, _FLAGS_OF_OTHERS, 1, _ALIKE):
                named = _value_of(exc.option_name, given)
                context.fail(printable(f"{exc.option_name}: the model has no flag here: bei {self.name} {named}"))
            raise


def _value_of(flag: str, words: Sequence[str]) -> str:
    """The value that follows a flag, or `MODEL`."""
    for place, word in enumerate(words):
        name, _, value = word.partition("=")
        if name == flag:
            return value or next(iter(words[place + 1 :]), "MODEL")
    return "MODEL"


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


def given(flags: Mapping[str, Any]) -> list[str]:
    """The flags of settings that were given, as a user writes them."""
    return [f"--{name.replace('_', '-')}" for name, value in flags.items() if value not in (None, ())]


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
