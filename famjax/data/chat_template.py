"""Chat templates of model directories, which format conversations.

They are Jinja templates that come with a model, so they run in Jinja's sandbox, as in transformers.
"""

from pathlib import Path

from famjax.config import ConfigError
from famjax.config.text import json_of, read_text
from famjax.data.tokenizer_folder import TOKENIZER_CONFIG
from famjax.data.vocabulary import vocabulary_of

TEMPLATE_FILE, TEMPLATE_FOLDER = "chat_template.jinja", "additional_chat_templates"
# Placeholder for an answer or a question; only letters, which no template changes.
_MARK = "ANSWERTHATWASGIVEN"
# Marks the end of a last message that is to be continued.
_END = "\x00the end of the last message\x00"


class ChatTemplate:
    """A chat template, in Jinja's language, and the special tokens that it uses."""

    def __init__(self, source: str, tokens: dict[str, str]):
        self.source, self._tokens = source, tokens

    def render(self, messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Renders a conversation, a dict with `role` and `content` for each message, as text.

        The text ends where the next answer begins. Without `add_generation_prompt` it ends with the content of the last
        message, which can then be continued. Raises `ConfigError` if the template rejects the conversation.
        """
        from jinja2 import TemplateError

        from famjax.data.chat_sandbox import environment

        if not add_generation_prompt:
            last = messages[-1]
            # With a space at the end, so that it shows whether the template strips contents.
            messages = [*messages[:-1], {**last, "content": f"{last['content']}{_END} "}]
        try:
            template = environment().from_string(self.source)
            text = template.render(
                **self._tokens, messages=messages, tools=None, documents=None,
                add_generation_prompt=add_generation_prompt,
            )  # fmt: skip
        # A template is a program, which may raise any of these for messages that it does not support.
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
            raise ConfigError(f"the chat template rejects this conversation ({error})") from error
        if add_generation_prompt:
            return text
        before, mark, after = text.rpartition(_END)
        if not mark:
            raise ConfigError("the chat template does not reproduce the last message, so it cannot be continued")
        return before if after.startswith(" ") else before.rstrip()

    def around_user(self) -> tuple[str, str]:
        """Returns the text before and after a user's only message, the latter up to where the answer begins. Raises
        `ConfigError` if the template does not reproduce the user's text verbatim."""
        before, mark, after = self.render([user_message(_MARK)]).partition(_MARK)
        if not mark or _MARK in after:
            raise ConfigError("the chat template does not reproduce a user's text verbatim and once")
        return before, after

    def after_answer(self, text: str) -> str:
        """Returns the text from the end of an answer to the beginning of the next one, with the user's message `text`.
        Raises `ConfigError` if the template omits earlier answers."""
        written = self.render([user_message("a"), {"role": "assistant", "content": _MARK}, user_message(text)])
        if written.count(_MARK) <= text.count(_MARK):
            raise ConfigError("the chat template omits earlier answers; famjax cannot use it turn by turn")
        return written.partition(_MARK)[2]  # the message may have the mark too, and comes later


def user_message(text: str) -> dict[str, str]:
    """Returns a user's message."""
    return {"role": "user", "content": text}


def chat_template(model_dir: str | Path, name: str | bool = True) -> ChatTemplate | None:
    """Returns the chat template of this name (True: `default`) of a model directory, from `chat_template.jinja` or
    `tokenizer_config.json`; None if it has none. Raises `ConfigError` if there is no template of this name, or a file
    has no text."""
    root = Path(model_dir)
    config = root / TOKENIZER_CONFIG
    named = _named(config) if config.is_file() else {}
    files = {"default": root / TEMPLATE_FILE} if (root / TEMPLATE_FILE).is_file() else {}
    files |= {path.stem: path for path in sorted((root / TEMPLATE_FOLDER).glob("*.jinja"))}
    if files:  # files take precedence over tokenizer_config.json
        named = {key: read_text(path) for key, path in files.items()}
    if not named:
        return None
    wanted = name if isinstance(name, str) else "default"
    if wanted not in named:
        raise ConfigError(f"{root} has no chat template {wanted!r}; it has {', '.join(sorted(named))}")
    return ChatTemplate(named[wanted], getattr(vocabulary_of(root), "names", {}))


def _named(path: Path) -> dict[str, str]:
    """Returns the templates of a tokenizer_config.json by name: none, one or several."""
    values = json_of(path.read_bytes(), str(path))
    said = values.get("chat_template") if isinstance(values, dict) else None
    if isinstance(said, list) and all(isinstance(one, dict) for one in said):
        said = {one.get("name"): one.get("template") for one in said}
    named = said if isinstance(said, dict) else {} if said is None else {"default": said}
    if not all(isinstance(text, str) for one in named.items() for text in one):
        raise ConfigError(f"{path}: chat_template is neither a text nor texts with names; correct it, or leave it out")
    return named
