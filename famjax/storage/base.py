"""Where a fine-tuned model has the weights that its training left as they were: in another directory, its base.

A training of LoRA or of the prompt saves these alone, megabytes beside gigabytes, and one file more:

    DIR/base.json    {"path": "/runs/llama", "step": 0, "record": SHA-256 of the record of that step's weights}

The record (`FILES.json`, storage/steps.py) has names, sizes and checksums of the files, and Orbax gives files random
names, so it tells one save from every other. It is compared whenever a model is read. A base may itself have a base.
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
    """A step of another model directory.

    Attributes:
      path: the directory.
      step: which of its steps.
      record: what `record_of` gave for it.
    """

    path: Path
    step: int
    record: str

    @property
    def folder(self) -> Path:
        """Of the step; a name of a model, as a model directory is."""
        return step_dir(self.path, self.step)


def of(source: str | Path) -> Base:
    """The step that is read where `source` is named: a model directory, or one of its steps.

    Raises:
      ConfigError: it has no whole step.
    """
    root, named = split_step(source)
    root = root.absolute()
    for step in steps.all_steps(root)[::-1] if named is None else [named]:
        if not steps.damage(root, step, [WEIGHTS]):
            return Base(root, step, record_of(root, step))
    raise ConfigError(f"{source} has no whole weights to start from; restore them from a copy")


def write(model_dir: Path, base: Base) -> None:
    """Makes `base` that of a model directory."""
    values = {"path": str(base.path), "step": base.step, "record": base.record}
    write_text(model_dir / BASE_JSON, json.dumps(values, indent=2) + "\n")


def read(model_dir: str | Path) -> Base | None:
    """The base of a model directory, or None where it has all its weights itself. Does not look at the base."""
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
    """The same, and it is there, whole, and the one that the training started from.

    Raises:
      ConfigError: one line that says which of these it is not, and what to do.
    """
    base = read(model_dir)
    if base is None:
        return None
    if not (base.folder / WEIGHTS).is_dir():
        raise ConfigError(
            f"{model_dir} was trained on the weights in {base.folder}, which is not there; put it back, or write its "
            f"new place into {model_dir / BASE_JSON}"
        )
    if record_of(base.path, base.step) != base.record:
        raise ConfigError(
            f"{base.folder} has other weights than those that {model_dir} was trained on; put these back, or write "
            f"their place into {model_dir / BASE_JSON}"
        )
    if damaged := steps.damage(base.path, base.step, [WEIGHTS]):
        raise ConfigError(f"the base of {model_dir}: {damaged}; restore it from a copy")
    return base


def record_of(root: Path, step: int) -> str:
    """SHA-256, in hexadecimal, of what a step's record says of its weights, and of its base's record if it has one."""
    below = read(root)
    files = steps.recorded_files(step_dir(root, step) / WEIGHTS)
    said = json.dumps([files, below.record if below else None], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()


# --- parts of the tree of weights -----------------------------------------------------------------


def part(tree: Mapping[str, Any], wanted: Callable[[str], bool], above: str = "") -> dict[str, Any]:
    """What of a nested dict has a wanted path (`layers/lora/query/a`); no empty dicts."""
    found = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            if inner := part(value, wanted, f"{above}{name}/"):
                found[name] = inner
        elif wanted(above + name):
            found[name] = value
    return found


def joined(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Two parts of a tree as one."""
    both = one.keys() & other.keys()
    return {**one, **other} | {name: joined(one[name], other[name]) for name in both}
