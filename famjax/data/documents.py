"""The synthetic tasks of labelled documents by name."""

from collections.abc import Callable

from famjax.config import ConfigError, MqarConfig, TrackingConfig
from famjax.data.labelled import Labelled
from famjax.data.mqar import Mqar, mqar_in_words
from famjax.data.symbols import SymbolVocabulary
from famjax.data.tracking import GROUPS, Tracking
from famjax.data.vocabulary import ByteVocabulary, Vocabulary

LABELLED: dict[str, Callable[[str, MqarConfig, TrackingConfig], Labelled]] = {
    "mqar": lambda name, mqar, tracking: Mqar(name, mqar),
    **{group: lambda name, mqar, tracking: Tracking(name, tracking) for group in GROUPS},
}


def in_words(name: str, model: Vocabulary) -> bool:
    """Whether a task of labelled documents is in words of this vocabulary, instead of a vocabulary of its own."""
    return name == "mqar" and not isinstance(model, ByteVocabulary | SymbolVocabulary)


def labelled_documents(
    name: str, mqar: MqarConfig, tracking: TrackingConfig, model: Vocabulary | None = None
) -> Labelled | None:
    """Returns the task of labelled documents with this name and these settings; None if there is none. Without `model`,
    the model's vocabulary (`in_words`), it has a vocabulary of its own. Raises `ConfigError` if `model` has too few
    words, or none for settings that name words."""
    if model is not None and in_words(name, model):
        return mqar_in_words(name, mqar, model)
    if name == "mqar" and mqar.has_words:
        raise ConfigError(
            "MqarConfig.key_words, value_words, sentences and question need a model with a tokenizer; leave them out"
        )
    make = LABELLED.get(name)
    return None if make is None else make(name, mqar, tracking)
