"""The synthetic tasks of labelled documents by name."""

from collections.abc import Callable
from typing import TypeAlias

from famjax.config import MqarConfig, TrackingConfig
from famjax.data.labelled import Labelled
from famjax.data.mqar import Mqar, mqar_in_words
from famjax.data.symbols import SymbolVocabulary
from famjax.data.tracking import GROUPS, Tracking
from famjax.data.vocabulary import ByteVocabulary, Vocabulary

_Make: TypeAlias = Callable[[str, MqarConfig, TrackingConfig, Vocabulary | None], Labelled]
LABELLED: dict[str, _Make] = {
    "mqar": lambda name, mqar, tracking, text: mqar_in_words(name, mqar, text) if text else Mqar(name, mqar),
    **{group: lambda name, mqar, tracking, text: Tracking(name, tracking) for group in GROUPS},
}


def labelled_documents(
    name: str, mqar: MqarConfig, tracking: TrackingConfig, model: Vocabulary | None = None
) -> Labelled | None:
    """Returns the task of labelled documents with this name and these settings; None if there is none.

    Args:
      name: name of the task.
      mqar, tracking: settings.
      model: vocabulary of the model. The task is in words of it if it has some, else it has a vocabulary of its own.

    Raises:
      ConfigError: `model` has too few words.
    """
    make = LABELLED.get(name)
    text = None if isinstance(model, ByteVocabulary | SymbolVocabulary) else model
    return None if make is None else make(name, mqar, tracking, text)
