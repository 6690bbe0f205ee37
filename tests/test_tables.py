"""Tables that say one thing in several places: a word that is added to one of them is missed in the others here."""

import ast
import ctypes
import re
import typing
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from sentence_transformers.sentence_transformer.modules import Pooling

from bei import errors, launch, messages, router
from bei.api import ROUTES as ALL_ROUTES
from bei.api import operations
from bei.architectures import families, spec
from bei.architectures.config import ACTIVATIONS
from bei.architectures.family import HeadKind
from bei.architectures.limits import check_types
from bei.checkpoint import heads, modules, own_code, reranking, task, tensors
from bei.engines import base, compute
from bei.engines.choice import ENGINES
from bei.engines.native import abi
from bei.engines.tensorrt import inputs as tensorrt
from bei.engines.tensorrt import products
from bei.engines.torch import linear, weights
from bei.engines.torch.inputs import Inputs
from bei.engines.torch.pooling import _Reduction
from bei.serving.routes import ROUTES
from bei.settings import DefaultRoute, PoolingSetting, RerankTemplate, Settings
from bei.settings.block import QuantizationType
from bei.settings.gpus import NEEDS
from bei.tasks import scores
from docs import models as docs
from tests.support import task_models
from tests.support.servers import ROOT
from tests.support.tiny_models import FAMILIES

CPP = ROOT / "packages" / "bei" / "engines" / "native" / "cpp"
BEI = ROOT / "packages" / "bei"


def of_setting(name: str) -> set[str]:
    """The values that a setting may have."""
    return set(get_args(Settings.model_fields[name].annotation))


# --- pooling ----------------------------------------------------------------------------------------------------------

MODES = get_args(spec.PoolingMode)
STATES = np.random.default_rng(0).standard_normal((5, 3), np.float32)


def test_the_setting_has_every_mode():
    """A sum is SPLADE's alone, and SPLADE is no mode but a head and its pooling."""
    assert set(get_args(PoolingSetting)) == set(MODES) - {"sum"} | {"splade"}


def test_every_mode_of_sentence_transformers_is_one_of_ours():
    assert set(modules._MODES) == set(modules._FLAGS.values()) == set(Pooling.POOLING_MODES)
    assert len(modules._MODES) == len(set(modules._MODES.values()) & set(MODES))


@pytest.mark.parametrize("mode", MODES)
def test_every_engine_has_every_mode(mode):
    """The oracle, torch and TensorRT by what they compute, the native one by its number."""
    batch = base.Batch.pack([[0] * 5])
    pooling = spec.Pooling((mode,))
    expected = base.pool(STATES, batch, pooling)
    of_mode = replace(families.FAMILIES["bert"].spec(docs.CONFIG), pooling=pooling)
    found = _Reduction(torch.from_numpy(STATES), Inputs.of(batch, of_mode), pooling)(mode)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)
    assert mode in abi.MODES
    if mode not in ("first", "last"):  # rows that are gathered, not summed
        name = f"pool_{mode}"
        weights = tensorrt.Inputs(of_mode).of(batch, (name,))[name][0]
        reduced = STATES.max(0) if mode == "max" else weights[: len(STATES)] @ STATES
        np.testing.assert_allclose(reduced, expected[0], rtol=1e-5)


def test_tei_s_names_for_modes():
    """clap's spelling on the command line, serde's in /info; a mode that TEI lacks is a mean there."""
    flags = {ours: theirs.replace("-", "_") for theirs, ours in router._POOLING.items()}
    assert flags == {"mean": "mean", "splade": "splade", **operations._TEI_POOLING}


# --- activations, norms, linear parts ---------------------------------------------------------------------------------


def test_every_engine_has_every_activation():
    names = set(get_args(spec.Activation))
    tables = (abi.ACTIVATIONS, linear.ACTIVATIONS, linear._FUSED)
    assert all(set(table) == names for table in tables)
    assert set(ACTIVATIONS.values()) | set(modules._ACTIVATIONS.values()) == names
    written = (BEI / "engines" / "tensorrt" / "parts.py").read_text()
    upper = {"relu": "RELU", "tanh": "TANH", "sigmoid": "SIGMOID"}  # those that TensorRT calls as we do
    assert names == {name for name in names if f'case "{name}"' in written} | set(upper)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch fuses by oneDNN")
