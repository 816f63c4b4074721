"""The base of a fine-tuned model: the model directory with the weights that the fine-tuning did not train.

A training of LoRA or of the prompt saves only the weights that it trains, megabytes instead of gigabytes, and one more
file:

    DIR/base.json    {"path": "/runs/llama", "step": 0, "record": SHA-256 of the record of that step's weights}

The record (`FILES.json`, storage/steps.py) has names, sizes and checksums of the files. Orbax gives files random names,
so the records of any two saves differ. The record is compared whenever a model is read. A base may itself have a base.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from famjax.config import ConfigError
from famjax.storage import steps
from famjax.storage.model_dir import BASE_JSON, split_step, write_text
from famjax.storage.steps import WEIGHTS, step_dir


class Base(NamedTuple):
    """A step of another model directory, with `record_of` its weights."""

    path: Path
    step: int
    record: str

    @property
    def folder(self) -> Path:
        """The folder of the step, which can be named instead of a model directory."""
        return step_dir(self.path, self.step)


def of(source: str | Path) -> Base:
    """Returns the newest step with intact weights of `source`, a model directory, or the step that `source` names.
    Raises `ConfigError` if there is no such step, or its weights are not intact."""
    root, named = split_step(source)
    root = root.absolute()
    for step in steps.newest_first(root, named):
        if not steps.damage(root, step, [WEIGHTS]):
            return Base(root, step, record_of(root, step))
    if named is not None and not step_dir(root, named).is_dir():
        raise ConfigError(steps.no_step(root, named))
    raise ConfigError(f"{source} has no intact weights to start from; restore them from a copy")


def write(model_dir: Path, base: Base) -> None:
    """Writes `base` into `base.json` of a model directory."""
    values = {"path": str(base.path), "step": base.step, "record": base.record}
    write_text(model_dir / BASE_JSON, json.dumps(values, indent=2) + "\n")


def read(model_dir: str | Path) -> Base | None:
    """Returns the base of a model directory, or None if it has none. Does not check the base itself. Raises
    `ConfigError` if `base.json` is damaged."""
    path = Path(model_dir) / BASE_JSON
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        folder, step, record = values["path"], values["step"], values["record"]
        if (type(folder), type(step), type(record)) != (str, int, str):
            raise TypeError
        return Base(Path(folder), step, record)
    except (OSError, ValueError, LookupError, TypeError):
        raise ConfigError(f"{path} is damaged; it must have path, step and record; restore it from a copy") from None


def checked(model_dir: Path) -> Base | None:
    """Returns the base like `read`, after checking that it exists, is intact, and has the weights that were trained on.
    Raises `ConfigError` if it is missing, damaged, or has other weights."""
    base = read(model_dir)
    if base is None:
        return None
    if not (base.folder / WEIGHTS).is_dir():
        raise ConfigError(
            f"{model_dir} was trained on the weights in {base.folder}, which does not exist; put it back, or write its "
            f"new path into {model_dir / BASE_JSON}"
        )
    if record_of(base.path, base.step) != base.record:
        raise ConfigError(
            f"{base.folder} has other weights than those that {model_dir} was trained on; put these back, or write "
            f"their path into {model_dir / BASE_JSON}"
        )
    if damaged := steps.damage(base.path, base.step, [WEIGHTS]):
        raise ConfigError(f"the base of {model_dir}: {damaged}; restore it from a copy")
    return base


def record_of(root: Path, step: int) -> str:
    """Returns the SHA-256, in hexadecimal, of the record of a step's weights and, if it has a base, of the base's."""
    below = read(root)
    files = steps.recorded_files(step_dir(root, step) / WEIGHTS)
    said = json.dumps([files, below.record if below else None], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()


# --- parts of the tree of weights -----------------------------------------------------------------


def part(tree: Mapping[str, Any], wanted: Callable[[str], bool], above: str = "") -> dict[str, Any]:
    """Returns the entries of a nested dict whose paths (`layers/lora/query/a`) are `wanted`, without empty dicts.

    `above` is the path of `tree` itself, with a slash at its end.
    """
    found = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            if inner := part(value, wanted, f"{above}{name}/"):
                found[name] = inner
        elif wanted(above + name):
            found[name] = value
    return found


def joined(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Merges two parts of a tree, which have no leaf in common."""
    both = one.keys() & other.keys()
    return {**one, **other} | {name: joined(one[name], other[name]) for name in both}
