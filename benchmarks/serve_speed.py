"""`lorchestra serve` with five members against one LoRA: PEFT question by question, and vLLM's CPU build.

Six questions about one state of 300 tokens; the ways take turns, each round with a state that no way has seen, and once
more with the same state. vLLM runs in a separate environment (see vllm_members.py); its /v1/systemone (0.32) is not for
Llama's architecture, so it gets the six prompts in one request to /v1/completions. Also: many clients against one,
what one more question about a cached state costs, and 255 options against 26.

    python benchmarks/serve_speed.py [--vllm-python DIR/bin/python] [--rounds 7]
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from bench.setting import hardware, log, processor
from peft import PeftModel

from lorchestra.config.adapt import AdaptConfig, BaseConfig
from lorchestra.config.data import DataConfig, ReadConfig
from lorchestra.config.run import EvaluateConfig, RunConfig, TrainConfig
from lorchestra.data.prompts import PromptTemplate
from lorchestra.models.loading import load_base
from lorchestra.questions import Question
from lorchestra.runs.train import train_run
from lorchestra.store.atomic import atomic_write_text
from lorchestra.types import Example

RESULTS = Path(__file__).parent / "results"
STATE_TOKENS, RANK = 300, 8
WORDS = (
    *("invoice", "refund", "order", "charge", "customer", "account", "delay", "shipping", "broken", "screen"),
    *("update", "password", "login", "error", "payment", "card", "bank", "email", "week", "today"),
    *("please", "help", "support", "ticket", "product", "return", "address", "contract", "price", "upgrade"),
    *("outage", "meeting"),
)
QUESTIONS: dict[str, dict[str, Any]] = {
    "refund": {"type": "noul", "instructions": "Is the customer asking for money back?"},
    "urgent": {"type": "noul", "instructions": "Does the customer need an answer today?"},
    "team": {
        "type": "choice",
        "instructions": "Which team should handle this ticket?",
        "criteria": {
            "Billing": "Payments, invoices, refunds",
            "Technical": "Bugs, outages, integrations",
            "Sales": "Pricing questions, upgrades, new contracts",
        },
    },
    "language": {
        "type": "choice",
        "instructions": "What language is it in?",
        "criteria": {"English": None, "Other": None},
    },
    "anger": {
        "type": "score",
        "instructions": "How frustrated is the customer?",
        "criteria": ["Calm", "Frustrated", "Very angry"],
    },
    "polite": {
        "type": "score",
        "instructions": "How polite is the message?",
        "criteria": ["Rude", "Neutral", "Polite"],
    },
}


def typed(name: str, given: dict[str, Any]) -> Question:
    """A question of /v1/systemone as ours, for PEFT's prompts."""
    if given["type"] == "noul":
        return Question(name, "predicate", given["instructions"])
    if given["type"] == "choice":
        return Question(
            name, "choice", given["instructions"], tuple(given["criteria"]), tuple(given["criteria"].values())
        )
    return Question(name, "score", given["instructions"], tuple(given["criteria"]))


class States:
    """Random states of a number of tokens, each once."""

    def __init__(self, tokenizer: Any, seed: int) -> None:
        self._tokenizer, self._draw = tokenizer, random.Random(seed)

    def next(self, tokens: int = STATE_TOKENS) -> str:
        """A new state."""
        ids = self._tokenizer(" ".join(self._draw.choices(WORDS, k=tokens)), add_special_tokens=False)["input_ids"]
        return str(self._tokenizer.decode(ids[:tokens]))


def make_run(folder: Path, layers: str, base: str) -> Path:
    """A run of five members, trained for a step: their values do not change the time."""
    rows, questions = folder / "rows.jsonl", folder / "questions.json"
    draw = random.Random(0)
    names = {name: typed(name, given) for name, given in QUESTIONS.items()}
    questions.write_text(json.dumps({name: question.to_dict() for name, question in names.items()}), encoding="utf-8")
    with rows.open("w", encoding="utf-8") as file:
        for _ in range(12):
            answers = {name: draw.randrange(2) == 1 for name in ("refund", "urgent")}
            answers |= {"team": draw.choice(["Billing", "Sales"]), "anger": draw.choice(["Calm", "Very angry"])}
            file.write(json.dumps({"state": " ".join(draw.choices(WORDS, k=20)), "answers": answers}) + "\n")
    config = RunConfig(
        base=BaseConfig(name=base, dtype="float32"),
        adapt=AdaptConfig(members=5, r=RANK, layers=layers, target_modules=("q_proj", "v_proj")),
        data=DataConfig(train=str(rows), read=ReadConfig(questions=str(questions))),
        train=TrainConfig(epochs=1, lr=1e-3, batch_size=8),
        evaluate=EvaluateConfig(few_shot=0, mc_dropout=False),
    )
    return train_run(config, folder / layers.replace(":", "_")).run.root