@pytest.mark.parametrize("activation", sorted(get_args(spec.Activation)))
def test_what_a_cpu_fuses_is_the_activation(activation):
    x, weight = torch.randn(4, 32), torch.randn(8, 32)
    plain, packed = (kind(weight, None, activation) for kind in (linear.Linear, linear.PackedLinear))
    torch.testing.assert_close(packed(x), plain(x), atol=1e-5, rtol=1e-4)


def test_linear_parts_and_norms():
    assert set(spec.LINEARS) == set(get_args(spec.LinearName))
    assert {*spec.TWICE, *spec.PRE, *spec.SANDWICH} == set(get_args(spec.NormPlace))
    assert set(abi.LAYER_NORMS) == {*get_args(spec.NormPlace), "query_norm", "key_norm", "value_norm"}
    assert set(abi.NORMS) == set(get_args(typing.get_type_hints(spec.Norm)["kind"]))
    assert {type_.__name__ for type_ in get_args(spec.HeadLayer)} == {
        *("Dense", "LayerNorm", "Normalize", "Log1pRelu", "Int8Tanh"),
    }


def test_the_spec_alone_says_which_head_layers_are_wide():
    def dense(outputs: int) -> spec.Dense:
        return spec.Dense(8, outputs, True, "identity")

    bert = families.FAMILIES["bert"].spec(docs.CONFIG)
    wide, width = dense(bert.hidden_size), bert.hidden_size
    of_tokens = (wide, spec.LayerNorm(width), dense(width + 1), dense(width - 1))
    assert replace(bert, token_head=of_tokens, head=(wide,)).wide_layers == {"token_head.0", "token_head.2"}
    sources = [path for path in (BEI / "engines").rglob("*.py") if "outputs >=" in path.read_text()]
    assert sources == []


# --- the native engine's ABI ------------------------------------------------------------------------------------------

HEADER = re.sub(r"//[^\n]*", "", (CPP / "abi.h").read_text())


def enumerators() -> list[list[str]]:
    found = re.findall(r"enum \{([^}]*)\}", HEADER)
    return [[name.strip().removeprefix("BEI_").lower() for name in names.split(",")] for names in found]


def test_numbers_of_the_abi():
    precisions, stored, activations, norms, head_layers, modes, results = enumerators()
    tables = (abi.PRECISIONS, precisions), (abi.ACTIVATIONS, activations), (abi.NORMS, norms), (abi.MODES, modes)
    for table, names in tables:
        assert table == {name: number for number, name in enumerate(names)}
    assert {f"stored_{name}": number for name, number in abi.STORED.items()} == {of: n for n, of in enumerate(stored)}
    assert head_layers == ["dense", "layer_norm", "normalize", "log1p_relu", "int8_tanh"]
    assert tuple(range(len(head_layers))) == (
        *(abi.DENSE, abi.LAYER_NORM, abi.NORMALIZE, abi.LOG1P_RELU, abi.INT8_TANH),
    )
    assert sorted(abi.ERRORS) == list(range(1, len(results)))


def fields_in_c(name: str) -> list[tuple[str, str]]:
    (body,) = re.findall(rf"typedef struct \{{([^}}]*)\}} Bei{name};", HEADER)
    found = []
    for declaration in filter(None, map(str.strip, body.replace("* ", " *").split(";"))):
        kind, names = re.fullmatch(r"(?:const )?(\w+)\s+(.*)", declaration, re.DOTALL).groups()
        for field in names.split(","):
            found.append((field.split("*")[-1].strip(), "pointer" if "*" in field else kind.removeprefix("Bei")))
    return found


def kind_in_python(kind: type) -> str:
    if kind in (ctypes.c_void_p, ctypes.c_char_p) or issubclass(kind, ctypes._Pointer):
        return "pointer"
    return {ctypes.c_int32: "int32_t", ctypes.c_int64: "int64_t", ctypes.c_float: "float"}.get(kind, kind.__name__)


@pytest.mark.parametrize("name", re.findall(r"\} Bei(\w+);", HEADER))
def test_structures_of_the_abi(name):
    structure = getattr(abi, name)
    assert fields_in_c(name) == [(field, kind_in_python(kind)) for field, kind in structure._fields_]


# --- tasks, heads, roles, scores --------------------------------------------------------------------------------------


