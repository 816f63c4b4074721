"""Builds frozen configuration dataclasses from gin; the only module that imports gin.

Configurations are registered with gin under their class names, so that a gin file reads

    TrainConfig.steps = %TRAIN_STEPS
    ModelConfig.memory = @MemoryConfig()

gin keeps its settings in module globals. Each load clears them before and after, so loads are
independent. Every user error becomes a `ConfigError` of one line.
"""

import dataclasses
import importlib.util  # noqa: F401 - gin's own file reader uses it and forgets to import it
import itertools
import os
import re
import sys
import tokenize
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import gin

from famjax.cli.gin_files import advice, find, missing_file, open_file, search_path, searching
from famjax.cli.main import at_home
from famjax.config import (
    BabiConfig,
    ConfigError,
    DataConfig,
    EvalConfig,
    InferConfig,
    LoraConfig,
    MemoryConfig,
    ModelConfig,
    MqarConfig,
    OptimizerConfig,
    PassKeyConfig,
    SourceConfig,
    TrackingConfig,
    TrainConfig,
)
from famjax.config.checks import nearest, reason_of
from famjax.storage.model_dir import read_config

T = TypeVar("T")

# gin tries its readers in order. Its own opens files of the current directory undecoded, so ours, which also serves
# includes, comes first.
gin.config._FILE_READERS.insert(0, (open_file, lambda name: find(name) is not None))


class _Parser(gin.config_parser.ConfigParser):  # type: ignore[misc]
    """gin's parser, which alone would keep the last value of a key that a dict has twice."""

    _keys: set[Any] = set()  # of the dict being parsed

    def _maybe_parse_container(self) -> tuple[bool, Any]:
        outer, self._keys = self._keys, set()
        try:
            found: tuple[bool, Any] = super()._maybe_parse_container()
            return found
        finally:
            self._keys = outer

    def _parse_dict_item(self) -> tuple[Any, Any]:
        key, value = super()._parse_dict_item()
        if key in self._keys:
            file, line, *_ = self._current_location()
            place = f'\n  In file "{file}", line {line}' if file else ""
            raise ConfigError(f"{key!r} is given twice; give it once{place}")
        self._keys.add(key)
        return key, value


gin.config.config_parser.ConfigParser = _Parser

# Macros that every training run accepts on the command line (the last three are defined in model files).
CONTRACT_MACROS = (
    "MODEL_DIR", "INITIAL_CHECKPOINT_PATH", "MIXTURE_OR_TASK_NAME", "TASK_FEATURE_LENGTHS", "TRAIN_STEPS",
    "BATCH_SIZE", "RANDOM_SEED", "LEARNING_RATE", "MESH", "MICROBATCHES", "CHECKPOINT_PERIOD",
    "CHECKPOINT_MINUTES", "KEEP_CHECKPOINTS", "EVAL_PERIOD", "LOG_PERIOD", "DIAGNOSTICS_PERIOD", "PROFILE_STEPS",
    "LORA_RANK", "BLOCK_SIZE", "MEMORY_SEGMENTS", "FAM_LENGTH",
)  # fmt: skip


def target_length(task_feature_lengths: dict[str, int]) -> int:
    """Returns the sequence length in tokens for T5X's `TASK_FEATURE_LENGTHS` of a decoder.

    {"targets": N} gives N. With "inputs" it is the sum, as in seqio's prefix-LM converter, since a row
    holds both.
    """
    lengths = task_feature_lengths
    known = isinstance(lengths, dict) and {"targets"} <= set(lengths) <= {"inputs", "targets"}
    if not known or not all(type(length) is int and length >= 0 for length in lengths.values()):
        raise ConfigError(
            f'TASK_FEATURE_LENGTHS is {lengths!r}; a decoder needs {{"targets": N}}, N the tokens of a row'
        )
    return sum(lengths.values())


