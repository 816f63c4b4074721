"""A famjax model as a model of lm-evaluation-harness, under the name `famjax`.

Nothing is truncated: texts of any length are streamed in constant memory. Shared prefixes of requests, such as the
question before its options or the book before its questions, are prefilled once (`infer/prefixes.py`).
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from tqdm import tqdm

from famjax.config import DTYPES, ConfigError
from famjax.data import chat_template as chat
from famjax.infer.codec import Codec
from famjax.infer.load import load
from famjax.infer.prefixes import generate_continuations, score_continuations
from famjax.infer.scoring import score_documents, useful_rows
from famjax.infer.settings import Sampling
from famjax.nn.weights import parameters
from famjax.storage.model_dir import split_step

log = logging.getLogger(__name__)

# The harness bootstraps its standard errors in forked processes, and a fork of a process that runs jax may hang.
os.environ.setdefault("DISABLE_MULTIPROC", "1")

# Upper bound on the characters of text that are held as tokens at a time.
CHARACTERS_AT_ONCE = 2**24
ROWS = 8


@register_model("famjax")
class FamjaxLM(TemplateLM):
    """The harness's model interface.

    Args:
      path: a model directory.
      batch_size: maximum number of rows in a batch; `auto` is 8.
      block_size, memory_segments, fam_length: override the model's memory settings.
      max_gen_toks: maximum number of tokens of an answer, if the task sets none.
      seed: seed of sampling, for tasks that sample.
      dtype: compute dtype, `float32` or `bfloat16`; None or `auto`: the default of `infer.load`.
      device, max_batch_size: ignored; the harness passes them to every model.

    Raises:
      ConfigError: the dtype is unknown, or the model directory cannot be loaded.
    """

    def __init__(
        self, path: str, batch_size: int | str = ROWS, block_size: int | None = None,
        memory_segments: int | None = None, fam_length: int | None = None, max_gen_toks: int = 256, seed: int = 0,
        device: Any = None, max_batch_size: Any = None, dtype: str | None = None,
    ):  # fmt: skip
        super().__init__()
        settings = {"block_size": block_size, "memory_segments": memory_segments, "fam_length": fam_length}
        if dtype not in (None, "auto", *DTYPES):
            raise ConfigError(f"dtype {dtype!r} is not one of auto, {', '.join(DTYPES)}")
        self.model = load(path, None, None if dtype == "auto" else dtype, **settings)
        self.path, self.max_gen_toks, self.seed = str(path), int(max_gen_toks), int(seed)
        self.rows = int(batch_size) if str(batch_size).isdigit() else ROWS
        self.codec = Codec(path, self.model.config.vocab_size)
        vocabulary = self.codec.vocabulary
        known = {token for token in (vocabulary.bos, vocabulary.eos) if token is not None}
        self._hidden: frozenset[int] = getattr(vocabulary, "specials", frozenset(known))
        memory = self.model.config.memory
        self.window = (memory.memory_segments + 1) * memory.block_size
        self.longer = 0
        self.longest = 0
        self._template: chat.ChatTemplate | None = None

    # --- tokens -----------------------------------------------------------------------------------

    @property
    def batch_size(self) -> int:
        """Maximum number of rows in a batch."""
        return self.rows

    @property
    def eot_token_id(self) -> int | None:
        """The token that ends a text; None if the vocabulary has none."""
        return self.codec.vocabulary.eos

    @property
    def prefix_token_id(self) -> int:
        """The token before a text that has no context (`Codec.prefix`)."""
        return self.codec.prefix

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Returns the tokens of a text, with `bos` if the tokenizer's settings say so, but never twice."""
        vocabulary = self.codec.vocabulary
        fresh = add_special_tokens is not False
        if fresh and add_special_tokens is None and vocabulary.bos is not None:
            fresh = not string.startswith(vocabulary.decode([self.prefix_token_id]))
        return self.codec.encode(string, fresh).tolist()

    def tok_decode(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Returns the text of the tokens."""
        shown = [token for token in tokens if not (skip_special_tokens and token in self._hidden)]
        return self.codec.vocabulary.decode(shown)

    # --- requests of tasks ------------------------------------------------------------------------

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Returns each continuation's natural-log probability, and whether greedy decoding would produce it."""
        answers: list[Any] = [None] * len(requests)
        for some in _slices(requests, lambda request: "".join(request.args)):
            found = super().loglikelihood([requests[i] for i in some], disable_tqdm)
            for i, answer in zip(some, found, strict=True):
                answers[i] = answer
        self._log_lengths()
        return answers

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        contexts = [np.asarray(context or [self.prefix_token_id], np.int32) for _, context, _ in requests]
        continuations = [np.asarray(continuation, np.int32) for _, _, continuation in requests]
        answers: list[Any] = [None] * len(requests)
        scores = score_continuations(self.model, contexts, continuations, self.rows)
        for i, logprobs, correct in tqdm(scores, "famjax: continuations", len(requests), disable=disable_tqdm):
            self._count(len(contexts[i]) + len(continuations[i]))
            answers[i] = float(logprobs.sum(dtype=np.float64)), bool(correct.all())
            self.cache_hook.add_partial("loglikelihood", requests[i][0], answers[i])
        return answers

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Returns each text's natural-log probability; the memory is carried from its beginning to its end."""
        answers: list[float] = [0.0] * len(requests)
        with tqdm(total=len(requests), disable=disable_tqdm, desc="famjax: texts") as bar:
            for some in _slices(requests, lambda request: request.args[0]):
                encode = lambda i: [self.prefix_token_id, *self.tok_encode(requests[i].args[0])]
                texts = [np.asarray(encode(i), np.int32) for i in some]
                for n, logprobs, _ in score_documents(self.model, texts, useful_rows(texts, self.rows)):
                    self._count(len(texts[n]))
                    answers[some[n]] = float(logprobs.sum(dtype=np.float64))
                    self.cache_hook.add_partial("loglikelihood_rolling", requests[some[n]].args, answers[some[n]])
                    bar.update()
        self._log_lengths()
        return answers

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Returns each context's answer, up to the task's stop text or an end-of-text token."""
        answers: list[str] = [""] * len(requests)
        with tqdm(total=len(requests), disable=disable_tqdm, desc="famjax: answers") as bar:
            for same in _alike(requests):
                for some in _slices([requests[i] for i in same], lambda request: request.args[0]):
                    for i, text in self._answers(requests, [same[n] for n in some]):
                        answers[i] = text
                        self.cache_hook.add_partial("generate_until", requests[i].args, text)
                        bar.update()
        self._log_lengths()
        return answers

    def _answers(self, requests: list[Any], indices: list[int]) -> Iterator[tuple[int, str]]:
        """Yields (index of the request, answer) for requests with the same settings."""
        settings = normalize_gen_kwargs(requests[indices[0]].args[1], self.max_gen_toks)
        ends = [self.tok_decode([token], skip_special_tokens=False) for token in self.codec.ends]
        until = handle_stop_sequences(settings.pop("until", None), eos=None) + ends
        most, sampling = settings.pop("max_gen_toks"), _sampling(settings)
        contexts = [np.asarray(self.tok_encode(requests[i].args[0]), np.int32) for i in indices]
        contexts = [one if len(one) else np.array([self.prefix_token_id], np.int32) for one in contexts]
        texts = [stop for stop in until if stop]

        def finished(n: int, tokens: np.ndarray) -> bool:
            return any(stop in self.tok_decode(tokens.tolist()) for stop in texts)

        samples = _samples(indices, requests)
        generated = generate_continuations(
            self.model, contexts, most, self.rows, sampling=sampling, seed=self.seed, samples=samples,
            stops=[[token] for token in self.codec.ends], finished=finished,
        )  # fmt: skip
        for n, tokens, _ in generated:
            self._count(len(contexts[n]) + len(tokens))
            text = postprocess_generated_text(self.tok_decode(tokens.tolist()), stop=until, think_end_token=None)
            yield indices[n], text

    # --- conversations ----------------------------------------------------------------------------

    @property
    def tokenizer_name(self) -> str:
        """A name for the harness's cache of requests."""
        return self.path.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Selects the chat template (by name if there are several) and returns its source, for the harness's log."""
        if chat_template is False:
            return None
        root, _ = split_step(self.path)
        self._template = chat.chat_template(root, chat_template)
        return self._template.source if self._template else ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Renders a conversation with the model directory's template. Raises `ValueError` if it has none."""
        if self._template is None:
            self.chat_template(True)
        if self._template is None:
            raise ValueError(f"{self.path} has no chat template; omit --apply_chat_template")
        return self._template.render(chat_history, add_generation_prompt)

    # --- reports ----------------------------------------------------------------------------------

    def get_model_info(self) -> dict[str, Any]:
        """Returns entries for the harness's results.

        They are the number of parameters, the dtype, the window in tokens, the number of truncated inputs (always 0),
        the number of inputs longer than the window, and the tokens of the longest input.
        """
        count = sum(leaf.size for leaf in jax.tree.leaves(parameters(self.model)))
        info = {"model_num_parameters": count, "model_dtype": self.model.config.dtype, "famjax_window": self.window}
        return info | {"famjax_truncated": 0, "famjax_longer_than_window": self.longer, "famjax_longest": self.longest}

    def _count(self, tokens: int) -> None:
        self.longer += tokens > self.window
        self.longest = max(self.longest, tokens)

    def _log_lengths(self) -> None:
        if self.longer:
            log.info(
                "%d inputs so far were longer than the window of %d tokens, the longest %d; none was truncated",
                self.longer, self.window, self.longest,
            )  # fmt: skip


def _sampling(settings: dict[str, Any]) -> Sampling:
    """Converts the harness's generation settings. Raises `ValueError` for an unsupported one."""
    if settings.get("do_sample") and settings.get("temperature") is None:
        settings = settings | {"temperature": 1.0}  # as in transformers; ours is greedy
    settings = {name: value for name, value in settings.items() if name not in ("do_sample", "use_cache", "max_length")}
    if settings.pop("num_beams", 1) not in (1, None):
        raise ValueError("famjax has no beam search; remove num_beams from the task's generation_kwargs")
    fields = {name: settings.pop(name) for name in Sampling.__dataclass_fields__ if name in settings}
    if settings:
        raise ValueError(f"famjax does not support the generation settings {', '.join(sorted(settings))}")
    sampling = Sampling(**{name: value for name, value in fields.items() if value is not None})
    sampling.validate()
    return sampling


def _samples(indices: list[int], requests: list[Any]) -> list[int]:
    """Numbers requests with equal contexts, in their order, so that each draws a different sample."""
    seen: dict[str, int] = {}
    numbers = []
    for i in indices:
        context = requests[i].args[0]
        numbers.append(seen.get(context, 0))
        seen[context] = numbers[-1] + 1
    return numbers


def _alike(requests: list[Any]) -> list[list[int]]:
    """Groups the indices of requests with the same settings."""
    groups: dict[str, list[int]] = {}
    for i, request in enumerate(requests):
        groups.setdefault(repr(sorted(request.args[1].items(), key=lambda item: item[0])), []).append(i)
    return list(groups.values())


def _slices(requests: list[Any], text: Callable[[Any], str]) -> Iterator[list[int]]:
    """Yields the requests' indices sorted by text (shared prefixes together), in slices of bounded total length."""
    some: list[int] = []
    size = 0
    for i in sorted(range(len(requests)), key=lambda i: text(requests[i])):
        if some and size + len(text(requests[i])) > CHARACTERS_AT_ONCE:
            yield some
            some, size = [], 0
        some.append(i)
        size += len(text(requests[i]))
    if some:
        yield some
