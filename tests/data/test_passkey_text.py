"""The pass key task in the tokens of any vocabulary: the paper's text, exact lengths, the position of the answer."""

import io

import numpy as np
import pytest
import sentencepiece
import tokenizers

from famjax.config import ConfigError, PassKeyConfig
from famjax.data.passkey import PassKeyTask
from famjax.data.passkey_text import FILLER, INTRODUCTION, QUESTION, TELLING, Writer
from famjax.data.vocabulary import ByteVocabulary, TokenizerVocabulary, load_vocabulary
from tests.pretrained import tokenizers_of_ours

BLOCK = 32
# Some pairs of digits are one token, so that keys of five digits have one to five tokens.
WORDS = [f"{INTRODUCTION}{FILLER}{QUESTION}{number}. {TELLING.format(key=12345)}" for number in (12345, 12, 90, 123)]


def byte_level() -> TokenizerVocabulary:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<s>"], initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(WORDS * 3, trainer)
    return TokenizerVocabulary({"tokenizer.json": tokenizer.to_str().encode()}, "here")


@pytest.fixture(scope="module")
def writers(tmp_path_factory) -> dict[str, Writer]:
    folder = tmp_path_factory.mktemp("vocabularies")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*WORDS, " ".join("0123456789")]), model_writer=model, vocab_size=150, minloglevel=2,
        hard_vocab_limit=False, split_digits=True,
    )  # fmt: skip
    (folder / "some.model").write_bytes(model.getvalue())
    metaspace = tokenizers_of_ours.write(folder / "metaspace", "metaspace")
    return {
        "bytes": Writer(ByteVocabulary()),
        "bytes behind special ones": Writer(ByteVocabulary(offset=3, eos=1, size=259)),
        "byte-level": Writer(byte_level()),
        "metaspace": Writer(load_vocabulary(str(metaspace))),
        "SentencePiece": Writer(load_vocabulary(str(folder / "some.model"))),
    }


ALL = ["bytes", "bytes behind special ones", "byte-level", "metaspace", "SentencePiece"]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("key", ["12345", "00000", "90817", "12123", "7"])
def test_lengths_are_exact_and_the_key_is_where_it_is_said(writers, name, key):
    """With any tokens: exact filler, the answer at the end, the mention before; together the paper's text."""
    writer = writers[name]
    vocabulary, bos = writer.vocabulary, writer.vocabulary.bos
    for filler in (0, 1, 2, 17, 64, 333):
        doc = writer.document(key, filler)
        assert len(doc.tokens) == writer.overhead(key) + filler <= writer.most_overhead(len(key)) + filler
        assert (doc.tokens[0] == bos) == (bos is not None)
        assert vocabulary.decode(doc.tokens[doc.answer]).strip() == writer.key_of(doc.tokens[doc.answer]) == key
        assert doc.answer[-1] == len(doc.tokens) - 1 and (np.diff(doc.answer) == 1).all()
        assert len(doc.answer) == writer.answer_tokens(key) <= len(key)
        assert vocabulary.decode(doc.tokens[doc.mention]).strip() == key
        text = vocabulary.decode(doc.tokens[bos is not None :])
        telling, question = INTRODUCTION + TELLING.format(key=key), QUESTION.strip() + " " + key
        assert text.startswith(telling.rstrip()) and text.endswith(question)
        between = text[len(telling.rstrip()) : -len(question)]
        assert (FILLER * 20).startswith(between.strip())
        before_mention = vocabulary.decode(doc.tokens[bos is not None : doc.mention[0]]).rstrip()
        assert before_mention.endswith(f"The pass key is {key}. Remember it.")


@pytest.mark.parametrize("name", ["byte-level", "metaspace", "SentencePiece"])
def test_tokens_are_those_of_the_whole_text(writers, name):
    """A document with whole sentences of filler has the tokens of its text encoded at once."""
    writer = writers[name]
    vocabulary, key = writer.vocabulary, "12390"
    text = INTRODUCTION + TELLING.format(key=key) + (3 * FILLER).rstrip() + QUESTION + key
    whole = vocabulary.encode(text)
    filler = len(whole) + (vocabulary.bos is not None) - writer.overhead(key)
    doc = writer.document(key, filler)
    assert doc.tokens[vocabulary.bos is not None :].tolist() == whole.tolist()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("key", ["12390", "7"])
def test_a_key_told_behind_filler(writers, name, key):
    """With whole sentences of filler before the key too, the tokens are those of the text; without an introduction they
    are those after it. Positions and lengths hold."""
    writer = writers[name]
    vocabulary, bos = writer.vocabulary, writer.vocabulary.bos is not None
    text = INTRODUCTION + 2 * FILLER + TELLING.format(key=key) + FILLER.rstrip() + QUESTION + key
    whole = vocabulary.encode(text)
    lead = len(vocabulary.encode(3 * FILLER)) - len(vocabulary.encode(FILLER))
    filler = len(whole) + bos - writer.overhead(key) - lead
    doc = writer.document(key, filler, lead)
    assert doc.tokens[bos:].tolist() == whole.tolist()
    assert vocabulary.decode(doc.tokens[doc.mention]).strip() == key
    assert doc.answer[0] - doc.mention[-1] == writer.between(key) + filler
    plain = writer.document(key, filler, lead, introduced=False)
    cut = len(doc.tokens) - len(plain.tokens)
    assert plain.tokens.tolist() == doc.tokens[cut:].tolist()
    assert (plain.answer + cut).tolist() == doc.answer.tolist() and (
        plain.mention + cut
    ).tolist() == doc.mention.tolist()
    assert len(plain.tokens) == writer.overhead(key, introduced=False) + lead + filler
    assert vocabulary.decode(doc.tokens[bos:cut]).strip() == INTRODUCTION.strip()


