"""Packing: rows of concatenated examples, without masks between them, as in the paper (section 5).

With rows of 8 and examples "abcde", "vwxyz", "123" (. is padding):

    cut      abcdevwx      rows are full; the rest of an example continues in the lane's next row, without the
             yz123...      memory of its beginning
    whole    abcde...      an example that does not fit starts the next row, and the rest of this one is
             vwxyz123      padding; an example longer than a row is truncated

Every row starts with the initial memory (or with the FAM of random state passing); within a row the memory is carried
from example to example.
"""

import numpy as np

from famjax.data.rows import Cursor, Row, empty, put
from famjax.data.streams import Read

# The text before the repeated segment (paper section 5).
REPEAT_TEXT = "[repeat random segment]:"


def packed_row(
    read: Read, cursor: Cursor, length: int, block_size: int, *, whole: bool = False, room: int = 0
) -> tuple[Row, Cursor]:
    """Returns the next packed row, of T tokens in blocks of S, and its lane's position after it. With `whole`, no
    example is split over rows; `room` tokens are left free at the row's end."""
    row = empty(length, length // block_size)
    row.starts[0] = True
    # A lane that resumes within an example, where another training had split it, reads it whole.
    where, token = cursor.where, 0 if whole else cursor.token
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
    """Repeats a random segment of the row after its last token, in place (paper section 5).

    Args:
      row: with room for announcement and segment after its last token.
      announcement: int32 [a], `REPEAT_TEXT` in tokens; carries no loss.
      segment, weight: number of tokens to repeat (all, if the row has fewer), and their loss weight.
      rng: chooses the segment.
    """
    count = int(row.count)
    segment = min(segment, count)
    first = int(rng.integers(0, count - segment + 1))
    after = count + len(announcement)
    row.tokens[count:after] = announcement
    row.tokens[after : after + segment] = row.tokens[first : first + segment]
    predicted = slice(count, after + segment - 1)
    row.targets[predicted] = row.tokens[count + 1 : after + segment]
    row.weights[after - 1 : after + segment - 1] = weight
    row.real[count : after + segment] = True
    row.count[...] = after + segment
