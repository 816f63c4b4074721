"""A model directory's tokenizer: tokens of prompts, text of tokens, stops."""

import json
from pathlib import Path

import numpy as np
import pytest

from famjax.config import ConfigError
from famjax.data.symbols import SymbolVocabulary
from famjax.data.vocabulary import ByteVocabulary
from famjax.infer import codec as codecs
from famjax.infer.codec import Codec
from tests.pretrained import tokenizers_of_ours

TEXT = "Grüße, 世界! 🙂 The quick brown fox jumps over the lazy dog.\n\nUser: why?  2+2\t= 4 "
KINDS = ("byte-level", "metaspace")


def pieces(data: bytes, seed: int) -> list[bytes]:
    """The bytes, cut at random."""
    cuts = np.sort(np.random.default_rng(seed).integers(0, len(data) + 1, 9))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


@pytest.fixture(scope="module", params=KINDS)
def model_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory as far as its tokenizer goes."""
    return tokenizers_of_ours.write(tmp_path_factory.mktemp("model"), request.param)


def test_ids_equal_those_of_transformers(model_dir: Path) -> None:
    """Prompts get the ids that transformers gives them, the beginning of text included."""
    import transformers

    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(model_dir)
    ours = Codec(model_dir, 1000)
    for text in (TEXT, "a", "", " x", "\n\n"):
        assert ours.encode(text).tolist() == theirs(text)["input_ids"]
        assert ours.encode(text, fresh=False).tolist() == theirs(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("seed", range(3))
def test_a_prompt_in_pieces_has_the_tokens_of_the_whole(
    model_dir: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long prompt has the same tokens however it is split into pieces; it is passed on in parts if possible."""
    monkeypatch.setattr(codecs, "CHUNK_CHARACTERS", 900)
    codec = Codec(model_dir, 1000)
    text = TEXT * 60
    chunks = list(codec.chunks(pieces(text.encode(), seed)))
    np.testing.assert_array_equal(np.concatenate(chunks), codec.encode(text))
    if "byte-level" in str(json.loads((model_dir / "about.json").read_text())):
        assert len(chunks) > 4


@pytest.mark.parametrize("seed", range(4))
def test_text_streams_whole_characters(model_dir: Path, seed: int) -> None:
    """What is shown is always a beginning of the text, without replacement characters, and in the end all of it."""
    codec = Codec(model_dir, 1000)
    ids = codec.encode(TEXT, fresh=False)
    whole = codec.vocabulary.decode(ids)
    cut = int(np.random.default_rng(seed).integers(1, len(ids))) if seed else 0
    first = codec.stream((), ())
    out = first.feed(ids[:cut]) + first.finish()
    stream = codec.stream((), [-1, *ids[:cut]])
    for token in ids[cut:]:
        out += stream.feed([token])
        assert whole.startswith(out)
        assert "\ufffd" not in out
    assert out + stream.finish() == whole


def test_bytes_that_are_no_text_do_not_block_the_stream(tmp_path: Path) -> None:
    """Invalid UTF-8 is shown as replacement characters after four tokens, and the text continues."""
    codec = Codec(tokenizers_of_ours.write(tmp_path, "byte-level"), 1000)
    broken = codec.vocabulary.encode("ü")[:1] if len(codec.vocabulary.encode("ü")) > 1 else None
    alone = [token for token in range(300) if codec.vocabulary.decode([token]) == "\ufffd"][:1]
    ids = [*(broken if broken is not None else alone)] * 6 + [*codec.vocabulary.encode("abc")]
    stream = codec.stream(())
    assert (stream.feed(ids) + stream.finish()).endswith("abc")


