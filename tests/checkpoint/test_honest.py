"""The files of a checkpoint are obeyed or refused by name: each of these cases once loaded as something else without a
word."""

import asyncio
import json
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling
from transformers import LlamaConfig, LlamaForSequenceClassification

from bei.architectures import spec as words
from bei.checkpoint.load import read
from bei.engines.base import EngineOptions
from bei.engines.native.engine import NativeEngine
from bei.engines.torch.engine import TorchEngine
from bei.errors import Invalid, SetupError
from bei.serving.answers import Options
from tests.support.language_models import byte_level, language_model, save_language_model
from tests.support.tiny_models import change_module, random_model, save, word_pieces, write_json, write_modules

QUERY = "the cat"
TEXTS = ["the cat sat on the mat", "dog", "it ran under a big old tree, then it sat!", "the " * 40, "Red BLUE ..."]


def edit(file, **changes) -> None:
    """Set keys of a JSON file; None removes."""
    content = {**(json.loads(file.read_text()) if file.exists() else {}), **changes}
    write_json(file, {key: value for key, value in content.items() if value is not None})


def scores(start_service, checkpoint, engine=TorchEngine, **options) -> np.ndarray:
    service = start_service(engine(checkpoint, EngineOptions(precision="fp32", threads=1, **options)), checkpoint)
    return asyncio.run(service.model.rerank(QUERY, TEXTS, scoring="identity")).rows


# --- weights ---------------------------------------------------------------------------------------------------------


def test_a_single_file_comes_before_an_index(tmp_path):
    """As transformers: shards that an older save left beside it are not read."""
    folder = save(tmp_path, random_model("bert", 1))
    older = save(tmp_path / "older", random_model("bert", 2))
    stored = load_file(older / "model.safetensors")
    save_file(stored, folder / "model-00001-of-00001.safetensors")
    write_json(
        folder / "model.safetensors.index.json",
        {"weight_map": dict.fromkeys(stored, "model-00001-of-00001.safetensors")},
    )
    expected = load_file(folder / "model.safetensors")["embeddings.word_embeddings.weight"]
    np.testing.assert_array_equal(read(folder, "m").tensors["embeddings.token"], expected)


def test_a_classifier_that_config_json_does_not_name_is_told(tmp_path, caplog):
    folder = save(tmp_path, random_model("bert", 0, "ForSequenceClassification", num_labels=1), pooling=None)
    edit(folder / "config.json", architectures=["BertModel"])
    assert read(folder, "m").task == "embedding"
    assert "classifier.weight" in caplog.text
    assert "ForSequenceClassification" in caplog.text


def test_an_embedder_s_leftover_of_pretraining_is_not_told(tmp_path, caplog):
    read(save(tmp_path, random_model("bert", 0, "ForMaskedLM"), pooling={"pooling_mode": "mean"}), "m")
    assert caplog.text == ""


# --- tasks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["bert", "qwen2"])
@pytest.mark.parametrize("head", ["ForRewardModel", "ForQuestionAnswering", "ForMultipleChoice", "ForTextEncoding"])
def test_a_head_that_is_not_served_is_refused_by_name(tmp_path, model_type, head):
    folder = save(tmp_path, random_model(model_type), pooling=None)
    edit(folder / "config.json", architectures=[f"Some{head}"])
    with pytest.raises(SetupError, match=rf"config\.json: Some{head} is not supported.*BEI_POOLING"):
        read(folder, "m")
    assert read(folder, "m", pooling="mean").task == "embedding"
    write_modules(folder, {"Transformer": "", "Pooling": "1_Pooling"})
    write_json(folder / "1_Pooling" / "config.json", {"pooling_mode": "mean"})
    assert read(folder, "m").task == "embedding"


