"""Generated tasks: exact lengths, complete needles at their depths, answers that follow from the text."""

import collections
import itertools
import re

import numpy as np
import pytest

from famjax.cli import eval as eval_verb
from famjax.cli.main import parse
from famjax.config import ConfigError, EvalConfig
from famjax.data.pieces import Filler, Pieces, haystack
from famjax.data.vocabulary import ByteVocabulary, load_vocabulary
from famjax.evals.tasks import catalog, generated, needles
from famjax.infer.codec import Codec
from tests.pretrained import tokenizers_of_ours

LENGTHS = (1500, 4001)
GENERATED = [name for name, entry in catalog.TASKS.items() if not (entry.needs or entry.blocks)]


@pytest.fixture(scope="module", params=["bytes", "byte-level", "metaspace"])
def codec(request, tmp_path_factory) -> Codec:
    if request.param == "bytes":
        return Codec.of(ByteVocabulary())
    return Codec.of(load_vocabulary(str(tokenizers_of_ours.write(tmp_path_factory.mktemp("t"), request.param))))


def make(name: str, codec: Codec, **settings):
    return catalog.make(name, EvalConfig(**{"lengths": LENGTHS, "examples": 5} | settings), codec, 64)


def told(codec: Codec, example) -> tuple[str, str]:
    """Returns the text before the answer: context and question."""
    context, prompt = (codec.vocabulary.decode(part) for part in (example.context, example.prompt))
    return context.removeprefix("<s>").strip(), prompt.strip()


def derive(name: str, context: str, question: str) -> set[str]:
    """Derives the answers from the text by the rules of its wording."""
    if name in ("passkey_depth", "passkey_newest"):
        keys = re.findall(r"pass key is (\d+)\. Remember it\. (\d+) is", context)
        assert len(keys) == (1 if name == "passkey_depth" else 4) == len(set(keys))
        assert all(one == other for one, other in keys)
        return {keys[-1][0]}
    if name.startswith("niah"):
        asked = re.search(r"magic numbers? for (.+?) mentioned", question)[1]
        values = re.findall(r"One of the special magic numbers for (\w+) is: (\d+)\.", context)
        return {value for key, value in values if key in asked}
    if name == "variable_tracking":
        found = {re.search(r"assigned the value (\d+)", question)[1]}
        for variable, value in re.findall(r"VAR (\w+) = (?:VAR )?(\w+)\.", context):
            found |= {variable} if value in found else set()
        return {one for one in found if not one.isdigit()}
    if name == "recall":
        word = re.search(r"has (\w+)\?", question)[1]
        return set(re.findall(rf"{word}: (\d+)\.", context))
    if name == "copy":
        return {re.search(r"words:((?: [a-z]{4})+)(?= [A-Z]|$)", context)[1].strip()}
    counted = context[context.index("frequen" if name == "frequent_words" else "appear most often. 1.") :]
    words = re.findall(r"\b[a-z]{6}\b", counted[60:])
    count = 10 if name == "common_words" else 3
    ranked = collections.Counter(words).most_common(count + 1)
    assert ranked[count - 1][1] > ranked[count][1]
    return {word for word, _ in ranked[:count]}


@pytest.mark.parametrize("name", GENERATED)
def test_lengths_are_exact_and_answers_follow_from_the_text(name, codec):
    """With bytes, byte-level BPE and a metaspace tokenizer that prepends `<s>`: every example has exactly its length,
    and its target follows from its text."""
    examples = list(make(name, codec).examples())
    assert len(examples) == 10
    for example in examples:
        assert len(example.context) + len(example.prompt) == example.about["length"] in LENGTHS
        assert derive(name, *told(codec, example)) == set(example.targets)
        if codec.bos is not None:
            assert example.context[0] == codec.bos and codec.bos not in example.context[1:]


@pytest.mark.parametrize("name", GENERATED)
def test_examples_depend_on_seed_and_number_alone(name):
    """Examples are reproducible, differ with the seed, and more examples begin with the same ones."""
    codec = Codec.of(ByteVocabulary())
    one, again, more, other = (
        [example.context.tobytes() for example in make(name, codec, lengths=(2000,), **settings).examples()]
        for settings in ({}, {}, {"examples": 8}, {"seed": 2})
    )
    assert one == again == more[:5]
    assert len(set(one)) == 5 and not set(one) & set(other)


@pytest.mark.parametrize("name", ["niah_single", "passkey_depth", "passkey_newest", "recall"])
def test_needles_lie_at_their_depth(name, codec):
    """Examples cycle through the depths; the needle ends at `needle`, within a sentence of its depth."""
    for example, depth in zip(make(name, codec).examples(), itertools.cycle((0, 0.25, 0.5, 0.75, 1)), strict=False):
        assert example.about["depth"] == depth
        end = example.about["needle"]
        text = codec.vocabulary.decode(example.context[: end + 1])
        assert text.endswith(".") and example.targets[0] in text[-160:]
        first = len(codec.vocabulary.decode(example.context)) - len(text) if depth == 1 else len(text)
        assert abs(end / len(example.context) - depth) < 0.3 or first < 400


