"""Vocabularies: bytes, SentencePiece, tokenizer.json; and the one in a model directory."""

import io
import json

import numpy as np
import pytest
import sentencepiece
import tokenizers

from famjax.config import ConfigError
from famjax.data.text_task import check_text_task, files_to_keep, vocabulary_and_files
from famjax.data.vocabulary import decode, encode, load_vocabulary, vocabulary_of
from tests.data import text

SENTENCE = "the quick brown fox jumps over the lazy dog and the cat sat on the mat while it rained all day"
WORDS = SENTENCE.split()


@pytest.fixture(scope="module")
def sentence_piece(tmp_path_factory):
    model = io.BytesIO()
    lines = (" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS)))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines, model_writer=model, vocab_size=45, minloglevel=2, byte_fallback=False
    )
    path = tmp_path_factory.mktemp("sp") / "some.model"
    path.write_bytes(model.getvalue())
    return path


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory):
    ids = {"<s>": 0, "</s>": 1, "<unk>": 2} | {word: i for i, word in enumerate(dict.fromkeys(WORDS), start=3)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    path = tmp_path_factory.mktemp("hf") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def test_bytes():
    """Ids are UTF-8 bytes, both ways; invalid UTF-8 becomes replacement characters."""
    vocabulary = load_vocabulary("bytes")
    assert vocabulary.encode("aß").tolist() == encode("aß").tolist() == [97, 0xC3, 0x9F]
    assert vocabulary.decode([97, 0xC3, 0x9F]) == decode(np.array([97, 0xC3, 0x9F])) == "aß"
    assert (vocabulary.size, vocabulary.bos, vocabulary.eos) == (256, None, None)
    assert vocabulary.decode([97, 0xC3]) == "a\ufffd"


def test_sentence_piece(sentence_piece):
    """The model's own ids, its size, and its begin and end."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(sentence_piece))
    vocabulary = load_vocabulary(str(sentence_piece))
    ids = vocabulary.encode("the lazy fox")
    assert ids.dtype == np.int32 and ids.tolist() == model.encode("the lazy fox")
    assert vocabulary.decode(ids) == "the lazy fox"
    assert (vocabulary.size, vocabulary.bos, vocabulary.eos) == (45, 1, 2)


def test_tokenizer_json(hugging_face):
    """Ids without those that a template adds; begin and end by their usual names, or by tokenizer_config.json."""
    vocabulary = load_vocabulary(str(hugging_face))
    assert vocabulary.encode("the quick cat").tolist() == [3, 4, 3 + list(dict.fromkeys(WORDS)).index("cat")]
    assert vocabulary.decode([3, 4, 1]) == "the quick </s>"
    assert (vocabulary.size, vocabulary.bos, vocabulary.eos) == (3 + len(set(WORDS)), 0, 1)
    names = {"bos_token": None, "eos_token": {"content": "cat"}}
    (hugging_face.parent / "tokenizer_config.json").write_text(json.dumps(names))
    try:
        vocabulary = load_vocabulary(str(hugging_face.parent))
        assert (vocabulary.bos, vocabulary.decode([vocabulary.eos])) == (None, "cat")
    finally:
        (hugging_face.parent / "tokenizer_config.json").unlink()


def test_rows_have_the_vocabularys_tokens(tmp_path, hugging_face):
    """Text to ids, with begin and end of text around each document, or without them."""
    (tmp_path / "a.txt").write_text("the quick the")
    made = text.config(tmp_path / "a.txt", vocabulary=str(hugging_face))
    assert text.batches_of(made, 1)[0].tokens[0, :11].tolist() == [0, 3, 4, 3, 1, 0, 3, 4, 3, 1, 0]
    made = text.config(tmp_path / "a.txt", vocabulary=str(hugging_face), bos=False, eos=False)
    assert text.batches_of(made, 1)[0].tokens[0, :6].tolist() == [3, 4, 3, 3, 4, 3]


@pytest.mark.parametrize("which", ["sentence_piece", "hugging_face", "bytes"])
def test_a_model_directory_keeps_its_vocabulary(tmp_path, request, which):
    """The files that a training writes give the same ids and are the default of a training that starts from there."""
    path = "bytes" if which == "bytes" else str(request.getfixturevalue(which))
    (tmp_path / "a.txt").write_text("the quick")
    model_dir = tmp_path / "model"
    model_dir.mkdir()
    made = text.config(tmp_path / "a.txt", vocabulary=path, model_dir=str(model_dir))
    for name, content in files_to_keep(made).items():
        (model_dir / name).write_bytes(content)
    kept = vocabulary_of(model_dir)
    given = load_vocabulary(path)
    assert (kept.size, kept.bos, kept.eos) == (given.size, given.bos, given.eos)
    assert kept.encode("the lazy dog").tolist() == given.encode("the lazy dog").tolist()
    for start in (model_dir, model_dir / "checkpoints" / "400"):
        later = text.config(tmp_path / "a.txt", initial_checkpoint=str(start))
        assert vocabulary_and_files(later)[0].size == given.size
        assert files_to_keep(made) == files_to_keep(later)


def test_another_vocabulary_in_the_model_directory_is_refused(tmp_path, hugging_face):
    """An existing vocabulary is not overwritten."""
    (tmp_path / "a.txt").write_text("the quick")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="tokenizer.json is another vocabulary than the data's"):
        files_to_keep(text.config(tmp_path / "a.txt", vocabulary=str(hugging_face), model_dir=str(tmp_path)))


def test_a_vocabulary_larger_than_the_model(tmp_path, hugging_face):
    """Every token needs a row of the embedding."""
    (tmp_path / "a.txt").write_text("the quick")
    made = text.config(tmp_path / "a.txt", vocabulary=str(hugging_face), vocab_size=10)
    with pytest.raises(ConfigError, match=r"has 21 tokens, but the model's vocab_size is 10; set --gin.ModelConfig.vo"):
        check_text_task(made)


def test_what_is_no_vocabulary(tmp_path):
    """One line that names the file."""
    (tmp_path / "bad.model").write_bytes(b"nothing")
    (tmp_path / "bad.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    for path, message in {
        "bad.model": "bad.model is not a SentencePiece model",
        "bad.json": "bad.json is not a Hugging Face tokenizer",
        "no.json": "no.json: No such file or directory",
        "empty": "empty has neither tokenizer.json nor tokenizer.model",
        "some.vocab": "neither bytes nor the path of a tokenizer.json",
    }.items():
        with pytest.raises(ConfigError, match=message) as error:
            load_vocabulary(str(tmp_path / path))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("change", [
    lambda whole: whole[:-100], lambda whole: b"", lambda whole: b"<html>404</html>", lambda whole: b"\xff\xfe\x00",
    lambda whole: b"[" * 100_000, lambda whole: b"[1]",
    lambda whole: json.dumps(json.loads(whole) | {"padding": "a"}).encode(),
    lambda whole: json.dumps(json.loads(whole) | {"added_tokens": ["a"]}).encode(),
], ids=["cut", "empty", "page", "bytes", "nested", "list", "padding", "added"])  # fmt: skip
def test_a_broken_tokenizer_json(tmp_path, hugging_face, change):
    """One line names the file, whether it is not JSON or other JSON than a tokenizer's."""
    (tmp_path / "tokenizer.json").write_bytes(change(hugging_face.read_bytes()))
    for spec in (tmp_path, tmp_path / "tokenizer.json"):
        with pytest.raises(ConfigError, match=r"tokenizer.json is not a Hugging Face tokenizer \(") as error:
            load_vocabulary(str(spec))
        assert "\n" not in str(error.value) and str(error.value).startswith(str(tmp_path / "tokenizer.json"))


@pytest.mark.parametrize(
    "said",
    [["a"], {"x": {"content": "a"}}, {"3": "a"}, {"3": {}}, {"9" * 5000: {"content": "a"}},
     {"3": {"content": "a", "lstrip": "yes"}}],
)  # fmt: skip
def test_added_tokens_that_are_none(tmp_path, hugging_face, said):
    """`added_tokens_decoder` maps ids to tokens."""
    (tmp_path / "tokenizer.json").write_bytes(hugging_face.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": said}))
    with pytest.raises(
        ConfigError, match="tokenizer_config.json next to it: added_tokens_decoder is not an object of "
    ):
        load_vocabulary(str(tmp_path))


@pytest.mark.parametrize(
    "said",
    [{"eos_token": {"x": 1}}, {"eos_token": 5}, {"pad_token": {"content": 1}}, {"bos_token": ["a"]},
     {"unk_token": {"content": "a", "lstrip": None}}, {"additional_special_tokens": 5},
     {"additional_special_tokens": "a"}, {"additional_special_tokens": ["a", 5]}, {"extra_special_tokens": [None]},
     {"extra_special_tokens": {"image_token": 5}}, {"extra_special_tokens": [{"x": 1}]}, {"eos_token": "\ud83d"}],
)  # fmt: skip
@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_special_tokens_that_are_none(tmp_path, hugging_face, name, said):
    """One line names the file and the key, in place of a traceback."""
    (tmp_path / "tokenizer.json").write_bytes(hugging_face.read_bytes())
    (tmp_path / name).write_text(json.dumps(said))
    with pytest.raises(ConfigError, match=f"{name} next to it: .*{next(iter(said))}") as error:
        load_vocabulary(str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("said", ["0", 1.0, True, None, -1, 2**32])
@pytest.mark.parametrize("name", ["added_tokens.json", "vocab.json"])
def test_ids_that_are_none(tmp_path, hugging_face, name, said):
    """Of a token to add, and of a token of Qwen's vocabulary."""
    if name == "added_tokens.json":
        (tmp_path / "tokenizer.json").write_bytes(hugging_face.read_bytes())
    (tmp_path / "merges.txt").write_text("")
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    (tmp_path / name).write_text(json.dumps({"a": 0, "b": said}))
    with pytest.raises(ConfigError, match=f"{name} next to it: 'b' is {said!r}, not an id"):
        load_vocabulary(str(tmp_path))


@pytest.mark.parametrize("merges", ["a b", "a", "a a a"])
def test_merges_of_another_vocabulary(tmp_path, merges):
    """Of a token that is not in it, and lines that are not two tokens."""
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    (tmp_path / "merges.txt").write_text(merges)
    with pytest.raises(ConfigError, match="merges and vocabulary of the tokenizer do not fit each other") as error:
        load_vocabulary(str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["{", "[1]", '{"x": 1}', '{"offset": "a"}', '{"offset": -1}', '{"eos": 1.5}'])
def test_a_broken_byte_vocabulary(tmp_path, content):
    """One line, instead of ids that are shifted by something else."""
    (tmp_path / "byte_vocabulary.json").write_text('{"offset": 3, "eos": null}')
    assert load_vocabulary(str(tmp_path)).encode("a").tolist() == [100]
    (tmp_path / "byte_vocabulary.json").write_text(content)
    with pytest.raises(ConfigError, match="has no byte vocabulary: restore byte_vocabulary.json from a copy"):
        load_vocabulary(str(tmp_path))
