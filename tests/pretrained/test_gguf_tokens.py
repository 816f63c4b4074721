"""Tokenizers of GGUF files: the ids of the tokenizer that the file was made from."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from famjax.config import ConfigError
from famjax.data.vocabulary import vocabulary_from
from famjax.pretrained.gguf_metadata import Metadata
from famjax.pretrained.gguf_tokens import CUTS, GENERATION_CONFIG, TOKENIZER_CONFIG, merges_of, tokenizer_files
from tests.pretrained import gguf_files
from tests.pretrained.theirs import Case

TRAINED_ON = [
    "The quick brown fox jumps over the lazy dog. why? User: the end, the lazy fox Grüße\n\n",
    "def f(x):\n    return x + 1234567  # 2024-11-28, it's 3.14; we'll go, DON'T\n", "  two   spaces\t\ttabs\r\n 世界",
] * 20  # fmt: skip
HARD = [
    "1234567 12 3.14 ½ ²", "def f(x):\n\tif x != 0:\n        return [x]\n\n\n", "👩\u200d👧 🎉🎉 世界 мир é e\u0301",
    "  leading, trailing  ", "\n\n  \n\t\r\n", "I'll we've DON'T it's 'S", "<s>a</s> <unk> <s", " ", "▁a ▁",
    "camelCase HTTPServer", "\u00a0b\u200bc", "",
]  # fmt: skip
LETTERS = (r"[^\r\n\p{L}\p{N}]?\p{L}+", r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"


def _pre_tokenizer(pre: str) -> Any:
    """The steps in the models' own tokenizer.json."""
    from tokenizers import Regex, pre_tokenizers

    plain = lambda use_regex: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    if pre == "gpt-2":
        return plain(True)
    if pre == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain(True)])
    digits = r"\p{N}" if pre == "qwen2" else r"\p{N}{1,3}"
    pattern = f"{SHORT}|{LETTERS[0]}|{digits}|{LETTERS[1]}"
    if pre == "tekken":
        upper, lower = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
        head = r"[^\r\n\p{L}\p{N}]?"
        rest = r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        pattern = f"{head}{upper}*{lower}+|{head}{upper}+{lower}*|{rest}"
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), behavior="isolated"), plain(False)])