def test_regression_gives_the_number_as_it_is(tmp_path, start_service):
    model = random_model("bert", 0, "ForSequenceClassification", num_labels=1, problem_type="regression")
    folder = save(tmp_path, model, pooling=None)
    checkpoint = read(folder, "m")
    assert checkpoint.scoring == "identity"
    service = start_service(TorchEngine(checkpoint, EngineOptions(precision="fp32")), checkpoint)
    (row,) = asyncio.run(service.model.classify([TEXTS[0]])).rows
    ids = torch.tensor([word_pieces().encode(TEXTS[0]).ids])
    with torch.no_grad():
        assert row[0] == pytest.approx(float(model(ids).logits[0, 0]), abs=1e-5)


# --- sentence-transformers' modules -----------------------------------------------------------------------------------


def modular_cross_encoder(folder, outputs: int = 1, activation: torch.nn.Module | None = None, **options):
    """As sentence-transformers 6 saves a model that is not a *ForSequenceClassification (the ettin rerankers)."""
    base = save(folder / "base", random_model("modernbert"), pooling=None)
    torch.manual_seed(1)
    modules = [
        Transformer(str(base), max_seq_length=48),
        Pooling(48, "mean"),
        Dense(48, 24, activation_function=torch.nn.GELU()),
        LayerNorm(24),
        Dense(24, outputs, activation_function=torch.nn.Identity(), module_output_name="scores"),
    ]
    CrossEncoder(modules=modules, device="cpu", activation_fn=activation, **options).save(str(folder / "model"))
    return CrossEncoder(str(folder / "model"), device="cpu"), folder / "model"


@pytest.mark.parametrize("engine", [TorchEngine, NativeEngine])
@pytest.mark.parametrize("activation", [None, torch.nn.Identity()])
def test_a_modular_cross_encoder_is_a_reranker(tmp_path, start_service, native_cache, engine, activation):
    reference, folder = modular_cross_encoder(tmp_path, activation=activation)
    checkpoint = read(folder, "m")
    assert checkpoint.task == "reranker"
    assert checkpoint.scoring == ("identity" if activation else "sigmoid")
    options = EngineOptions(precision="fp32", threads=1, cache_dir=native_cache)
    service = start_service(engine(checkpoint, options), checkpoint)
    expected = reference.predict([(QUERY, text) for text in TEXTS])
    np.testing.assert_allclose(asyncio.run(service.model.rerank(QUERY, TEXTS)).rows, expected, atol=2e-5)


def test_a_modular_cross_encoder_of_several_labels_is_a_classifier(tmp_path, start_service):
    reference, folder = modular_cross_encoder(tmp_path, 3)
    with pytest.raises(SetupError, match="id2label"):
        read(folder, "m")
    edit(folder / "config.json", id2label={"0": "a", "1": "b", "2": "c"})
    checkpoint = read(folder, "m")
    assert (checkpoint.task, checkpoint.labels) == ("classifier", ("a", "b", "c"))
    service = start_service(TorchEngine(checkpoint, EngineOptions(precision="fp32")), checkpoint)
    expected = reference.predict([(QUERY, text) for text in TEXTS])
    answer = asyncio.run(service.model.classify([(QUERY, text) for text in TEXTS]))
    np.testing.assert_allclose(answer.rows, expected, atol=2e-5)


def test_a_cross_encoder_s_prompts_go_before_the_query(tmp_path, start_service):
    prompts = {"web": "then it was ", "other": "a big "}
    reference, folder = modular_cross_encoder(tmp_path, prompts=prompts, default_prompt_name="web")
    checkpoint = read(folder, "m")
    service = start_service(TorchEngine(checkpoint, EngineOptions(precision="fp32")), checkpoint)
    pairs = [(QUERY, text) for text in TEXTS]
    np.testing.assert_allclose(
        asyncio.run(service.model.rerank(QUERY, TEXTS)).rows, reference.predict(pairs), atol=2e-5
    )
    answer = asyncio.run(service.model.rerank(QUERY, TEXTS, options=Options(prompt_name="other")))
    np.testing.assert_allclose(answer.rows, reference.predict(pairs, prompt_name="other"), atol=2e-5)