def model_of_checkpoint(
    path: str, lora: LoraConfig, changes: dict[str, Any] | None = None, block_size: int | None = None,
    memory_segments: int | None = None, fam_length: int | None = None, remat: str | None = None,
) -> ModelConfig:  # fmt: skip
    """Returns the configuration of an existing model, with changes, for fine-tuning.

    Args:
      path: model directory, or one of its checkpoints.
      lora, changes: LoRA settings of the model to train; new values of fields of `ModelConfig` or `MemoryConfig`.
      block_size, memory_segments, fam_length: new memory settings; None keeps the model's.
      remat: what the backward pass rematerialises; None is that of `changes`, else the model's.
    """
    of_memory, changes = _REGISTERED["MemoryConfig"], changes or {}
    for name in changes:
        if name not in (names := (*_REGISTERED["ModelConfig"], *of_memory)):
            raise ConfigError(f"model_of_checkpoint.changes: ModelConfig has no {name}{nearest(name, names)}")
    if not path:
        raise ConfigError("the model is taken from INITIAL_CHECKPOINT_PATH, which is empty; add "
                          "--gin.INITIAL_CHECKPOINT_PATH=\"'DIR'\"")  # fmt: skip
    model = read_config(at_home(path))
    sizes = {"block_size": block_size, "memory_segments": memory_segments, "fam_length": fam_length}
    memory: dict[str, Any] = {name: size for name, size in sizes.items() if size is not None}
    memory = {name: value for name, value in changes.items() if name in of_memory} | memory
    rest: dict[str, Any] = {"lora": lora, "memory": dataclasses.replace(model.memory, **memory)}
    rest |= {name: value for name, value in changes.items() if name not in of_memory}
    rest |= {} if remat is None else {"remat": remat}
    return dataclasses.replace(model, **rest)


_REGISTERED: dict[str, tuple[str, ...]] = {}


def register(*configurables: Any) -> None:
    """Registers dataclasses and functions with gin under their own names. Idempotent."""
    for item in configurables:
        if item.__name__ in _REGISTERED:
            continue
        if dataclasses.is_dataclass(item):
            names = tuple(field.name for field in dataclasses.fields(item))
        else:
            names = item.__code__.co_varnames[: item.__code__.co_argcount]
        gin.register(item, module="famjax")
        _REGISTERED[item.__name__] = names


register(
    ModelConfig, MemoryConfig, LoraConfig, TrainConfig, EvalConfig, OptimizerConfig, PassKeyConfig, DataConfig,
    SourceConfig, BabiConfig, MqarConfig, TrackingConfig, InferConfig, target_length, model_of_checkpoint,
)  # fmt: skip


def load_train_config(
    gin_files: Sequence[str], search_paths: Sequence[str] = (), bindings: Sequence[str] = (),
    stand_ins: Mapping[str, str] | None = None,
) -> tuple[TrainConfig, str]:  # fmt: skip
    """Returns a training configuration from gin, not yet validated, and the operative configuration as gin text.

    Args:
      gin_files: read in this order; later settings win.
      search_paths: see `search_path`.
      bindings: `NAME=VALUE`, as in `--gin.NAME=VALUE`; they override the files.
      stand_ins: gin values for required macros that are not set.

    Raises:
      ConfigError: for any mistake, in one line, with the file and line number if they are known.
    """
    return load(TrainConfig, gin_files, search_paths, bindings, stand_ins)


def load_model_config(
    gin_files: Sequence[str], search_paths: Sequence[str] = (), bindings: Sequence[str] = ()
) -> ModelConfig:
    """Returns a validated model configuration, for example of `gin/models/fam_1b.gin`. See `load_train_config`."""
    config, _ = load(ModelConfig, gin_files, search_paths, bindings)
    config.validate()
    return config


def load(
    root: type[T], gin_files: Sequence[str], search_paths: Sequence[str] = (), bindings: Sequence[str] = (),
    stand_ins: Mapping[str, str] | None = None,
) -> tuple[T, str]:  # fmt: skip
    """Returns a configuration of class `root`, and the operative configuration as gin text."""
    register(root)
    if os.getcwd() not in sys.path:  # for `import` in gin files, as for DataConfig.modules
        sys.path.append(os.getcwd())
    gin.clear_config()
    try:
        with searching(search_path(search_paths)):
            for file in gin_files:
                _parse(lambda file=file: gin.parse_config_file(str(file)), f"gin file {file}")
        from_files = set(_macros_defined())
        for binding in bindings:
            _bind(binding)
        for name in _required().keys() & set(stand_ins or ()):
            _bind(f"{name}={(stand_ins or {})[name]}")
        _check_macros(from_files, root)
        value = _at_home(_build(root))
        _check_effect(bindings, root)
        return value, gin.operative_config_str()
    finally:
        gin.clear_config()


# --- parsing --------------------------------------------------------------------------------------


