"""Byte-level tokenizers with the chat templates of families of models, and one that puts a space before every text."""

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}"
    "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PHI = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
ENDLESS = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    + "{% if add_generation_prompt %}assistant: {% endif %}"
)
INSIDE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}"
    "<|im_end|>{% endgeneration %}{% else %}{{ m['content'] }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
OUTSIDE = INSIDE.replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>")
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n"
    "{% endif %}{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is defined and enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
PREFILL = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
TOOLS = "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}" + CHATML.replace(
    "{{ m['content'] }}", "{{ (m.tool_calls | tojson) if m.tool_calls else m['content'] }}"
)
TEMPLATES = {
    "chatml": (CHATML, "<|im_end|>"),
    "llama3": (LLAMA3, "<|eot_id|>"),
    "gemma": (GEMMA, "<end_of_turn>"),
    "phi": (PHI, "<|end|>"),
    "inst": (INST, "<eos>"),
    "inside": (INSIDE, "<|im_end|>"),
    "outside": (OUTSIDE, "<|im_end|>"),
    "thinking": (THINKING, "<|im_end|>"),
    "prefill": (PREFILL, "<|im_end|>"),
    "tools": (TOOLS, "<|im_end|>"),
}
"""Template, and the token that it ends an assistant's turn with."""
SPECIAL = (
    *(
        "<pad>",
        "<bos>",
        "<eos>",
        "<|im_start|>",
        "<|im_end|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
    ),
    *("<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
)


def chat_tokenizer(
    template: str | None = None, *, ends: bool = False, begins: bool = True, spaced: bool = False
) -> Any:
    """A tokenizer of bytes.

    Args:
        template: Jinja, if chats are to be understood.
        ends: whether it puts <eos> after every text, as some do with `add_eos_token`.
        begins: whether it puts <bos> before.
        spaced: whether it puts a space before a text that begins without one, as SentencePiece's do.
    """
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = [*SPECIAL, *sorted(byte_level.alphabet())]
    ids = {word: number for number, word in enumerate(words)}
    made = Tokenizer(models.BPE(vocab=ids, merges=[]))
    made.pre_tokenizer, made.decoder = byte_level, decoders.ByteLevel()
    if spaced:
        made.normalizer = normalizers.Prepend(" ")
    # Phi-3's tokens swallow the white space that follows.
    eat = ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
    made.add_special_tokens([AddedToken(text, rstrip=text in eat, normalized=False) for text in SPECIAL])
    single = " ".join([*(["<bos>"] if begins else []), "$A", *(["<eos>"] if ends else [])])
    around = [(text, ids[text]) for text in ("<bos>", "<eos>") if text in single]
    if around:
        made.post_processor = processors.TemplateProcessing(single=single, special_tokens=around)
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        chat_template=template,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def spelled(tokenizer: Any, tokens: Any) -> list[str]:
    """Tokens as they are written, spaces and line breaks as themselves."""
    return [text.replace("Ġ", " ").replace("Ċ", "\n") for text in tokenizer.convert_ids_to_tokens(list(tokens))]
