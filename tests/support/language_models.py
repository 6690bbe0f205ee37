"""Tiny language models with a byte-level tokenizer."""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from tests.support.tiny_models import random_model, write_json

SPECIALS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<bos>"]


def byte_level() -> Tokenizer:
    """Byte-level BPE with whole tokens for the answering words."""
    vocab = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = [("y", "e"), ("ye", "s"), ("n", "o"), ("Y", "e"), ("Ye", "s")]
    vocab |= {a + b: len(vocab) + i for i, (a, b) in enumerate(merges)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIALS])
    return tokenizer


def save_language_model(folder, model, **config):
    model.save_pretrained(folder)
    byte_level().save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", config)
    return folder


def language_model(family: str, **options):
    return random_model(family, 0, "ForCausalLM", vocab_size=320, max_position_embeddings=1024, **options)
