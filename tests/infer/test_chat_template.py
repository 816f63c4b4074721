"""Chat templates under their earlier name."""

from famjax.data import chat_template as now
from famjax.infer import chat_template as before


def test_the_earlier_name_has_the_same_functions() -> None:
    """`famjax.infer.chat_template` of scripts written for earlier versions."""
    assert [getattr(before, name) is getattr(now, name) for name in before.__all__] == [True] * 3
