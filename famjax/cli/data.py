"""`famjax data`: shows the batches of a training run."""

import argparse
import dataclasses
from typing import Any

from famjax.cli.flags import add_gin_arguments, refuse
from famjax.config import ConfigError, TrainConfig
from famjax.config.checks import at_least

NAME = "data"
HELP = """Show the batches of a training run: rows, blocks, documents and loss weights.

  famjax data --gin_file gin/models/fam_tiny.gin --gin_file gin/runs/pretrain.gin \\
              --gin_file gin/data/streams.gin --gin.SOURCES="('books/*.txt',)" --show 3
  famjax data --gin_file my.gin --steps 4        # how a row continues from step to step
  famjax data --gin_file my.gin --check          # read every document once, before a long run
  famjax data --gin_file gin/experiments/tiny_fam.gin   # a task that generates its documents

Takes the settings of `famjax train`; MODEL_DIR may be left out, and no model is built. Each line is a block:

  block 0 > ¶text            > the memory is reset before this block; ¶ a document begins
  block 1   text {question}  tokens in braces have loss weight 0 (dim on a terminal)
  block 2   {0.1: text}      tokens with loss weight 0.1
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags of `famjax data`."""
    parser.add_argument("--show", type=int, metavar="N", help="rows to show of each batch (default: 2)")
    parser.add_argument("--steps", type=int, metavar="N", help="number of batches (default: 1)")
    parser.add_argument("--width", type=int, metavar="N", help="characters to show of a block (default: 96; 0: all)")
    parser.add_argument("--check", action="store_true", help="read every document of the files once and count them")
    add_gin_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Builds the task as training does and prints its batches."""
    from famjax.cli.gin_config import load_train_config

    if not args.gin_files:
        raise ConfigError("no settings: add --gin_file FILE, as for famjax train")
    if args.check:
        refuse(args, ("show", "steps", "width"), "with --check, which shows no rows; leave it out")
    for flag, default, least in (("show", 2, 0), ("steps", 1, 1), ("width", 96, 0)):
        if getattr(args, flag) is None:
            setattr(args, flag, default)
        at_least(f"--{flag}", getattr(args, flag), least)
    stand_ins = {"MODEL_DIR": "'none'"}  # gin/runs/finetune.gin requires it
    config, _ = load_train_config(args.gin_files, args.gin_search_paths, args.gin_bindings, stand_ins)
    config = dataclasses.replace(config, model_dir=config.model_dir or "none")
    config.validate()
    from rich.console import Console

    console = Console(soft_wrap=True, highlight=False, markup=False)
    if args.check:
        _check(console, config)
    elif config.generated is not None:
        _show_generated(console, config, args)
    else:
        _show(console, config, args)
    return 0


def _show(console: Any, config: TrainConfig, args: argparse.Namespace) -> None:
    from famjax.data.show import Totals
    from famjax.data.text_task import make_text_task

    task = make_text_task(config, range(config.batch_size))
    _overview(console, config, task)
    progress = task.start()
    totals = {True: Totals(), False: Totals()}
    shown = _chosen([row for row in task.rows if task.streams(row)], [r for r in task.rows if not task.streams(r)])
    for step in range(args.steps):
        rows, progress = task.read(step, progress)
        for number, row in zip(task.rows, rows, strict=True):
            totals[task.streams(number)] = totals[task.streams(number)].add(row)
        for number in sorted(shown[: args.show]):
            row, stream = rows[number], task.streams(number)
            _print_row(console, f"step {step}, row {number}, {'stream' if stream else 'packed'}", row, task.vocabulary,
                       args.width)  # fmt: skip
    console.print()
    for stream, name in ((True, "streams"), (False, "packed rows")):
        if totals[stream].rows:
            console.print(f"{args.steps} batch{'es' * (args.steps > 1)}, {name}: {totals[stream]}")
    if args.steps:
        console.print(f"epochs completed: {task.report(progress)['epochs']}")


def _show_generated(console: Any, config: TrainConfig, args: argparse.Namespace) -> None:
    """Prints the batches that a model with only correct answers would get, so that a curriculum advances."""
    import numpy as np

    from famjax.data.generated import make_generated_task
    from famjax.data.show import Totals, rows_of
    from famjax.data.text_task import vocabulary_and_files

    task, vocabulary = make_generated_task(config), vocabulary_and_files(config)[0]
    S = config.model.memory.block_size
    text = f", the last {config.text_rows} of text" if config.text_rows else ""
    console.print(f"{config.task}: {config.batch_size} rows of {config.sequence_length} tokens in blocks of {S}{text}")
    progress, totals = task.start(), Totals()
    for step in range(args.steps):
        batch, progress = task.batch(step, progress)
        if task.observes:
            progress = task.observe(progress, batch, np.ones(batch.targets.shape, bool))
        for number, row in enumerate(rows_of(batch)):
            totals = totals.add(row)
            if number < args.show:
                _print_row(console, f"step {step}, row {number}", row, vocabulary, args.width)
    console.print(f"\n{args.steps} batch{'es' * (args.steps > 1)}: {totals}")


def _print_row(console: Any, name: str, row: Any, vocabulary: Any, width: int) -> None:
    from famjax.data.show import Totals, blocks_of

    continued = "" if row.starts[0] else ", continued from the previous step"
    console.print(f"\n{name}{continued}: {Totals().add(row)}")
    for block, pieces in enumerate(blocks_of(row, vocabulary, width)):
        console.print(f"  block {block:<3} {'>' if row.starts[block] else ' '} ", end="")
        _print_pieces(console, pieces)


def _chosen(streams: list[int], packed: list[int]) -> list[int]:
    """Returns the rows in the order to show them: streamed and packed ones alternate."""
    pairs = [row for pair in zip(streams, packed, strict=False) for row in pair]
    return pairs + [row for row in streams + packed if row not in pairs]


def _overview(console: Any, config: TrainConfig, task: Any) -> None:
    streams, S = config.data.stream_rows(config.batch_size), config.model.memory.block_size
    rows = [f"{streams} stream{'s' * (streams != 1)}"] * (streams > 0)
    rows += [f"{config.batch_size - streams} packed ({config.data.packing})"] * (config.batch_size > streams)
    console.print(f"{config.task}: rows of {config.sequence_length} tokens in blocks of {S}; {' and '.join(rows)}")
    console.print(f"vocabulary: {task.vocabulary.size:,} tokens; the model has room for {config.model.vocab_size:,}")
    if config.task == "text":
        from famjax.data.sources import open_source

        readers = {"all": "all rows", "streams": "streams", "packed": "packed rows"}
        for source in config.data.all_sources():
            count = f"{len(open_source(source)):,}"
            console.print(f"{source.path}: {count} documents for {readers[source.rows]}, weight {source.weight:g}")


def _print_pieces(console: Any, pieces: list[Any]) -> None:
    from rich.text import Text

    from famjax.data.show import plain

    if not console.is_terminal:
        console.print(plain(pieces))
        return
    line = Text()
    for piece in pieces:
        line.append("¶" * piece.begins, style="bold green")
        style = "" if piece.weight == 1 else "dim" if piece.weight == 0 else "cyan"
        line.append(f"{piece.weight:g}: " if 0 < piece.weight < 1 else "", style="cyan").append(piece.text, style=style)
    console.print(line)


def _check(console: Any, config: TrainConfig) -> None:
    """Reads every document of every source once and prints counts and lengths."""
    import numpy as np

    from famjax.config.text import BadText
    from famjax.data.examples import NO_TEXT, Documents
    from famjax.data.sources import open_source
    from famjax.data.text_task import check_vocabulary, vocabulary_and_files
    from famjax.process.progress import Progress

    if config.task != "text" and not config.text_rows:
        raise ConfigError(f"--check reads the files of the task 'text'; for {config.task!r} use --show and --steps")
    vocabulary, _ = vocabulary_and_files(config)
    check_vocabulary(vocabulary, config)
    bad: list[BadText] = []
    tokens = 0
    for source in config.data.all_sources():
        documents = Documents(open_source(source), vocabulary, 1, None, config.data.bos, config.data.eos)
        if not len(documents):
            raise ConfigError(f"{source.path} has no documents")
        lengths = []
        with Progress(f"reading {source.path}", len(documents), "documents") as progress:
            for i in range(len(documents)):
                try:
                    lengths.append(len(documents.example(0, [i])[0].tokens))
                except BadText as error:
                    bad.append(error)
                progress.advance()
        if not lengths:
            continue
        tokens += sum(lengths)
        blocks = sum(-(-length // config.model.memory.block_size) for length in lengths)
        console.print(
            f"{source.path}: {len(lengths):,} documents, {sum(lengths):,} tokens; shortest {min(lengths):,}, median "
            f"{int(np.median(lengths)):,}, longest {max(lengths):,}; {blocks:,} blocks; "
            f"{lengths.count(0):,} empty ones are skipped"
        )
    if bad:
        for one in bad[1:]:
            console.print(str(one))
        more = f"; {len(bad) - 1} more above" if len(bad) > 1 else ""
        raise ConfigError(f"{bad[0]}{more}")
    if not tokens:
        raise ConfigError(NO_TEXT)
