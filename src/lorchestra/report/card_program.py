"""The program of a model card: it answers with PEFT alone as lorchestra does."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePath

from lorchestra.metrics.calibrator import Calibration
from lorchestra.questions import Question
from lorchestra.report.typed_prompts import prompt_of
from lorchestra.types import Json


def base_reference(record: Json) -> str:
    """The base's hub id; of a local base only the name, since its path is specific to this machine."""
    base = record["base"]
    return str(base["id"] if is_known_elsewhere(record) else PurePath(base["id"]).name)


def is_known_elsewhere(record: Json) -> bool:
    """Whether the base's name means the same on other machines."""
    return bool(record["base"]["revision"] or record["base"].get("named"))


def program(
    record: Json, members: Sequence[str], calibration: Calibration | None, question: Question | None = None
) -> str:
    """A program that answers one question; it scores choices as lorchestra does.

    Args:
        record: the run's `ensemble.json`.
        members: names of the adapters' folders.
        calibration: of the mixture of this question.
        question: a typed question of the run; None in a run without them.
    """
    lines = [
        *(["import numpy"] if calibration is not None and calibration.kind == "isotonic" else []),
        *_loading_lines(record, members),
        "",
        *(_untyped_lines(record) if question is None else _typed_lines(record, question)),
        "",
        "",
        "member_probs = torch.stack([probabilities(name) for name in MEMBERS])",
        "ensemble = member_probs.mean(0)",
        *_calibration_lines(calibration),
        "print(dict(zip(choices, ensemble.tolist())))",
    ]
    return "\n".join(lines) + "\n"


_QUANTIZATION: dict[str | None, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "nf4": (
        ("BitsAndBytesConfig",),
        (
            'NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}',
            "QUANTIZATION = BitsAndBytesConfig(**NF4, bnb_4bit_compute_dtype=torch.float32)",
        ),
    ),
    "int8": (("BitsAndBytesConfig",), ("QUANTIZATION = BitsAndBytesConfig(load_in_8bit=True)",)),
}
"""How transformers quantizes the base as it was in training: names to import, and lines."""


def _loading_lines(record: Json, members: Sequence[str]) -> list[str]:
    """The lines that load the base with its adapters."""
    revision = record["base"]["revision"]
    base = f"BASE = {base_reference(record)!r}" + (
        "" if is_known_elsewhere(record) else "  # the base: a directory or hub id"
    )
    pinned = f", revision={revision!r}" if revision else ""
    by_head = record["scoring"] == "head"
    model = "AutoModelForSequenceClassification" if by_head else "AutoModelForCausalLM"
    num_labels = f", num_labels={len(record['labels'])}" if by_head else ""
    imported, definition = _QUANTIZATION.get(record["base"].get("quantization"), ((), ()))
    quantized = ", quantization_config=QUANTIZATION, dtype=torch.float32" if definition else ""
    return [
        "import torch",
        "from peft import PeftModel",
        f"from transformers import {', '.join([model, 'AutoTokenizer', *imported])}",
        "",
        base,
        *definition,
        f"MEMBERS = {list(members)!r}",
        "",
        f"tokenizer = AutoTokenizer.from_pretrained(BASE{pinned})",
        f"model = {model}.from_pretrained(BASE{pinned}{num_labels}{quantized})",
        "model = PeftModel.from_pretrained(model, MEMBERS[0], adapter_name=MEMBERS[0]).eval()",
        "for name in MEMBERS[1:]:",
        "    model.load_adapter(name, adapter_name=name)",
    ]


def _untyped_lines(record: Json) -> list[str]:
    """The lines that define a member's probabilities for a text with labels, or a question with choices."""
    choices = list(record["labels"] or ["the first choice", "the second choice"])
    template = re.sub(r"\{\s*(\w+)\s*\}", r"{\1}", record["prompt_template"])
    letters = record["scoring"] == "letter"
    names = '"ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(choices)]' if letters else "map(str.strip, choices)"
    return [
        'question = "your text or question"',
        f"choices = {choices!r}",
        'options = "\\n".join(f"{letter}. {choice}" for letter, choice in zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", choices))',
        f'prompt = {template!r}.replace("{{options}}", options).replace("{{question}}", question)',
        *_asking_lines(record),
        *(_head_lines(record) if record["scoring"] == "head" else _answer_lines(record, names)),
    ]