def test_stop_texts_are_found_across_tokens(model_dir: Path) -> None:
    """Nothing of a stop text is shown, whatever tokens it lies in; what only began like one is shown in the end."""
    codec = Codec(model_dir, 1000)
    ids = codec.vocabulary.encode("lazy dog.\n\nUser: why?")
    shown = codec.vocabulary.decode(ids)
    stream, out = codec.stream(["\n\nUser"]), ""
    read = []
    for token in ids:
        read.append(token)
        out += stream.feed([token])
        assert shown[: shown.find("\n\nUser")].startswith(out)
        if stream.stopped:
            break
    assert stream.stopped
    assert out == shown[: shown.find("\n\nUser")]
    assert "\n\nUser" in codec.vocabulary.decode(read)
    unfinished = codec.stream(["why? not"])
    assert "why" not in unfinished.feed(ids)
    assert unfinished.finish() == "why?"
    assert not unfinished.stopped


@pytest.mark.parametrize("before", ["", "the lazy"])
def test_tokens_of_an_answer_are_those_of_its_text(model_dir: Path, before: str) -> None:
    """Those before a stop text, also if the answer begins with a space, which the text of a prompt would not have."""
    codec = Codec(model_dir, 1000)
    known = codec.vocabulary.encode(before).tolist()
    kept, rest = (codec.vocabulary.encode(text).tolist() for text in (" dog ", "why"))
    text, tokens, stopped = codec.answer([*kept, *rest], False, ["why"], [-1, *known])
    assert stopped and "dog" in text and tokens == [*kept, *rest][: len(tokens)]
    assert text == codec.vocabulary.decode([*known, *tokens])[len(codec.vocabulary.decode(known)) :]


def test_a_stop_text_at_the_very_end(model_dir: Path) -> None:
    """Bytes of a character that later tokens may turn into something else: without later tokens they are the stop."""
    codec = Codec(model_dir, 1000)
    ids = codec.vocabulary.encode("dog 世").tolist()
    text, tokens, stopped = codec.answer(ids, False, ["世"])
    assert (text, tokens, stopped) == (codec.vocabulary.decode(ids)[:-1], ids[: len(tokens)], True)
    assert codec.vocabulary.decode(tokens) == text


def test_the_models_own_end_is_a_stop(model_dir: Path) -> None:
    """`eos_token_id` of generation_config.json, one or several, else the tokenizer's; never shown."""
    codec = Codec(model_dir, 1000)
    eos = codec.vocabulary.eos
    assert codec.token_stops([]) == [[eos]]
    (model_dir / "generation_config.json").write_text('{"eos_token_id": [5, 9]}')
    again = Codec(model_dir, 1000)
    (model_dir / "generation_config.json").unlink()
    assert again.token_stops(["x"]) == [[5], [9]]
    ids = codec.vocabulary.encode("the end")
    stream = codec.stream(())
    assert stream.feed([*ids, eos], stopped=True) == codec.vocabulary.decode(ids)


@pytest.mark.parametrize("name", ["generation_config.json", "config.json", "hf_config.json"])
@pytest.mark.parametrize("said", ["</s>", 2.0, True, 1000, -1, {"id": 2}, [2, "</s>"], [2, 1000]])
def test_an_end_that_is_no_token_of_the_model(name: str, said: object, tmp_path: Path) -> None:
    """A model whose `eos_token_id` were ignored would never end; the line names the file and the value."""
    folder = tokenizers_of_ours.write(tmp_path, "byte-level")
    (folder / name).write_text(json.dumps({"eos_token_id": said}))
    for read in (lambda: Codec(folder, 1000), lambda: Codec.of(ByteVocabulary(), folder, 1000)):
        with pytest.raises(ConfigError) as error:
            read()
        assert str(error.value).startswith(f"{folder / name}: eos_token_id is {said!r}; it must be the id of one of")
    (folder / name).write_text(json.dumps({"eos_token_id": [999, 2, 999]}))
    assert Codec(folder, 1000).ends == Codec.of(ByteVocabulary(), folder, 1000).ends == [999, 2]


def test_beginning_of_text_as_the_tokenizer_says(tmp_path: Path) -> None:
    """The tokens that tokenizer.json adds count, not `add_bos_token` in addition, as in transformers 5."""
    folder = tokenizers_of_ours.write(tmp_path, "byte-level")
    bos = Codec(folder, 1000).bos
    assert bos is not None
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"add_bos_token": False}))
    assert Codec(folder, 1000).bos == bos
    whole = json.loads((folder / "tokenizer.json").read_text()) | {"post_processor": None}
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"add_bos_token": True}))
    assert Codec(folder, 1000).bos is None
    assert bos not in Codec(folder, 1000).encode("a")


