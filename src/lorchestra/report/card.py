"""The model card of an exported ensemble: a README.md that the Hugging Face Hub reads.

Format: YAML front matter between `---` lines, then Markdown (https://huggingface.co/docs/hub/model-cards).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePath

import yaml

from lorchestra.config.run import RegularizeConfig, RunConfig
from lorchestra.errors import visible
from lorchestra.metrics.calibrator import Calibration
from lorchestra.metrics.result import Evaluation
from lorchestra.metrics.table import IN_TABLES
from lorchestra.types import Json

_LICENSE_NOTE = "# license: yours to choose; write it here. The base's license may restrict the choice\n"


def model_card(
    record: Json,
    config: RunConfig,
    splits: Json,
    metrics: Json | None,
    members: Sequence[str],
    *,
    merged: bool,
    base_name: str | None = None,
    calibration: Calibration | None = None,
) -> str:
    """The card's text.

    Args:
        record: the run's `ensemble.json`.
        config: its configuration.
        splits: its `splits.json`.
        metrics: its `metrics.json`; None if it was never evaluated.
        members: names of the exported adapters' folders.
        merged: whether merged models are exported, too.
        base_name: a name of the base that others know (a hub id), if it differs from the recorded one.
        calibration: of the mixture; None if the run has none.
    """
    if base_name is not None:
        record = {**record, "base": {**record["base"], "id": base_name, "revision": None, "named": True}}
    parts = [
        _front_matter(record),
        f"# {record['task']}: an ensemble of {len(members)} LoRA adapters\n",
        _introduction(record, members, merged),
        "## Training\n\n" + "\n".join(f"- {line}" for line in _training(record, config, splits)) + "\n",
        "## Evaluation\n\n" + _evaluation(metrics),
        "## Calibration\n\n" + _calibration(calibration),
        "## Use\n\n" + _use(record, members, calibration),
    ]
    return visible("\n".join(parts))


def base_reference(record: Json) -> str:
    """The base's hub id; of a local base only the name, since its path is specific to this machine."""
    base = record["base"]
    return str(base["id"] if _is_known_elsewhere(record) else PurePath(base["id"]).name)


def _is_known_elsewhere(record: Json) -> bool:
    return bool(record["base"]["revision"] or record["base"].get("named"))


def _front_matter(record: Json) -> str:
    fields = {
        "base_model": base_reference(record),
        "library_name": "peft",
        "pipeline_tag": "text-classification" if record["labels"] else "question-answering",
        "tags": ["lora", "ensemble", "uncertainty", "calibration", "lorchestra"],
    }
    note = "" if _is_known_elsewhere(record) else "# base_model: a local model was used; write its hub id here\n"
    return f"---\n{note}{_LICENSE_NOTE}{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---\n"


def _introduction(record: Json, members: Sequence[str], merged: bool) -> str:
    folders = ", ".join(f"`{name}`" for name in members)
    text = (
        f"LoRA adapters for `{base_reference(record)}`, one folder each: {folders}. Their *probabilities* are averaged,"
        " and where they disagree the ensemble is uncertain.\n"
    )
    if merged:
        text += "\n`merged_*` are the same members as full models, with the adapter merged into the base's weights.\n"
    return text


def _training(record: Json, config: RunConfig, splits: Json) -> Iterator[str]:
    sizes = ", ".join(f"{split} {values['num_examples']:,}" for split, values in splits.items())
    kind = "texts with labels: " + ", ".join(record["labels"]) if record["labels"] else "questions with choices"
    yield f"Task `{record['task']}`, {kind}. Rows: {sizes}."
    for split, values in splits.items():
        yield f"SHA-256 of the {split} rows: `{values['digest'][:16]}`."
    adapt, train, regularize = config.adapt, config.train, config.regularize
    maps = ", ".join(f"`{name}`" for name in adapt.target_modules)
    if all(member["state"] == "imported" for member in record["members"]):
        yield f"The adapters (rank up to {adapt.r} on {maps}) were trained elsewhere and imported."
    else:
        rows = "draw of the rows, with replacement" if adapt.order == "bootstrap" else "order of the rows"
        shared = {"initialization": adapt.shares_init, rows: adapt.order == "same"}
        specific = [name for name, is_shared in shared.items() if not is_shared]
        if specific and len(record["members"]) > 1:
            yield f"Each member has a different {' and a different '.join(specific)}; everything else is the same."
        scale = f"alpha {adapt.lora_alpha:g}, dropout {adapt.dropout:g}"
        yield f"LoRA of rank {adapt.r}, {scale} on {maps}, layers: {adapt.layers}."
        if adapt.stored_r != adapt.r:
            yield (
                "A and B started at the principal components of the base's weights (PiSSA); the saved adapters have"
                f" rank {adapt.stored_r}, the second half of which subtracts this initialization."
            )
        yield (
            f"Epochs: {train.epochs}, in batches of {train.batch_size}; AdamW, peak learning rate {train.lr:g}"
            f" ({train.schedule}), weight decay on B {regularize.weight_decay_b:g}, KL to the base"
            f" {regularize.kl_beta:g}{_other_terms(regularize)}, run seed {train.seed}, each member's {train.keep}"
            " copy."
        )
    yield f"Answers are scored by {record['scoring']}, with this prompt:\n\n{_indented(record['prompt_template'])}"


