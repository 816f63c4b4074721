"""A conversation written down turn by turn, for a model that keeps nothing of it but its memory.

There is no transcript: it would grow. What a turn adds to the text is found with a made-up conversation in front of
it, which the chat template writes down too:

    <user>a<end><assistant>MARK<end><user>What now?<end><assistant>
                               ^ from here on: what follows an answer, and the new turn
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from famjax.config import ConfigError
from famjax.infer.chat_template import ChatTemplate
from famjax.infer.codec import Codec

# Stands for an answer; letters alone, which no template changes.
_MARK = "ANSWERTHATWASGIVEN"
# Without a template: how a turn begins, and so what ends an answer.
_USER, _ASSISTANT = "\nUser:", "\nAssistant:"


class Turns:
    """What a user says, as tokens to be read, and what ends the answer.

    Args:
      template: of the model; None writes `User: ...` and `Assistant: ...`.
      codec: of the model. Tokens with which the template ends an answer are added to its `ends`.

    Attributes:
      stops: texts that end an answer, beside the codec's `ends`.

    Raises:
      ConfigError: the template cannot be used turn by turn.
    """

    def __init__(self, template: ChatTemplate | None, codec: Codec):
        self._template, self._codec = template, codec
        self.stops = [] if template else [_USER]
        if template:
            special: frozenset[int] = getattr(codec.vocabulary, "specials", frozenset())
            end = next((t for t in codec.encode(self._following("a"), fresh=False).tolist() if t in special), None)
            codec.ends += [end] if end is not None and end not in codec.ends else []

    def first(self, text: str, system: str = "") -> np.ndarray:
        """int32 ids of a conversation that begins with what the user says, up to where the answer begins."""
        before = [{"role": "system", "content": system}] if system else []
        return self.conversation([*before, _said(text)])

    def conversation(self, messages: Sequence[dict[str, str]]) -> np.ndarray:
        """int32 ids of a whole conversation, up to where the next answer begins.

        Args:
          messages: `role` and `content` of each; roles are those of the template, without one `system`, `user` and
            `assistant`.

        Raises:
          ConfigError: the template refuses the conversation, or there is none and a role is another one.
        """
        if self._template is not None:
            return self._codec.encode(self._template.render(list(messages)), fresh=False)
        begins = {"system": "", "user": f"{_USER} ", "assistant": f"{_ASSISTANT} "}
        for message in messages:
            if message["role"] not in begins:
                raise ConfigError(f"role {message['role']!r} is not one of {', '.join(begins)}; there is no template")
        written = "".join(begins[message["role"]] + message["content"] for message in messages)
        return self._codec.encode(written.lstrip("\n") + _ASSISTANT)

    def frame(self) -> tuple[str, str]:
        """What is written before and after a text that is all a user says, up to where the answer begins.

        Raises:
          ConfigError: the template does not write the text as it is.
        """
        if self._template is None:
            return _USER.lstrip("\n") + " ", _ASSISTANT
        before, mark, after = self._template.render([_said(_MARK)]).partition(_MARK)
        if not mark or _MARK in after:
            raise ConfigError("the chat template does not write what a user says once, as it is")
        return before, after

    def following(self, text: str, recent: Any) -> np.ndarray:
        """The same behind an answer. `recent`: the last tokens, which tell whether the answer was ended."""
        known = [int(token) for token in recent if token >= 0]
        if self._template is None:
            whole = self._plain(text)
            ended = self._codec.vocabulary.decode(known).endswith(_USER)
            return self._codec.encode(whole.removeprefix(_USER) if ended else whole, fresh=False)
        ids = self._codec.encode(self._following(text), fresh=False)
        # The token that ends an answer is made by the model, unless the answer was cut short.
        ended = known[-1] in self._codec.ends and known[-1] in ids
        return ids[ids.tolist().index(known[-1]) + 1 :] if ended else ids

    @staticmethod
    def _plain(text: str) -> str:
        return f"{_USER} {text}{_ASSISTANT}"

    def _following(self, text: str) -> str:
        assert self._template is not None
        answer = {"role": "assistant", "content": _MARK}
        written = self._template.render([_said("a"), answer, _said(text)])
        if _MARK not in written:
            raise ConfigError("the chat template leaves earlier answers out; famjax chat cannot go on with it")
        return written[written.rindex(_MARK, 0, len(written) - len(text)) + len(_MARK) :]


def _said(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}
