"""Import, export and import again: tensors bit for bit, config.json, tokenizer, FAM."""

import ast
import dataclasses
import json
import re
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from famjax.cli.export_hf import check_tokenizer
from famjax.cli.main import main
from famjax.config import ConfigError
from famjax.data.symbols import SymbolVocabulary
from famjax.data.tokenizer_folder import BESIDE, MERGES
from famjax.data.vocabulary import VOCABULARIES, vocabulary_of
from famjax.infer.codec import Codec
from famjax.infer.load import load
from famjax.nn.weights import create, parameter_shapes, parameters
from famjax.pretrained.folder import CARRIED, KEPT_CONFIG, Folder, carry
from famjax.storage import base
from famjax.storage.checkpoint import load_model, save_model
from famjax.storage.model_dir import read_config
from tests import tiny
from tests.data.test_tokenizer_folders import sentence_piece
from tests.pretrained import ours, theirs, tokenizers_of_ours
from tests.pretrained.test_bad_folders import write_llama, write_shards
from tests.pretrained.test_gguf_tokens import byte_level


def exported(model_dir: Path, target: Path) -> Path:
    """Runs `famjax export-hf`."""
    assert main(["export-hf", str(model_dir), str(target)]) == 0
    return target


def tensors(folder: Path) -> dict[str, np.ndarray]:
    """Returns all tensors of a folder, from one file or shards."""
    files = sorted(folder.glob("model*.safetensors"))
    return {name: array for file in files for name, array in safetensors.numpy.load_file(file).items()}


