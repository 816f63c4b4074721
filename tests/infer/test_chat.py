"""A conversation read turn by turn is the conversation as the template writes all of it."""

import json
from pathlib import Path

import numpy as np
import pytest

from famjax.config import ConfigError
from famjax.data.chat_template import chat_template
from famjax.infer.chat import Turns
from famjax.infer.codec import Codec
from famjax.infer.settings import RECENT
from tests.pretrained import tokenizers_of_ours

CHATML = (
    "{% for m in messages %}{{ '<s>' + m['role'] + '\n' + m['content'] | trim + '</s>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)
LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)


def recent(ids: list[int]) -> np.ndarray:
    return np.array([-1] * RECENT + ids)[-RECENT:]


@pytest.mark.parametrize("kind", ["byte-level", "metaspace"])
@pytest.mark.parametrize("template", [CHATML, LLAMA2])
def test_turns_add_up_to_what_transformers_writes(kind: str, template: str, tmp_path: Path) -> None:
    """First turn, answer as the model makes it, next turn: the ids of `apply_chat_template`, each special token
    once; after an answer that was cut short the token that ends it is put in."""
    import transformers

    tokenizers_of_ours.write(tmp_path, kind)
    (tmp_path / "chat_template.jinja").write_text(template)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    codec = Codec(tmp_path, 400)
    turns = Turns(chat_template(tmp_path), codec)
    said = [{"role": "user", "content": "why the lazy dog?"}, {"role": "assistant", "content": "the fox"},
            {"role": "user", "content": "Grüße, 世!"}]  # fmt: skip
    whole = lambda n: theirs.apply_chat_template(said[:n], add_generation_prompt=True, return_dict=False)
    first = turns.first(said[0]["content"]).tolist()
    assert first == whole(1)
    all_of_it = whole(3)
    end = codec.vocabulary.eos
    assert codec.ends == [end] and turns.stops == []
    answer = all_of_it[len(first) : all_of_it.index(end, len(first)) + 1]
    text = lambda ids: codec.vocabulary.decode(ids)
    shorter = (answer[:n] for n in range(len(answer) - 1, 0, -1) if not text(answer[:n]).endswith(" "))
    for made in (answer, *list(shorter)[:1]):  # ended by the model, or cut short where words are tokens
        following = turns.following(said[2]["content"], recent(first + made)).tolist()
        assert first + made + following == all_of_it


def test_an_answer_that_another_end_of_the_model_ended(tmp_path: Path) -> None:
    """As in Phi-3, where the beginning of an answer is one of the ends too, and comes after the next message: the
    message is not lost, and the answer is given the end that the template writes."""
    from tokenizers import Tokenizer

    file = str(tokenizers_of_ours.write(tmp_path, "byte-level") / "tokenizer.json")
    tokenizer = Tokenizer.from_file(file)
    tokenizer.add_special_tokens(["<|end|>", "<|user|>", "<|assistant|>"])
    tokenizer.save(file)
    ends = {name: tokenizer.token_to_id(name) for name in ("</s>", "<|assistant|>", "<|end|>")}
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": list(ends.values())}))
    template = CHATML.replace("'<s>' + m['role'] + '", "'<|' + m['role'] + '|>").replace("</s>", "<|end|>")
    (tmp_path / "chat_template.jinja").write_text(template.replace("<s>assistant", "<|assistant|>"))
    codec = Codec(tmp_path, 1000)
    turns = Turns(chat_template(tmp_path), codec)
    following = "<|end|>\n<|user|>\nwhy? </s><|end|>\n<|assistant|>\n"
    for name, end in ends.items():
        ids = turns.following("why? </s>", recent([*turns.first("the").tolist(), end]))
        assert codec.vocabulary.decode(ids) == following.removeprefix(name)


def test_without_a_template(tmp_path: Path) -> None:
    """Bytes: `User:` and `Assistant:`; the stop that the model made is not written twice."""
    turns = Turns(None, Codec(tmp_path, 256))
    text = lambda ids: bytes(ids.tolist()).decode()
    assert text(turns.first("Hi")) == "User: Hi\nAssistant:"
    assert text(turns.first("Hi", "Be kind.")) == "Be kind.\nUser: Hi\nAssistant:"
    assert text(turns.following("And?", recent(list(b" Hello")))) == "\nUser: And?\nAssistant:"
    assert text(turns.following("And?", recent(list(b" Hello\nUser:")))) == " And?\nAssistant:"
    assert turns.stops == ["\nUser:"]


def test_templates_that_forget(tmp_path: Path) -> None:
    tokenizers_of_ours.write(tmp_path, "byte-level")
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(config | {"chat_template": "{{ messages[-1]['content'] }}"})
    )
    with pytest.raises(ConfigError, match="omits earlier answers"):
        Turns(chat_template(tmp_path), Codec(tmp_path, 400))


def test_system_messages_that_a_template_ignores(tmp_path: Path) -> None:
    """LLAMA2 above writes users and assistants alone. An empty system message says nothing that could be lost."""
    tokenizers_of_ours.write(tmp_path, "byte-level")
    system, user = {"role": "system", "content": "Be kind."}, {"role": "user", "content": "Who?"}
    for template, refused in ((LLAMA2, True), (CHATML, False)):
        (tmp_path / "chat_template.jinja").write_text(template)
        turns = Turns(chat_template(tmp_path), Codec(tmp_path, 400))
        if not refused:
            assert len(turns.conversation([system, user])) > len(turns.conversation([user]))
            continue
        with pytest.raises(ConfigError, match="ignores system messages; leave them out"):
            turns.conversation([system, user])
        plain = turns.conversation([user]).tolist()
        assert turns.conversation([{**system, "content": ""}, user]).tolist() == plain


def test_messages_of_another_role_that_a_template_ignores(tmp_path: Path) -> None:
    """OpenAI's newer name of a system message, in a template that has the older one alone, as Zephyr's."""
    tokenizers_of_ours.write(tmp_path, "byte-level")
    known = "{% for m in messages if m['role'] in ('system', 'user', 'assistant') %}<{{ m['role'] }}>{{ m['content'] }}"
    (tmp_path / "chat_template.jinja").write_text(known + "</s>{% endfor %}")
    turns = Turns(chat_template(tmp_path), Codec(tmp_path, 400))
    system, user = {"role": "system", "content": "Be kind."}, {"role": "user", "content": "Who?"}
    developer = {"role": "developer", "content": "Be brief."}
    assert len(turns.conversation([system, user])) > len(turns.conversation([user]))
    for messages in ([developer, user], [system, developer, user]):
        with pytest.raises(ConfigError, match="ignores developer messages; leave them out"):
            turns.conversation(messages)
