from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorchestra.data.encode import EncodedSplit, can_use_letters, class_weights, encode
from lorchestra.data.prompts import PromptTemplate, ScoringMode
from lorchestra.data.tokenizer import TextTokenizer
from lorchestra.errors import ConfigError, DataError
from lorchestra.types import EncodedExample, Example

SKY = Example("sky", "What is the color of the sky?", ("red", "blue", "green"), 1, "t.jsonl:1")
CAT = Example("cat", "Which animal says meow?", ("the dog", "the cat"), 1, "t.jsonl:2")
LONG = Example("long", "the sky is blue and the film was good " * 12, ("no", "yes the film"), 0, "t.jsonl:3")
TEMPLATE = PromptTemplate()


def joined(row: EncodedExample, choice: int) -> list[int]:
    return [*row.prefix, *row.choices[choice]]


def length(row: EncodedExample) -> int:
    return len(row.prefix) + max(map(len, row.choices))


def plain(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("scoring", ["letter", "text"])
@pytest.mark.parametrize("name", ["tokenizer", "bos_tokenizer", "eos_tokenizer", "merging_tokenizer"])
@pytest.mark.parametrize("end", ["Answer:", "Answer: ", "\n"])
def test_prefix_and_choice_are_the_tokens_of_the_whole_string(
    request: pytest.FixtureRequest, name: str, scoring: ScoringMode, end: str
) -> None:
    tokenizer = request.getfixturevalue(name)
    template = PromptTemplate("Question: {question}\n{options}\n" + end)
    split = encode([SKY, CAT], template, tokenizer, scoring=scoring)
    front = [] if name in ("tokenizer", "merging_tokenizer") else [tokenizer.bos_token_id]
    for example, row in zip([SKY, CAT], split.rows, strict=True):
        rendered = template.render(example, scoring=scoring)
        whole = [front + plain(tokenizer, rendered.prompt + text) for text in rendered.continuations]
        assert [joined(row, index) for index in range(len(whole))] == whole
        alone = front + plain(tokenizer, rendered.prompt)
        # The longest common prefix: one token more is no longer common.
        assert all(other[: len(row.prefix)] == list(row.prefix) for other in [alone, *whole])
        assert len({tuple(other[: len(row.prefix) + 1]) for other in [alone, *whole]}) > 1
        assert row.answer == example.answer
    assert [row.row for row in split.rows] == [0, 1]
    assert split.kept == (0, 1)


def test_a_prompt_ending_in_a_space_gives_the_same_tokens_as_one_without(tokenizer: Any) -> None:
    question = PromptTemplate("{question}\n{options}\nAnswer:")
    spaced = PromptTemplate("{question}\n{options}\nAnswer: ")
    assert encode([SKY], question, tokenizer, scoring="letter") == encode([SKY], spaced, tokenizer, scoring="letter")
    # The naive way, the prompt's tokens and then the letter's, is another sequence: the trap is real here.
    naive = plain(tokenizer, "Answer: ") + plain(tokenizer, "A")
    assert naive != plain(tokenizer, "Answer: A")


def test_a_merge_across_the_boundary_moves_the_boundary(merging_tokenizer: Any) -> None:
    row = encode([SKY], TEMPLATE, merging_tokenizer, scoring="letter").rows[0]
    alone = plain(merging_tokenizer, TEMPLATE.render(SKY, scoring="letter").prompt)
    assert list(row.prefix) == alone[:-1]
    assert [merging_tokenizer.convert_ids_to_tokens(list(choice)) for choice in row.choices] == [
        [": A"],
        [": B"],
        [": C"],
    ]


def test_letters_are_single_tokens_with_their_space(tokenizer: Any) -> None:
    row = encode([SKY], TEMPLATE, tokenizer, scoring="letter").rows[0]
    assert row.choices == tuple(tuple(plain(tokenizer, text)) for text in (" A", " B", " C"))
    assert row.divisors is None
    assert row.num_tokens == len(row.prefix)


def test_special_tokens_are_only_in_front(bos_tokenizer: Any, eos_tokenizer: Any, tokenizer: Any) -> None:
    bare = encode([SKY], TEMPLATE, tokenizer, scoring="text").rows[0]
    with_bos = encode([SKY], TEMPLATE, bos_tokenizer, scoring="text").rows[0]
    with_eos = encode([SKY], TEMPLATE, eos_tokenizer, scoring="text").rows[0]
    assert with_bos.prefix == (bos_tokenizer.bos_token_id, *bare.prefix)
    assert with_bos == with_eos
    assert with_bos.choices == bare.choices


def test_chat_has_the_templates_special_tokens_once(chat_tokenizer: Any) -> None:
    template = PromptTemplate(chat=True, tokenizer=chat_tokenizer)
    row = encode([CAT], template, chat_tokenizer, scoring="text").rows[0]
    assert row.prefix.count(chat_tokenizer.bos_token_id) == 1
    assert row.prefix[0] == chat_tokenizer.bos_token_id
    assert chat_tokenizer.decode(joined(row, 1)).endswith("Answer:\n<assistant>the cat")


def test_padding_and_truncation_set_on_the_tokenizer_do_nothing(tokenizer: Any) -> None:
    wanted = encode([SKY, CAT, LONG], TEMPLATE, tokenizer, scoring="text")
    tokenizer.backend_tokenizer.enable_padding(length=64)
    tokenizer.backend_tokenizer.enable_truncation(16)
    try:
        assert encode([SKY, CAT, LONG], TEMPLATE, tokenizer, scoring="text") == wanted
    finally:
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.backend_tokenizer.no_truncation()


def test_rows_do_not_depend_on_the_batch(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = [replace([SKY, CAT, LONG][i % 3], id=str(i)) for i in range(20)]
    wanted = encode(examples, TEMPLATE, tokenizer, scoring="text", max_length=60, too_long="truncate")
    monkeypatch.setattr("lorchestra.data.encode._ROWS_PER_CALL", 3)
    assert encode(examples, TEMPLATE, tokenizer, scoring="text", max_length=60, too_long="truncate") == wanted
    assert [row.row for row in wanted.rows] == list(range(20))


def test_divisors(tokenizer: Any) -> None:
    example = Example("x", "q", ("blue", "né"), 0, "t.jsonl:1")
    by_byte = encode([example], TEMPLATE, tokenizer, scoring="text", normalize="byte").rows[0]
    assert by_byte.divisors == (5.0, 4.0)  # " blue", and " né" in UTF-8
    by_token = encode([example], TEMPLATE, tokenizer, scoring="text", normalize="token").rows[0]
    assert by_token.divisors == tuple(float(len(choice)) for choice in by_token.choices)
    assert encode([example], TEMPLATE, tokenizer, scoring="text").rows[0].divisors is None
    assert encode([example], TEMPLATE, tokenizer, scoring="letter", normalize="byte").rows[0].divisors is None


def test_shots_precede_every_question(tokenizer: Any) -> None:
    row = encode([CAT], TEMPLATE, tokenizer, scoring="text", shots=[SKY]).rows[0]
    text = "Question: What is the color of the sky?\nAnswer: blue\n\nQuestion: Which animal says meow?\nAnswer: the cat"
    assert tokenizer.decode(joined(row, 1)) == text


# --- rows and letters that cannot be encoded ----------------------------------------------------------------------


def test_a_long_row_is_refused_with_location_and_length(tokenizer: Any) -> None:
    (row,) = encode([LONG], TEMPLATE, tokenizer, scoring="text").rows
    assert encode([LONG], TEMPLATE, tokenizer, scoring="text", max_length=length(row)).rows == (row,)
    with pytest.raises(DataError) as caught:
        encode([SKY, LONG], TEMPLATE, tokenizer, scoring="text", max_length=length(row) - 1)
    text = str(caught.value)
    assert f"t.jsonl:3: the row has {length(row)} tokens" in text
    assert "drop" in text
    assert "truncate" in text


def test_dropped_rows_are_listed(tokenizer: Any) -> None:
    split = encode([LONG, SKY, LONG, CAT], TEMPLATE, tokenizer, scoring="text", max_length=60, too_long="drop")
    assert split.kept == (1, 3)
    assert split.dropped == (0, 2)
    assert [row.row for row in split.rows] == [0, 1]
    assert split.rows[1].answer == CAT.answer
    (warning,) = split.warnings
    assert "2 row(s) longer than 60 tokens left out: t.jsonl:3, t.jsonl:3" in warning
    with pytest.raises(DataError, match="all 1 rows"):
        encode([LONG], TEMPLATE, tokenizer, scoring="text", max_length=60, too_long="drop")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    question=st.text(st.sampled_from("the sky fil mwasé🙂 \n"), min_size=1, max_size=300),
    max_length=st.integers(30, 60),
    copies=st.integers(1, 2),
    name=st.sampled_from(["tokenizer", "bos_tokenizer", "merging_tokenizer"]),
)
def test_truncated_rows_fit_and_keep_their_choices(
    request: pytest.FixtureRequest, question: str, max_length: int, copies: int, name: str
) -> None:
    tokenizer = request.getfixturevalue(name)
    template = PromptTemplate("Q: " + " {question}" * copies + "\nA:")
    example = replace(LONG, question=question)
    (full,) = encode([example], template, tokenizer, scoring="text").rows
    split = encode([example], template, tokenizer, scoring="text", max_length=max_length, too_long="truncate")
    (row,) = split.rows
    assert length(row) <= max_length
    assert row.choices == full.choices
    if length(full) <= max_length:
        assert row == full
        assert split.truncated == ()
    else:
        assert split.truncated == (0,)
        assert "cut" in split.warnings[0]
        # No more is cut than other merges and the spaces before the cut explain.
        spaces = max((len(run) for run in re.findall(r"\s+", question)), default=0)
        # A character without a token shifts the tokenizer's offsets by its bytes.
        lost = sum(len(character.encode()) for character in question if not tokenizer.tokenize(character))
        assert length(row) > max_length - (8 + spaces + lost) * copies


def test_truncation_cuts_the_questions_end(tokenizer: Any) -> None:
    (row,) = encode([LONG], TEMPLATE, tokenizer, scoring="text", max_length=60, too_long="truncate").rows
    text = tokenizer.decode(row.prefix)
    assert text.startswith("Question: the sky is blue and the film was good the sky")
    assert text.endswith("\nAnswer:")
    assert length(row) in (59, 60)


def test_truncation_reads_names_of_control_tokens_as_plain_text(bos_tokenizer: Any) -> None:
    # each is one token to the tokenizer, and several when read as text
    name = bos_tokenizer.bos_token
    example = replace(LONG, question="the sky " + f"film {name} " * 200)
    (row,) = encode([example], TEMPLATE, bos_tokenizer, scoring="text", max_length=100, too_long="truncate").rows
    assert 90 < length(row) <= 100
    assert "the sky film" in bos_tokenizer.decode(row.prefix)


def test_a_question_shown_twice_is_not_cut_twice_as_far(tokenizer: Any) -> None:
    template = PromptTemplate("{question}\n{question}\nAnswer:")
    (row,) = encode([LONG], template, tokenizer, scoring="text", max_length=100, too_long="truncate").rows
    assert 90 < length(row) <= 100


def test_truncation_takes_few_calls(tokenizer: Any) -> None:
    calls = []

    class Counting:
        def __call__(self, texts: Any, **options: Any) -> Any:
            calls.append(texts)
            return tokenizer(texts, **options)

    examples = [replace(LONG, question=LONG.question * (1 + i % 5)) for i in range(50)]
    split = encode(examples, TEMPLATE, Counting(), scoring="text", max_length=40, too_long="truncate")
    assert len(split.truncated) == 50
    assert len(calls) < 15


def test_truncation_cannot_cut_choices_or_shots(tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"t\.jsonl:3: without its question.*choices are never cut"):
        encode([LONG], TEMPLATE, tokenizer, scoring="text", max_length=5, too_long="truncate")
    with pytest.raises(DataError, match="fewer few-shot rows"):
        encode([CAT], TEMPLATE, tokenizer, scoring="text", shots=[LONG], max_length=60, too_long="truncate")


def test_max_length_must_be_positive(tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match=r"data\.max_length is 0"):
        encode([SKY], TEMPLATE, tokenizer, scoring="text", max_length=0)


def test_a_choice_without_tokens(merging_tokenizer: Any) -> None:
    # This vocabulary has no Greek, and no byte to spell it with.
    template = PromptTemplate("Question: {question}\nAnswer: ")
    example = replace(CAT, choices=("the cat", "\u03b1\u03b2"))
    with pytest.raises(DataError, match=r"t\.jsonl:2: choice 1, 'αβ', adds no tokens"):
        encode([example], template, merging_tokenizer, scoring="text")


def test_nothing_before_the_choices(merging_tokenizer: Any, bos_tokenizer: Any) -> None:
    example = replace(CAT, question="\u03b1")
    with pytest.raises(DataError, match=r"t\.jsonl:2: there is no token before"):
        encode([example], PromptTemplate("{question}"), merging_tokenizer, scoring="text")
    assert encode([example], PromptTemplate("{question}"), bos_tokenizer, scoring="text").rows


def test_letters_that_are_not_single_tokens(letter_blind_tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match=r"t\.jsonl:1.*--data\.scoring text"):
        encode([SKY], TEMPLATE, letter_blind_tokenizer, scoring="letter")
    usable, reason = can_use_letters([SKY], TEMPLATE, letter_blind_tokenizer)
    assert not usable
    assert "single, distinct tokens" in reason
    assert encode([SKY], TEMPLATE, letter_blind_tokenizer, scoring="text").rows


def test_letters_that_are_the_same_token(merging_tokenizer: Any) -> None:
    class Folding:
        """Stands for a tokenizer whose normalizer makes letters alike."""

        def __call__(self, texts: Any, **options: Any) -> Any:
            fold = str.maketrans("BC", "AA")
            folded = texts.translate(fold) if isinstance(texts, str) else [text.translate(fold) for text in texts]
            return merging_tokenizer(folded, **options)

    with pytest.raises(ConfigError, match="distinct"):
        encode([SKY], TEMPLATE, Folding(), scoring="letter")


def test_can_use_letters(tokenizer: Any) -> None:
    assert can_use_letters([SKY, CAT], TEMPLATE, tokenizer) == (True, "")
    many = replace(SKY, choices=tuple(f"c{i}" for i in range(27)), where="t.jsonl:8")
    usable, reason = can_use_letters([SKY] * 200 + [many], TEMPLATE, tokenizer)
    assert not usable
    assert "t.jsonl:8 has 27 choices" in reason
    assert can_use_letters([SKY], PromptTemplate("{question}:"), tokenizer) == (
        False,
        "data.prompt.template has no {options}",
    )
    assert not can_use_letters([], TEMPLATE, tokenizer)[0]


def test_no_examples_are_no_rows(tokenizer: Any) -> None:
    assert encode([], TEMPLATE, tokenizer, scoring="text") == EncodedSplit((), ())


# --- class weights ------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 3), min_size=1, max_size=50))
def test_class_weights_are_inverse_frequencies_with_mean_one(answers: list[int]) -> None:
    weights = class_weights([replace(SKY, answer=answer) for answer in answers], 5)
    assert len(weights) == 5
    assert sum(weights[answer] for answer in answers) / len(answers) == pytest.approx(1.0)
    masses = {round(weights[answer] * answers.count(answer), 9) for answer in set(answers)}
    assert len(masses) == 1  # every label weighs the same in total
    assert all(weights[label] == 0.0 for label in range(5) if label not in answers)


@pytest.mark.parametrize("answer", [None, 2])
def test_class_weights_need_labels(answer: int | None) -> None:
    with pytest.raises(DataError, match=r"t\.jsonl:1"):
        class_weights([replace(SKY, answer=answer)], 2)


def test_a_row_too_long_for_any_tokenizer(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompt is tokenized once per choice, so the total counts."""
    monkeypatch.setattr("lorchestra.data.encode.MAX_CHARACTERS", 2_000)
    template = PromptTemplate("{question} Answer:")
    many = Example("m", "word " * 10, tuple(str(i) for i in range(40)), 0, "rows.jsonl:7")
    with pytest.raises(
        DataError, match=r"rows\.jsonl:7: the prompt, repeated for each choice, has 2,\d+ characters in total"
    ):
        encode([many], template, tokenizer, scoring="text", too_long="drop")
    few = replace(many, choices=many.choices[:4])
    assert len(encode([few], template, tokenizer, scoring="text").rows) == 1


def test_many_characters_take_several_calls_with_the_same_tokens(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = PromptTemplate("{question} Answer:")
    rows = [Example(str(i), "word " * (i + 1), ("yes", "no"), 0, f"rows:{i}") for i in range(9)]
    whole = encode(rows, template, tokenizer, scoring="text").rows
    monkeypatch.setattr("lorchestra.data.encode._CHARACTERS_PER_CALL", 100)
    assert encode(rows, template, tokenizer, scoring="text").rows == whole


# --- choices that continue others -----------------------------------------------------------------------------------

YES_BUT = Example("y", "the film was good", ("yes", "no", "yes but"), 2, "t.jsonl:4")


def begins(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return one != other and other[: len(one)] == one


def test_a_choice_that_continues_another_gives_all_of_the_row_an_end(tokenizer: Any) -> None:
    with_end, without = encode([YES_BUT, CAT], TEMPLATE, tokenizer, scoring="text").rows
    whole = [plain(tokenizer, f"Question: the film was good\nAnswer: {choice}\n") for choice in YES_BUT.choices]
    assert [joined(with_end, index) for index in range(3)] == whole
    assert tokenizer.decode(joined(without, 1)).endswith("Answer: the cat")  # other rows are as they were
    shown = encode([YES_BUT], TEMPLATE, tokenizer, scoring="text", shots=[CAT]).rows[0]
    assert tokenizer.decode(joined(shown, 0)).endswith("Answer: yes\n\n")  # as the shots before it end


def test_the_end_in_a_chat_is_that_of_the_turn(chat_tokenizer: Any) -> None:
    chat_tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    template = PromptTemplate(chat=True, tokenizer=chat_tokenizer)
    row = encode([YES_BUT], template, chat_tokenizer, scoring="text").rows[0]
    assert [choice[-1] for choice in row.choices] == [chat_tokenizer.eos_token_id] * 3
    assert chat_tokenizer.decode(joined(row, 2)).endswith("\n<assistant>yes but</s>")


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    choices=st.lists(st.text(st.sampled_from("ab10 +.-\n"), max_size=4), min_size=2, max_size=6),
    normalize=st.sampled_from(["sum", "token", "byte"]),
    name=st.sampled_from(["tokenizer", "bos_tokenizer", "merging_tokenizer", "chat_tokenizer"]),
    shots=st.integers(0, 2),
)
def test_no_choice_is_a_prefix_of_another(
    request: pytest.FixtureRequest, choices: list[str], normalize: Any, name: str, shots: int
) -> None:
    tokenizer = request.getfixturevalue(name)
    template = PromptTemplate(chat=name == "chat_tokenizer", tokenizer=tokenizer)
    example = Example("x", "the film", tuple(choices), 0, "t.jsonl:5")
    try:
        split = encode([example], template, tokenizer, scoring="text", normalize=normalize, shots=[CAT] * shots)
    except (DataError, ConfigError) as error:
        refused = str(error)  # choices without tokens, or with the same
    else:
        refused = ""
    if refused:
        assert "t.jsonl:5" in refused
        return
    (row,) = split.rows
    assert not any(begins(one, other) for one in row.choices for other in row.choices)
    for one, name_one in zip(row.choices, choices, strict=True):
        for other, name_other in zip(row.choices, choices, strict=True):
            assert (one == other) == (name_one == name_other)


class _Newlineless:
    """A tokenizer that drops line ends, as some do."""

    def __init__(self, tokenizer: Any, eos: int | None) -> None:
        self.tokenizer, self.eos_token_id = tokenizer, eos

    def __call__(self, texts: Any, **options: Any) -> Any:
        bare = (
            texts.replace("\n", " ").rstrip()
            if isinstance(texts, str)
            else [text.replace("\n", " ").rstrip() for text in texts]
        )
        return self.tokenizer(bare, **options)


def test_eos_if_a_line_end_does_not_separate_choices(tokenizer: Any) -> None:
    row = encode([YES_BUT], TEMPLATE, _Newlineless(tokenizer, 1), scoring="text").rows[0]
    bare = encode([YES_BUT], replace(TEMPLATE, version=1), tokenizer, scoring="text").rows[0]
    assert row.choices == tuple((*choice, 1) for choice in bare.choices)
    with pytest.raises(
        ConfigError, match=r"t\.jsonl:4: one of the choices 'yes', 'no', 'yes but' is a prefix of another.*letter"
    ):
        encode([YES_BUT], TEMPLATE, _Newlineless(tokenizer, None), scoring="text")


def test_normalization_counts_the_tokens_of_the_end_and_not_its_bytes(tokenizer: Any) -> None:
    by_token = encode([YES_BUT], TEMPLATE, tokenizer, scoring="text", normalize="token").rows[0]
    assert by_token.divisors == tuple(float(len(choice)) for choice in by_token.choices)
    by_byte = encode([YES_BUT], TEMPLATE, tokenizer, scoring="text", normalize="byte").rows[0]
    assert by_byte.divisors == (4.0, 3.0, 8.0)


def test_version_1_scores_no_ends_and_lists_the_affected_rows(tokenizer: Any) -> None:
    old = replace(TEMPLATE, version=1)
    split = encode([CAT, YES_BUT], old, tokenizer, scoring="text")
    assert tokenizer.decode(joined(split.rows[1], 2)).endswith("Answer: yes but")
    assert split.hopeless == (1,)
    assert encode([CAT, YES_BUT], TEMPLATE, tokenizer, scoring="text").hopeless == ()


def test_different_choices_with_the_same_tokens_are_refused(tokenizer: Any, merging_tokenizer: Any) -> None:
    spaced = replace(CAT, choices=("yes", "no", "yes "))
    with pytest.raises(DataError, match=r"t\.jsonl:2: 'yes' and 'yes ' are the same tokens.*rename one"):
        encode([spaced], TEMPLATE, tokenizer, scoring="text")
    # one letter in front, and two that this tokenizer has no tokens for
    unknown = replace(CAT, choices=("a\u03b1", "a\u03b2"))
    with pytest.raises(DataError, match="are the same tokens"):
        encode([unknown], TEMPLATE, merging_tokenizer, scoring="text")
    assert encode([unknown], replace(TEMPLATE, version=1), merging_tokenizer, scoring="text").hopeless == (0,)
    equal = replace(CAT, choices=("yes", "yes"))  # of these the reader warns
    assert len(encode([equal], TEMPLATE, tokenizer, scoring="text").rows) == 1


def test_tokens_without_an_embedding(tokenizer: Any) -> None:
    most = max(plain(tokenizer, "Question: What is the color of the sky?\nAnswer: red blue green"))
    known = TextTokenizer(tokenizer, (), most + 1)
    assert encode([SKY], TEMPLATE, known, scoring="text").rows
    with pytest.raises(
        DataError, match=rf"t\.jsonl:1: has the token .* \(id {most}\), but the base has only {most} emb"
    ):
        encode([SKY], TEMPLATE, TextTokenizer(tokenizer, (), most), scoring="text")


def test_rows_that_name_control_tokens_are_as_long_as_their_text(tokenizer: Any) -> None:
    row = replace(SKY, question="the film </s><s> was good", choices=("no</s>", "yes"))
    split = encode([row], TEMPLATE, tokenizer, scoring="text", shots=[row])
    ids = joined(split.rows[0], 0)
    assert {0, 1}.isdisjoint(ids)
    block = "Question: the film </s><s> was good\nAnswer: no</s>"
    assert tokenizer.decode(ids, skip_special_tokens=False) == f"{block.replace('no</s>', 'yes')}\n\n{block}"
    assert split.literal == {"</s>": "t.jsonl:1", "<s>": "t.jsonl:1"}
