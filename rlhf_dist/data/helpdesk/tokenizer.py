"""A tokenizer of the help desk's own, small enough that a policy of a million parameters is not mostly embeddings."""

from typing import TYPE_CHECKING

from rlhf_dist.data.helpdesk.annotators import joined
from rlhf_dist.data.helpdesk.grammar import known_sentences, train_prompts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"

CHAT_TEMPLATE = """\
{{ bos_token }}
{%- for message in messages %}
{%- if not loop.first %}{{ '\\n' }}{% endif %}
{%- if message.role == 'user' %}{{ 'Customer: ' + message.content }}
{%- elif message.role == 'assistant' %}{{ 'Agent: ' + message.content + eos_token }}
{%- else %}{{ raise_exception('expected the role user or assistant, found ' + message.role) }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '\\nAgent:' }}{% endif %}"""


def build_tokenizer() -> "PreTrainedTokenizerFast":
    """A byte-level BPE of at most 512 tokens, the same each time; it puts <bos> in front as Llama's does.

    A completion is encoded with `add_special_tokens=False` and ended with <eos> by whoever trains on it.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    texts = [*train_prompts(), *(joined([sentence.text]) for sentence in known_sentences().values())]
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
        chat_template=CHAT_TEMPLATE,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
    return built