def _parse(parse: Any, where: str) -> None:
    """Runs gin's parser and turns its exceptions into a `ConfigError` of one line with file and line number."""
    try:
        parse()
    except ConfigError as error:  # from an include; gin appended lines with the place
        place = re.search(r'In file "([^"]+)", line (\d+)', str(error))
        raise ConfigError((f"{place[1]}:{place[2]}: " if place else "") + reason_of(error)) from error
    except SyntaxError as error:
        at = f"{error.filename}:{error.lineno}" if error.filename else where
        reason = str(error.msg).splitlines()[0].rstrip(".") or "syntax error"
        raise ConfigError(f"{at}: {advice(error) or f'gin cannot read this: {reason}'}") from error
    except tokenize.TokenError as error:
        raise ConfigError(f"{where}: a bracket or a quote is not closed") from error
    except (OSError, AttributeError, ValueError, TypeError, RuntimeError, ImportError) as error:
        _explain(error, where)


def _explain(error: Exception, where: str) -> NoReturn:
    """Raises `ConfigError` for an exception of gin, whose message may contain file positions, innermost first."""
    message = str(error)
    place = re.search(r'In file "([^"]+)", line (\d+)', message)
    prefix = f"{place[1]}:{place[2]}: " if place else f"{where}: "
    if missing := re.search(r"Unable to open file: (.+)\. Searched config paths", message, re.DOTALL):
        if re.search(r"[\x00-\x1f]", missing[1]):
            raise ConfigError(f"{prefix}there is no gin file {missing[1]!r}; write / in paths, since a backslash in "
                              f"quotes begins an escape") from error  # fmt: skip
        missing_file(missing[1], f"{place[1]}:{place[2]}: " if place else "")
    if unknown := re.search(r"No configurable matching (?:reference )?'@?([^'()]+)", message):
        name = unknown[1].rsplit("/", 1)[-1]
        near = nearest(name, _REGISTERED) or f"; known are {', '.join(sorted(_REGISTERED))}"
        raise ConfigError(f"{prefix}there is no configurable {name}{near}") from error
    if unknown := re.search(r"Configurable '([^']+)' doesn't have a parameter named '([^']+)'", message):
        owner, name = unknown[1].rsplit(".", 1)[-1], unknown[2]
        names = _REGISTERED.get(owner, ())
        near = nearest(name, names) or f"; it has {', '.join(names)}"
        raise ConfigError(f"{prefix}{owner} has no parameter {name}{near}") from error
    raise ConfigError(f"{prefix}{reason_of(error)}") from error


def _bind(binding: str) -> None:
    """Binds one `NAME=VALUE` of the command line in gin. Raises `ConfigError` if it is invalid."""
    name, equals, value = binding.partition("=")
    flag = f"--gin.{binding}"
    if not equals or not name.strip():
        raise ConfigError(f"{flag} has no value; write --gin.NAME=VALUE")
    if not re.fullmatch(r"[\w./]+", name.strip()):
        raise ConfigError(f"{flag}: {name.strip()!r} is not the name of a setting; write --gin.NAME=VALUE")
    value = value.strip()
    if re.search(r"[\r\n]", value):
        raise ConfigError(f"--gin.{name.strip()}: the value has a line break; write it on one line, in texts as \\n")
    try:
        gin.parse_config(f"{name} = {value}")
    except (SyntaxError, tokenize.TokenError) as error:
        hint = f"text needs quotes: --gin.{name}=\"'{value}'\"" if value else "write --gin.NAME=VALUE"
        if re.match(r"[\[({'\"]", value):
            hint = "a bracket or a quote is not closed, or the shell removed the quotes"
        raise ConfigError(f"{flag}: {value or 'nothing'} is not a gin value; {hint}") from error
    except (ValueError, TypeError, AttributeError, RuntimeError) as error:
        _explain(error, flag)


# --- macros ---------------------------------------------------------------------------------------


def _macros_defined() -> list[str]:
    return [scope for scope, selector in gin.config._CONFIG if selector == "gin.macro"]