def test_keys_fall_into_tokens_of_several_digits(writers):
    """Otherwise the tests here would not test them."""
    lengths = {writers["byte-level"].answer_tokens(key) for key in ("12345", "12390", "67676")}
    assert len(lengths) == 3 and min(lengths) == 1


def test_without_a_token_for_the_beginning(writers):
    """`bos` False leaves it out."""
    vocabulary = writers["byte-level"].vocabulary
    with_it, without = Writer(vocabulary).document("12345", 5), Writer(vocabulary, bos=False).document("12345", 5)
    assert with_it.tokens[1:].tolist() == without.tokens.tolist()
    assert (with_it.answer - 1).tolist() == without.answer.tolist()


# --- batches -------------------------------------------------------------------------------------------


def task(writer: Writer, **config) -> PassKeyTask:
    config = PassKeyConfig(**({"stages": (1, 2, 4), "mention_weight": 0.5, "text_tokens": 7} | config))
    return PassKeyTask(config, 16 * BLOCK, BLOCK, 6, writer.vocabulary.size, 1, writer.vocabulary)


@pytest.mark.parametrize("open_stages", [1, 3])
@pytest.mark.parametrize("name", ["byte-level", "SentencePiece"])
def test_answers_and_mentions_have_the_loss(writers, name, open_stages):
    """The tokens of each answer have weight 1, of each mention as configured; others only `text_tokens` at random."""
    pass_key = task(writers[name])
    for step in range(5):
        batch = pass_key.batch(step, {"open_stages": open_stages})[0]
        for row, starts, positions, targets, weights in zip(
            batch.tokens, batch.starts, batch.positions, batch.targets, batch.weights, strict=True
        ):
            used = weights > 0
            assert (row[positions + 1] == targets)[used].all()
            assert len(set(positions[used].tolist())) == used.sum(), "a token is weighed once"
            begins = np.flatnonzero(starts) * BLOCK
            owner = np.searchsorted(begins, positions, side="right") - 1
            for document in range(len(begins)):
                answer, mention = (targets[(owner == document) & (weights == weight)] for weight in (1.0, 0.5))
                assert pass_key.writer.key_of(answer) == pass_key.writer.key_of(mention)
                assert len(pass_key.writer.key_of(answer)) == 5
            assert (weights == np.float32(0.05)).sum() == 7


def test_exact_match_counts_answers_of_unequal_lengths(writers):
    """All correct is 1; a wrong last token of an answer is a miss; padding targets do not count."""
    pass_key = task(writers["byte-level"])
    batch = pass_key.batch(3, {"open_stages": 2})[0]
    answers = [columns for row in pass_key._answers(batch) for columns, _ in row]
    assert len({len(columns) for columns in answers}) > 1
    progress = {"open_stages": 1, "exact_match": 1.0, "exact_match_newest": 0.5}
    wrong = batch.weights > 0  # padding targets count as wrong
    after = pass_key.observe(progress, batch, wrong)
    assert after["exact_match"] == 1.0 and after["exact_match_newest"] > 0.5
    for row, right in zip(pass_key._answers(batch), wrong, strict=True):
        for columns, _ in row:
            right[columns[-1]] = False
    after = pass_key.observe(progress, batch, wrong)
    assert after["exact_match"] == pytest.approx((1 - 1 / 64) ** len(answers))


def test_filler_is_told_exactly(writers):
    """The stage of an answer depends on its filler, counted in the tokens of its own key."""
    pass_key = task(writers["byte-level"])
    drawn = []
    ordinary, document = pass_key.writer.document, pass_key.writer.document
    pass_key.writer.document = lambda key, filler, *rest: drawn.append(filler) or document(key, filler, *rest)
    batch = pass_key.batch(0, {"open_stages": 3})[0]
    pass_key.writer.document = ordinary
    assert [filler for row in pass_key._answers(batch) for _, filler in row] == drawn


def test_answers_that_straddle(writers):
    """At straddle_share 1 answers of two tokens or more straddle a block boundary."""
    pass_key = task(writers["byte-level"], straddle_share=1.0)
    straddling, several = 0, 0
    for step in range(20):
        batch = pass_key.batch(step, {"open_stages": 3})[0]
        for row, positions in zip(pass_key._answers(batch), batch.positions, strict=True):
            for columns, _ in row:
                blocks = (positions[columns] + 1) // BLOCK
                several += len(columns) > 1
                straddling += len(columns) > 1 and blocks[0] < blocks[-1]
    assert several > 50
    assert straddling > 0.75 * several  # documents that end with their row have no choice


def test_what_cannot_write_the_task():
    """A vocabulary without digits, and a model that lacks some of the tokens, are reported."""
    ids = {"<unk>": 0, "The": 1, "grass": 2}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="<unk>"))
    with pytest.raises(ConfigError, match="does not reproduce the text of the pass key task"):
        Writer(TokenizerVocabulary({"tokenizer.json": tokenizer.to_str().encode()}, "here"))
    with pytest.raises(ConfigError, match="vocab_size 300 is below the [0-9]+ tokens of the vocabulary"):
        Writer(byte_level()).check(300)
    with pytest.raises(ConfigError, match="vocab_size 130 is below 131: the pass key task is written in ASCII"):
        Writer(ByteVocabulary(offset=3)).check(130)
