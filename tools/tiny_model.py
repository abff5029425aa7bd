"""Write a tiny random Llama model with its tokenizer: what a real vLLM serves in our tests and benchmarks.

Runs inside a vLLM environment (it needs torch, transformers and tokenizers), started by ``vllm_env.py``;
nothing is downloaded. The text it generates is noise, the engine around it is real.

Usage: ``python tiny_model.py FOLDER``
"""

from __future__ import annotations

import sys

import torch  # type: ignore[import-not-found]  # lives in the vLLM environment only
from tokenizers import (  # type: ignore[import-not-found]  # likewise
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    trainers,
)
from transformers import (  # type: ignore[import-not-found]  # likewise
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

VOCABULARY_SIZE = 512
MAX_POSITIONS = 2048
SEED = 20260101
SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
SENTENCES = (
    "The quick brown fox jumps over the lazy dog.",
    "A server that answers is not yet a server that works.",
    "Requests arrive, wait in a queue, run in a batch and leave as tokens.",
    "Numbers such as 0 1 2 3 4 5 6 7 8 9, and signs: ? ! ; ( ) [ ] { } + - * / = < > @ # % & _",
)
CHAT_TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: it can encode any text, and trains in milliseconds."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(SPECIAL_TOKENS.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL_TOKENS)
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Two layers of random weights, the same on every machine."""
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_POSITIONS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config).to(torch.bfloat16)


def main(folder: str) -> None:
    """Write model and tokenizer into ``folder``."""
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder)
    make_model(tokenizer).save_pretrained(folder)


if __name__ == "__main__":
    main(sys.argv[1])
