"""The synthetic tasks of labelled documents by name."""

from collections.abc import Callable

from famjax.config import MqarConfig, TrackingConfig
from famjax.data.labelled import Labelled
from famjax.data.mqar import Mqar
from famjax.data.tracking import GROUPS, Tracking

LABELLED: dict[str, Callable[[str, MqarConfig, TrackingConfig], Labelled]] = {
    "mqar": lambda name, mqar, tracking: Mqar(name, mqar),
    **{group: lambda name, mqar, tracking: Tracking(name, tracking) for group in GROUPS},
}


def labelled_documents(name: str, mqar: MqarConfig, tracking: TrackingConfig) -> Labelled | None:
    """Returns the task of labelled documents with this name and these settings; None if there is none."""
    make = LABELLED.get(name)
    return None if make is None else make(name, mqar, tracking)
