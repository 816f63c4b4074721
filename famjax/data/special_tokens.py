"""Checks what the JSON files of a tokenizer's folder say about tokens, since any program may have written them."""

from collections.abc import Mapping
from reprlib import repr as shown
from typing import Any

from famjax.config import ConfigError

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
EXTRA, OLD_EXTRA = "extra_special_tokens", "additional_special_tokens"
BY_ID = "added_tokens_decoder"
FLAGS = ("lstrip", "rstrip", "single_word", "normalized")
_MAX_ID = 2**31 - 1  # ids are int32


def check_ids(values: Mapping[str, Any], place: str) -> None:
    """Raises `ConfigError` unless these are ids by token, as in vocab.json and added_tokens.json; `place` names it."""
    for token, said in values.items():
        if type(said) is not int or not 0 <= said <= _MAX_ID:
            raise ConfigError(f"{place}: {token!r} is {shown(said)}, not an id; restore the file from a copy")


def check_special_tokens(values: Mapping[str, Any], place: str) -> None:
    """Raises `ConfigError` unless these name special tokens and tokens to add as in tokenizer_config.json and
    special_tokens_map.json. A token is a text, or an object with it as `content`."""
    for key, said in values.items():
        if key in NAMED and not _is_token(said):
            raise ConfigError(f"{place}: {key} is {shown(said)}, not a token")
        if key in (EXTRA, OLD_EXTRA) and not _are_tokens(said):
            raise ConfigError(f"{place}: {key} is {shown(said)}, neither a list of tokens nor tokens by name")
        if key == BY_ID and not (isinstance(said, dict) and all(_is_id(n) and _is_object(said[n]) for n in said)):
            raise ConfigError(f"{place}: {key} is not an object of tokens by id")


def _is_id(said: str) -> bool:
    return said.isdecimal() and len(said) <= len(str(_MAX_ID)) and int(said) <= _MAX_ID


def _is_object(said: Any) -> bool:
    """Whether a file describes a token as an object."""
    flags = isinstance(said, dict) and all(isinstance(said.get(flag, False), bool) for flag in (*FLAGS, "special"))
    return flags and isinstance(said.get("content"), str)


def _is_token(said: Any) -> bool:
    """Whether this is a token, or None, which says that there is none."""
    return said is None or isinstance(said, str) or _is_object(said)


def _are_tokens(said: Any) -> bool:
    if isinstance(said, dict):
        return all(map(_is_token, said.values()))
    return said is None or isinstance(said, list) and all(one is not None and _is_token(one) for one in said)