@contextmanager
def server(command: Sequence[str], ready: str, **environment: str) -> Iterator[str]:
    """Start a server on a free port; yields its address once `ready` answers."""
    port = free_port()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [*command, "--port", str(port)], env=os.environ | environment, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            address = f"http://127.0.0.1:{port}"
            for _ in range(1200):
                if process.poll() is not None:
                    output.seek(0)
                    raise RuntimeError(output.read()[-3000:])
                try:
                    with urllib.request.urlopen(address + ready, timeout=5):
                        break
                except OSError:
                    time.sleep(0.5)
            yield address
        finally:
            process.terminate()
            process.wait(60)


def free_port() -> int:
    """A port that nobody listens on."""
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def ask(address: str, model: str, state: str, questions: dict[str, Any]) -> dict[str, Any]:
    """One request of /v1/systemone."""
    body = json.dumps({"model": model, "state": state, "questions": questions}).encode()
    request = urllib.request.Request(f"{address}/v1/systemone", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as response:
        return dict(json.load(response))


def prompts(state: str) -> list[str]:
    """The prompt of each question about a state."""
    template = PromptTemplate()
    rows = (Example("", state, q.options, None, "", q) for q in (typed(*item) for item in QUESTIONS.items()))
    return [template.render(row, scoring="tree").prompt for row in rows]


def complete(address: str, model: str, texts: Sequence[str]) -> dict[str, Any]:
    """One request of /v1/completions: the log-probabilities of each prompt's next token."""
    body = {"model": model, "prompt": list(texts), "max_tokens": 1, "temperature": 0, "logprobs": 5}
    request = urllib.request.Request(
        f"{address}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=300) as response:
        return dict(json.load(response))


class Peft:
    """One LoRA with PEFT, one question after the other, the output head at the last position alone."""

    def __init__(self, base: str, member: Path) -> None:
        loaded = load_base(BaseConfig(name=base))
        self._tokenizer = loaded.tokenizer
        self._model = PeftModel.from_pretrained(loaded.model, str(member)).eval()

    @torch.no_grad()
    def __call__(self, state: str) -> None:
        """Answer the questions: the logits of the next token."""
        for prompt in prompts(state):
            ids = torch.tensor([self._tokenizer(prompt)["input_ids"]])
            self._model(input_ids=ids, use_cache=False, logits_to_keep=1)


def alternate(ways: dict[str, Callable[[str], object]], states: States, rounds: int) -> dict[str, list[list[float]]]:
    """Seconds of each way on new states, and on the same states again."""
    seconds: dict[str, list[list[float]]] = {name: [[], []] for name in ways}
    for way in ways.values():
        way(states.next())
    for number in range(rounds):
        for name, way in ways.items():
            state = states.next()
            for again in (0, 1):
                started = time.perf_counter()
                way(state)
                seconds[name][again].append(time.perf_counter() - started)
        log(f"round {number + 1} of {rounds}")
    return seconds


def requests_per_s(call: Callable[[], object], clients: int, duration: float) -> float:
    """Requests per second of a number of clients that each send one after the other."""
    stop, lock, done = time.perf_counter() + duration, threading.Lock(), [0]

    def client(_: int) -> None:
        while time.perf_counter() < stop:
            call()
            with lock:
                done[0] += 1

    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(client, range(clients)))
    return done[0] / (time.perf_counter() - started)


def many_options(number: int) -> dict[str, Any]:
    """A choice with many options of two words."""
    draw = random.Random(number)
    names: dict[str, None] = {}
    while len(names) < number:
        names[" ".join(draw.sample(WORDS, 2))] = None
    return {"queue": {"type": "choice", "instructions": "Which queue?", "criteria": names}}


def median_of(call: Callable[[], object], rounds: int) -> float:
    """Median seconds of a call."""
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def further(address: str, model: str, states: States, rounds: int) -> list[str]:
    """Lines about clients, cached states and many options."""
    short = {"refund": QUESTIONS["refund"]}
    lines = []
    for tokens in (20, STATE_TOKENS):
        rates = [
            requests_per_s(lambda n=tokens: ask(address, model, states.next(n), short), clients, 15.0)
            for clients in (1, 32)
        ]
        lines.append(
            f"- One question, a new state of {tokens} tokens: {rates[0]:.1f} requests/s with one client,"
            f" {rates[1]:.1f} with 32: {rates[1] / rates[0]:.1f} times as many."
        )
    pairs = []
    for _ in range(rounds):
        state = states.next()
        ask(address, model, state, short)
        one = median_of(lambda s=state: ask(address, model, s, {"q": QUESTIONS["urgent"]}), 1)
        two = median_of(
            lambda s=state: ask(address, model, s, {"q": QUESTIONS["urgent"], "anger": QUESTIONS["anger"]}), 1
        )
        new = median_of(lambda: ask(address, model, states.next(), short), 1)
        pairs.append((one, two, new))
    one, two, new = (statistics.median(values) for values in zip(*pairs, strict=True))
    lines.append(
        f"- A question about a state of {STATE_TOKENS} tokens takes {1000 * new:.0f} ms, another one about it, cached,"
        f" {1000 * one:.0f} ms, two others {1000 * two:.0f} ms."
    )
    times = {}
    for number in (26, 255):
        question = many_options(number)
        times[number] = median_of(lambda q=question: ask(address, model, states.next(), q), rounds)
    lines.append(
        f"- A choice of 26 options of two words: {1000 * times[26]:.0f} ms, of 255: {1000 * times[255]:.0f} ms,"
        f" {times[255] / times[26]:.1f} times as long."
    )
    return lines


def report(seconds: dict[str, list[list[float]]], lines: Sequence[str], rounds: int) -> str:
    """The table."""
    table = ["| way | new state, ms (least to most) | the same state again, ms |", "|---|---|---|"]
    for name, (new, again) in seconds.items():
        figure = f"{1000 * statistics.median(new):.0f} ({1000 * min(new):.0f} to {1000 * max(new):.0f})"
        table.append(f"| {name} | {figure} | {1000 * statistics.median(again):.0f} |")
    return "\n".join(
        [
            f"# Serving six questions about one state: {processor()}",
            "",
            f"A state of {STATE_TOKENS} tokens, SmolLM2-135M in float32, rank {RANK} on q and v,"
            f" {torch.get_num_threads()} threads; medians of {rounds} rounds in which the ways take turns."
            f" {datetime.date.today().isoformat()}.",
            "",
            *table,
            "",
            *lines,
        ]
    )


def main(arguments: Sequence[str] | None = None) -> str:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--vllm-python", type=Path, help="Python of vLLM's environment; without it vLLM is left out")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(arguments)
    base = load_base(BaseConfig(name=args.base))
    states = States(base.tokenizer, 0)
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        every, third = (make_run(Path(temporary), layers, args.base) for layers in ("all", "last:10"))
        peft = Peft(args.base, every / "members" / "member_00")
        ways: dict[str, Callable[[str], object]] = {"PEFT, one LoRA, question by question": peft}
        for title, run in (("five members, all layers", every), ("five members, last third", third)):
            command = [sys.executable, "-m", "lorchestra", "serve", str(run)]
            address = stack.enter_context(server(command, "/health/ready"))
            ways[title] = lambda s, a=address, m=run.name: ask(a, m, s, QUESTIONS)
        if args.vllm_python is not None:
            vllm = stack.enter_context(
                server(
                    [
                        *(str(args.vllm_python.parent / "vllm"), "serve", base.path_for_peft, "--dtype", "float32"),
                        *("--enable-lora", "--max-lora-rank", str(RANK), "--max-model-len", "1024", "--enforce-eager"),
                        *("--lora-modules", f"m0={every / 'members' / 'member_00'}", "--host", "127.0.0.1"),
                    ],
                    "/health",
                    VLLM_CPU_KVCACHE_SPACE="1",
                    HF_HUB_OFFLINE="1",
                    VLLM_NO_USAGE_STATS="1",
                )
            )
            ways["vLLM's CPU build, one LoRA, six prompts in a request"] = lambda s: complete(vllm, "m0", prompts(s))
        seconds = alternate(ways, states, args.rounds)
        lines = further(address, third.name, states, args.rounds)
    text = report(seconds, lines, args.rounds)
    month = datetime.date.today().strftime("%Y-%m")
    atomic_write_text(args.out or RESULTS / f"serve_{hardware()}_{month}.md", text + "\n")
    print(text)
    return text


if __name__ == "__main__":
    main()
