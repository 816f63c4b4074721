"""Document streams: each row reads one document after another, across training steps.

With blocks of 4 and rows of 8, documents "abcdefghij" and "xyz" (. is padding, | a block boundary):

    step 0    abcd|efgh      starts  1 0      the document continues in the next step,
    step 1    ij..|xyz.      starts  0 1      with the memory after step 0

Documents start at block boundaries, so no block has tokens of two of them. Padding is at the end of a document's last
block; the next block starts another document, with the initial memory. So no document's memory contains padding.
"""

from collections.abc import Callable
from typing import Any

from famjax.data.rows import Cursor, Example, Row, empty, put

# Maps a reader's position to the example there, which is not empty, and the position after it.
Read = Callable[[list[Any]], tuple[Example, list[Any]]]


def stream_row(read: Read, cursor: Cursor, length: int, block_size: int) -> tuple[Row, Cursor]:
    """Returns the next row of a stream, of T tokens in blocks of S, and the stream's position after it. Positions are
    always at block boundaries."""
    row = empty(length, length // block_size)
    where, token = cursor
    place = 0
    while place < length:
        example, after = read(where)
        if token == 0:
            row.starts[place // block_size] = True
        take = put(row, place, example, token, length - place)
        token += take
        place += -(-take // block_size) * block_size
        if token == len(example.tokens):
            where, token = after, 0
    return row, Cursor(where, token)
