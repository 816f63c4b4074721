"""A famjax model as a model of lm-evaluation-harness, under the name `famjax`.

Nothing is cut: texts of any length are read by streaming, in constant memory. Requests that begin alike, the
answers to a question or the questions about a book, share the reading of what they have in common
(`infer/prefixes.py`).
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
from famjax.infer import chat_template as chat
from famjax.infer.codec import Codec
from famjax.infer.load import load
from famjax.infer.prefixes import generate_continuations, score_continuations
from famjax.infer.scoring import score_documents, useful_rows
from famjax.infer.settings import Sampling
from famjax.nn.weights import parameters
from famjax.storage.model_dir import split_step

log = logging.getLogger(__name__)

# The harness draws for its standard errors in forked processes, and a fork of a process that runs jax may hang.
os.environ.setdefault("DISABLE_MULTIPROC", "1")

# Text of so many characters is held as tokens at a time.
CHARACTERS_AT_ONCE = 2**24
ROWS = 8


@register_model("famjax")
class FamjaxLM(TemplateLM):
    """What the harness asks of a model.

    Args:
      path: a model directory.
      batch_size: texts read side by side, at most; `auto` is 8.
      block_size, memory_segments, fam_length: other memory settings than the model's own.
      max_gen_toks: tokens of an answer, at most, where a task does not say.
      seed: of sampling, where a task asks for it.
      dtype: compute dtype, `float32` or `bfloat16`; None or `auto` as `infer.load` chooses.
      device, max_batch_size: what the harness hands to every model; they change nothing here.
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
        """Texts that are read side by side, at most."""
        return self.rows

    @property
    def eot_token_id(self) -> int | None:
        """The token that ends a text, where there is one."""
        return self.codec.vocabulary.eos

    @property
    def prefix_token_id(self) -> int:
        """`Codec.prefix`."""
        return self.codec.prefix

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Tokens of a text. It begins with `bos` where the tokenizer's settings say so, but never twice."""
        vocabulary = self.codec.vocabulary
        fresh = add_special_tokens is not False
        if fresh and add_special_tokens is None and vocabulary.bos is not None:
            fresh = not string.startswith(vocabulary.decode([self.prefix_token_id]))
        return self.codec.encode(string, fresh).tolist()

    def tok_decode(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of some tokens by themselves."""
        shown = [token for token in tokens if not (skip_special_tokens and token in self._hidden)]
        return self.codec.vocabulary.decode(shown)

    # --- what tasks ask for -----------------------------------------------------------------------

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log probability of each continuation, and whether it is what the model would say."""
        answers: list[Any] = [None] * len(requests)
        for some in _slices(requests, lambda request: "".join(request.args)):
            found = super().loglikelihood([requests[i] for i in some], disable_tqdm)
            for i, answer in zip(some, found, strict=True):
                answers[i] = answer
        self._tell()
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
        """Log probability of each text, read from its beginning to its end with all that was before in memory."""
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
        self._tell()
        return answers

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Each context's answer, up to a stop text of its task or an end of text."""
        answers: list[str] = [""] * len(requests)
        with tqdm(total=len(requests), disable=disable_tqdm, desc="famjax: answers") as bar:
            for same in _alike(requests):
                for some in _slices([requests[i] for i in same], lambda request: request.args[0]):
                    for i, text in self._answers(requests, [same[n] for n in some]):
                        answers[i] = text
                        self.cache_hook.add_partial("generate_until", requests[i].args, text)
                        bar.update()
        self._tell()
        return answers

    def _answers(self, requests: list[Any], indices: list[int]) -> Iterator[tuple[int, str]]:
        """(request, answer) for requests of the same settings."""
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
        made = generate_continuations(
            self.model, contexts, most, self.rows, sampling=sampling, seed=self.seed, samples=samples,
            stops=[[token] for token in self.codec.ends], finished=finished,
        )  # fmt: skip
        for n, tokens, _ in made:
            self._count(len(contexts[n]) + len(tokens))
            text = postprocess_generated_text(self.tok_decode(tokens.tolist()), stop=until, think_end_token=None)
            yield indices[n], text

    # --- conversations ----------------------------------------------------------------------------

    @property
    def tokenizer_name(self) -> str:
        """For the harness's cache of requests."""
        return self.path.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template's source, for the harness's log; also chooses one of several."""
        if chat_template is False:
            return None
        root, _ = split_step(self.path)
        self._template = chat.chat_template(root, chat_template)
        return self._template.source if self._template else ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as the model directory's template writes it."""
        if self._template is None:
            self.chat_template(True)
        if self._template is None:
            raise ValueError(f"{self.path} has no chat template; leave --apply_chat_template away")
        return self._template.render(chat_history, add_generation_prompt)

    # --- what it tells ----------------------------------------------------------------------------

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes into its results: nothing was cut, and how much was longer than the window."""
        count = sum(leaf.size for leaf in jax.tree.leaves(parameters(self.model)))
        info = {"model_num_parameters": count, "model_dtype": self.model.config.dtype, "famjax_window": self.window}
        return info | {"famjax_truncated": 0, "famjax_longer_than_window": self.longer, "famjax_longest": self.longest}

    def _count(self, tokens: int) -> None:
        self.longer += tokens > self.window
        self.longest = max(self.longest, tokens)

    def _tell(self) -> None:
        if self.longer:
            log.info(
                "%d inputs so far were longer than the window of %d tokens, the longest %d; none was cut",
                self.longer, self.window, self.longest,
            )  # fmt: skip


def _sampling(settings: dict[str, Any]) -> Sampling:
    """The harness's settings as ours. Raises `ValueError` on one that we do not have."""
    settings = {name: value for name, value in settings.items() if name not in ("do_sample", "use_cache", "max_length")}
    if settings.pop("num_beams", 1) not in (1, None):
        raise ValueError("famjax writes without beams; leave num_beams out of the task's generation_kwargs")
    fields = {name: settings.pop(name) for name in Sampling.__dataclass_fields__ if name in settings}
    if settings:
        raise ValueError(f"famjax does not know the generation settings {', '.join(sorted(settings))}")
    sampling = Sampling(**{name: value for name, value in fields.items() if value is not None})
    sampling.validate()
    return sampling


def _samples(indices: list[int], requests: list[Any]) -> list[int]:
    """Equal contexts are different samples, in the order of the requests."""
    seen: dict[str, int] = {}
    numbers = []
    for i in indices:
        context = requests[i].args[0]
        numbers.append(seen.get(context, 0))
        seen[context] = numbers[-1] + 1
    return numbers


def _alike(requests: list[Any]) -> list[list[int]]:
    """Requests with the same settings, together."""
    groups: dict[str, list[int]] = {}
    for i, request in enumerate(requests):
        groups.setdefault(repr(sorted(request.args[1].items(), key=lambda item: item[0])), []).append(i)
    return list(groups.values())


def _slices(requests: list[Any], text: Callable[[Any], str]) -> Iterator[list[int]]:
    """Indices of the requests, those of like beginnings together, so many at a time as their texts allow."""
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
