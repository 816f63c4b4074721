"""Constructs of published chat templates, rendered as transformers does, or rejected if it rejects them."""

import json
from pathlib import Path

import pytest

from famjax.config import ConfigError
from famjax.data.chat_template import chat_template
from tests.pretrained import tokenizers_of_ours

_TALK = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
TEMPLATES = {
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}"
    "{% endfor %}",
    "generation, trimmed": "{% for m in messages -%}\n {%- generation -%} {{ m.content }} "
    "{%- endgeneration -%}{% endfor %}",
    "tools": "{% if tools is not none %}[TOOLS]{{ tools | tojson }}{% endif %}" + _TALK,
    "tools defined": "{% if tools is defined %}defined{% endif %}{% if not tools %}none{% endif %}" + _TALK,
    "documents": "{% if documents is none %}none{% else %}{{ documents | length }}{% endif %}" + _TALK,
    "tojson": "{{ messages | tojson }}{{ messages[0] | tojson(indent=2, separators=(',', ':'), sort_keys=true) }}",
    "tojson, html": "{{ '<a> & \\'Grüße\\'' | tojson }}{{ 'ü' | tojson(ensure_ascii=true) }}",
    "loop controls": "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% else %}{{ m.content }}"
    "{% endif %}{% endfor %}",
    "continue": "{% for m in messages %}{% if m.role == 'user' %}{% continue %}{% endif %}{{ m.content }}{% endfor %}",
    "specials": "{{ bos_token }}{{ pad_token }}{{ unk_token }}{{ sep_token }}" + _TALK,
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "hidden namespace": "{% set ns = namespace(_n=0) %}{{ ns._n }}",
    "dict": "{{ dict(a=1, b=[2]) }}{{ dict.fromkeys('ab') }}",
    "year": "{{ strftime_now('%Y') }}" + _TALK,
    "thinking": "{% if enable_thinking is defined and enable_thinking is false %}x{% endif %}"
    "{% for m in messages %}{{ m['content'].strip().split('</think>')[-1].lstrip('\\n') }}{% endfor %}",
    "refusal": "{{ raise_exception('roles must alternate') }}",
    "refusal by role": "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 1) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}",
    "missing": "{{ messages[0]['tool_calls'][0]['function'] }}",
    "type error": "{{ messages[0]['content'] + 1 }}",
    "macro": "{% macro turn(m) %}<{{ m.role }}>{{ m.content | trim }}{% endmacro %}"
    "{% for m in messages %}{{ turn(m) }}{% endfor %}",
    "blocks": "  {% if true %}\n  x\n  {% endif %}\n{%- for m in messages %}\n{{ m.content }}\n{% endfor %}\n",
    "unsafe": "{{ messages.__class__.__mro__ }}",
    "mutation": "{{ messages.append(1) }}",
    "slices": "{{ messages[1:] | map(attribute='content') | join('|') }}{{ messages[-1].content[::-1] }}",
    "selectattr": "{{ (messages | selectattr('role', 'equalto', 'user') | list | last).content }}",
    "string tests": "{% for m in messages %}"
    "{% if m.content is string and m.tools is not defined %}{{ m.content|upper }}"
    "{% endif %}{% endfor %}",
    "prompt": _TALK + "{% if add_generation_prompt %}[assistant]{% endif %}",
}  # fmt: skip
TALK = [
    {"role": "user", "content": 'Who is "Ahab"? <|x|> '},
    {"role": "assistant", "content": "<think>\nwhales</think>\n\nA captain."},
    {"role": "user", "content": "Grüße, 世! And Pip?"},
]
SPECIALS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"}