def test_a_text_that_begins_with_the_token_that_is_added(model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It has the token twice, as in transformers, and a line on standard error says so, once."""
    in_chunks = lambda codec, text: np.concatenate(list(codec.chunks([text.encode()])))
    for encode in (Codec.encode, in_chunks):
        codec = Codec(model_dir, 1000)
        codec.encode("a <s> b")
        codec.encode("<s>a", fresh=False)
        assert not capsys.readouterr().err
        for _ in range(2):
            assert list(encode(codec, "<s>a"))[:2] == [codec.bos] * 2
        assert capsys.readouterr().err.count("a text begins with '<s>', which the tokenizer adds too") == 1


def test_a_tokenizer_that_is_too_large_is_refused(model_dir: Path) -> None:
    """Tokens outside the model's vocabulary are reported before anything is loaded."""
    with pytest.raises(ConfigError, match="the model has 50 tokens and a tokenizer of"):
        Codec(model_dir, 50)


def test_one_added_token_more_than_the_model_has(tmp_path: Path) -> None:
    """Gemma 3's <image_soft_token> lies beyond the embedding: only a text that has it is refused, by name."""
    folder = tokenizers_of_ours.write(tmp_path, "byte-level")
    rows = Codec(folder, 1000).vocabulary.size
    config = json.loads((folder / "tokenizer_config.json").read_text()) | {"image_token": "<image>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert Codec(folder, 1000).encode("a<image>")[-1] == rows
    codec = Codec(folder, rows)
    assert codec.vocabulary.size == rows
    np.testing.assert_array_equal(codec.encode(TEXT), Codec(folder, 1000).encode(TEXT))
    with pytest.raises(ConfigError, match=f"a text has the token '<image>', id {rows}, but the model has {rows}"):
        codec.encode("a<image>")
    with pytest.raises(ConfigError, match="the model has 50 tokens and a tokenizer of"):
        Codec(folder, 50)


def test_begin_and_end_of_text_that_the_model_does_not_have(tmp_path: Path) -> None:
    """Added tokens may be beyond the embedding, but not those of every text; `eos_token_id` may name another end."""
    folder = tokenizers_of_ours.write(tmp_path, "byte-level")
    rows = Codec(folder, 1000).vocabulary.size
    config = json.loads((folder / "tokenizer_config.json").read_text()) | {"eos_token": "<end>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert Codec(folder, rows + 1).ends == [rows]
    with pytest.raises(ConfigError, match=f"end-of-text token has id {rows}, but the model has {rows} tokens; set eos"):
        Codec(folder, rows)
    (folder / "generation_config.json").write_text('{"eos_token_id": 1}')
    assert Codec(folder, rows).ends == [1]
    whole = json.loads((folder / "tokenizer.json").read_text())
    whole["added_tokens"].append(whole["added_tokens"][0] | {"id": rows, "content": "<begin>"})
    whole["post_processor"]["special_tokens"]["<s>"]["ids"] = [rows]
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    assert Codec(folder, rows + 2).bos == rows
    with pytest.raises(ConfigError, match=f"begins a text with token {rows}, but the model has {rows} tokens"):
        Codec(folder, rows)


def test_names_of_tokens_are_text() -> None:
    """A synthetic task's model reads and writes names: token by token the text of all tokens, before and after a
    prompt."""
    codec = Codec.of(SymbolVocabulary([".0", "k0", "k1", "v0", "v1"]))
    assert not codec.is_bytes and codec.encode("k1 v0\n.0").tolist() == [2, 3, 0]
    for before, expected in (((), "v1 .0 k1"), ((2, 3), " v1 .0 k1")):
        stream = codec.stream((), before)
        assert "".join(stream.feed([token]) for token in (4, 0, 2)) + stream.finish() == expected
    assert codec.answer([4, 0, 2], False, (), [2, 3])[0] == " v1 .0 k1"
