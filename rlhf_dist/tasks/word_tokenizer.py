"""A tokenizer for a small language: every known word is one token, and anything else falls apart into its bytes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"


def word_tokenizer(texts: Iterable[str], *, chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """A byte-level BPE whose vocabulary is the words of some texts, the same each time; it puts <bos> in front as Llama's does.

    Small enough that a policy of a million parameters is not mostly embeddings.

    Args:
        texts: whatever will be said.
        chat_template: Jinja, if chats are to be understood.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = {word for text in texts for word, _ in byte_level.pre_tokenize_str(text)}
    tokens = [PAD, BOS, EOS, *sorted(byte_level.alphabet()), *sorted(words - set(byte_level.alphabet()))]
    # Merges would need their intermediate pieces in the vocabulary. With `ignore_merges` a known word is one token as
    # it stands, and any other text falls apart into its bytes, so none is ever lost.
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = byte_level
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([PAD, BOS, EOS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, vocabulary[BOS])]
    )
    built: PreTrainedTokenizerFast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        chat_template=chat_template,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
    return built