def test_every_task_has_all_that_a_task_needs():
    tasks = set(get_args(task.Task))
    for table in (heads._TASKS, ROUTES, launch._TRY, task_models.KINDS, task_models.OWN):
        assert set(table) == tasks
    own = {route for routes in ROUTES.values() for route in routes}
    assert set(get_args(DefaultRoute)) <= own
    assert own <= {route.path for route in ALL_ROUTES}


def test_kinds_of_heads():
    kinds = set(get_args(HeadKind))
    assert {kind for of in families.FAMILIES.values() for kind in of.heads} == kinds == set(docs.TASKS)


def test_scores():
    logits = np.array([[1.0, 2.0]], np.float32)
    assert all(scores.activate(logits, scoring) is not None for scoring in get_args(task.Scoring))
    assert set(task._TORCH_SCORINGS.values()) == set(task._BY_PROBLEM.values()) == set(get_args(task.Scoring))


def test_rerank_templates():
    assert set(get_args(RerankTemplate)) == {*reranking.TEMPLATES, "none"}
    assert {*reranking._BY_MODEL.values(), *reranking._BY_NAME.values()} == set(reranking.TEMPLATES)
    assert set(reranking._BY_MODEL) | set(own_code._OURS) <= set(families.FAMILIES)


# --- types, engines, families -----------------------------------------------------------------------------------------


def test_types_of_numbers():
    dtypes, quantizations = set(get_args(compute.Dtype)), set(get_args(compute.Quantization)) - {"none"}
    assert set(operations._DTYPES) == dtypes | quantizations
    integers = set(get_args(compute.Integers))
    assert of_setting("precision") - {"auto"} == dtypes | integers
    assert quantizations == integers | {kind.value for kind in QuantizationType if kind.value[:3] in NEEDS}
    formats = {compute.Compute("fp32", name).format for name in quantizations}
    assert dtypes | formats == set(get_args(compute.Operands))
    assert set(abi.PRECISIONS) < set(get_args(compute.Operands))
    assert set(products.NAMES) == set(weights._DTYPES) == dtypes
    assert {"float32", "float16", "bfloat16", "float8_e4m3fn"} == set(tensors._DTYPES.values())


def test_engines():
    assert of_setting("engine") == {*ENGINES, "auto"}


def test_every_family_has_a_tiny_model_and_a_row_in_the_docs():
    made_by_hand = {
        "jina_bert",
        "xlm-roberta-flash",
        "bart",
        "neobert",
        "new",
        "llama_bidirec",
        "ministral3_bidirec",
        "bidirectional_pplx_qwen3",
        "embedding_gemma2",
        "t5gemma",
    }  # transformers has no class for their files
    assert set(families.FAMILIES) == {*FAMILIES, *made_by_hand} == set(docs.MODELS)


# --- errors -----------------------------------------------------------------------------------------------------------


def all_errors() -> dict[str, type[errors.Error]]:
    return {name: of for name, of in vars(errors).items() if isinstance(of, type) and issubclass(of, errors.Error)}


def test_the_tree_of_errors_is_drawn_as_it_is():
    rows = re.findall(r"^( *)[*-] (\w+) +(\d+|-) *(\w*)", errors.__doc__, re.MULTILINE)
    drawn = {name: (status, kind) for _, name, status, kind in rows}
    assert set(drawn) == set(all_errors())
    for name, of in all_errors().items():
        if drawn[name][0] != "-":  # never sent
            assert drawn[name] == (str(of.status), of.kind)


ENGINE_SIDE = ("scheduler.py", "batching.py", "engines/isolated.py", "engines/child.py")


def test_every_error_of_an_engine_s_process_crosses_to_a_worker():
    """A worker makes an error of its name again; one that it does not know would end it."""
    raised = set()
    for file in ENGINE_SIDE:
        calls = (node.func for node in ast.walk(ast.parse((BEI / file).read_text())) if isinstance(node, ast.Call))
        raised |= {of.id for of in calls if isinstance(of, ast.Name) and of.id in all_errors()}
    assert raised - {"SetupError"} <= set(messages._ERRORS), "bei/messages.py: _ERRORS"
    for of in messages._ERRORS.values():
        assert of("a message").message == "a message"


# --- what is checked of a checkpoint ----------------------------------------------------------------------------------


def test_every_word_of_a_spec_is_of_a_type_that_is_checked():
    for model_type, of in families.FAMILIES.items():
        check_types(of.spec({**docs.CONFIG, "model_type": model_type}), spec.EncoderSpec, model_type)
