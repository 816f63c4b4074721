"""Other people's clients: the `openai` package, and lm-evaluation-harness over HTTP."""

from pathlib import Path

import pytest

from tests.evals.harness.test_model import folders as folders  # a fixture
from tests.evals.harness.test_model import tasks
from tests.serve.running import complete, model_folder, serve

PROMPT = "Grüße, 世界! What now?"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("serve")
    with serve(model_folder(folder / "model"), sessions=folder / "sessions", max_rows=4) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    import openai

    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=300) as client:
        yield client


def test_openai_completions(server, client) -> None:
    """Text, n, seed, stop, echo and log probabilities, whole and as a stream, as the client's own types."""
    wanted = complete(server, PROMPT, max_tokens=8, temperature=0).json["choices"][0]["text"]
    assert [model.id for model in client.models.list()] == ["tiny"]
    one = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=8, temperature=0, logprobs=2, echo=True)
    assert one.choices[0].text == PROMPT + wanted and one.usage.completion_tokens == 8
    scores = one.choices[0].logprobs
    assert len(scores.tokens) == len(scores.token_logprobs) == len(scores.top_logprobs) == len(PROMPT.encode()) + 8
    assert scores.token_logprobs[0] is None and scores.text_offset[0] == 0
    several = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=8, n=3, seed=7, temperature=1.2)
    again = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=8, n=3, seed=7, temperature=1.2)
    assert [c.text for c in several.choices] == [c.text for c in again.choices]
    assert len({c.text for c in several.choices}) > 1
    stream = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=8, temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == wanted
    stop = wanted[1:3]
    stopped = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=8, temperature=0, stop=[stop])
    assert stopped.choices[0].text == wanted[: wanted.index(stop)] and stopped.choices[0].finish_reason == "stop"


def test_openai_chat(client) -> None:
    """A message, its stream with usage, log probabilities, and a session as an extra field."""
    ask = lambda **more: client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "Hi"}], max_tokens=6, temperature=0, **more
    )
    whole = ask(logprobs=True, top_logprobs=2)
    text = whole.choices[0].message.content
    assert whole.choices[0].message.role == "assistant" and len(whole.choices[0].logprobs.content) == 6
    assert [len(place.top_logprobs) for place in whole.choices[0].logprobs.content] == [2] * 6
    chunks = list(ask(stream=True, stream_options={"include_usage": True}))
    assert "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices) == text
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[-1].usage.completion_tokens == 6
    first, second = (ask(extra_body={"session": "me"}).choices[0].message.content for _ in range(2))
    assert first == text != second or second
    assert ask(extra_headers={"X-Session": "new"}).choices[0].message.content == text
    assert ask(user="somebody", metadata={"a": "b"}, parallel_tool_calls=True).choices[0].message.content == text
    said = whole.choices[0].message.model_dump()  # as a client sends it back, with all its empty fields
    more = [{"role": "user", "content": "Hi"}, said, {"role": "user", "content": "Go on"}]
    assert (
        client.chat.completions.create(model="tiny", messages=more, max_tokens=1).choices[0].message.content is not None
    )


def test_openai_errors(client) -> None:
    """The client raises its own error classes, with the message."""
    import openai

    with pytest.raises(openai.NotFoundError, match="no model 'other'"):
        client.completions.create(model="other", prompt="x")
    with pytest.raises(openai.BadRequestError, match="'logit_bias' is not supported") as refused:
        client.completions.create(model="tiny", prompt="x", logit_bias={"5": 1})
    assert refused.value.param == "logit_bias"


TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] | trim }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.mark.slow
def test_the_harness_gets_the_numbers_of_famjax_eval(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """lm-eval's `local-completions` and `local-chat-completions` against the server: accuracies and answers, word by
    word, are those of its `famjax` model class on the same local tasks. (Random weights make
    half a character at an answer's end, and special tokens inside of it. The server treats them as `famjax generate`
    does: it leaves out the former and shows the latter, which the class does the other way around.)"""
    import lm_eval
    from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI
    from lm_eval.tasks import TaskManager

    from famjax.evals.harness.model import FamjaxLM

    theirs, model_dir = folders
    (model_dir / "chat_template.jinja").write_text(TEMPLATE)
    some, manager = tasks(tmp_path), TaskManager(include_defaults=False)
    choice, answer = some[0], some[2]
    evaluate = lambda model, tasks, chat=False: lm_eval.simple_evaluate(
        model, tasks=tasks, bootstrap_iters=0, task_manager=manager, apply_chat_template=chat
    )
    ours = FamjaxLM(str(model_dir), batch_size=3)
    wanted = evaluate(ours, [choice, answer])
    wanted_chat = evaluate(ours, [answer], True)
    with serve(model_dir, name="m") as server:
        shared = {"model": "m", "num_concurrent": 3, "max_retries": 1}
        over_http = LocalCompletionsAPI(
            base_url=f"{server.url}/v1/completions", tokenizer=str(theirs), add_bos_token=True,
            tokenizer_backend="huggingface", **shared,
        )  # fmt: skip
        found = evaluate(over_http, [choice, answer])
        over_chat = LocalChatCompletion(base_url=f"{server.url}/v1/chat/completions", **shared)
        found_chat = evaluate(over_chat, [answer], True)
    said = lambda results: [
        sample["resps"][0][0].replace("<s>", "").rstrip("\ufffd")
        for sample in sorted(results["samples"]["answer"], key=lambda sample: sample["doc_id"])
    ]
    assert len(set(map(len, said(wanted)))) > 1
    assert said(found) == said(wanted) and said(found_chat) == said(wanted_chat)
    for name in ("choice", "answer"):
        numbers = {metric: value for metric, value in wanted["results"][name].items() if isinstance(value, float)}
        assert {metric: found["results"][name][metric] for metric in numbers} == numbers
