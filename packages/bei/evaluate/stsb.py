"""STS-B: the correlation of a model's scores of sentence pairs with those of people."""

from collections.abc import Callable, Sequence

import httpx
import numpy as np

from bei.errors import SetupError, one_line
from bei.evaluate.statistics import Estimate, bootstrap, cosines, spearman
from bei.inprocess import Model
from bei.progress import Bar, is_watched
from bei.samples.stsb import pairs
from bei.settings import Settings

_TASKS = ("embedding", "multi_vector", "reranker")
_TEXTS, _SECONDS = 128, 120.0


def of_model(settings: Settings) -> tuple[str, Estimate]:
    """The precision and the device, and Spearman's correlation. Raises SetupError for a model without scores."""
    of = pairs()
    with Model.of(settings) as model:
        if model.task not in _TASKS:
            raise SetupError(f"STS-B is for {', '.join(_TASKS)} models; this one is a {model.task} model: use --texts")
        scores = model.score(list(zip(of.first, of.second, strict=True)), show_progress=is_watched())
        return model.computes_in, _correlation(scores)


def of_server(url: str, model: str, headers: dict[str, str]) -> Estimate:
    """The same over HTTP, by the cosines of a server's vectors from /v1/embeddings. Raises SetupError."""
    of = pairs()
    with (
        httpx.Client(headers=headers, timeout=_SECONDS, trust_env=False) as client,
        Bar(2 * len(of.scores), "texts", name="eval") as bar,
    ):

        def embed(texts: Sequence[str]) -> np.ndarray:
            answer = client.post(f"{url}/v1/embeddings", json={"input": texts, "model": model})
            if answer.status_code != 200:
                raise SetupError(f"{url}/v1/embeddings: {answer.status_code} {one_line(answer.text)}")
            bar.add(len(texts))
            return np.array([one["embedding"] for one in answer.json()["data"]], np.float32)

        try:
            return _correlation(cosines(_in_parts(embed, of.first), _in_parts(embed, of.second)))
        except httpx.TransportError as exc:
            raise SetupError(f"{url} does not answer: {one_line(exc)}") from None


def _in_parts(embed: Callable[[Sequence[str]], np.ndarray], texts: Sequence[str]) -> np.ndarray:
    return np.concatenate([embed(texts[at : at + _TEXTS]) for at in range(0, len(texts), _TEXTS)])


def _correlation(scores: np.ndarray) -> Estimate:
    return bootstrap(np.stack([scores, np.array(pairs().scores)], axis=1), spearman)
