"""Every config.yaml here passes the checks of `truss push`, and builds a context; so does the bundle itself."""

import json
from pathlib import Path

import pytest

from tests.support.shared import once

ROOT = Path(__file__).parents[2]
CONFIGS = [ROOT / "config.yaml", *sorted(ROOT.glob("examples/*/*.yaml"))]
PUSHED = """
import json, sys, traceback
from pathlib import Path
from truss.base.truss_config import TrussConfig
from truss.cli.cli import truss_cli
folder, *configs = map(Path, sys.argv[1:])
refused = {}
for number, config in enumerate(configs):
    try:
        TrussConfig.from_yaml(config).validate_forbid_extra()
        words = ["image", "build-context", str(folder / str(number)), str(config.parent)]
        truss_cli.main(words, standalone_mode=False)
    except BaseException:
        refused[str(config)] = traceback.format_exc()
(folder / "refused.json").write_text(json.dumps(refused))
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
def pushed(in_truss, of_all_workers) -> Path:
    """The context that would be pushed for each config, by its number, and why others are refused: by one process."""
    return once(
        of_all_workers / "pushed", lambda folder: in_truss(PUSHED, str(folder), *map(str, CONFIGS), timeout=600)
    )


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.parent.name)
def test_push_accepts_it_and_a_context_builds(config, pushed):
    refused = json.loads((pushed / "refused.json").read_text())
    assert refused.get(str(config)) is None
    assert (pushed / str(CONFIGS.index(config)) / "Dockerfile").exists()


def test_a_config_that_push_refuses_is_told(in_truss, tmp_path):
    config = tmp_path / "bundle" / "config.yaml"
    config.parent.mkdir()
    config.write_text("model_name: tiny\nno_such_key: 1\n")
    in_truss(PUSHED, str(tmp_path), str(config))
    assert "no_such_key" in json.loads((tmp_path / "refused.json").read_text())[str(config)]


def test_the_start_command_of_an_encoder_is_one_of_ours(pushed):
    context = pushed / "0"
    supervisor = (context / "supervisord.conf").read_text()
    assert "text-embeddings-router --model-id /tmp/bei-model --port 7997" in supervisor
    assert (context / "packages" / "bei" / "serving" / "service.py").exists()
    assert (context / "model" / "model.py").exists()


def test_what_make_has_made_is_not_pushed(pushed):
    assert not [path for path in (pushed / "0").iterdir() if path.name.startswith((".venv", ".models", ".bench"))]