def assert_same_tensors(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    """Asserts the same names, types, shapes and bits."""
    assert one.keys() == other.keys()
    for name in one:
        assert (one[name].dtype, one[name].shape) == (other[name].dtype, other[name].shape)
        assert one[name].tobytes() == other[name].tobytes()


ROUND_TRIPS = [(name, "float32") for name in theirs.CASES] + [("gemma3", "bfloat16"), ("qwen2-grouped", "float16")]


@pytest.mark.parametrize(("name", "dtype"), ROUND_TRIPS)
def test_tensors_and_config_come_back(name: str, dtype: str, tmp_path: Path) -> None:
    """An imported model without training is exported bit for bit, with its own config.json and one section more."""
    case = theirs.CASES[name]
    case = case._replace(settings=case.settings | {"vocab_size": 400})  # room for the tokenizer's 362
    source = theirs.save(case, tmp_path / "theirs", dtype)
    tokenizers_of_ours.write(source, "metaspace")
    template = "additional_chat_templates/tool_use.jinja"
    (source / template).parent.mkdir()
    (source / template).write_text("{{ messages }}")
    back = exported(ours.imported(source, tmp_path / "ours"), tmp_path / "back")
    assert_same_tensors(tensors(source), tensors(back))
    config, original = (json.loads((folder / "config.json").read_text()) for folder in (back, source))
    assert config.pop("famjax")["memory"]["fam_length"] == 2
    assert config == original
    for carried in ("tokenizer.json", "generation_config.json", template):
        assert (back / carried).read_bytes() == (source / carried).read_bytes()


def trained(source: Path, target: Path, only: str = "") -> dict[str, np.ndarray]:
    """Writes the model directory of a float32 training that moved the weights of an import whose paths start with
    `only` by a millionth of their size; the others stay in the import. Returns two of its weights by their names in
    transformers."""
    config, weights = load_model(source, parameter_shapes)
    moved = jax.tree.map(lambda w: np.asarray(w, np.float32) * np.float32(1 + 1e-6), weights)
    own = base.part(moved, lambda path: path.startswith(only))
    save_model(target, dataclasses.replace(config, param_dtype="float32"), own, step=3)
    (target / KEPT_CONFIG).write_bytes((source / KEPT_CONFIG).read_bytes())
    if only:
        base.write(target, base.of(source))
    return {"model.embed_tokens.weight": moved["embedding"], "model.norm.weight": moved["final_norm"]["scale"]}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_that_were_trained_keep_their_type(
    dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An import of 16 bits, trained in float32: what transformers loads by default is what was trained, bit for bit,
    and a line says that the type is not the import's."""
    import transformers

    source = theirs.save(theirs.CASES["qwen2-grouped"], tmp_path / "theirs", dtype)
    weights = trained(ours.imported(source, tmp_path / "ours"), tmp_path / "trained")
    capsys.readouterr()
    folder = exported(tmp_path / "trained", tmp_path / "back")
    error = capsys.readouterr().err
    assert (
        f"written as float32, in which they were trained, also in config.json; they were imported as {dtype}" in error
    )
    assert error.count("\n") == 1
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder).state_dict()
    for name, values in weights.items():
        assert loaded[name].dtype.itemsize == 4
        np.testing.assert_array_equal(loaded[name].numpy(), values)
        assert (values != tensors(source)[name].astype(np.float32)).mean() > 0.9


def test_frozen_weights_keep_the_type_of_the_import(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """float16, trained in float32. If the last norm alone was trained, it alone is float32, and config.json has the
    type in which transformers loses nothing; if FAM's prompt alone was, the folder is the original one. A frozen base
    of bfloat16 is float32 in such a training, as config.json then says."""
    source = theirs.save(theirs.CASES["qwen2-grouped"], tmp_path / "theirs", "float16")
    model_dir = ours.imported(source, tmp_path / "ours")
    norm = trained(model_dir, tmp_path / "norm", "final_norm")["model.norm.weight"]
    found, original = tensors(exported(tmp_path / "norm", tmp_path / "norm out")), tensors(source)
    np.testing.assert_array_equal(found.pop("model.norm.weight"), norm)
    original.pop("model.norm.weight")
    assert_same_tensors(found, original)
    dtype_of = lambda folder: json.loads((folder / "config.json").read_text())["dtype"]
    assert dtype_of(tmp_path / "norm out") == "float32"
    trained(model_dir, tmp_path / "fam", "fam/")
    capsys.readouterr()
    assert_same_tensors(tensors(exported(tmp_path / "fam", tmp_path / "fam out")), tensors(source))
    assert dtype_of(tmp_path / "fam out") == "float16" and not capsys.readouterr().err
    source = theirs.save(theirs.CASES["qwen2-grouped"], tmp_path / "bfloat16", "bfloat16")
    trained(ours.imported(source, tmp_path / "other"), tmp_path / "other fam", "fam/")
    found = tensors(exported(tmp_path / "other fam", tmp_path / "other out"))
    assert_same_tensors(found, {name: array.astype(np.float32) for name, array in tensors(source).items()})
    assert dtype_of(tmp_path / "other out") == "float32"


def test_ignored_tensors_do_not_widen_the_weights(tmp_path: Path) -> None:
    """Older folders have RoPE's frequencies in float32 beside bfloat16 weights, which stay bfloat16."""
    source = tmp_path / "theirs"
    weights = write_llama(source, ml_dtypes.bfloat16)
    frequencies = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32) for i in range(2)}
    write_shards(source, weights | frequencies)
    model_dir = ours.imported(source, tmp_path / "ours")
    assert read_config(model_dir).param_dtype == read_config(model_dir).dtype == "bfloat16"
    assert_same_tensors(tensors(exported(model_dir, tmp_path / "back")), weights)


def test_transformers_loads_what_was_exported(tmp_path: Path) -> None:
    """A folder in several shards, with FAM next to it, is the same model to transformers."""
    source = theirs.save(theirs.CASES["qwen3-grouped"], tmp_path / "theirs")
    model_dir = ours.imported(source, tmp_path / "ours")
    from famjax.pretrained import folder

    small = pytest.MonkeyPatch()
    with small.context() as patch:
        patch.setattr(folder.write_tensors, "__defaults__", (10_000,))
        back = exported(model_dir, tmp_path / "back")
    assert len(list(back.glob("model-*-of-*.safetensors"))) > 2
    assert_same_tensors(tensors(source), tensors(back))
    text = theirs.tokens(61)
    np.testing.assert_array_equal(theirs.logits(back, text), theirs.logits(source, text))


