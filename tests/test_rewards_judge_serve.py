"""The judge against `transformers serve` with tiny models: one random, one that has learned to grade two answers."""

import asyncio
import os
import socket
import subprocess
import sys
import time

import pytest
import torch

from rewards.judge import make_judge
from rewards.judge.prompt import JudgePrompt
from tests.tiny import tiny_model, tiny_tokenizer

pytest.importorskip("fastapi", reason="needs transformers[serving]")
pytest.importorskip("openai", reason="needs transformers[serving]")
pytestmark = pytest.mark.slow

TEMPLATE = "$question $reference $response"
LEARNED = {"It is 2.": "Right.\nScore: 9", "It is 3.": "Wrong.\nScore: 2"}


def teach(model, tokenizer):
    """Overfit the model to two gradings; the prompts are those that the judge will send."""
    prompt = JudgePrompt(TEMPLATE, "$question $response", 0, 10)
    batch = []
    for response, reply in LEARNED.items():
        messages = [{"role": "user", "content": prompt.render("1 + 1?", response, "2", None)}]
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        head, tail = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (text, reply + "<|im_end|>"))
        batch.append((torch.tensor([head + tail]), torch.tensor([[-100] * len(head) + tail])))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(200):
        losses = [model(input_ids=ids, labels=labels).loss for ids, labels in batch]
        if max(losses) < 0.05:  # greedy decoding repeats what is this likely
            return
        sum(losses).backward()
        optimizer.step()
        optimizer.zero_grad()
    raise AssertionError(f"the model has not learned: {losses}")


def serve(folder):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder), "--device", "cpu"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    log = open(folder / "log", "w")  # noqa: SIM115  the server's own until it ends
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port)], env=environment, stdout=log, stderr=log
    )
    deadline = time.monotonic() + 180
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return process, f"http://127.0.0.1:{port}/v1"
        except OSError:
            assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.2)


@pytest.fixture(params=["random", "learned"])
def served(request, tmp_path):
    """Kind of the model, the server's address, the model's name there."""
    folder = tmp_path / request.param
    model, tokenizer = tiny_model("qwen3"), tiny_tokenizer()
    if request.param == "learned":
        teach(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    process, url = serve(folder)
    yield request.param, url, str(folder)
    process.terminate()
    process.wait(60)


def test_a_real_model_server(served, tmp_path):
    kind, url, name = served
    seen = {}
    judge = make_judge(
        url=url, model=name, template=TEMPLATE, template_without_reference="$question $response", max_tokens=24,
        request_timeout_s=120.0, batch_timeout_s=300.0, cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    responses = [*LEARNED] * 3
    columns = {"answer": ["2"] * 6, "log_metric": seen.__setitem__, "log_extra": seen.__setitem__}
    scores = asyncio.run(judge(["1 + 1?"] * 6, responses, **columns))
    unscored = sum(seen[f"verdicts/judge/{reason}"] for reason in ("no_score", "cut_off"))
    if kind == "random":
        assert scores == [None] * 6 and unscored == 1.0
        assert all(seen["judge_reply"])  # the model did say something
        return
    assert scores == [0.9, 0.2] * 3 and unscored == 0.0
    assert seen["judge_reply"][:2] == [*LEARNED.values()]
    assert asyncio.run(judge(["1 + 1?"] * 6, responses, **columns)) == scores and seen["verdicts/judge/cached"] == 1.0
    other = make_judge(url=url, model="another", cache_dir="", max_retries=0)
    assert asyncio.run(other(["q"], ["r"], **columns)) == [None] and seen["verdicts/judge/http_error"] == 1.0
