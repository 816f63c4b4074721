"""The text of a model's chat template around a question."""

from famjax.data.pieces import Frame
from famjax.infer.chat import Turns
from famjax.infer.codec import Codec


def frame_of(codec: Codec, wanted: bool) -> Frame:
    """Returns the frame of the model directory's chat template, if it has one and `wanted`; else an empty one.

    The template's end-of-answer tokens are added to the codec's `ends`.
    """
    if not wanted or codec.template is None:
        return Frame()
    return Frame(True, *Turns(codec.template, codec).frame())