def _check_macros(from_files: set[str], root: type) -> None:
    """Raises `ConfigError` for a macro without a value, for a setting that is still `%gin.REQUIRED`, or for a
    command-line macro that no file uses or defines."""
    references = gin.config.iterate_references(gin.config._CONFIG, to=gin.get_configurable(gin.config.macro))
    used = {reference.scoped_selector.rsplit("/", 1)[0] for reference in references}
    defined = set(_macros_defined())
    for name in sorted(used - defined):
        hint = nearest(name, defined) or f"; set it with --gin.{name}=VALUE"
        raise ConfigError(f"%{name} is used but has no value{hint}")
    for name in _required():
        raise ConfigError(f"{name} must be set; add --gin.{name}=VALUE (text in quotes: --gin.{name}=\"'TEXT'\")")
    for name in sorted(defined - from_files - used):
        if name in CONTRACT_MACROS:
            remedy = "include 'gin/runs/pretrain.gin' and a file of gin/models"
            raise ConfigError(f"--gin.{name}: no gin file uses {name}; {remedy}, or give another --gin_file")
        known: Iterable[str] = from_files | used | (set(CONTRACT_MACROS) if root is TrainConfig else set())
        near = nearest(name, known) or f"; known are {', '.join(sorted(known))}"
        raise ConfigError(f"--gin.{name}: there is no macro {name}{near}")


def _check_effect(bindings: Sequence[str], root: type) -> None:
    """Raises `ConfigError` for a setting of the command line that nothing has read: its class was not made, not in its
    scope, or has the setting of a scope within it. Settings of files may be without effect, since a file may override a
    reference of an included one."""
    made = [(scope, selector.rpartition(".")[2]) for scope, selector in gin.config._OPERATIVE_CONFIG]
    for binding in bindings:
        scope, _, setting = binding.partition("=")[0].strip().rpartition("/")
        owner, _, parameter = setting.rpartition(".")
        owner = owner.rpartition(".")[2]
        if not owner:
            if (setting, "macro") not in made:
                raise ConfigError(f"--gin.{setting} has no effect: %{setting} is overridden where these files use it")
            continue
        where = f"{scope}/{owner}" if scope else owner
        within = [at for at, name in made if name == owner and f"/{at}/".startswith(f"/{scope}/" if scope else "/")]
        if within and not all(over := [_scope_of(at, owner, parameter, scope) for at in within]):
            continue
        if within:
            hint = f"{over[0]}/{owner}.{parameter} overrides it; set that one"
            raise ConfigError(f"--gin.{where}.{parameter} has no effect: {hint}")
        scopes = {at for at, name in made if name == owner} - {""}
        if scope:
            hint = nearest(scope, scopes) or f"; without the scope it is {owner}"
        else:
            hint = f"; a {root.__name__} has one if a setting refers to @{owner}()"
        raise ConfigError(f"--gin.{where}.{parameter} has no effect: these files make no {where}{hint}")


def _scope_of(at: str, owner: str, parameter: str, scope: str) -> str:
    """Returns the scope around `at`, but within `scope`, that sets this parameter of a class; empty if none does."""
    inner = [place for place in itertools.accumulate(at.split("/"), "{}/{}".format) if len(place) > len(scope)]
    setting = {place for (place, name), values in gin.config._CONFIG.items()
               if name.rpartition(".")[2] == owner and parameter in values}  # fmt: skip
    return next((place for place in inner if place in setting), "")


def _required() -> dict[str, None]:
    """Returns the names of settings that are still `%gin.REQUIRED`, in the order of the files."""
    names: dict[str, None] = {}
    for (scope, selector), parameters in gin.config._CONFIG.items():
        for parameter, value in parameters.items():
            if getattr(value, "scoped_selector", "") == "gin.REQUIRED/gin.constant":
                names[scope if selector == "gin.macro" else f"{selector.rsplit('.', 1)[-1]}.{parameter}"] = None
    return names


# Fields that hold paths, of all configurations.
PATHS = (
    "model_dir", "model_dirs", "output_dir", "initial_checkpoint", "path", "sources", "vocabulary", "cache_dirs",
    "data", "filler", "folder", "books",
)  # fmt: skip


def _at_home(config: Any) -> Any:
    """Expands `~` in the paths of a configuration."""
    changed = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in PATHS and isinstance(value, (str, list, tuple)):
            value = at_home(value)
        if isinstance(value, (list, tuple)):
            value = type(value)(_at_home(item) if _is_config(item) else item for item in value)
        changed[field.name] = _at_home(value) if _is_config(value) else value
    return dataclasses.replace(config, **changed)


def _is_config(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and type(value).__name__ in _REGISTERED


def _build(root: type[T]) -> T:
    try:
        return gin.get_configurable(root.__name__)()
    except ConfigError as error:
        raise ConfigError(reason_of(error)) from error
    except RecursionError as error:
        raise ConfigError(f"these settings do not make a {root.__name__}: one of them refers to itself") from error
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"these settings do not make a {root.__name__}: {reason_of(error)}") from error
