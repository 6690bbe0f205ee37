"""The site of docs/: it builds strictly, every link leads somewhere, and nothing is loaded from elsewhere."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.servers import ROOT
from tests.support.shared import once

DOCS = ROOT / ".venv-docs" / "bin"
LOADED = {("script", "src"), ("img", "src"), ("link", "href"), ("iframe", "src"), ("source", "src")}
ENVIRONMENT = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}


class Page(HTMLParser):
    """The links of a page, those that it loads by itself, and its anchors."""

    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.anchors.add(value)
            if name in ("href", "src") and value and not (tag == "link" and ("rel", "canonical") in attrs):
                self.links.append(value)
                if (tag, name) in LOADED:
                    self.loaded.append(value)


@pytest.fixture(scope="module")
def site(of_all_workers) -> Path:
    if not (DOCS / "mkdocs").exists():
        pytest.skip("no environment for the site (make .venv-docs/ok)")

    def build(folder: Path) -> None:
        command = [DOCS / "mkdocs", "build", "--site-dir", str(folder / "site")]
        done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    return once(of_all_workers / "site", build) / "site"


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, Page]:
    return {file: Page(file.read_text()) for file in site.glob("*.html")}


def test_every_link_leads_somewhere(site, pages):
    assert len(pages) >= 30
    assert list(broken(site, pages)) == []


def broken(site: Path, pages: dict[Path, Page]) -> Iterator[str]:
    for file, page in pages.items():
        if file.name == "404.html":  # its links begin at the root of a server
            continue
        for link in page.links:
            url = urlsplit(link)
            if url.scheme or url.netloc:
                continue
            target = (file.parent / unquote(url.path)).resolve() if url.path else file
            is_there = target.is_relative_to(site) and target.is_file()
            has_anchor = target not in pages or not url.fragment or unquote(url.fragment) in pages[target].anchors
            if not (is_there and has_anchor):
                yield f"{file.name}: {link}"


def test_nothing_is_loaded_from_elsewhere(site, pages):
    foreign = {link for page in pages.values() for link in page.loaded if urlsplit(link).netloc}
    assert foreign == set()
    sheets = "".join(file.read_text() for file in site.rglob("*.css"))
    assert re.findall(r"(?:url\(|@import\s)[\"']?(?:https?:)?//[^)\"']*", sheets) == []


def test_each_page_is_found_without_a_server(site, pages):
    """The offline search reads a script, which needs no server."""
    index = (site / "search" / "search_index.js").read_text()
    found = json.loads(index[index.index("{") : index.rindex("}") + 1])["docs"]
    titles = {entry["location"].partition("#")[0] for entry in found}
    assert titles == {file.name for file in pages} - {"404.html"}


BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "recipes.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("code", BLOCKS, ids=lambda code: code.split()[1])
def test_a_recipe_reads_vectors(tmp_path, code):
    if not (DOCS / "python").exists():
        pytest.skip("no environment for the recipes (make .venv-docs/ok)")
    vectors = np.random.default_rng(0).normal(size=(50, 384)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 384)
    pq.write_table(
        pa.table({"body": [f"text {i}" for i in range(50)], "embedding": column}), tmp_path / "vectors.parquet"
    )
    np.save(tmp_path / "vectors.npy", vectors)
    done = subprocess.run([DOCS / "python", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    wanted = {
        "duckdb": "('text 0', 1.",
        "polars": "('text 0', ",
        "numpy": "0 1.0",
        "pyarrow.parquet": "(50, 384) float32",
    }
    assert done.stdout.startswith(wanted[code.split()[1]])