def test_a_cross_encoder_without_scores_is_refused(tmp_path):
    folder = save(tmp_path, random_model("bert"))
    write_json(folder / "config_sentence_transformers.json", {"model_type": "CrossEncoder"})
    with pytest.raises(SetupError, match="a CrossEncoder whose modules end in no Dense"):
        read(folder, "m")


@pytest.mark.parametrize("kind", ["custom_st.Transformer", "modeling.Pooling", "sentence_transformersX.models.Dense"])
def test_a_module_of_the_repository_s_own_is_refused(tmp_path, kind):
    folder = save(tmp_path, random_model("bert"))
    change_module(folder, 0, type=kind)
    with pytest.raises(SetupError, match=rf"modules\.json: '{kind}' is code of the repository's own"):
        read(folder, "m")


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        ("Dense", {"module_input_name": "token_embeddings"}, "module_input_name 'token_embeddings' after the pooling"),
        ("Dense", {"module_output_name": "scores"}, "module_output_name 'scores' of a model that is not"),
        ("Dense", {"module_output_name": "other"}, "module_output_name 'other' is not supported"),
        ("Normalize", {"module_input_name": "token_embeddings"}, "module_input_name 'token_embeddings' after the"),
    ],
)
def test_a_module_that_reads_elsewhere_is_refused(tmp_path, kind, config, message):
    folder = save(tmp_path, random_model("bert"))
    write_modules(folder, {"Transformer": "", "Pooling": "1_Pooling", kind: "2"})
    write_json(folder / "2" / "config.json", {"in_features": 48, "out_features": 1, **config})
    save_file(
        {"linear.weight": np.ones((1, 48), np.float32), "linear.bias": np.ones(1, np.float32)},
        folder / "2" / "model.safetensors",
    )
    with pytest.raises(SetupError, match=message):
        read(folder, "m")


def test_arguments_for_transformers_are_obeyed(tmp_path, start_service):
    """sentence_bert_config.json overrides config.json, under the names of either version."""
    folder = save(tmp_path, random_model("bert"), pooling={"pooling_mode": "mean", "embedding_dimension": 48})
    plain = read(folder, "m").spec
    for name in ("config_kwargs", "config_args", "model_kwargs", "model_args"):
        write_json(folder / "sentence_bert_config.json", {name: {"hidden_act": "relu", "trust_remote_code": True}})
        assert read(folder, "m").spec == replace(plain, activation="relu")
    write_json(folder / "sentence_bert_config.json", {"config_kwargs": {"hidden_act": "relu"}})
    checkpoint = read(folder, "m")
    service = start_service(TorchEngine(checkpoint, EngineOptions(precision="fp32")), checkpoint)
    expected = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(asyncio.run(service.model.embed(TEXTS, normalize=False)).rows, expected, atol=2e-5)
    write_json(folder / "sentence_bert_config.json", {"processor_kwargs": {"model_max_length": 7}})
    assert read(folder, "m").max_tokens == 7


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"processor_kwargs": {"do_lower_case": False}}, "processor_kwargs: 'do_lower_case' is not supported"),
        ({"tokenizer_args": {"add_eos_token": True}}, "processor_kwargs: 'add_eos_token' is not supported"),
        ({"processing_kwargs": {"text": {"max_length": 9}}}, "processing_kwargs: 'max_length' is not supported"),
        ({"processing_kwargs": {"common": {"add_special_tokens": False}}}, "processing_kwargs: 'add_special_tokens'"),
        ({"modality_config": {"text": {"method_output_name": "pooler_output"}}}, "last hidden states"),
        ({"module_output_name": "sentence_embedding"}, "last hidden states"),
        ({"config_kwargs": {"hidden_act": "strange"}}, "activation 'strange'"),
    ],
)
def test_arguments_for_transformers_are_refused(tmp_path, stated, message):
    folder = save(tmp_path, random_model("bert"))
    write_json(folder / "sentence_bert_config.json", stated)
    with pytest.raises(SetupError, match=message):
        read(folder, "m")


