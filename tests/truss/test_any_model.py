"""The config.yaml that `bei info MODEL --as-config` prints is one that truss takes."""

import pytest
from click.testing import CliRunner

from bei import cli
from tests.support.tiny_models import random_model, save

CHECK = """
import sys
from pathlib import Path
from truss.base.truss_config import TrussConfig
config = TrussConfig.from_yaml(Path(sys.argv[1]))
config.validate_forbid_extra()
print(config.trt_llm.root.build.base_model.value, config.resources.accelerator.accelerator.value)
"""


@pytest.mark.parametrize(("family", "kind"), [("bert", "encoder_bert"), ("qwen3", "encoder")])
def test_truss_takes_it(in_truss, tmp_path, family, kind):
    folder, config = save(tmp_path / "model", random_model(family)), tmp_path / "config.yaml"
    result = CliRunner().invoke(cli.main, ["info", str(folder), "--as-config", "--engine", "torch"])
    config.write_text(result.stdout)
    assert in_truss(CHECK, str(config)).split() == [kind, "L4"]
