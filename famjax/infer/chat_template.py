"""Chat templates: what a model directory says of how a conversation is written down.

They are Jinja templates that come with a model, so they run in Jinja's sandbox, as transformers runs them.
"""

import datetime
import json
from pathlib import Path
from typing import Any, NoReturn

from famjax.config import ConfigError
from famjax.data.vocabulary import TOKENIZER_CONFIG

TEMPLATE_FILE = "chat_template.jinja"
# Marks where a message that shall be gone on with ends.
_END = "\x00the end of the last message\x00"


class ChatTemplate:
    """A template and the special tokens that it writes.

    Attributes:
      source: the template, Jinja.
    """

    def __init__(self, source: str, tokens: dict[str, str]):
        self.source, self._tokens = source, tokens

    def render(self, messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as text.

        Args:
          messages: `role` and `content` of each.
          add_generation_prompt: the text ends where the answer begins; else the last message is gone on with.

        Raises:
          ConfigError: the template refuses the conversation.
        """
        try:
            from jinja2 import TemplateError
        except ImportError as error:
            raise ConfigError("a chat template needs jinja2: pip install -e '.[chat]'") from error
        if not add_generation_prompt:
            last = messages[-1]
            messages = [*messages[:-1], {**last, "content": last["content"] + _END}]
        try:
            template = _environment().from_string(self.source)
            text = template.render(messages=messages, add_generation_prompt=add_generation_prompt, **self._tokens)
        except TemplateError as error:
            raise ConfigError(f"the chat template refuses this conversation ({error})") from error
        # Templates strip messages or not; so does whoever goes on with one.
        return text if add_generation_prompt else text[: text.rindex(_END)]


def chat_template(model_dir: str | Path, name: str | bool = True) -> ChatTemplate | None:
    """The template of a model directory, None where it has none.

    Args:
      model_dir: with `chat_template.jinja`, or a `tokenizer_config.json` that has one or several by name.
      name: which of several; True is the one named `default`.

    Raises:
      ConfigError: there is none of this name.
    """
    root = Path(model_dir)
    said: dict[str, Any] = {}
    if (root / TOKENIZER_CONFIG).is_file():
        said = json.loads((root / TOKENIZER_CONFIG).read_text(encoding="utf-8"))
    several = said.get("chat_template")
    if (root / TEMPLATE_FILE).is_file():
        several = (root / TEMPLATE_FILE).read_text(encoding="utf-8")
    if several is None:
        return None
    if isinstance(several, list):
        several = {one["name"]: one["template"] for one in several}
    named = several if isinstance(several, dict) else {"default": several}
    wanted = name if isinstance(name, str) else "default"
    if wanted not in named:
        raise ConfigError(f"{root} has no chat template {wanted!r}; it has {', '.join(sorted(named))}")
    text = lambda token: token.get("content") if isinstance(token, dict) else token
    tokens = {key: text(value) for key, value in said.items() if key.endswith("_token") and value is not None}
    return ChatTemplate(named[wanted], tokens)


def _environment() -> Any:
    from jinja2.exceptions import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> NoReturn:
        raise TemplateError(message)

    def to_json(x: Any, indent: int | None = None, ensure_ascii: bool = False) -> str:
        return json.dumps(x, indent=indent, ensure_ascii=ensure_ascii)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = to_json
    environment.globals |= {
        "raise_exception": refuse,
        "strftime_now": lambda form: datetime.datetime.now().strftime(form),
    }
    return environment