def test_a_haystack_cuts_its_filler_and_nothing_else():
    """Without the needles, the filler's own tokens remain, in order. Needles are inserted at sentence boundaries; two
    at one place keep their order."""
    pieces, sentences = Pieces(ByteVocabulary()), Filler().sentences
    told = [pieces.next(text) for text in ("NEEDLE-A.", "NEEDLE-B.", "NEEDLE-C.")]
    for length in (*range(30, 60), 400):
        hay = haystack(pieces, Filler().from_somewhere(np.random.default_rng(0)), told, [1, 0.5, 0.5], length)
        text = bytes(hay.tokens.tolist()).decode()
        assert len(text) == length
        for end, needle in zip(hay.ends, ("NEEDLE-A.", "NEEDLE-B.", "NEEDLE-C."), strict=True):
            assert text[: end + 1].endswith(needle)
        assert text.index("NEEDLE-B.") < text.index("NEEDLE-C.") < text.index("NEEDLE-A.")
        left = re.sub(r" NEEDLE-.\.", "", text)
        assert left == (" " + " ".join(sentences * 20))[: len(left)]
        assert text.index(" NEEDLE-B.") == 0 or text[text.index(" NEEDLE-B.") - 1] == "."


def test_fillers_come_from_files(tmp_path):
    """Sentences of a text, from a random one on; a text without sentences is an error."""
    (tmp_path / "book.txt").write_text("Call me Ishmael.  Some years ago,\nnever mind. Whenever I find myself!")
    filler = Filler(str(tmp_path / "*.txt"))
    assert filler.sentences == ["Call me Ishmael.", "Some years ago, never mind.", "Whenever I find myself!"]
    firsts = {next(filler.from_somewhere(np.random.default_rng(seed))) for seed in range(20)}
    assert firsts == set(filler.sentences)
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(ConfigError, match="has no text"):
        Filler(str(tmp_path / "empty.txt"))


@pytest.mark.parametrize("name", GENERATED)
def test_a_length_without_room_is_told_before_any_work(name):
    """One line that states a sufficient length, which is then accepted."""
    codec = Codec.of(ByteVocabulary())
    with pytest.raises(ConfigError, match=r"use --lengths of at least \d+") as raised:
        make(name, codec, lengths=(40,))
    least = int(re.search(r"of at least (\d+)", str(raised.value))[1])
    assert next(iter(make(name, codec, lengths=(least + 16,)).examples())).tokens == least + 16


def test_needles_ask_for_what_ruler_asks():
    """Numbers of keys, values and targets by kind."""
    codec = Codec.of(ByteVocabulary())
    for name, (keys, values, asked) in needles.KINDS.items():
        example = next(iter(make(name, codec).examples()))
        context, question = told(codec, example)
        pairs = re.findall(r"magic numbers for (\w+) is: (\d{7})\.", context)
        assert len(pairs) == keys * values == len({value for _, value in pairs})
        assert len({key for key, _ in pairs}) == keys
        assert len(example.targets) == values * asked
        assert sum(key in question for key in {key for key, _ in pairs}) == asked


def test_every_flag_reaches_the_evaluation():
    """The flags' values reach the configuration; 1k is 1024."""
    words = (
        "--model a --model b --task recall,copy --task babi --lengths 1k,4096,1m --depths 0,.5 --examples 3 --data x=y "
        "--data z --filler f.txt --longest 2k --max-new-tokens 7 --split dev --part 2/4 --again --seed 9 --output o"
    )
    config = eval_verb._config(parse(eval_verb, words.split()))
    expected = EvalConfig(
        ("a", "b"), "o", "recall,copy,babi", longest=2048, lengths=(1024, 4096, 2**20), depths=(0.0, 0.5), examples=3,
        data=("x=y", "z"), split="dev", filler="f.txt", max_new_tokens=7, again=True, part="2/4", seed=9,
    )  # fmt: skip
    assert config == expected and config.tasks == ("recall", "copy", "babi") and config.part_of == (2, 4)
    config.validate()


def test_a_text_of_millions_of_tokens_has_enough_words():
    """There are 80 words of a syllable; more words than there are would be drawn without end. Shorter texts keep
    theirs."""
    assert [generated.enough_syllables(count) for count in (64, 2**20 // 4, 2**21 // 4, 2**28)] == [3, 3, 4, 5]
    found = generated.words(np.random.default_rng(0), 100, syllables=1)
    assert len(set(found)) == 100 and {len(word) for word in found} == {4}