# --- code of a repository's own ---------------------------------------------------------------------------------------

GRIT = {"AutoModel": "modeling_gritlm7b.MistralForCausalLM", "AutoConfig": "configuration_grit.MistralConfig"}


def test_a_decoder_whose_own_code_decides_what_is_seen_is_refused(tmp_path):
    folder = save(tmp_path, random_model("mistral"), pooling=None)
    edit(folder / "config.json", auto_map=GRIT)
    with pytest.raises(SetupError, match=r"modeling_gritlm7b\.MistralForCausalLM.*BEI_ATTENTION"):
        read(folder, "m")
    assert read(folder, "m", attention="causal").spec.causal
    assert not read(folder, "m", attention="bidirectional").spec.causal


@pytest.mark.parametrize(
    ("model_type", "changes", "causal"),
    [
        ("qwen2", {"auto_map": {"AutoModel": "modeling_qwen.Qwen2Model"}, "is_causal": False}, False),
        ("qwen2", {"auto_map": {"AutoModel": "modeling_qwen.Qwen2Model"}, "is_causal": True}, True),
        ("llama", {"auto_map": {"AutoConfig": "configuration_x.XConfig"}}, True),
        ("llama", {"auto_map": {"AutoModel": "m.LlamaBidirectionalModel"}, "model_type": "llama_bidirec"}, False),
    ],
)
def test_a_decoder_that_says_what_is_seen_is_served(tmp_path, caplog, model_type, changes, causal):
    folder = save(tmp_path, random_model(model_type), pooling={"pooling_mode": "lasttoken"})
    edit(folder / "config.json", **changes)
    assert read(folder, "m").spec.causal == causal
    assert ("code of its own that is not run" in caplog.text) == (model_type == "qwen2")


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen3", "bert", "modernbert", "gemma"])
@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"pooling": "avg"}, "pooling 'avg' is not supported with this head, which pools"),
        ({"pooling": "strange"}, "pooling 'strange' is not supported"),
        ({"temperature": 0.2}, "temperature 0.2 is not supported with this head; remove the key if"),
    ],
)
def test_a_classifier_whose_config_states_another_pooling_is_refused(tmp_path, model_type, stated, message):
    folder = save(tmp_path, random_model(model_type, 0, "ForSequenceClassification", num_labels=1), pooling=None)
    usual = "cls" if model_type in ("bert", "modernbert") else "last"
    edit(folder / "config.json", pooling=usual, temperature=1.0)
    assert read(folder, "m").task == "reranker"
    edit(folder / "config.json", **stated)
    with pytest.raises(SetupError, match=message):
        read(folder, "m")


def test_the_setting_does_not_contradict_a_checkpoint(tmp_path):
    folder = save(tmp_path, random_model("llama"))
    edit(folder / "config.json", is_causal=False)
    with pytest.raises(SetupError, match=r"BEI_ATTENTION is causal, but config\.json"):
        read(folder, "m", attention="causal")
    with pytest.raises(SetupError, match="BEI_ATTENTION is causal, but"):
        read(save(tmp_path / "bert", random_model("bert")), "m", attention="causal")


def test_an_encoder_s_own_code_is_told_unless_it_is_ours(tmp_path, caplog):
    folder = save(tmp_path, random_model("gte"))
    edit(folder / "config.json", model_type="new", auto_map={"AutoModel": "Alibaba-NLP/new-impl--modeling.NewModel"})
    read(folder, "m")
    assert caplog.text == ""
    edit(folder / "config.json", auto_map={"AutoModel": "modeling.ReallyNewModel"})
    read(folder, "m")
    assert "modeling.ReallyNewModel" in caplog.text


