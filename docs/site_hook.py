"""The repository's pages and files in the site of docs/, for mkdocs.

Pages that stand elsewhere become pages of the site, and files that pages link to are copied beside them, so that no
link leaves the site.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmarks.md",
    "examples/README.md": "examples.md",
    "examples/ray-serve/README.md": "ray-serve.md",
    "examples/small-models/README.md": "small-models.md",
}
"""Path in the repository → page of the site; those below docs/ keep their names."""
ELSEWHERE = re.compile(r"https://[\w.]+/iframe-worker/shim")
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")


def place(target: str) -> str | None:
    """The place in the site of a path in the repository; None for a folder."""
    if target in PAGES:
        return PAGES[target]
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    return f"files/{target}" if (ROOT / target).is_file() else None


def rewritten(text: str, source: str) -> tuple[str, set[str]]:
    """The text of a page, its links as they are in the site, and the files of the repository that it links to. A link
    to a folder becomes plain text."""
    copied: set[str] = set()

    def link(found: re.Match[str]) -> str:
        path, mark, anchor = found[2].partition("#")
        if not path or "://" in path:
            return found[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        there = place(target)
        if there is None:
            return found[1]
        if there.startswith("files/"):
            copied.add(target)
        return f"[{found[1]}]({there}{mark}{anchor})"

    return LINK.sub(link, text), copied


def on_files(files: Files, config: Any) -> Files:
    sources = {page: source for source, page in PAGES.items()}
    sources |= {file.src_uri: f"docs/{file.src_uri}" for file in files.documentation_pages()}
    copied: set[str] = set()
    for page, source in sources.items():
        text, linked = rewritten((ROOT / source).read_text(), source)
        copied |= linked
        if (old := files.get_file_from_path(page)) is not None:
            files.remove(old)
        files.append(File.generated(config, page, content=text))
    for path in sorted(copied):
        files.append(File.generated(config, f"files/{path}", abs_src_path=str(ROOT / path)))
    return files


def on_post_page(output: str, **_: Any) -> str:
    """The page with the search's script of its own in place of the one that the plugin names elsewhere."""
    return ELSEWHERE.sub("assets/iframe-worker.js", output)


def on_post_template(output_content: str, **_: Any) -> str:
    return on_post_page(output_content)
