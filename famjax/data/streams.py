"""Document streams: a row reads one document after another, block after block, across training steps.

With blocks of 4 and rows of 8, documents "abcdefghij" and "xyz" (. is padding, | a block's edge):

    step 0    abcd|efgh      starts  1 0      the document goes on in the next step,
    step 1    ij..|xyz.      starts  0 1      with the memory that step 0 left

A document starts at a block's edge, so no block has tokens of two. Padding is at the end of a
document's last block; the next block starts another document, with a fresh memory. So padding is
in no memory that a document sees.
"""

from collections.abc import Callable
from typing import Any

from famjax.data.rows import Cursor, Example, Row, empty, put

# From where a reader stands to the example there and to where it stands behind it.
Read = Callable[[list[Any]], tuple[Example, list[Any]]]


def stream_row(read: Read, cursor: Cursor, length: int, block_size: int) -> tuple[Row, Cursor]:
    """The next row of a stream, and where the stream then stands.

    Args:
      read: gives examples, none of them empty.
      cursor: where the stream stands; always at a block's edge.
      length: T, tokens of a row.
      block_size: S; divides T.
    """
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
