"""Packing: examples side by side in a row, without masks between them, as the paper trains (section 5).

With rows of 8 and examples "abcde", "vwxyz", "123" (. is padding):

    cut      abcdevwx      rows are full; what does not fit goes on in the lane's next row, which does not
             yz123...      remember the beginning
    whole    abcde...      an example that does not fit starts the next row, and the rest of this one is
             vwxyz123      padding; an example longer than a row loses its end

Every row starts with a fresh memory (or the one that random state passing hands on); within a row the
memory runs from example to example.
"""

import numpy as np

from famjax.data.rows import Cursor, Row, empty, put
from famjax.data.streams import Read

# What announces the repeated segment (paper section 5).
REPEAT_TEXT = "[repeat random segment]:"


def packed_row(
    read: Read, cursor: Cursor, length: int, block_size: int, *, whole: bool = False, room: int = 0
) -> tuple[Row, Cursor]:
    """The next packed row, and where its lane then stands.

    Args:
      read: gives examples, none of them empty.
      cursor: where the lane stands.
      length: T, tokens of a row.
      block_size: S; divides T.
      whole: never cut an example over rows, see above.
      room: tokens that are left free at the row's end.
    """
    row = empty(length, length // block_size)
    row.starts[0] = True
    where, token = cursor
    place, end = 0, length - room
    while place < end:
        example, after = read(where)
        if whole:
            example = example._replace(tokens=example.tokens[:end], weights=example.weights[:end])
            if place + len(example.tokens) > end:
                break
        take = put(row, place, example, token, end - place)
        token, place = token + take, place + take
        if token == len(example.tokens):
            where, token = after, 0
    return row, Cursor(where, token)


def repeat_segment(row: Row, announcement: np.ndarray, segment: int, weight: float, rng: np.random.Generator) -> None:
    """Writes a random segment of the row once more behind its last token, in place (paper section 5).

    Args:
      row: has room for announcement and segment behind its last token.
      announcement: int32 [a], `REPEAT_TEXT` in tokens; it carries no loss.
      segment: consecutive tokens to repeat; all there are, where the row has fewer.
      weight: of their predictions in the loss.
      rng: chooses the segment.
    """
    count = int(row.count)
    segment = min(segment, count)
    first = int(rng.integers(0, count - segment + 1))
    behind = count + len(announcement)
    row.tokens[count:behind] = announcement
    row.tokens[behind : behind + segment] = row.tokens[first : first + segment]
    predicted = slice(count, behind + segment - 1)
    row.targets[predicted] = row.tokens[count + 1 : behind + segment]
    row.weights[behind - 1 : behind + segment - 1] = weight
    row.real[count : behind + segment] = True
    row.count[...] = behind + segment