@pytest.mark.parametrize("where", ["tokenizer_config.json", "special_tokens_map.json"])
def test_constructs_of_published_templates(where: str, tmp_path: Path) -> None:
    """The text is that of `apply_chat_template`, including special tokens."""
    import transformers

    folder = tokenizers_of_ours.write(tmp_path / "t", "byte-level")
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / where).write_text(json.dumps(SPECIALS))
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    refused = 0
    for name, source in TEMPLATES.items():
        (folder / "chat_template.jinja").write_text(source)
        for talk in (TALK, TALK[:1]):
            try:
                want = theirs.apply_chat_template(
                    talk, chat_template=source, tokenize=False, add_generation_prompt=True
                )
            except Exception:
                refused += 1
                with pytest.raises(ConfigError, match="the chat template rejects this conversation"):
                    chat_template(folder).render(talk)  # type: ignore[union-attr]
                continue
            assert chat_template(folder).render(talk) == want, name  # type: ignore[union-attr]
    assert refused >= 6


def test_templates_by_name(tmp_path: Path) -> None:
    """Files have the last word over tokenizer_config.json; a folder has more of them by name."""
    folder = tokenizers_of_ours.write(tmp_path / "t", "byte-level")
    config = {"chat_template": [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert chat_template(folder).render(TALK) == "a"  # type: ignore[union-attr]
    assert chat_template(folder, "tool_use").render(TALK) == "b"  # type: ignore[union-attr]
    (folder / "chat_template.jinja").write_text("c")
    assert chat_template(folder).render(TALK) == "c"  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="has no chat template 'tool_use'; it has default"):
        chat_template(folder, "tool_use")


@pytest.mark.parametrize("said", [5, [1], [{"name": "x"}], {"default": 3}])
def test_what_is_no_template(said: object, tmp_path: Path) -> None:
    """One line names the file, for tokenizer_config.json and for a file that is not UTF-8."""
    folder = tokenizers_of_ours.write(tmp_path / "t", "byte-level")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": said}))
    with pytest.raises(ConfigError, match="tokenizer_config.json: chat_template is neither a text nor texts"):
        chat_template(folder)
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "chat_template.jinja").write_bytes(b"a\xff")
    with pytest.raises(ConfigError, match="chat_template.jinja"):
        chat_template(folder)


CONTINUED = {
    "as it is": _TALK, "trimmed": "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}|{% endfor %}",
    "stripped on the right": "{% for m in messages %}<{{ m['content'].rstrip() }}>{% endfor %}",
    "upper case": "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
    "omitted": "{% for m in messages %}{% if not loop.last %}{{ m.content }}{% endif %}{% endfor %}",
}  # fmt: skip


@pytest.mark.parametrize("name", CONTINUED)
def test_a_continued_message_ends_as_in_transformers(name: str, tmp_path: Path) -> None:
    """`continue_final_message`: a template that strips contents strips the last one; one that changes it is refused."""
    import transformers

    folder = tokenizers_of_ours.write(tmp_path / "t", "byte-level")
    (folder / "chat_template.jinja").write_text(CONTINUED[name])
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), chat_template(folder)
    assert ours is not None
    for last in ("The answer is", "The answer is ", "  two\n\n", "\tthree\n"):
        talk = [TALK[0], {"role": "assistant", "content": last}]
        try:
            want = theirs.apply_chat_template(talk, tokenize=False, continue_final_message=True)
        except ValueError:
            with pytest.raises(ConfigError, match="does not reproduce the last message"):
                ours.render(talk, False)
            continue
        assert ours.render(talk, False) == want


@pytest.mark.parametrize("text", ["Hi", " " * 300, "\n" * 300, "ANSWERTHATWASGIVEN", ""])
def test_any_message_may_follow_an_answer(text: str, tmp_path: Path) -> None:
    """Also one that the template shortens, or that has our own mark in it."""
    folder = tokenizers_of_ours.write(tmp_path / "t", "byte-level")
    (folder / "chat_template.jinja").write_text(CONTINUED["trimmed"])
    template = chat_template(folder)
    assert template is not None
    assert template.after_answer(text) == f"|[user]{text.strip()}|"
    (folder / "chat_template.jinja").write_text("{{ messages[-1].content }}")
    forgets = chat_template(folder)
    assert forgets is not None
    with pytest.raises(ConfigError, match="omits earlier answers"):
        forgets.after_answer(text)
