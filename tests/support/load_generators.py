"""The options of load generators, as the sources of the versions that docs/clients.md names have them.
tests/api/test_recorded.py has their requests."""

import argparse
from collections.abc import Sequence

from bei import api

PATHS = {route.path for route in api.ROUTES}

Words = Sequence[str]


def options_of(words: Words, *positional: str, **options: object) -> argparse.Namespace:
    """As a program with these options parses them; another option fails the test."""
    parser = argparse.ArgumentParser(exit_on_error=False, add_help=False, allow_abbrev=False)
    for name in positional:
        parser.add_argument(name)
    for name, how in options.items():
        parser.add_argument(f"-{name}" if len(name) == 1 else f"--{name.replace('_', '-')}", dest=name, **how)
    found, unknown = parser.parse_known_args(words)
    assert unknown == [], f"no rule for {unknown}"
    return found


def aiperf(words: Words) -> None:
    if words == ("profile",):
        return
    kinds = {"choices": ["TYPE", "embeddings", "nim-embeddings", "nim-rankings", "cohere-rankings", "hf-tei-rankings"]}
    options = {name: {} for name in ("m", "url", "request_count", "concurrency", "tokenizer")}
    assert options_of(words, "command", **options, endpoint_type=kinds).command == "profile"


def vllm(words: Words) -> None:
    """A backend has its endpoint."""
    backends = {"openai-embeddings": "/v1/embeddings", "vllm-pooling": "/pooling", "vllm-rerank": "/v1/rerank"}
    options = {name: {} for name in ("base_url", "model", "dataset_name", "backend", "endpoint")}
    found = options_of(words, "group", "command", **options)
    assert (found.group, found.command) == ("bench", "serve")
    assert found.endpoint in PATHS and backends[found.backend] == found.endpoint


def guidellm(words: Words) -> None:
    """Each of its options is a list of names with their values."""
    options = {name: {} for name in ("backend", "profile", "constraint", "data", "tokenizer")}
    found = vars(options_of(words, "command", **options))
    assert found.pop("command") == "run"
    fields = {option: dict(one.split("=") for one in value.split(",")) for option, value in found.items() if value}
    assert fields["backend"]["request_format"] in PATHS
    taken = {
        "openai_http": {"target", "request_format", "model"},
        "concurrent": {"streams"},
        "max_requests": {"count"},
        "synthetic_text": {"prompt_tokens"},
        "huggingface_auto": {"model"},
    }
    assert all(of.keys() - {"kind"} <= taken[of["kind"]] for of in fields.values())