def _other_terms(regularize: RegularizeConfig) -> str:
    """The regularizers that are not the paper's, if they are on."""
    over = " over the vocabulary" if regularize.kl_beta > 0 and regularize.kl_over == "vocabulary" else ""
    strengths = {
        "weight decay on A": regularize.weight_decay_a,
        "decay of the product B A": regularize.weight_decay_ba,
        "label smoothing": regularize.label_smoothing,
    }
    return over + "".join(f", {name} {value:g}" for name, value in strengths.items() if value)


def _evaluation(metrics: Json | None) -> str:
    if not metrics or not metrics.get("evaluations"):
        return "Not evaluated yet; `lorchestra evaluate` evaluates it.\n"
    titles = ["Rows", "Method", *(metric.heading for metric in IN_TABLES)]
    lines = [_row(titles), _row("---" for _ in titles)]
    for entry in map(Evaluation.from_dict, metrics["evaluations"]):
        rows = f"{entry.task} {entry.split} ({entry.num_examples:,})"
        for name, scores in (
            ("ensemble", entry.ensemble),
            ("ensemble, raw", entry.ensemble_raw),
            ("one LoRA, mean of members", entry.member_mean),
            ("one LoRA, mean of members, with temperatures", entry.member_mean_scaled),
        ):
            if scores is None or not scores.metrics:
                continue
            numbers = (scores.number(metric) for metric in IN_TABLES)
            lines.append(_row([rows, name, *numbers]))
    legend = (
        "Automated: largest share of rows, most confident first, with at most that error; ECE over 15 bins; NLL in"
        " nats."
    )
    return "\n".join(lines) + f"\n\n{legend}\n"


def _calibration(calibration: Calibration | None) -> str:
    if calibration is None:
        return "The probabilities are the mean of the members' as it is: nothing was fitted to calibrate them.\n"
    text = f"{calibration.sentence()}"
    if not calibration.is_identity:
        text += " It is applied to the mean of the members' probabilities; the program below does so."
    return f"{text}\n"


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


def _use(record: Json, members: Sequence[str], calibration: Calibration | None) -> str:
    return (
        f"With PEFT alone, in this directory:\n\n```python\n{_code(record, members, calibration)}```\n\n"
        "The mean is over probabilities, not over logits: the softmax of mean logits is a different, sharper estimate."
        " With lorchestra (`pip install lorchestra`), which runs all members in one pass and returns uncertainties:"
        " `lorchestra import member_* --task ROWS.csv --out RUN`, then `lorchestra predict`.\n"
    )


def _code(record: Json, members: Sequence[str], calibration: Calibration | None) -> str:
    """A program that answers one question; it scores choices as lorchestra does."""
    revision = record["base"]["revision"]
    base = f"BASE = {base_reference(record)!r}" + (
        "" if _is_known_elsewhere(record) else "  # the base: a directory or hub id"
    )
    pinned = f", revision={revision!r}" if revision else ""
    choices = list(record["labels"] or ["the first choice", "the second choice"])
    template = re.sub(r"\{\s*(\w+)\s*\}", r"{\1}", record["prompt_template"])
    letters = record["scoring"] == "letter"
    names = '"ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(choices)]' if letters else "map(str.strip, choices)"
    each = {"sum": "", "token": " / len(terms)", "byte": " / len(answer.encode())"}[record["normalize"]]
    by_head = record["scoring"] == "head"
    model = "AutoModelForSequenceClassification" if by_head else "AutoModelForCausalLM"
    lines = [
        *(["import numpy"] if calibration is not None and calibration.kind == "isotonic" else []),
        "import torch",
        "from peft import PeftModel",
        f"from transformers import {model}, AutoTokenizer",
        "",
        base,
        f"MEMBERS = {list(members)!r}",
        "",
        f"tokenizer = AutoTokenizer.from_pretrained(BASE{pinned})",
        f"model = {model}.from_pretrained(BASE{pinned}{f', num_labels={len(choices)}' if by_head else ''})",
        "model = PeftModel.from_pretrained(model, MEMBERS[0], adapter_name=MEMBERS[0]).eval()",
        "for name in MEMBERS[1:]:",
        "    model.load_adapter(name, adapter_name=name)",
        "",
        'question = "your text or question"',
        f"choices = {choices!r}",
        'options = "\\n".join(f"{letter}. {choice}" for letter, choice in zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", choices))',
        f'prompt = {template!r}.replace("{{options}}", options).replace("{{question}}", question)',
        *_asking_lines(record),
        *(_head_lines(record) if by_head else _answer_lines(record, names, each)),
        "",
        "",
        "member_probs = torch.stack([probabilities(name) for name in MEMBERS])",
        "ensemble = member_probs.mean(0)",
        *_calibration_lines(calibration),
        "print(dict(zip(choices, ensemble.tolist())))",
    ]
    return "\n".join(lines) + "\n"


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


def _answer_lines(record: Json, names: str, each: str) -> list[str]:
    """The lines that define a member's probabilities by the tokens of the answers."""
    letters = record["scoring"] == "letter"
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
        "    scores = []",
        "    for answer, ids in zip(answers, rows[1:]):",
        *(_tree_lines() if record["scoring"] == "tree" else _term_lines("" if letters else each)),
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


def _indented(text: str) -> str:
    return "\n".join(f"      {line}" for line in text.splitlines())


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
