"""The model card of an exported ensemble: a README.md that the Hugging Face Hub reads.

Format: YAML front matter between `---` lines, then Markdown (https://huggingface.co/docs/hub/model-cards).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType

import yaml

from lorchestra.config.run import RegularizeConfig, RunConfig
from lorchestra.errors import visible
from lorchestra.metrics.calibrator import Calibration
from lorchestra.metrics.result import Evaluation, MethodScores
from lorchestra.metrics.table import IN_TABLES
from lorchestra.questions import Question
from lorchestra.report.card_program import base_reference, is_known_elsewhere, program
from lorchestra.report.typed_prompts import prompt_text
from lorchestra.store.calibration_record import ONLY_QUESTION
from lorchestra.store.distill_record import DistillRecord
from lorchestra.types import Json

QUESTIONS_FILE = "questions.json"
"""The name of an export's file with typed questions."""
_ROWS = {"bootstrap": "draw of the rows, with replacement", "folds": "part of the rows left out"}
"""What differs between members by `adapt.order`; otherwise the order of the rows."""
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
    calibrations: Mapping[str, Calibration] = MappingProxyType({}),
    questions: Sequence[Question] = (),
    distillation: DistillRecord | None = None,
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
        calibrations: of the mixture, by question as in `calibration.json`; empty if the run has none.
        questions: the run's typed questions.
        distillation: which ensemble taught the only member; None if none did.
    """
    if base_name is not None:
        record = {**record, "base": {**record["base"], "id": base_name, "revision": None, "named": True}}
    lines = [*_training(record, config, splits, questions)]
    if distillation is not None:
        lines.insert(1, f"Distilled: {distillation.sentence()}; the head that predicts it is not among these files.")
    parts = [
        _front_matter(record),
        f"# {record['task']}: an ensemble of {len(members)} LoRA adapters\n",
        _introduction(record, members, merged),
        *(["## Questions\n\n" + "\n".join(_question(record, one) for one in questions)] if questions else []),
        "## Training\n\n" + "\n".join(f"- {line}" for line in lines) + "\n",
        "## Evaluation\n\n" + _evaluation(metrics, questions),
        "## Calibration\n\n" + _calibration(calibrations, questions),
        "## Use\n\n" + _use(record, members, calibrations, questions),
    ]
    return visible("\n".join(parts))


def _front_matter(record: Json) -> str:
    fields = {
        "base_model": base_reference(record),
        "library_name": "peft",
        "pipeline_tag": "text-classification" if record["labels"] else "question-answering",
        "tags": ["lora", "ensemble", "uncertainty", "calibration", "lorchestra"],
    }
    note = "" if is_known_elsewhere(record) else "# base_model: a local model was used; write its hub id here\n"
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


def _question(record: Json, question: Question) -> str:
    """A typed question: its options and its prompt."""
    options = "\n".join(
        f"- `{option}`" + ("" if text is None else f": {_in_line(text)}")
        for option, text in zip(question.options, question.descriptions, strict=True)
    )
    levels = ", from the lowest level" if question.type == "score" else ""
    return (
        f"`{_in_line(question.name)}`, a {question.type}{levels}. {_in_line(question.instructions)}\n\n{options}\n\n"
        f"Prompt:\n\n{_indented(prompt_text(record, question))}\n"
    )


def _in_line(text: str) -> str:
    return " ".join(text.split())


def _training(record: Json, config: RunConfig, splits: Json, questions: Sequence[Question]) -> Iterator[str]:
    sizes = ", ".join(f"{split} {values['num_examples']:,}" for split, values in splits.items())
    kind = "texts with labels: " + ", ".join(record["labels"]) if record["labels"] else "questions with choices"
    if questions:
        kind = "one row per state and typed question"
    yield f"Task `{record['task']}`, {kind}. Rows: {sizes}."
    for split, values in splits.items():
        yield f"SHA-256 of the {split} rows: `{values['digest'][:16]}`."
    if quantization := record["base"].get("quantization"):
        yield f"The base's linear maps were quantized ({quantization}): the adapters fit these weights best."
    adapt, train, regularize = config.adapt, config.train, config.regularize
    maps = ", ".join(f"`{name}`" for name in adapt.target_modules)
    if all(member["state"] == "imported" for member in record["members"]):
        yield f"The adapters (rank up to {adapt.r} on {maps}) were trained elsewhere and imported."
    else:
        rows = _ROWS.get(adapt.order, "order of the rows")
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
    if questions:
        yield f"Answers are scored by {record['scoring']}, with the prompts above."
        return
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


def _evaluation(metrics: Json | None, questions: Sequence[Question]) -> str:
    if not metrics or not metrics.get("evaluations"):
        return "Not evaluated yet; `lorchestra evaluate` evaluates it.\n"
    titles = ["Rows", "Method", *(metric.heading for metric in IN_TABLES)]
    lines = [_row(titles), _row("---" for _ in titles)]
    for entry in map(Evaluation.from_dict, metrics["evaluations"]):
        lines += _evaluation_rows(f"{entry.task} {entry.split}", entry)
        for name, question in (entry.questions or {}).items():
            lines += _evaluation_rows(f"{entry.split}, `{name}`", question.evaluation)
    legend = (
        "Automated: largest share of rows, most confident first, with at most that error; ECE over 15 bins; NLL in"
        " nats."
    )
    if questions:
        legend += " With the name of a question: the rows that ask it."
    return "\n".join(lines) + f"\n\n{legend}\n"


def _evaluation_rows(rows: str, entry: Evaluation) -> Iterator[str]:
    """A line per method of an evaluation."""
    methods: dict[str, MethodScores | None] = {
        "ensemble": entry.ensemble,
        "ensemble, raw": entry.ensemble_raw,
        "one LoRA, mean of members": entry.member_mean,
        "one LoRA, mean of members, with temperatures": entry.member_mean_scaled,
    }
    for name, scores in methods.items():
        if scores is not None and scores.metrics:
            numbers = (scores.number(metric) for metric in IN_TABLES)
            yield _row([f"{rows} ({entry.num_examples:,})", name, *numbers])


def _calibration(calibrations: Mapping[str, Calibration], questions: Sequence[Question]) -> str:
    if not calibrations:
        return "The probabilities are the mean of the members' as it is: nothing was fitted to calibrate them.\n"
    sentences = {name: one.sentence() for name, one in calibrations.items()}
    text = sentences.get(ONLY_QUESTION) or "\n".join(f"- `{name}`: {text}" for name, text in sentences.items())
    if any(not calibration.is_identity for calibration in calibrations.values()):
        used = "It is applied to the mean of the members' probabilities; the program below does so."
        if questions:
            used = "They are applied to the mean of the members' probabilities; the program below applies the first."
        text += f"\n\n{used}" if questions else f" {used}"
    return f"{text}\n"


def _use(
    record: Json, members: Sequence[str], calibrations: Mapping[str, Calibration], questions: Sequence[Question]
) -> str:
    first = questions[0] if questions else None
    code = program(record, members, calibrations.get(ONLY_QUESTION if first is None else first.name), first)
    rows = f"--data.questions {QUESTIONS_FILE} --data.train" if questions else "--task"
    return (
        f"With PEFT alone, in this directory:\n\n```python\n{code}```\n\n"
        "The mean is over probabilities, not over logits: the softmax of mean logits is a different, sharper estimate."
        " With lorchestra (`pip install lorchestra`), which runs all members in one pass and returns uncertainties:"
        f" `lorchestra import member_* {rows} ROWS.csv --out RUN`, then `lorchestra predict`.\n"
    )


def _indented(text: str) -> str:
    return "\n".join(f"      {line}" for line in text.splitlines())


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
