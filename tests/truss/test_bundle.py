"""Every config.yaml here passes the checks of `truss push`, and builds a context; so does the bundle itself."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.support.truss_bundles import BUILD

ROOT = Path(__file__).parents[2]
CONFIGS = [ROOT / "config.yaml", *sorted(ROOT.glob("examples/*/config.yaml"))]
CHECK = """
import sys
from pathlib import Path
from truss.base.truss_config import TrussConfig
TrussConfig.from_yaml(Path(sys.argv[1])).validate_forbid_extra()
"""


def test_all_examples_are_here():
    assert {path.parent.name for path in CONFIGS[1:]} >= {
        "bge-large-en-v1.5-fp8",
        "bge-reranker-v2-m3",
        "roberta-go-emotions",
        "bert-base-ner",
        "qwen3-embedding-0.6b-fp8",
        "qwen3-reranker-0.6b-fp8",
        "splade-v3",
    }


@pytest.fixture(scope="module")
def context_of(in_truss, tmp_path_factory) -> Callable[[Path], Path]:
    """The context that would be pushed for a folder, built once each."""

    @cache
    def build(folder: Path) -> Path:
        context = tmp_path_factory.mktemp("bundle") / "context"
        in_truss(BUILD, str(context), str(folder))
        return context

    return build


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.parent.name)
def test_push_accepts_it_and_a_context_builds(config, in_truss, context_of):
    in_truss(CHECK, str(config))
    assert (context_of(config.parent) / "Dockerfile").exists()


def test_the_start_command_of_an_encoder_is_one_of_ours(context_of):
    context = context_of(ROOT)
    supervisor = (context / "supervisord.conf").read_text()
    assert "text-embeddings-router --model-id /tmp/bei-model --port 7997" in supervisor
    assert (context / "packages" / "bei" / "serving" / "service.py").exists()
    assert (context / "model" / "model.py").exists()


def test_what_make_has_made_is_not_pushed(context_of):
    assert not [path for path in context_of(ROOT).iterdir() if path.name.startswith((".venv", ".models", ".bench"))]
