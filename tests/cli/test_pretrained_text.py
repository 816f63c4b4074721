"""A pretrained model with its own tokenizer, from the folder to the text: score and generate as a user runs them."""

import json
from pathlib import Path

import numpy as np
import pytest

from famjax.cli.main import main
from tests.pretrained import tokenizers_of_ours
from tests.pretrained.theirs import Case, save

CASE = Case(
    "Qwen3",
    {"vocab_size": 400, "hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 4, "head_dim": 8}
    | {"num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 1},
)
PROMPT = "The quick brown fox jumps. Grüße, 世"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folder of transformers and the model directory, with blocks that cover what is read."""
    place = tmp_path_factory.mktemp("pretrained")
    source = save(CASE, place / "theirs")
    tokenizers_of_ours.write(source, "byte-level")
    flags = ["--block-size", "64", "--memory-segments", "1", "--fam-length", "4", "--fam-text", "the lazy fox"]
    assert main(["import-hf", str(source), str(place / "ours"), *flags]) == 0
    return source, place / "ours"


def test_greedy_tokens_are_those_of_transformers(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """Without FAM: 24 tokens after a prompt, with the tokenizer's BOS token, equal those of transformers."""
    import torch
    import transformers

    source, model_dir = folders
    prompts, answers = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    prompts.write_text(json.dumps({"prompt": PROMPT}) + "\n")
    words = ["--input", str(prompts), "--output", str(answers), "--max-tokens", "24", "--fam-length", "0"]
    assert main(["generate", "--model", str(model_dir), *words]) == 0
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    model = transformers.AutoModelForCausalLM.from_pretrained(source)
    ids = torch.tensor([tokenizer(PROMPT)["input_ids"]])
    seen = torch.ones_like(ids)  # the beginning of text has the id of the padding here
    made = model.generate(ids, attention_mask=seen, max_new_tokens=24, do_sample=False)[0, ids.shape[1] :].tolist()
    answer = json.loads(answers.read_text(encoding="utf-8"))
    assert answer["tokens"] == made
    assert len(set(made)) > 5
    assert tokenizer.decode(made).startswith(answer["text"])


def test_stop_texts_and_sessions(
    folders: tuple[Path, Path], tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """A text ends before --stop, in one prompt and in a file of prompts; a session continues after it."""
    _, model_dir = folders
    base = ["generate", "--model", str(model_dir), "--max-tokens", "20"]
    assert main([*base, "--prompt", PROMPT]) == 0
    text = capsysbinary.readouterr().out.decode()
    stop = text[7:9]
    session = str(tmp_path / "a.session")
    assert main([*base, "--prompt", PROMPT, "--stop", stop, "--state-out", session]) == 0
    assert capsysbinary.readouterr().out.decode() == text[: text.index(stop)]
    assert main(["generate", "--model", str(model_dir), "--state-in", session, "--max-tokens", "20"]) == 0
    rest = capsysbinary.readouterr().out.decode()
    assert (text[: text.index(stop) + len(stop)] + rest).startswith(text)
    prompts, answers = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    prompts.write_text(json.dumps({"prompt": PROMPT}) + "\n" + json.dumps({"prompt": "The end"}) + "\n")
    words = ["--input", str(prompts), "--output", str(answers), "--stop", stop]
    assert main([*base, *words]) == 0
    first = json.loads(answers.read_text(encoding="utf-8").splitlines()[0])
    assert (first["text"], first["finish"]) == (text[: text.index(stop)], "stop")


def test_scores_of_text_are_those_of_its_tokens(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """`famjax score` reads "text" as the tokenizer's ids, beginning of text first; transformers gives them too."""
    import torch
    import transformers

    source, model_dir = folders
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    ids = tokenizer(PROMPT)["input_ids"]
    docs, scores = tmp_path / "docs.jsonl", tmp_path / "scores.jsonl"
    docs.write_text(json.dumps({"text": PROMPT}) + "\n" + json.dumps({"tokens": ids}) + "\n")
    words = ["--model", str(model_dir), "--input", str(docs), "--output", str(scores), "--fam-length", "0"]
    assert main(["score", *words]) == 0
    of_text, of_tokens = (json.loads(line) for line in scores.read_text().splitlines())
    assert of_text == of_tokens
    model = transformers.AutoModelForCausalLM.from_pretrained(source)
    with torch.no_grad():
        logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    theirs = [float(logprobs[i, token]) for i, token in enumerate(ids[1:])]
    np.testing.assert_allclose(of_text["logprobs"], theirs, rtol=1e-4, atol=1e-4)


def test_prompt_of_fam_is_the_text_it_was_given(folders: tuple[Path, Path]) -> None:
    """--fam-text: the first prompt is the embeddings of its tokens."""
    from famjax.infer.codec import Codec
    from famjax.infer.load import load

    _, model_dir = folders
    ids = Codec(model_dir, 400).encode("the lazy fox", fresh=False)
    model = load(model_dir)
    np.testing.assert_array_equal(model.fam.prompt[...], np.asarray(model.embedding[...])[np.resize(ids, 4)])


def test_pairs_of_words_are_trained_and_evaluated(
    folders: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """`mqar` of a model with a tokenizer is in words of it: the training keeps the tokenizer, and the evaluation asks
    for words. Too few words are refused before anything is written."""
    _, model_dir = folders
    small = ["MqarConfig.keys=3", "MqarConfig.values=3", "MqarConfig.fillers=3", "MqarConfig.pairs=(1, 2)"]
    settings = [
        f"INITIAL_CHECKPOINT_PATH='{model_dir}'", "MIXTURE_OR_TASK_NAME='mqar'", "BLOCK_SIZE=16", "TRAIN_STEPS=1",
        "BATCH_SIZE=2", "TASK_FEATURE_LENGTHS={'targets': 64}", "LORA_RANK=2", *small,
    ]  # fmt: skip
    train = lambda place, *more: main([
        "train", "--gin_file", "gin/runs/finetune_imported.gin",
        *(f"--gin.{one}" for one in [f"MODEL_DIR='{tmp_path / place}'", *settings, *more]),
    ])  # fmt: skip
    assert train("many", "MqarConfig.keys=300") == 2
    assert "needs 899 words of one token, a third for each kind, but" in capfd.readouterr().err
    assert not (tmp_path / "many").exists()
    assert train("runs") == 0
    assert (tmp_path / "runs/tokenizer.json").read_bytes() == (model_dir / "tokenizer.json").read_bytes()
    words = ["--task", "mqar", "--lengths", "32,40", "--examples", "2", "--output", str(tmp_path / "out")]
    assert main(["eval", "--model", str(tmp_path / "runs"), *words, *(f"--gin.{one}" for one in small)]) == 0
    (found,) = json.loads((tmp_path / "out/results.json").read_text())["models"]
    assert [row["n"] for row in found["tasks"]["mqar"]["by_length"]] == [4, 4]
