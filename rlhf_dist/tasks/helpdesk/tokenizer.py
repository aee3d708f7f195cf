"""The help desk's tokenizer."""

from typing import TYPE_CHECKING

from rlhf_dist.tasks.helpdesk.annotators import joined
from rlhf_dist.tasks.helpdesk.grammar import known_sentences, train_prompts
from rlhf_dist.tasks.helpdesk.opinions import RATING_PROMPT, RATINGS, sayings
from rlhf_dist.tasks.word_tokenizer import word_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

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
    """A tokenizer of at most 512 tokens, the same each time, with a chat template.

    A completion is encoded with `add_special_tokens=False` and ended with <eos> by whoever trains on it.
    """
    texts = [*train_prompts(), *(joined([sentence.text]) for sentence in known_sentences().values())]
    texts += [RATING_PROMPT.format(comment=" ".join(sayings())), *RATINGS]
    return word_tokenizer(texts, chat_template=CHAT_TEMPLATE)
