"""Writes models.md, the table of the served models, from the code: `make docs`. tests/test_docs.py compares them."""

from collections.abc import Callable
from pathlib import Path

from bei.architectures.base_model import base_model
from bei.architectures.families import FAMILIES
from bei.architectures.family import Family
from bei.checkpoint import not_served
from bei.checkpoint.reranking import TEMPLATES, template_of
from bei.engines.native import engine as native
from bei.engines.tensorrt import network as tensorrt
from bei.errors import SetupError
from docs import checkpoints

FILE = Path(__file__).with_suffix(".md")
MODELS = {
    "bert": ("BERT", "all-MiniLM, bge, e5, gte, mxbai-embed, snowflake-arctic-embed, ms-marco-MiniLM"),
    "roberta": ("RoBERTa", "all-distilroberta, roberta-base-go_emotions"),
    "xlm-roberta": ("XLM-RoBERTa", "bge-m3, multilingual-e5, bge-reranker-v2-m3"),
    "camembert": ("CamemBERT", "sentence-camembert"),
    "xlm-roberta-xl": ("XLM-RoBERTa-XL", "xlm-roberta-xl, xxl"),
    "xlm-roberta-flash": (
        "XLM-RoBERTa, Jina AI's",
        "jina-embeddings-v3, jina-colbert-v2, jina-reranker-v2-base-multilingual",
    ),
    "jina_embeddings_v3": ("the same, as transformers saves it", "jina-embeddings-v3-hf"),
    "ernie": ("ERNIE", "ernie-3.0, rocketqa"),
    "albert": ("ALBERT", "paraphrase-albert-small-v2"),
    "roformer": ("RoFormer", "roformer_chinese_base"),
    "big_bird": ("BigBird, up to 704 tokens", "bigbird-roberta-base"),
    "esm": ("ESM-2, ESM-1b", "esm2_t33_650M_UR50D"),
    "neobert": ("NeoBERT", "NeoBERT"),
    "bart": ("BART", "bart-large-mnli"),
    "electra": ("ELECTRA", "ms-marco-electra-base"),
    "distilbert": ("DistilBERT", "multi-qa-distilbert, opensearch-neural-sparse"),
    "mobilebert": ("MobileBERT", "mobilebert-uncased"),
    "mpnet": ("MPNet", "all-mpnet-base-v2, multi-qa-mpnet-base"),
    "deberta": ("DeBERTa", "deberta-base-mnli, deberta-large-mnli"),
    "deberta-v2": ("DeBERTa v2, v3", "mxbai-rerank-v1, deberta-v3-base-zeroshot, deberta-v2-xlarge"),
    "xlnet": ("XLNet", "xlnet-base-cased"),
    "jina_bert": ("JinaBERT v2", "jina-embeddings-v2, base-code included"),
    "nomic_bert": ("NomicBERT", "nomic-embed-text-v1, v1.5, v2-moe"),
    "new": ("GTE, new", "gte-multilingual-base, gte-large-en-v1.5, gte-multilingual-reranker"),
    "gte": ("GTE, as transformers saves it", ""),
    "t5": ("T5, encoder", "sentence-t5, gtr-t5, FRIDA"),
    "mt5": ("mT5, encoder", ""),
    "umt5": ("UMT5, encoder", ""),
    "modernbert": ("ModernBERT", "gte-modernbert-base, nomic modernbert-embed, gte-reranker-modernbert"),
    "eurobert": ("EuroBERT", "EuroBERT-210m to 2.1B"),
    "llama": ("Llama", "llama-embed-nemotron, Skywork-Reward-Llama"),
    "llama_bidirec": ("Llama, bidirectional", "llama-nemoretriever, llama-nemotron-rerank"),
    "mistral": ("Mistral", "e5-mistral-7b, SFR-Embedding-Mistral, Linq-Embed-Mistral"),
    "ministral3": ("Ministral 3", "Nemotron-3-Embed"),
    "ministral3_bidirec": ("Ministral 3, bidirectional", "Nemotron-3-Embed of its own code"),
    "qwen2": ("Qwen2", "gte-Qwen2, nomic-embed-code, mxbai-rerank-v2"),
    "qwen3": ("Qwen3", "Qwen3-Embedding, Qwen3-Reranker, voyage-4-nano"),
    "qwen3_moe": ("Qwen3-MoE", "Qwen3-30B-A3B fine-tuned to embed or classify"),
    "bidirectional_pplx_qwen3": ("Qwen3, bidirectional", "pplx-embed-v1"),
    "openai_privacy_filter": ("privacy-filter", "openai/privacy-filter"),
    "gemma": ("Gemma", "bge-reranker-v2-gemma"),
    "gemma2": ("Gemma 2", "bge-multilingual-gemma2"),
    "gemma3_text": ("Gemma 3, text", "embeddinggemma-300m"),
    "t5gemma": ("T5Gemma, its encoder", "t5gemma-2b-2b-ul2"),
    "embedding_gemma2": ("EmbeddingGemma 2, its text model", "embeddinggemma-2"),
    "embedding_gemma2_text": ("EmbeddingGemma 2, text", ""),
    "phi3": ("Phi-3", "Phi-3-mini, Phi-4-mini"),
    "granite": ("Granite", "granite-3.3-2b"),
    "smollm3": ("SmolLM3", "SmolLM3-3B"),
    "olmo2": ("OLMo 2", "OLMo-2-1B"),
    "olmo3": ("OLMo 3", "Olmo-3-7B"),
    "stablelm": ("StableLM", "stablelm-2-1_6b"),
    "gpt2": ("GPT-2", "gpt2"),
    "gpt_bigcode": ("GPT-BigCode", "starcoderbase"),
    "gpt_neo": ("GPT-Neo", "SGPT-125M, SGPT-1.3B"),
    "gptj": ("GPT-J", "SGPT-5.8B"),
    "gpt_neox": ("GPT-NeoX", "pythia"),
    "bloom": ("BLOOM", "sgpt-bloom-7b1-msmarco"),
    "opt": ("OPT", "opt-125m"),
    "starcoder2": ("StarCoder 2", "starcoder2-3b"),
    "cohere": ("Cohere", "c4ai-command-r"),
    "cohere2": ("Cohere 2", "c4ai-command-r7b"),
    "lfm2": ("LFM2, LFM2.5", "LFM2-ColBERT, LFM2.5-Embedding"),
    "modernbert-decoder": ("ModernBERT-decoder", "ettin-decoder"),
}
STATED = {
    "jina_bert": "bert` with `position_embedding_type: alibi",
    "xlm-roberta-flash": "xlm-roberta` with `use_flash_attn",
}
"""Families that are known by another key than `model_type`."""
CONFIG = {
    **{"pad_token_id": 0, "token_dropout": True, "mask_token_id": 4},
    **{"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"max_position_embeddings": 64, "head_dim": 16, "sliding_window": 8, "hidden_act": "silu"},
    **{"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 64},
    **{"d_model": 64, "d_kv": 16, "d_inner": 64, "d_ff": 64, "num_layers": 2, "num_heads": 4},
    **{"dim": 64, "hidden_dim": 64, "n_layers": 2, "n_heads": 4, "feed_forward_type": "geglu"},
    **{"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "ffn_dim": 64},
    **{"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "rotary_dim": 16},
    **{"relative_attention": True, "share_att_key": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8},
}
CONFIG["encoder"] = dict(CONFIG)
"""A configuration that every family can read."""
TASKS = {
    "SequenceClassification": "rerankers and classifiers",
    "TokenClassification": "entities",
    "MaskedLM": "SPLADE",
    "RewardModel": "reward models",
    "Ranking": "rerankers of lists",
}
PAGE = """<!-- Written by models.py: `make docs`. -->
# Models
Each of the {count} architectures is a family in `packages/bei/architectures/`, selected by `model_type` in
config.json. Every one embeds, dense or (but for BART) token by token for ColBERT; its heads give it more tasks. Weights
are safetensors or `pytorch_model.bin` in float32, float16 or bfloat16, or safetensors in fp8 with scales. GPTQ, AWQ,
bitsandbytes and other formats are refused by their names. Wrappers of training (`module.`, `auto_model.`,
`0.auto_model.`, `encoder.`, `model.`) around all names are recognized. No code of a repository is run: an architecture
that is not in the table is refused, and so is any tensor left over. A value of config.json, modules.json or
config_sentence_transformers.json that changes numbers is obeyed, or refused by its name. sentence-transformers'
`truncate_dim` and `max_active_dims` apply where a request asks for no `dimensions`, and the tokenizer's
`truncation_side` where it names no direction.

A repository without tokenizer.json is served from its older files: vocab.txt (BERT, DistilBERT, ELECTRA, MobileBERT,
ERNIE, MPNet, ESM); vocab.json and merges.txt (RoBERTa, BART, GPT-2, GPT-NeoX, Qwen2, DeBERTa); sentencepiece models
(XLM-RoBERTa, CamemBERT, ALBERT, T5, mT5, UMT5, XLNet, DeBERTa v2, Llama, Mistral, Gemma); and tiktoken's ranks. The
tokenizer is built once, equal to that of transformers, and kept in the cache. Tokenizers that need another program
(MeCab, VnCoreNLP, jieba) are refused by name.

A decoder whose `auto_map` names a class of its own may let tokens attend both ways (GritLM, ReasonIR). It is refused
unless config.json has `is_causal`, or `BEI_ATTENTION` is `causal` or `bidirectional`. The log has a line for every
class of its own, unless these architectures compute that class. A class with a head that is not served
(`*ForQuestionAnswering`, `*ForRewardModel`) is refused unless `BEI_POOLING` asks for its encoder. modules.json may name
only modules of sentence-transformers and PyLate.

`base_model` is the value for config.yaml. On a CPU `native` computes in bf16, int8, int4 or fp32; without a C++
compiler `torch` does, in bf16 or fp32, and the log says so. On an NVIDIA GPU `tensorrt` computes in bf16, fp16, fp8 or
fp4, and `torch` the rest in bf16, fp16 or fp8. `tensorrt` computes all experts of a mixture for each token, so it
refuses more than 16 (Qwen3-30B-A3B and privacy-filter have 128); it also refuses texts whose attention scores would
need more than 8 GiB at once, where it makes them (soft caps, sinks, relative positions). Neither has run on a GPU yet.

A model without an encoder needs no architecture: a StaticEmbedding of sentence-transformers, or the layout of model2vec
(`model_type: model2vec`), is a table with a row per token, and a vector is the mean of rows. The server computes it in
its own process, in fp32 (engine `static`). Model2Vec's layout leaves out tokens that the vocabulary lacks, and cuts
texts at its `max_length`; StaticEmbedding does neither.

A GLiNER (gliner_config.json) is an encoder of the table with a head over spans of words, `markerV0` or `marker`, or
over words, `token_level`; `/predict_tokens` then takes `labels`. Where the repository has no `encoder_config`, as those
of urchade, the encoder's config.json and tokenizer come from the repository that `model_name` names, or lie beside
gliner_config.json. Words are divided as by the library's `whitespace`. A second encoder for labels (`labels_encoder`),
a decoder for them, and relations are refused. A GLiNER2 (`model_type: extractor`, `architecture: span`) finds
entities, too; its classifications, structures and relations are not served.

| architecture | `model_type` | `base_model` | for example | tasks | engines |
|---|---|---|---|---|---|
{architectures}

Kinds that are refused by a line of their own:

| `model_type` | the model |
|---|---|
{kinds}

## Language models that rerank
A template is applied to a `*ForCausalLM` checkpoint, or to a `*ForSequenceClassification` of one label that was
converted from one, when its own name (the last part of the repository's) contains `rerank`, or begins with `zerank`.
`BEI_RERANK_TEMPLATE` chooses a template, a file of your own, or `none` for an embedder. A language model that its model
card or its chat template calls a reranker, and that was trained with another template, is refused until one is chosen.
`/rerank`, `/score` and pairs of `/predict` take an `instruction` where the template has a place for it. A single text
of `/predict` is a prompt that the client rendered, and is read as it is.

| template | score: the logit of | default instruction |
|---|---|---|
{templates}

A file of your own is a JSON object. `body` has the places {{query}} and {{instruction}}, and ends with {{document}};
only it is cut. `prefix` and `suffix` stand around it, and are tokenized separately; so are the texts of a list. `yes`
and `no` are the tokens of the score; without them the model is a classifier of one label. `instruction` is the default
one, and `plain` is the body without one. A brace of the text itself is doubled.

```json
{{"prefix": "<|user|>\\n", "body": "Query: {{query}}\\nDocument: {{document}}", "suffix": "<|end|>\\n", "yes": "yes"}}
```

## Checkpoint by checkpoint
{counts}
Their JSON files are in `docs/checkpoints.json`, as far as they are known here, and are read by the code that serves
them; their weights are not. The engine is the one that `auto` takes on a CPU.

| checkpoint | parameters | task | engine | needs |
|---|---|---|---|---|
{served}

| checkpoint | refused, because |
|---|---|
{refused}
"""


def architecture(model_type: str, family: Family) -> str:
    name, examples = MODELS[model_type]
    stated = STATED.get(model_type, model_type)
    base = base_model(family)
    embeds = "embeddings" if family.spec(CONFIG).decoder else "embeddings, ColBERT"
    tasks = [embeds, *(TASKS[kind] for kind in family.heads)]
    template = template_of({"model_type": model_type})
    if template:
        kind = "yes or no by the language model" if TEMPLATES[template].yes else "rerankers' template"
        tasks.append(f"{kind} (`{template}`)")
    return f"| {name} | `{stated}` | `{base}` | {examples} | {'; '.join(tasks)} | {engines(family)} |"


def engines(family: Family) -> str:
    spec = family.spec(CONFIG)
    checks = {
        "tensorrt": lambda: tensorrt.check(spec, spec.max_tokens),
        "native": lambda: native.check(spec),
        "torch": lambda: None,
    }
    return ", ".join(name for name, check in checks.items() if _passes(check))


def _passes(check: Callable[[], None]) -> bool:
    try:
        check()
    except SetupError:
        return False
    return True


def kinds() -> list[str]:
    """Rows of the kinds of models that are not served, one for each reason."""
    names: dict[str, list[str]] = {}
    for name, reason in not_served.TYPES.items():
        names.setdefault(reason, []).append(f"`{name}`")
    return [f"| {', '.join(of)} | {reason} |" for reason, of in names.items()]


def template(name: str) -> str:
    of = TEMPLATES[name]
    word = f"`{of.yes}`" if of.yes else "a classifier of one label"
    score = f"{word} minus that of `{of.no}`" if of.no else word
    score += f", divided by {of.temperature:g}" if of.temperature != 1 else ""
    return f"| `{name}` | {score} | {of.instruction or 'none'} |"


def table() -> str:
    rows = (architecture(model_type, family) for model_type, family in FAMILIES.items())
    found = list(checkpoints.outcomes())
    served = [of for of in found if not of.refusal]
    return PAGE.format(
        count=len(FAMILIES),
        architectures="\n".join(rows),
        kinds="\n".join(kinds()),
        templates="\n".join(map(template, TEMPLATES)),
        counts=f"Of {len(found)} checkpoints that people deploy, {len(served)} are served.",
        served="\n".join(
            f"| {of.name} | {size(of.parameters)} | {of.task} | {of.engine} | {of.settings} |" for of in served
        ),
        refused="\n".join(f"| {of.name} | {of.refusal} |" for of in found if of.refusal),
    )


def size(parameters: int) -> str:
    return f"{parameters / 1e9:.1f}B" if parameters >= 1e9 else f"{parameters / 1e6:.0f}M"


if __name__ == "__main__":
    FILE.write_text(table())
