from rlhf_dist.data.encoder import Encoder
from rlhf_dist.data.example_view import MOST, view
from tests.chats import GEMMA, chat_tokenizer


def test_every_token_is_shown_with_what_is_learnt_what_comes_last_and_what_ends_answers() -> None:
    encoder = Encoder(chat_tokenizer(GEMMA))
    made = encoder.chat("f:1", [{"role": "user", "content": "Hé"}, {"role": "assistant", "content": "yo"}])
    told = view(encoder, made.tokens, {n + 1 for n in made.selected}, title="A demonstration", mark="learnt")
    head, tokens, last = told.split("\n")
    assert head == f"A demonstration, {len(made.tokens)} tokens, in brackets what is learnt:"
    assert tokens.startswith("<bos>|<start_of_turn>|u|s|e|r|\\n|H|Ã|©|<end_of_turn>|\\n|<start_of_turn>|m|")
    assert tokens.endswith("|\\n|[y]|[o]|[<end_of_turn>]")
    assert last == "last learnt: <end_of_turn> (9); generation ends at <eos> (2), <end_of_turn> (9)"


def test_of_a_long_example_the_middle_is_left_out() -> None:
    encoder = Encoder(chat_tokenizer())
    tokens = encoder.prompt("f:1", "x" * 600)[1]
    told = view(encoder, tokens, (), title="A prompt", mark="")
    assert "|... 201 tokens ...|" in told
    assert told.count("|") == MOST
    assert told.endswith("last: x (101); generation ends at <eos> (2)")