def test_fam_comes_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model directory, exported and imported, has the same weights, prompt and memory settings."""
    config = tiny.config(qk_norm=True, vocab_size=61, fam_length=3, memory_segments=2, fam_position="float")
    params = tiny.parameters(config)
    save_model(tmp_path / "model", config, params)
    folder = exported(tmp_path / "model", tmp_path / "folder")
    fam = safetensors.numpy.load_file(folder / "fam.safetensors")
    np.testing.assert_array_equal(fam["fam_prompt"], params["fam"]["prompt"])
    assert main(["import-hf", str(folder), str(tmp_path / "again")]) == 0
    again, weights = load_model(tmp_path / "again", parameter_shapes)
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, weights, dict(params))
    assert main(["import-hf", str(folder), str(tmp_path / "seeded"), "--seed", "0"]) == 2
    assert "--seed has no effect on a folder that has FAM's prompt" in capsys.readouterr().err
    # Fewer rows are the prompt's last ones, with their positions.
    assert main(["import-hf", str(folder), str(tmp_path / "short"), "--fam-length", "2"]) == 0
    short = load(tmp_path / "short")
    np.testing.assert_array_equal(short.fam.prompt[...], params["fam"]["prompt"][-2:])
    assert short.config.memory == dataclasses.replace(config.memory, fam_length=2)
    # Without its file, the trained prompt is not replaced by a random one; a new one must be asked for.
    (folder / "fam.safetensors").unlink()
    assert main(["import-hf", str(folder), str(tmp_path / "lost")]) == 2
    assert "has no fam.safetensors, the FAM of its config.json" in capsys.readouterr().err
    assert not (tmp_path / "lost").exists()
    assert main(["import-hf", str(folder), str(tmp_path / "without"), "--fam-length", "0"]) == 0


@pytest.mark.parametrize(
    "memory",
    [
        {"fam_update": "gated", "fam_gate": True}, {"kind": "infini", "fam_length": 0},
        {"kind": "rmt", "fam_length": 0, "memory_segments": 0, "memory_tokens": 3},
    ],
    ids=["write-gate", "infini", "rmt"],
)  # fmt: skip
def test_every_memory_comes_back(memory: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The memory's own weights, in layers and beside them; a folder without one of them is refused."""
    config = tiny.config(qk_norm=True, vocab_size=61, **memory)
    params = tiny.parameters(config)
    save_model(tmp_path / "model", config, params)
    folder = exported(tmp_path / "model", tmp_path / "folder")
    assert main(["import-hf", str(folder), str(tmp_path / "again")]) == 0
    again, weights = load_model(tmp_path / "again", parameter_shapes)
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, weights, dict(params))
    arrays = safetensors.numpy.load_file(folder / "fam.safetensors")
    name = next(name for name in arrays if "memory." in name)
    safetensors.numpy.save_file({n: a for n, a in arrays.items() if n != name}, folder / "fam.safetensors")
    capsys.readouterr()
    assert main(["import-hf", str(folder), str(tmp_path / "short")]) == 2
    assert f"has no {name}" in capsys.readouterr().err and not (tmp_path / "short").exists()
    safetensors.numpy.save_file(arrays | {"layers.memory.other": arrays[name]}, folder / "fam.safetensors")
    assert main(["import-hf", str(folder), str(tmp_path / "more")]) == 2
    assert "has layers.memory.other" in capsys.readouterr().err


