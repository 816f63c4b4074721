"""The one legend of axis letters. Arrays carry their axes as a suffix: `q_BKGQH`.

| letter | axis | paper |
|---|---|---|
| B | rows of the batch | |
| T | tokens of a sequence | |
| N | blocks of a sequence, N = T / S | tau = 1..N |
| S | tokens of a block (`block_size`) | block size |
| Q | queries: the tokens of a block that are computed now (S of them, or fewer in streaming) | t |
| C | columns: the keys that a source offers | |
| M | memory segments (`memory_segments`) | memory segments |
| R | slots of the ring of blocks, R = M + 1 | |
| F | feedback activations of a layer (`fam_length`) | FAM length |
| P | FAMs of previous blocks that are attended (`previous_fams`) | |
| L | layers | l |
| D | width of the model (`d_model`) | |
| E | width of the feed-forward layer (`d_ff`) | |
| K | key/value heads | |
| G | query heads for each key/value head | |
| H | size of a head (`head_dim`) | |
| V | vocabulary | |
"""