def byte_level(pre: str) -> Any:
    """A tiny tokenizer, trained here."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(ignore_merges=pre in ("llama-bpe", "tekken")))
    tokenizer.normalizer = normalizers.NFC() if pre == "qwen2" else None
    tokenizer.pre_tokenizer, tokenizer.decoder = _pre_tokenizer(pre), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(TRAINED_ON, trainer)
    return tokenizer


def metaspace() -> Any:
    """A tiny SentencePiece-like tokenizer with byte fallback, without the steps around it."""
    from tokenizers import Tokenizer, models, normalizers, trainers

    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    bytes_alone = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=460, special_tokens=["<unk>", "<s>", "</s>", *bytes_alone])
    tokenizer.train_from_iterator([word for text in TRAINED_ON for word in text.split()], trainer)
    return tokenizer


def files_of(says: dict[str, Any], is_gemma: bool = False) -> dict[str, bytes]:
    """Returns the files for these metadata."""
    metadata = Metadata(Path("tiny.gguf"), {f"tokenizer.{key}": value for key, value in says.items()})
    return tokenizer_files(metadata.under("tokenizer."), is_gemma).contents


SPECIAL = {"bos_token_id": 0, "eos_token_id": 1}


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2", "tekken"])
def test_byte_level(pre: str) -> None:
    """Ids and texts of a tokenizer with the steps of the models that `pre` names."""
    tokenizer = byte_level(pre)
    says = gguf_files.of_tokenizer(tokenizer, "gpt2", ["<s>", "</s>"], pre=pre, **SPECIAL)
    vocabulary = vocabulary_from(files_of(says), "tiny.gguf")
    for text in (*TRAINED_ON[:3], *HARD):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert vocabulary.encode(text).tolist() == ids, text
        assert vocabulary.decode(ids) == tokenizer.decode(ids, skip_special_tokens=False)
    assert (vocabulary.bos, vocabulary.eos) == (0, 1)
    # llama.cpp makes some begin with bos unless the file says otherwise
    assert vocabulary.begins == ((0,) if pre in ("llama-bpe", "tekken") else ())
    assert vocabulary_from(files_of(says | {"ggml.add_bos_token": True}), "").begins == (0,)
    assert vocabulary_from(files_of(says | {"ggml.add_bos_token": False}), "").begins == ()


def test_every_cut_is_compared() -> None:
    """The names of pre-tokenizers are those above, or aliases of them."""
    assert {id(cut) for cut in CUTS.values()} == {
        id(CUTS[pre]) for pre in ("gpt-2", "smollm", "llama-bpe", "qwen2", "tekken")
    }


@pytest.mark.parametrize("arch", ["llama", "gemma2"])
def test_sentencepiece_and_loader_of_transformers(arch: str, tmp_path: Path) -> None:
    """Merges follow from scores, for Gemma from the order of tokens; ids are those of transformers' own loader."""
    import transformers

    says = gguf_files.of_tokenizer(
        metaspace(), "llama", ["<s>", "</s>"], pre="default", bos_token_id=1, eos_token_id=2, unknown_token_id=0,
        add_bos_token=True, add_space_prefix=arch == "llama",
    )  # fmt: skip
    if arch == "gemma2":  # constant scores, and a run of spaces as in Gemma's files
        says["ggml.scores"] = [-1000.0] * len(says["ggml.tokens"])
        says["ggml.tokens"], says["ggml.token_type"] = (
            [*says["ggml.tokens"], "  ", "\n\n"],
            [*says["ggml.token_type"], 4, 4],
        )
        says["ggml.scores"] = [-1000.0] * len(says["ggml.tokens"])
    size = len(says["ggml.tokens"])
    sizes = {"vocab_size": size, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "head_dim": 8}
    case = Case("Llama" if arch == "llama" else "Gemma2", sizes | {"num_key_value_heads": 1})
    gguf_files.write(tmp_path / "tiny.gguf", case, tokenizer=says)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="tiny.gguf")
    vocabulary = vocabulary_from(files_of(says, arch != "llama"), "tiny.gguf")
    for text in (*TRAINED_ON[:3], *HARD):
        ids = theirs.encode(text, add_special_tokens=False)
        assert vocabulary.encode(text).tolist() == ids, text
        assert vocabulary.decode(ids) == theirs.decode(ids)
    assert vocabulary.begins == (1,)
    assert len(vocabulary.encode(TRAINED_ON[0])) < len(TRAINED_ON[0].encode())


def test_merges_of_scores() -> None:
    """Higher scores first; for one token, the longest left part first."""
    scores = {"a": 0.0, "b": 0.0, "c": 0.0, "ab": 5.0, "bc": 1.0, "abc": 7.0}
    assert merges_of(scores) == [["ab", "c"], ["a", "bc"], ["a", "b"], ["b", "c"]]


def test_chat_templates_and_ends() -> None:
    """One template, or several by name; all tokens that end a text."""
    says = gguf_files.characters(20)
    one = json.loads(files_of(says | {"chat_template": "{{ 1 }}"})[TOKENIZER_CONFIG])
    assert (one["chat_template"], one["bos_token"], one["eos_token"]) == ("{{ 1 }}", "<s>", "</s>")
    several = {"chat_template": "{{ 1 }}", "chat_templates": ["tools"], "chat_template.tools": "{{ 2 }}"}
    assert json.loads(files_of(says | several)[TOKENIZER_CONFIG])["chat_template"] == [
        {"name": "default", "template": "{{ 1 }}"}, {"name": "tools", "template": "{{ 2 }}"},
    ]  # fmt: skip
    assert "chat_template" not in json.loads(files_of(says)[TOKENIZER_CONFIG])
    assert json.loads(files_of(says)[GENERATION_CONFIG]) == {"bos_token_id": 1, "eos_token_id": 2}
    ends = files_of(says | {"ggml.eot_token_id": 5, "ggml.eom_token_id": 2, "ggml.padding_token_id": 3})
    assert json.loads(ends[GENERATION_CONFIG]) == {"bos_token_id": 1, "eos_token_id": [2, 5], "pad_token_id": 3}
    # As in files of Gemma: the end of a turn has a name, but no key.
    named = says | {"ggml.tokens": [*says["ggml.tokens"][:-1], "<end_of_turn>"]}
    assert json.loads(files_of(named)[GENERATION_CONFIG])["eos_token_id"] == [2, 19]