MODELS = {
    "llama": tiny.config(tie_embeddings=False),
    "llama-scaled": tiny.config(rope_scaling="llama3", rope_factor=4.0, rope_original_length=16, ff_bias=True),
    "mistral": tiny.config(layer_pattern=("local",), local_window=5),
    "qwen2": tiny.config(qkv_bias=True),
    "qwen2-windows": tiny.config(qkv_bias=True, layer_pattern=("global", "local"), local_window=5, num_layers=3),
    "qwen3": tiny.config(qk_norm=True),
    "gemma": tiny.config(norm_plus_one=True, scale_embeddings=True, activation="gelu"),
    "gemma2": tiny.config(
        norm_plus_one=True, scale_embeddings=True, activation="gelu", post_norms=True, logit_cap=3,
        layer_pattern=("local", "global"), local_window=5, num_layers=5, num_heads=4,
    ),
    "gemma3": tiny.config(
        norm_plus_one=True, scale_embeddings=True, activation="gelu", post_norms=True, qk_norm=True,
        layer_pattern=("local", "global", "local"), local_window=5, local_rope_base=10.0, attention_scale=0.5,
        rope_scaling="linear", rope_factor=2.0, num_layers=3,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_our_own_becomes_one_of_a_family(name: str, tmp_path: Path) -> None:
    """A model that was not imported is exported as the family that has its settings, and transformers agrees."""
    config = dataclasses.replace(MODELS[name], vocab_size=61)
    params = tiny.parameters(config)
    save_model(tmp_path / "model", config, params)
    folder = exported(tmp_path / "model", tmp_path / "folder")
    told = json.loads((folder / "config.json").read_text())
    assert told["model_type"] == name.split("-")[0].replace("gemma3", "gemma3_text")
    assert "rope_theta" in json.dumps(told["rope_parameters"])
    text = theirs.tokens(61)
    desired = theirs.logits(folder, text)
    covering = {"block_size": 24, "memory_segments": 0, "fam_length": 0}
    same = dataclasses.replace(config, memory=dataclasses.replace(config.memory, **covering))
    weights = {path: value for path, value in params.items() if path != "fam"}
    model = tiny.build(same, weights)
    found = np.asarray(model.logits(tiny.whole(same, weights, text)[0]))
    for row in theirs.relative_errors(found, desired):
        assert row.max() <= 1e-4


WITHOUT_FAMILY = {
    "parallel layers": tiny.config(parallel_layers=True),
    "a scale of scores that is not 1 / sqrt(n)": dataclasses.replace(MODELS["gemma2"], attention_scale=0.3),
    "a cap that the code of Gemma 3 ignores": dataclasses.replace(MODELS["gemma3"], attention_cap=2.0),
}


@pytest.mark.parametrize("name", WITHOUT_FAMILY)
def test_a_model_without_a_family_is_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A configuration here, but not of a family of transformers; nothing is written."""
    config = WITHOUT_FAMILY[name]
    save_model(tmp_path / "model", config, parameters(create(config)))
    assert main(["export-hf", str(tmp_path / "model"), str(tmp_path / "folder")]) == 2
    assert "no family of transformers has this model's combination" in capsys.readouterr().err
    assert not (tmp_path / "folder").exists()


def test_texts_end_where_they_ended(tmp_path: Path) -> None:
    """A generated config.json names the tokens that end a text: those of the vocabulary, or of the import, of which it
    keeps all that does not describe the model."""
    import transformers

    config = tiny.config(vocab_size=300)
    save_model(tmp_path / "model", config, parameters(create(config)))
    (tmp_path / "model" / "byte_vocabulary.json").write_text('{"offset": 3, "eos": 1, "size": 300}')
    ends = lambda folder: transformers.AutoModelForCausalLM.from_pretrained(folder).generation_config.eos_token_id
    assert ends(exported(tmp_path / "model", tmp_path / "out")) == 1
    assert main(["import-hf", str(tmp_path / "out"), str(tmp_path / "again")]) == 0
    assert Codec(tmp_path / "again", 300).ends == [1]

    source = theirs.save(theirs.CASES["llama2-untied"], tmp_path / "theirs")
    (source / "generation_config.json").unlink()
    said = json.loads((source / "config.json").read_text()) | {"eos_token_id": [7, 9], "tokenizer_class": "Any"}
    (source / "config.json").write_text(json.dumps(said))
    model_dir = ours.imported(source, tmp_path / "ours")
    longer = dataclasses.replace(read_config(model_dir), rope_base=50.0)
    (model_dir / "model.json").write_text(longer.to_json())
    found = json.loads((exported(model_dir, tmp_path / "longer") / "config.json").read_text())
    assert ends(tmp_path / "longer") == [7, 9]
    assert found["rope_parameters"]["rope_theta"] == 50.0
    assert (found["tokenizer_class"], found["max_position_embeddings"]) == ("Any", 64)


def test_every_vocabulary_comes_back(tmp_path: Path) -> None:
    """The text of a model's tokens is that of an import of its export, also if they are a task's symbols or shifted
    bytes; import and export carry every file that a vocabulary can have."""
    assert {*VOCABULARIES, MERGES, *BESIDE} <= set(CARRIED)
    files = {
        "symbols": SymbolVocabulary([f"k{n}" for n in range(61)]).files,
        "bytes": {"byte_vocabulary.json": b'{"offset": 3, "eos": 1, "size": 300}'},
    }
    for kind, kept in files.items():
        config = tiny.config(vocab_size=300)
        save_model(tmp_path / kind, config, parameters(create(config)))
        carry(kept, tmp_path / kind)
        folder = exported(tmp_path / kind, tmp_path / f"{kind} out")
        assert main(["import-hf", str(folder), str(tmp_path / f"{kind} again")]) == 0
        before, after = (vocabulary_of(tmp_path / name) for name in (kind, f"{kind} again"))
        text = before.decode(range(5, 61))
        assert after.decode(range(5, 61)) == text and type(after) is type(before)
        assert after.encode(text).tolist() == before.encode(text).tolist()


def test_a_tokenizer_that_would_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """GPT-2's words in a model that is exported as a Qwen 2, whose class in transformers has its own: refused, as the
    same text would be other tokens. Qwen's own words are exported, with the ids of the model directory."""
    import transformers

    for pre in ("gpt-2", "qwen2"):
        tokenizer = byte_level(pre)
        config = tiny.config(qkv_bias=True, vocab_size=tokenizer.get_vocab_size())
        save_model(tmp_path / pre, config, parameters(create(config)))
        (tmp_path / pre / "tokenizer.json").write_text(tokenizer.to_str())
    assert main(["export-hf", str(tmp_path / "gpt-2"), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "transformers would make another tokenizer of its files, as model_type is qwen2" in error
    assert error.count("\n") == 1 and not (tmp_path / "out").exists()
    theirs = transformers.AutoTokenizer.from_pretrained(exported(tmp_path / "qwen2", tmp_path / "out"))
    text = "12345, it's  two\n\n"
    assert vocabulary_of(tmp_path / "qwen2").encode(text).tolist() == theirs(text)["input_ids"]
    assert vocabulary_of(tmp_path / "gpt-2").encode(text).tolist() != theirs(text)["input_ids"]


PLAIN = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "add_dummy_prefix": False}
PIECES = {
    "default": {}, "spaces": PLAIN | {"remove_extra_whitespaces": True}, "prefix": PLAIN | {"add_dummy_prefix": True},
    "suffix": PLAIN | {"treat_whitespace_as_suffix": True}, "unigram": PLAIN, "bpe": PLAIN | {"model_type": "bpe"},
    "normal": PLAIN | {"normalization_rule_name": "nmt_nfkc_cf"}, "no bytes": PLAIN | {"byte_fallback": False},
    "symbols": PLAIN | {"user_defined_symbols": ["[TOOL]"]},
}  # fmt: skip
SENTENCES = ("the lazy fox", " two", "two  spaces ", "why?\n\nGrüße, ﬁ ½ Ａ", "a\tb 世界 🙂 🙂🙂", "THE [TOOL] x", "")


@pytest.mark.parametrize("model_type", ["llama", "gemma"])
@pytest.mark.parametrize("name", PIECES)
def test_a_sentence_piece_model_that_transformers_reads_differently(name: str, model_type: str, tmp_path: Path) -> None:
    """A SentencePiece model is refused with a text to which transformers gives other ids than the training, or
    exported, and then texts have the same ids there."""
    import transformers

    for folder in ("model", "theirs"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "tokenizer.model").write_bytes(sentence_piece("unigram", **PIECES[name]))
    (tmp_path / "theirs" / "config.json").write_text(json.dumps({"model_type": model_type}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")
    ours = vocabulary_of(tmp_path / "model")
    same = lambda text: theirs(text, add_special_tokens=False)["input_ids"] == ours.encode(text).tolist()
    try:
        check_tokenizer(tmp_path / "model", {"model_type": model_type})
    except ConfigError as error:
        said = re.search("transformers would read ('.*') of tokenizer.model as other tokens", str(error))
        assert name != "bpe" and said and not same(ast.literal_eval(said[1])) and "\n" not in str(error)
    else:
        assert all(map(same, SENTENCES))


def test_an_old_config_json_means_the_same(tmp_path: Path) -> None:
    """`rope_theta` and `rope_scaling`, as version 4 wrote them, and a `torch_dtype`: the same model."""
    from famjax.pretrained.config_json import model_config

    for name in ("llama3-grouped-tied", "gemma3", "qwen2-grouped"):
        new = Folder(theirs.save(theirs.CASES[name], tmp_path / name)).config
        old = {key: value for key, value in new.items() if key not in ("rope_parameters", "dtype")}
        rope = new["rope_parameters"]
        scaled = rope.get("full_attention", rope)
        old |= {"rope_theta": scaled["rope_theta"], "torch_dtype": "float32"}
        if "sliding_attention" in rope:
            old["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        scaling = {key: value for key, value in scaled.items() if key != "rope_theta"}
        old["rope_scaling"] = scaling if scaling["rope_type"] != "default" else None
        assert model_config(old) == model_config(new)