def _typed_lines(record: Json, question: Question) -> list[str]:
    """The lines that define a member's probabilities for a typed question about a state."""
    prompt = prompt_of(record, question)
    return [
        f"# the question {question.name!r}",
        'state = "your text"',
        f"choices = {list(question.options)!r}",
        f"names = {list(prompt.names)!r}  # as they are scored",
        f"before, block = {prompt.before!r}, {''.join(prompt.block)!r}",
        f"tail, gap = {prompt.block[-1]!r}, {prompt.gap!r}",
        "answers = [gap + name for name in names]",
        *_TYPED_TOKENS,
        f"    excess, options = option_tokens({prompt.end!r})",
        "    if one_starts_another():",
        '        options = [ids + [tokenizer.eos_token_id] for ids in option_tokens("")[1]]',
        *_front_lines(record),
        "prompt = front + tokens(before + state.strip()) + question[: len(question) - excess]",
        "rows = [prompt, *(prompt + ids for ids in options)]",
        "start = len(prompt)",
        "",
        "",
        "@torch.no_grad()",
        "def probabilities(member):",
        "    model.set_adapter(member)",
        *_scoring_lines(record),
    ]


_TYPED_TOKENS = (
    "",
    "",
    "def tokens(text):",
    "    return tokenizer(text, add_special_tokens=False).input_ids",
    "",
    "",
    "def num_shared(one, other):",
    "    return next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))",
    "",
    "",
    "def option_tokens(end):",
    "    # what each option adds to the end of the question, after how many tokens of that are dropped",
    "    alone, *each = [tokens(text) for text in (tail, *(tail + answer + end for answer in answers))]",
    "    shared = min(num_shared(alone, ids) for ids in each)",
    "    return len(alone) - shared, [ids[shared:] for ids in each]",
    "",
    "",
    "def one_starts_another():",
    "    return any(a != b and b[: len(a)] == a for a in options for b in options)",
    "",
    "",
    "# state, question and options are tokenized separately, so that a state has the same tokens for every question",
    'question = tokens("." + block)',
    'question = question[num_shared(tokens("."), question) :]',
    'excess, options = option_tokens("")',
    "if one_starts_another():",
)
"""The lines that tokenize a typed question and its options, up to the end that separates options if they need it."""


def _front_lines(record: Json) -> list[str]:
    """The lines that define the special tokens in front of a prompt."""
    if record["chat_template"]:
        return ["front = []  # the chat template writes its special tokens"]
    return ['front = tokenizer("a").input_ids', 'front = front[: front.index(tokens("a")[0])]  # special tokens']


def _head_lines(record: Json) -> list[str]:
    """The lines that define a member's probabilities by its classification head."""
    return [
        "",
        "",
        "@torch.no_grad()",
        "def probabilities(member):",
        "    model.set_adapter(member)",
        f"    ids = tokenizer(prompt{_no_special(record)}).input_ids",
        "    return model(torch.tensor([ids])).logits[0].float().softmax(-1)",
    ]


def _answer_lines(record: Json, names: str) -> list[str]:
    """The lines that define a member's probabilities by the tokens of the answers."""
    return [
        f"answers = [gap + name for name in {names}]",
        "",
        "",
        "def tokens(end):",
        "    texts = [prompt, *(prompt + answer + end for answer in answers)]",
        f"    return [tokenizer(text{_no_special(record)}).input_ids for text in texts]",
        "",
        "",
        "@torch.no_grad()",
        "def probabilities(member):",
        "    model.set_adapter(member)",
        "    rows = tokens('')",
        *_end_lines(record),
        "    # tokens at the end of the prompt may merge with the answer: score those after the common prefix",
        "    start = next((i for i, ids in enumerate(zip(*rows)) if len(set(ids)) > 1), len(rows[0]))",
        *_scoring_lines(record),
    ]


