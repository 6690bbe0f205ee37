"""Documents that are made from the code are those of the code."""

import runpy

from tests.servers import ROOT


def test_the_table_of_models():
    made = runpy.run_path(str(ROOT / "docs" / "models.py"))
    assert made["FILE"].read_text() == made["table"](), "run: make docs"
