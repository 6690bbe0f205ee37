"""The command `bei serve`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from bei import options
from bei.engines.interpreters import Interpreters
from bei.settings import Settings, several


@click.command(
    cls=options.Command,
    examples=(
        "bei serve BAAI/bge-small-en-v1.5",
        "bei serve ./my-model --port 9000 --precision int8",
        "bei serve --config config.yaml",
    ),
)
@options.models
@options.configs
@options.log_level
@options.of_settings(Settings)
def serve(models: Sequence[str], config: Sequence[Path], log_level: str, **flags: Any) -> None:
    """Serve over HTTP until SIGTERM. MODEL is a folder or a repository of the hub; without one the config says it.

    The routes are OpenAI's, TEI's, Cohere's and vLLM's for embeddings, reranking, classes and entities, as the model
    allows, with /health and /metrics. GET /docs lists them all.
    """

    def read() -> Sequence[Settings]:
        return several.named(models, config, **flags)

    settings = read()
    with Interpreters.ahead_of(settings) as interpreters:
        from bei import launch  # its imports run beside those of the interpreters
        from bei.server import hosting

        hosting.start_logs(settings[0], log_level)
        launch.serve(settings, read, interpreters)
