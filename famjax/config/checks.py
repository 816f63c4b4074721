"""Checks shared by all configurations: types, choices, bounds. Errors are `ConfigError`s of one line."""

import dataclasses
import difflib
import sys
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from typing import Any


class ConfigError(ValueError):
    """An invalid setting. The message says what is wrong and what to do instead."""


def reason_of(error: BaseException) -> str:
    """Returns the first line of an error's message, or the name of its type if it has no message."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def flag_of(name: str) -> str:
    """Returns the command-line flag of an option: `--top-k` for `top_k`."""
    return "--" + name.replace("_", "-")


def nearest(word: str, choices: Iterable[str], most: int = 3, show: Callable[[str], str] = str) -> str:
    """Returns `; did you mean A or B?`, or an empty text if no choice is close."""
    near = difflib.get_close_matches(word, sorted(choices), n=most)
    return f"; did you mean {' or '.join(map(show, near))}?" if near else ""


def one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises `ConfigError` unless the value is one of the choices; suggests the closest one."""
    if value not in choices:
        raise ConfigError(f"{name} {value!r} is not one of {', '.join(choices)}{nearest(str(value), choices, 1, repr)}")


def at_least(name: str, value: float, least: float) -> None:
    """Raises `ConfigError` if the value is less than `least`, or NaN."""
    if not value >= least:
        raise ConfigError(f"{name} is {value}; it must be at least {least}")


def steps(name: str, value: int, least: int) -> None:
    """Raises `ConfigError` unless the value is a number of training steps, which the device counts in 32 bits."""
    at_least(name, value, least)
    if value >= 2**31:
        raise ConfigError(f"{name} is {value}; it must be below 2^31, since steps are counted in 32 bits")


def finite(name: str, value: float) -> None:
    """Raises `ConfigError` if the value is not finite; JSON files of Python may have NaN and Infinity."""
    if not abs(value) <= sys.float_info.max:
        raise ConfigError(f"{name} is {str(value):.40}; it must be a finite number")


def positive(name: str, value: float) -> None:
    """Raises `ConfigError` unless the value is finite and above 0."""
    finite(name, value)
    if value <= 0:
        raise ConfigError(f"{name} is {value:g}; it must be more than 0")


def ascending(name: str, values: Sequence[int], what: str) -> None:
    """Raises `ConfigError` unless these are numbers from 1 in ascending order; `what` they are, for the message."""
    if not values or list(values) != sorted(set(values)) or values[0] < 1:
        raise ConfigError(f"{name} {values} must be {what} in ascending order, such as (1, 4, 16)")


def nearest_multiples(number: int, unit: int) -> str:
    """Returns the positive multiples of `unit` below and above a number that is not a multiple, as text: "6 or 8"."""
    below, above = number // unit * unit, -(-max(number, 1) // unit) * unit
    return f"{below} or {above}" if below > 0 else str(above)


def seed(name: str, value: int) -> None:
    """Raises `ConfigError` unless the value is a 32-bit seed: JAX would drop higher bits, NumPy would not."""
    if not 0 <= value < 2**32:
        raise ConfigError(f"{name} is {value}; it must be at least 0 and below 2^32")


def check_types(config: Any) -> None:
    """Raises `ConfigError` if a value, or an item of a tuple, does not have its field's type, or is a float that is not
    finite; a float may be given as an int."""
    for field in dataclasses.fields(config):
        name, value = f"{type(config).__name__}.{field.name}", getattr(config, field.name)
        if value is None and type(None) in typing.get_args(field.type):
            continue
        wanted = _plain_type(field.type)
        _check_type(name, value, wanted)
        of_items = typing.get_args(field.type)[0] if wanted is tuple else Any
        for item in value if of_items is not Any else ():
            _check_type(f"{name} is {value!r}: an item", item, of_items)


def _check_type(name: str, value: Any, wanted: type) -> None:
    more: dict[type, tuple[type, ...]] = {float: (float, int), tuple: (tuple, list)}
    if not isinstance(value, more.get(wanted, (wanted,))) or (isinstance(value, bool) and wanted is not bool):
        hint = f": write ({value!r},)" if wanted is tuple else ""
        raise ConfigError(f"{name} is {value!r}; it must be of type {wanted.__name__}{hint}")
    if wanted is float:
        finite(name, typing.cast(float, value))


def _plain_type(annotation: Any) -> type:
    """Returns the class of an annotation's values: `tuple` for `tuple[int, ...]`, `int` for `int | None`."""
    if isinstance(annotation, types.UnionType):
        annotation = next(kind for kind in typing.get_args(annotation) if kind is not type(None))
    return typing.cast(type, typing.get_origin(annotation) or annotation)


def probability(name: str, value: float) -> None:
    """Raises `ConfigError` unless the value is between 0 and 1."""
    if not 0.0 <= value <= 1.0:
        raise ConfigError(f"{name} is {value}; it must be between 0 and 1")


def known_fields(cls: type, fields: dict[str, Any]) -> dict[str, Any]:
    """Returns `fields`. Raises `ConfigError` for a name that is not a field of the class."""
    names = {field.name for field in dataclasses.fields(cls)}
    for name in fields:
        if name not in names:
            raise ConfigError(f"{cls.__name__} has no field {name!r}{nearest(name, names, 1, repr)}")
    return fields


def check_sequence_length(length: int, block_size: int) -> None:
    """Raises `ConfigError` unless `length` (tokens) is a positive multiple of `block_size`."""
    if length > 0 and length % block_size == 0:
        return
    use = nearest_multiples(length, block_size)
    raise ConfigError(f"sequence length {length} is not a multiple of block_size {block_size}; use {use}")
