"""The commands that newcomers read, run on real weights; the output is compared with the pages'."""

import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator

import pyarrow.parquet as pq
import pytest

from tests.support.documents import DOCUMENTS, text_of
from tests.support.servers import ROOT, serving

README, SERVING, BULK = ((ROOT / name).read_text() for name in ("README.md", "docs/serving.md", "docs/bulk.md"))
TASKS = "\n".join(
    (ROOT / "docs" / f"{name}.md").read_text()
    for name in ("embeddings", "reranking", "classification", "entities", "sparse")
)
ADDRESS = "127.0.0.1:8080"
FIRST = re.findall(r"```sh\n(curl [^\n]+)\n```\n\n```json\n(.+?)\n```", README)
RECIPES = re.findall(r"bei serve --config (\S+)\n(curl [^\n]+)\n# ([^\n]+)", TASKS)
BLOCKS = {name: re.findall(r"```python\n(.*?)```", text_of(name), re.DOTALL) for name in DOCUMENTS}
PYTHON = [*BLOCKS["README.md"], *BLOCKS["docs/serving.md"]]
RUN_ELSEWHERE = {"docs/recipes.md", "CONTRIBUTING.md"}
"""tests/test_site.py runs the first page's; the other page's is a family of architectures."""
STAND_INS = {
    "mteb.py": """
def get_tasks(tasks):
    return tasks


def evaluate(model, tasks):
    return model.encode(tasks).shape
""",
    "bertopic/__init__.py": """
class BERTopic:
    def __init__(self, embedding_model=None):
        self.model = embedding_model

    def fit_transform(self, texts, embeddings=None):
        vectors = self.model.embed(texts, verbose=False) if embeddings is None else embeddings
        return list(range(len(vectors))), None
""",
    "bertopic/backend.py": "class BaseEmbedder:\n    pass\n",
}
"""Libraries of the page about Python, which fetch data or take minutes to install: the names that it calls."""
SEEN = {
    "vectors = ": ("print(vectors.shape, vectors.dtype)", "(2, 384) float32"),
    "result = ": ("print(result)", "(1, 384)"),
    "topics, _": ("print(topics)", "[0, 1]"),
}
"""By a part of a block: what to print of its names, and the output."""


def tokens(text: str) -> list[str]:
    return re.findall(r'"[^"]*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|\.\.\.|[^\s"]', text)


def agree(stated: str, found: str) -> bool:
    """Whether an answer agrees with a document's, in which `...` may stand for a part; numbers within 2 % or 0.003,
    because precisions differ."""
    *parts, last = _split(tokens(stated))
    rest = tokens(found)
    for i, part in enumerate(parts):
        places = range(len(rest) - len(part) + 1) if i else range(1)
        place = next((place for place in places if _alike(part, rest[place : place + len(part)])), None)
        if place is None:
            return False
        rest = rest[place + len(part) :]
    return _alike(last, rest[len(rest) - len(last) :] if parts else rest)


def _split(words: list[str]) -> Iterator[list[str]]:
    while "..." in words:
        yield words[: words.index("...")]
        words = words[words.index("...") + 1 :]
    yield words


def _alike(stated: list[str], found: list[str]) -> bool:
    return len(stated) == len(found) and all(map(_same, stated, found))


def _same(stated: str, found: str) -> bool:
    if re.fullmatch(r"-?\d.*", stated) and re.fullmatch(r"-?\d.*", found):
        return math.isclose(float(stated), float(found), rel_tol=0.02, abs_tol=0.003 if "." in stated else 0)
    return stated == found


@pytest.mark.parametrize(
    ("stated", "found", "same"),
    [
        ('[{"a":0.5},...]', '[{"a":0.501},{"b":2}]', True),
        ('[{"a":0.5},...]', '[{"a":0.52},{"b":2}]', False),
        ('[{"i":7},...]', '[{"i":8}]', False),
        ('{"a":"x",...}]', '{"a":"x","b":{}}]', True),
        ('{"a":"x",...}]', '{"a":"y","b":{}}]', False),
        ("2 384 13", "2 384 15", False),
        ("[1]", "[1]]", False),
    ],
)
def test_the_comparison_bites(stated, found, same):
    assert agree(stated, found) == same


def asked(command: str, url: str) -> str:
    words = shlex.split(command.replace(ADDRESS, url.removeprefix("http://")))
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout


@pytest.fixture(scope="module")
def default(tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("default")
    with serving("--batch-dir", str(folder / "batches"), log=folder / "log") as url:
        yield url


def test_there_is_something_to_run():
    assert (len(FIRST), len(RECIPES), len(PYTHON)) == (1, 5, 2)
    others = {name: len(blocks) for name, blocks in BLOCKS.items() if blocks and name not in RUN_ELSEWHERE}
    assert others == {"README.md": 1, "docs/serving.md": 1, "docs/python.md": 3, "docs/batches.md": 1}


@pytest.mark.parametrize(("command", "answer"), FIRST)
def test_the_first_minute(default, command, answer):
    found = asked(command, default)
    assert agree(answer, found), found


@pytest.mark.parametrize("code", PYTHON, ids=lambda code: code.split()[1])
def test_python(default, code):
    """The comment behind a line is its output."""
    command = [sys.executable, "-c", code.replace(f"http://{ADDRESS}", default)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    stated = re.findall(r"^print\(.*#\s*(.+)$", code, re.MULTILINE)
    assert agree("\n".join(stated), done.stdout), done.stdout


@pytest.mark.parametrize("code", BLOCKS["docs/python.md"], ids=lambda code: code.split()[1])
def test_python_without_a_server(tmp_path, code):
    for name, source in STAND_INS.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(source)
    (asked, stated) = next(SEEN[part] for part in SEEN if part in code)
    command = [sys.executable, "-c", f'texts = ["a cat", "a dog"]\n{code}\n{asked}']
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, stated), done.stderr


def test_a_batch(default, tmp_path):
    (code,) = BLOCKS["docs/batches.md"]
    seen = 'print([(answer["custom_id"], answer["response"]["status_code"]) for answer in answers])'
    command = [sys.executable, "-c", f"{code.replace(f'http://{ADDRESS}', default)}\n{seen}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[('text-0', 200), ('text-1', 200)]", done.stderr


@pytest.mark.parametrize(("config", "command", "answer"), RECIPES, ids=[config for config, *_ in RECIPES])
def test_a_recipe(tmp_path, config, command, answer):
    with serving(log=tmp_path / "log", config=ROOT / config) as url:
        found = asked(command, url)
    assert agree(answer, found), found


def test_files_of_texts(tmp_path):
    """The command of `bei embed`, on a file that it names."""
    (command,) = re.findall(r"^\.venv/bin/(bei embed \S+\.jsonl [^\n]+)$", BULK, re.MULTILINE)
    _, _, source, target, *flags = command.split()
    (tmp_path / source).write_text('{"body": "What is Deep Learning?"}\n{"body": "music"}\n')
    words = [sys.executable, "-P", "-m", "bei.cli", "embed", source, target, *flags]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "BEI_CONFIG": str(ROOT / "config.yaml")}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert pq.read_table(tmp_path / target)["embedding"].type.list_size == 384