# --- language models that rerank --------------------------------------------------------------------------------------


def says_so_by_card(folder):
    card = "---\nlicense: apache-2.0\npipeline_tag: text-ranking\ntags:\n- finance\n---\n# A model"
    (folder / "README.md").write_text(card)


def says_so_by_tag(folder):
    (folder / "README.md").write_text("---\ntags: [sentence-transformers, reranker]\n---\n")


def says_so_by_chat_template(folder):
    roles = "{% for m in messages %}{% if m['role'] == 'query' %}Q{% elif m['role'] == 'document' %}D{% endif %}"
    (folder / "chat_template.jinja").write_text(roles + "{% endfor %}")


def says_so_by_tokenizer(folder):
    roles = '{% if m.role == "query" %}Q{% elif m.role == "document" %}D{% endif %}'
    edit(folder / "tokenizer_config.json", chat_template=roles)


def says_so_by_sentence_transformers(folder):
    write_json(folder / "config_sentence_transformers.json", {"model_type": "CrossEncoder"})


@pytest.mark.parametrize(
    "say",
    [
        says_so_by_card,
        says_so_by_tag,
        says_so_by_chat_template,
        says_so_by_tokenizer,
        says_so_by_sentence_transformers,
    ],
)
def test_a_reranker_without_a_known_template_asks_for_one(tmp_path, say):
    folder = save_language_model(tmp_path, language_model("qwen3"))
    assert read(folder, "org/judge").task == "embedding"
    say(folder)
    with pytest.raises(SetupError, match="BEI_RERANK_TEMPLATE"):
        read(folder, "org/judge")
    assert read(folder, "org/judge", rerank_template="qwen3").task == "reranker"
    if say is not says_so_by_sentence_transformers:
        assert read(folder, "org/judge", rerank_template="none").task == "embedding"


LAUGHS = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10))
CARDS = {
    "lines": "---" + "\n" * 65_000,
    "laughs": f"---\na0: &a0 [ha, ha]\n{LAUGHS}tags: [*a9]\n---\n",
    "lists": "---\nx: " + "[" * 60_000 + "\n---\n",
    "no date": "---\nx: 2024-99-99\n---\n",
    "a long number": "---\nx: " + "9" * 60_000 + "\n---\n",
    "hyphens": "---\ntags: " + "-" * 65_000,
}


@pytest.mark.parametrize("name", CARDS)
def test_a_model_card_takes_no_time_and_stops_nothing(tmp_path, name):
    """The card is foreign: as YAML these took 27 s or gigabytes, or ended in a traceback."""
    folder = save_language_model(tmp_path, language_model("qwen3"))
    (folder / "README.md").write_text(CARDS[name])
    started = time.thread_time()
    assert read(folder, "m").task == "embedding"
    assert time.thread_time() - started < 5


def test_a_tag_is_all_of_it(tmp_path):
    folder = save_language_model(tmp_path, language_model("qwen3"))
    (folder / "README.md").write_text(
        "---\nlicense: mit\ntags:\n  - not a reranker\nwidget:\n- reranker\n---\nreranker"
    )
    assert read(folder, "m").task == "embedding"
    (folder / "README.md").write_text("---\ntags:\n  - a\n  - 'Reranker'\n---\n")
    with pytest.raises(SetupError, match="BEI_RERANK_TEMPLATE"):
        read(folder, "m")


def test_a_kind_of_reranker_that_has_no_template_asks_for_one(tmp_path):
    folder = save_language_model(tmp_path, language_model("llama"))
    with pytest.raises(SetupError, match="BEI_RERANK_TEMPLATE"):
        read(folder, "org/llama-rerank")


