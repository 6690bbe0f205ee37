"""The command line: `bei serve | info | build | doctor | embed | convert | bench | eval`."""

import click

from bei import __version__, options

_PLACES = {
    "serve": "bei.commands.serve:serve",
    "info": "bei.commands.info:info",
    "build": "bei.commands.build:build",
    "convert": "bei.commands.convert:convert",
    "embed": "bei.commands.embed:embed",
    "doctor": "bei.doctor.command:doctor",
    "bench": "bei.bench.command:bench",
    "eval": "bei.evaluate.command:evaluate",
}
_HEADINGS = {
    "Serve": ("serve", "info", "build", "doctor"),
    "Files": ("embed", "convert"),
    "Measure": ("bench", "eval"),
}


@click.group(
    cls=options.Program, places=_PLACES, headings=_HEADINGS, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(__version__, prog_name="bei")
def main() -> None:
    """An open embedding engine: `bei serve MODEL` serves a folder or a repository of the hub, and `bei serve` the model
    that a Truss config.yaml names.

    Every setting comes from the config's trt_llm block and its environment_variables, then from BEI_* environment
    variables (BEI_PORT=9000), then from flags; the last one wins.
    """


if __name__ == "__main__":
    main()
