"""Jinja's sandbox with the additions of transformers, in which chat templates run.

This module imports jinja2, so it is imported only when a template is rendered.
"""

import datetime
import json
from typing import Any, NoReturn

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace


class Generation(Extension):
    """`{% generation %}` marks answers for training; here only its body is rendered."""

    tags = {"generation"}

    def parse(self, parser: Any) -> Any:
        """Parses the block; returns a node that renders its body."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_said"), [], [], body).set_lineno(line)

    def _said(self, caller: Any) -> str:
        return str(caller())


class Dict:
    """Provides `dict(...)` and `dict.fromkeys(...)` in templates, without the other methods of the type."""

    def __call__(self, *values: Any, **named: Any) -> dict[Any, Any]:
        """Returns `dict(*values, **named)`."""
        return dict(*values, **named)

    def fromkeys(self, *values: Any) -> dict[Any, Any]:
        """Returns `dict.fromkeys(*values)`."""
        return dict.fromkeys(*values)


class PlainNamespace(Namespace):
    """Provides `namespace(...)` in templates; a name that begins with an underscore raises `SecurityError`."""

    def __init__(*arguments: Any, **named: Any):
        self, *values = arguments
        attributes = dict(*values, **named)
        for name in attributes:
            _check(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check(name)
        super().__setitem__(name, value)


def _check(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot have {name!r}")


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _to_json(
    x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def environment() -> ImmutableSandboxedEnvironment:
    """Returns a new sandboxed environment, with the filters and functions that transformers adds."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    made.filters["tojson"] = _to_json
    made.globals |= {
        "raise_exception": _refuse,
        "strftime_now": lambda form: datetime.datetime.now().strftime(form),
        "dict": Dict(),
        "namespace": PlainNamespace,
    }
    return made
