"""Formats a conversation turn by turn. No transcript is stored, since it would grow; the model has only its memory.

To find the text that a turn adds, the chat template renders the turn after a placeholder conversation:

    <user>a<end><assistant>MARK<end><user>What now?<end><assistant>
                               ^ the text from here on: the end of an answer, and the new turn
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from famjax.config import ConfigError
from famjax.data.chat_template import ChatTemplate, user_message
from famjax.data.pieces import Frame
from famjax.infer.codec import Codec

# Beginnings of turns without a template; the user's also ends an answer.
_USER, _ASSISTANT = "\nUser:", "\nAssistant:"
# Placeholder for a message; only letters, which no template changes.
_QUESTION = "QUESTIONTHATISASKED"


class Turns:
    """Encodes user turns as tokens to prefill, and determines what ends an answer.

    Args:
      template: chat template of the model; None formats turns as `User: ...` and `Assistant: ...`.
      codec: codec of the model. The token with which the template ends an answer is added to its `ends`.

    Attributes:
      stops: texts that end an answer, in addition to the codec's `ends`.

    Raises:
      ConfigError: if the template cannot be applied turn by turn.
    """

    def __init__(self, template: ChatTemplate | None, codec: Codec):
        self._template, self._codec = template, codec
        self.stops = [] if template else [_USER]
        self._end: int | None = None  # the token with which the template ends an answer
        if template:
            special = {*codec.ends, *getattr(codec.vocabulary, "specials", ())}
            lead = self._following(_QUESTION).partition(_QUESTION)[0]
            self._end = next((t for t in codec.encode(lead, fresh=False).tolist() if t in special), None)
            codec.ends += [self._end] if self._end is not None and self._end not in codec.ends else []

    def first(self, text: str, system: str = "") -> np.ndarray:
        """Returns int32 ids of a conversation whose first user turn is `text`, up to where the answer begins. Raises
        `ConfigError` if the template rejects the conversation."""
        before = [{"role": "system", "content": system}] if system else []
        return self.conversation([*before, user_message(text)])

    def conversation(self, messages: Sequence[dict[str, str]]) -> np.ndarray:
        """Returns int32 ids of a whole conversation, `role` and `content` of each message, up to where the next answer
        begins. Roles are those of the template; without a template `system`, `user` and `assistant`.

        Raises:
          ConfigError: if the template rejects the conversation or ignores messages of a role, or without a template a
            role is unknown.
        """
        if self._template is not None:
            return self._codec.encode(self._rendered(self._template, list(messages)), fresh=False)
        begins = {"system": "", "user": f"{_USER} ", "assistant": f"{_ASSISTANT} "}
        for message in messages:
            if message["role"] not in begins:
                raise ConfigError(f"role {message['role']!r} is not one of {', '.join(begins)}; there is no template")
        written = "".join(begins[message["role"]] + message["content"] for message in messages)
        return self._codec.encode(written.lstrip("\n") + _ASSISTANT)

    @staticmethod
    def _rendered(template: ChatTemplate, messages: list[dict[str, str]]) -> str:
        text = template.render(messages)
        # Roles beside those of every template: `system`, or `developer`, as newer clients of OpenAI's API name it.
        for role in {one["role"] for one in messages if one["content"]} - {"user", "assistant"}:
            others = [one for one in messages if one["role"] != role or not one["content"]]
            try:
                without = template.render(others) if others else None
            except ConfigError:
                without = None
            if text == without:
                raise ConfigError(f"the model's chat template ignores {role} messages; leave them out")
        return text

    def frame(self) -> tuple[str, str]:
        """Returns the text before and after a user's only turn, up to where the answer begins. Raises `ConfigError` if
        the template does not reproduce the user's text verbatim."""
        if self._template is None:
            return _USER.lstrip("\n") + " ", _ASSISTANT
        return self._template.around_user()

    def following(self, text: str, recent: Any) -> np.ndarray:
        """Returns int32 ids of a user's turn after an answer, up to where the next answer begins.

        `recent` is the row `Session.recent`, the last tokens of the session; they show whether the answer has its end
        token.
        """
        known = [int(token) for token in recent if token >= 0]
        if self._template is None:
            whole = f"{_USER} {text}{_ASSISTANT}"
            ended = self._codec.vocabulary.decode(known).endswith(_USER)
            return self._codec.encode(whole.removeprefix(_USER) if ended else whole, fresh=False)
        ids = self._codec.encode(self._following(text), fresh=False)
        # The answer already has its end token, unless `max_tokens`, a stop text or another end token ended it.
        return ids[ids.tolist().index(self._end) + 1 :] if known[-1] == self._end else ids

    def _following(self, text: str) -> str:
        assert self._template is not None
        return self._template.after_answer(text)


def frame_of(codec: Codec, wanted: bool) -> Frame:
    """Returns the text of the chat template around a question, if the model directory has one and it is `wanted`; else
    an empty frame. The template's end-of-answer tokens are added to the codec's `ends`."""
    return Frame(True, *Turns(codec.template, codec).frame()) if wanted and codec.template is not None else Frame()