@pytest.mark.parametrize("name", ["rerankers/tiny", "/models/rerankers/tiny/", "s3://rerank/tiny", "rerank-lab/tiny"])
def test_the_name_is_the_repository_s_own(tmp_path, name):
    folder = save_language_model(tmp_path, language_model("qwen3"))
    assert read(folder, name).task == "embedding"
    assert read(folder, f"{name.rstrip('/')}-reranker").task == "reranker"


class Nemotron(LlamaForSequenceClassification):
    """llama-nemotron-rerank's own class, as its card describes it: bidirectional attention, mean pooling, and a
    temperature."""

    def scores(self, ids: torch.Tensor) -> torch.Tensor:
        length = ids.shape[1]
        mask = torch.zeros(1, 1, length, length)
        states = self.model(inputs_embeds=self.model.embed_tokens(ids), attention_mask=mask).last_hidden_state
        pooled = {"avg": states[0].mean(0), "cls": states[0, 0], "last": states[0, -1]}[self.config.pooling]
        return self.score(pooled) / self.config.divisor


@pytest.mark.parametrize("engine", [TorchEngine, NativeEngine])
@pytest.mark.parametrize(("pooling", "temperature"), [("avg", 1.0), ("avg", 0.2), ("cls", 1.0), ("last", 3.0)])
def test_nemotron_rerank(tmp_path, start_service, native_cache, engine, pooling, temperature):
    tokenizer = byte_level()
    tokenizer.add_special_tokens(["<|begin_of_text|>"])
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96}
    options = {"vocab_size": 320, "num_key_value_heads": 2, "initializer_range": 0.2, "num_labels": 1}
    config = LlamaConfig(**sizes, **options, pad_token_id=0, attn_implementation="eager")
    config.pooling, config.divisor = pooling, temperature
    model = Nemotron(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    name = "LlamaBidirectionalForSequenceClassification"
    own = {"AutoModelForSequenceClassification": f"llama_bidirectional_model.{name}"}
    edit(tmp_path / "config.json", architectures=[name], model_type="llama_bidirec", auto_map=own)
    edit(tmp_path / "config.json", pooling=pooling, temperature=temperature, divisor=None)
    prompts = [f"<|begin_of_text|>question:{QUERY} \n \n passage:{text}" for text in TEXTS]
    with torch.no_grad():
        expected = [float(model.scores(torch.tensor([tokenizer.encode(prompt).ids]))) for prompt in prompts]
    checkpoint = read(tmp_path, "nvidia/llama-nemotron-rerank-1b-v2")
    assert checkpoint.task == "reranker"
    options = {"cache_dir": native_cache} if engine is NativeEngine else {}
    found = scores(start_service, checkpoint, engine, **options)
    assert np.abs(found - expected).max() <= 2e-5 * max(1, np.abs(expected).max())


def test_a_template_without_an_instruction_refuses_one(tmp_path, start_service):
    tokenizer_folder = save_language_model(
        tmp_path, random_model("llama", 0, "ForSequenceClassification", num_labels=1)
    )
    checkpoint = read(tokenizer_folder, "m", rerank_template="nemotron")
    service = start_service(TorchEngine(checkpoint, EngineOptions(precision="fp32")), checkpoint)
    with pytest.raises(Invalid, match="`instruction`: this model takes none"):
        asyncio.run(service.model.rerank(QUERY, TEXTS, options=Options(instruction="Find rhymes.")))


@pytest.mark.parametrize(
    ("changes", "modes"),
    [({"pooling": "avg"}, ("mean",)), ({"pooling": "last"}, ("last",)), ({}, ("mean",))],
)
def test_an_embedder_pools_as_its_config_says(tmp_path, changes, modes):
    folder = save(tmp_path, random_model("llama"), pooling=None)
    edit(folder / "config.json", model_type="llama_bidirec", **changes)
    assert read(folder, "m").spec.pooling == words.Pooling(modes)
    edit(folder / "config.json", pooling="colbert")
    with pytest.raises(SetupError, match=r"config\.json: pooling 'colbert' is not supported"):
        read(folder, "m")
