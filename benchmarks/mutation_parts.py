"""The parts of the engine that `python -m benchmarks.mutation` mutates, and their tests."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """`sources` are mutated: a `file`, or functions of it as `file:one,another`. `tests` should notice each fault; the
    quickest come first. All are paths of the tree."""

    sources: tuple[str, ...]
    tests: tuple[str, ...]


def _of(folder: str, names: str) -> tuple[str, ...]:
    return tuple(f"{folder}/{name}" for name in names.split())


_BEI = "packages/bei"
PARTS: Mapping[str, Part] = {
    "api": Part(
        (
            *_of(
                f"{_BEI}/api", "bodies.py error_shapes.py fields.py inputs.py readings.py reply.py shapes.py written.py"
            ),
            *_of(f"{_BEI}/api", "chunking.py output.py prompts.py named_entities.py zero_shot.py"),
            *_of(f"{_BEI}/api", "baseten.py cohere.py infinity.py llama_cpp.py nvidia.py ollama.py openai.py"),
            *_of(f"{_BEI}/api", "shared.py tei.py vllm.py"),
        ),
        (
            *_of("tests/api", "test_shapes.py test_written.py test_output.py test_fields.py test_answer.py"),
            *_of("tests/api", "test_dialects.py test_tasks.py test_names.py test_families.py test_chunking.py"),
            *_of("tests/tasks", "test_named_entities.py test_zero_shot.py"),
        ),
    ),
    "batching": Part(
        _of(_BEI, "batching.py slots.py"), _of("tests", "test_batching.py test_slots.py test_scheduler.py")
    ),
    "tasks": Part(
        (
            *_of(f"{_BEI}/tasks", "entities.py late_interaction.py linear.py lstm.py m3.py named_entities.py"),
            *_of(f"{_BEI}/tasks", "precision.py schema_labels.py scores.py span_head.py sparse.py vectors.py"),
        ),
        (
            *_of("tests/tasks", "test_scores.py test_precision.py test_aggregation.py test_vectors.py"),
            *_of("tests/tasks", "test_entities.py test_named_entities.py test_gliner2.py"),
        ),
    ),
    "pooling": Part(
        _of(f"{_BEI}/engines", "base.py torch/pooling.py"),
        (
            *_of("tests/engines", "test_batches.py test_pooling.py::test_device_equals_oracle"),
            "tests/engines/test_pooling.py::test_oracle_equals_sentence_transformers",
        ),
    ),
    "plan-keys": Part(
        _of(f"{_BEI}/engines", "plan.py native/engine.py:_plan tensorrt/engine.py:_plan"),
        ("tests/engines/test_plan.py",),
    ),
    "scales": Part(
        _of(f"{_BEI}/engines", "compute.py native/pack.py native/panels.py small_floats.py quantization.py"),
        (
            *_of(
                "tests/engines",
                "test_scales.py test_int4.py test_quantization.py test_bart.py test_native.py::test_int8_is_near",
            ),
            "tests/checkpoint/test_quantized.py",
        ),
    ),
    "windows": Part(
        _of(f"{_BEI}/tokenizer", "template.py windows.py how.py pairs.py places.py"),
        _of("tests", "test_places.py test_windows.py test_tokenizer.py"),
    ),
}