GPT2 = {
    "ggml.model": "gpt2", "ggml.pre": "gpt-2", "ggml.tokens": ["a", "b", "ab"], "ggml.token_type": [1, 1, 1],
    "ggml.merges": ["a b"],
}  # fmt: skip
BAD = [
    (GPT2, {"ggml.model": "t5"}, "tokenizer.ggml.model is 't5'; known are gpt2 and llama"),
    (GPT2, {"ggml.model": None}, "tokenizer.ggml.model is None"),
    (GPT2, {"ggml.pre": "falcon"}, "tokenizer.ggml.pre is 'falcon'; known are gpt-2, smollm"),
    (GPT2, {"ggml.pre": "default"}, "tokenizer.ggml.pre does not name a pre-tokenization"),
    (GPT2, {"ggml.pre": None}, "tokenizer.ggml.pre does not name a pre-tokenization"),
    (GPT2, {"ggml.pre": ["gpt-2"]}, "tokenizer.ggml.pre is ['gpt-2']; it must be a string"),
    (GPT2, {"ggml.merges": None}, "tokenizer.ggml.merges is missing"),
    (GPT2, {"ggml.merges": ["ab"]}, "tokenizer.ggml.merges has a merge that is not a pair"),
    (GPT2, {"ggml.merges": ["a c"]}, "tokenizer.ggml.merges has 'a c', which is not of its tokens"),
    (GPT2, {"ggml.tokens": ["a", "b", "ab", "a"], "ggml.token_type": [1] * 4}, "tokenizer.ggml.tokens has 'a' twice"),
    (GPT2, {"ggml.tokens": []}, "tokenizer.ggml.tokens has no tokens"),
    (GPT2, {"ggml.tokens": 7}, "tokenizer.ggml.tokens is 7; it must be a list of strings"),
    (GPT2, {"ggml.token_type": [1]}, "tokenizer.ggml.token_type does not have a number for each token"),
    (GPT2, {"ggml.eos_token_id": 3}, "tokenizer.ggml.eos_token_id is 3, of 3 tokens"),
    (GPT2, {"ggml.eos_token_id": True}, "tokenizer.ggml.eos_token_id is True, of 3 tokens"),
    (GPT2, {"ggml.add_space_prefix": True}, "tokenizer.ggml.add_space_prefix is True; only False is known here"),
    (GPT2, {"ggml.add_bos_token": True}, "bos_token_id is missing, but every text gets this token; add the key"),
    (GPT2, {"ggml.add_eos_token": True}, "eos_token_id is missing, but every text gets this token"),
    (GPT2, {"ggml.pre": "llama-bpe"}, "bos_token_id is missing, but every text gets this token"),
    (GPT2, {"ggml.precompiled_charsmap": [1]}, "tokenizer.ggml.precompiled_charsmap is not known here and may change"),
    (gguf_files.characters(9), {"ggml.scores": [0.0] * 9}, "tokenizer.ggml.scores has no order of tokens"),
    (gguf_files.characters(9), {"ggml.scores": None}, "tokenizer.ggml.scores has no order of tokens"),
    (gguf_files.characters(9), {"ggml.remove_extra_whitespaces": True}, "remove_extra_whitespaces is True"),
]  # fmt: skip


@pytest.mark.parametrize(("says", "change", "message"), BAD)
def test_what_cannot_be_read_is_named(says: dict, change: dict, message: str) -> None:
    """One line with the file and the key."""
    changed = {key: value for key, value in (says | change).items() if value is not None}
    with pytest.raises(ConfigError) as error:
        files_of(changed)
    assert message in str(error.value)
    assert str(error.value).startswith("tiny.gguf: ")


def test_ids_are_int32() -> None:
    """The interface of the other vocabularies."""
    assert vocabulary_from(files_of(GPT2), "").encode("abab").dtype == np.int32
    assert vocabulary_from(files_of(GPT2), "").encode("abab").tolist() == [2, 2]
