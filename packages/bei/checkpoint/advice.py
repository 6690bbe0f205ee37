"""The command that converts a checkpoint of pickles to safetensors. It uses the class that saved the checkpoint:
another class would lose the head."""

import re
from pathlib import Path

from bei.checkpoint.modules import read_json

_LIBRARY_CLASSES = ("SentenceTransformer", "SparseEncoder", "CrossEncoder", "MultiVectorEncoder")
_CLASS = re.compile(r"[A-Z][A-Za-z0-9]{1,80}")


def conversion(folder: Path, repo: str) -> str:
    """One line, with a command for a shell."""
    repo = repo.replace("'", "").replace('"', "")
    if (folder / "modules.json").exists():
        saved_as = read_json(folder / "config_sentence_transformers.json").get("model_type")
        kind = saved_as if saved_as in _LIBRARY_CLASSES else _LIBRARY_CLASSES[0]
        code = f"from sentence_transformers import {kind} as M; M('{repo}', device='cpu').save_pretrained('model')"
    else:
        code = (
            f"import transformers as t; r='{repo}'; "
            f"t.{_model_class(folder)}.from_pretrained(r).save_pretrained('model'); "
            "t.AutoTokenizer.from_pretrained(r).save_pretrained('model')"
        )
    return f'convert it once: python -c "{code}" and serve the folder with source LOCAL'


def _model_class(folder: Path) -> str:
    """transformers' own: config.json's first architecture."""
    config = read_json(folder / "config.json")
    named = config.get("architectures")
    name = named[0] if isinstance(named, list) and named else ""
    known = isinstance(name, str) and _CLASS.fullmatch(name) and ("For" in name or name.endswith("Model"))
    return name if known and not config.get("auto_map") else "AutoModel"