def _scoring_lines(record: Json) -> list[str]:
    """The lines that score answers by the tokens of `rows` from `start` on; the first of `rows` is the prompt."""
    # letters are single tokens, which need no normalization
    normalize = "sum" if record["scoring"] == "letter" else record["normalize"]
    each = {"sum": "", "token": " / len(terms)", "byte": " / len(answer.encode())"}[normalize]
    return [
        "    scores = []",
        "    for answer, ids in zip(answers, rows[1:]):",
        *(_tree_lines() if record["scoring"] == "tree" else _term_lines(each)),
        "    return torch.stack(scores).softmax(-1)",
    ]


def _term_lines(each: str) -> list[str]:
    """The lines that score an answer by its tokens."""
    return [
        "        log_probs = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)",
        "        terms = [log_probs[i - 1, ids[i]] for i in range(start, len(ids))]",
        f"        scores.append(sum(terms){each})",
    ]


def _tree_lines() -> list[str]:
    """The lines that score an answer by its path in the tree of answers."""
    return [
        "        logits, score = model(torch.tensor([ids])).logits[0].float(), torch.tensor(0.0)",
        "        for i in range(start, len(ids)):",
        "            # each token is chosen among those with which an answer continues",
        "            children = sorted({other[i] for other in rows[1:] if other[:i] == ids[:i]})",
        "            score = score + logits[i - 1, children].log_softmax(-1)[children.index(ids[i])]",
        "        scores.append(score)",
    ]


def _end_lines(record: Json) -> list[str]:
    """The lines that append an end to the answers if one is a prefix of another."""
    if record["scoring"] == "letter" or record.get("choice_end", "never") == "never":
        return []
    end = record["chat_frame"]["alone"][2] if record["chat_frame"] else "\n"
    return [
        "    if any(a != b and b[: len(a)] == a for a in rows[1:] for b in rows[1:]):",
        f"        rows = tokens({end!r})  # one answer is a prefix of another: score them with an end",
    ]


def _asking_lines(record: Json) -> list[str]:
    """The lines from the question's block to the prompt, and the gap between prompt and answer."""
    if not record["chat_template"]:
        prefix = record.get("answer_prefix", " ")
        return [f'gap = "" if prompt.endswith((" ", "\\n", "(", "[", "{{")) else {prefix!r}']
    if record.get("chat_frame"):
        frame = record["chat_frame"]
        before, after, _ = frame["alone"]
        opening = after.rstrip(" ")
        trimmed = f".{frame['trim']}()" if frame["trim"] else ""
        return [
            "# the chat template's output when the members were trained",
            f"prompt = {before!r} + prompt{trimmed} + {opening!r}",
            f"gap = {after[len(opening) :]!r}",
        ]
    system = record["system_prompt"]
    messages = "" if system is None else f'{{"role": "system", "content": {system!r}}}, '
    return [
        f'messages = [{messages}{{"role": "user", "content": prompt}}]',
        "prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)",
        'gap = ""',
    ]


def _no_special(record: Json) -> str:
    # a chat template writes its special tokens
    return ", add_special_tokens=False" if record["chat_template"] else ""


def _calibration_lines(calibration: Calibration | None) -> list[str]:
    """The lines that calibrate the mean probabilities."""
    if calibration is None or calibration.is_identity:
        return []
    if calibration.temperature is not None:
        return [
            f"ensemble = (ensemble.log() / {calibration.temperature!r}).softmax(-1)  # calibration: one temperature"
        ]
    if calibration.kind == "vector":
        return [
            "# calibration: a scale and a bias per label",
            f"scale, bias = torch.tensor({list(calibration.scale)!r}), torch.tensor({list(calibration.bias)!r})",
            "ensemble = (ensemble.log() * scale + bias).softmax(-1)",
        ]
    return [
        "# calibration: the largest probability by isotonic regression, the others in proportion",
        f"knots, values = {list(calibration.confidences)!r}, {list(calibration.accuracies)!r}",
        "best, others = ensemble.argmax(), ensemble.clone()",
        "others[best] = 0",
        "others /= others.sum()",
        "top = float(numpy.interp(float(ensemble[best]), knots, values))",
        "top = max(top, float(others.max() / (1 + others.max())))  # not below the next one",
        "ensemble = others * (1 - top)",
        "ensemble[best] = top",
    ]
