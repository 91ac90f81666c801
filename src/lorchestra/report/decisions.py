"""Decisions as sentences and tables: what is guaranteed, which score ranks best, what prediction sets and costs say."""

from __future__ import annotations

import math

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from lorchestra.metrics.certificates import Certificate
from lorchestra.metrics.decisions import OWN_TEST, CertifyingRows, Decisions, refusal
from lorchestra.metrics.member_cascade import MemberCascade
from lorchestra.metrics.run_cascade import RunCascade
from lorchestra.report.fitted_table import FittedTable
from lorchestra.types import Json

SCORES = {
    "max_prob": "largest probability",
    "margin": "margin",
    "entropy": "entropy",
    "mutual_information": "mutual information",
    "agreement": "share of agreeing members",
    "combined": "combined (logistic model of these)",
}
POLICIES = {
    "by_cost": "answer or ask by expected cost",
    "by_threshold": "automate above the threshold, ask below",
    "automate_all": "automate all",
    "ask_always": "ask always",
}
Row = tuple[str, ...]
CERTIFICATE_COLUMNS = ("Predicted class", "Threshold", "Automated", "Interval", "Wrong of these", "If refused: why")
STAGE_COLUMNS = ("Stage", "Threshold", "Answered", "Members run")
SCORE_COLUMNS = ("Score", "AURC", "Gain", "")
COST_COLUMNS = ("Policy", "Measured", "Interval", "Expected", "Asked")


def sentences(decisions: Decisions) -> list[str]:
    """The result in sentences, the guarantee first."""
    lines = [decisions.guarantee()]
    first = decisions.certificates[0]
    if decisions.stages is not None:
        lines += _cascade_sentences(decisions.stages, first)
    elif decisions.classes is None and first.threshold is not None:
        name = SCORES[decisions.score]
        lines.append(
            f"Threshold {first.threshold:.4g} on the {name}: {_share(first.coverage)} of the certifying rows are"
            f" automated{_interval(first)}; {first.errors} of these {first.num_automated:,} are wrong"
            f" ({_share(first.errors / max(first.num_automated, 1))})."
        )
    if decisions.sets is not None:
        lines += _set_sentences(decisions)
    if decisions.costs is not None:
        lines.append(_worst_confusion(decisions))
    return lines + notes(decisions)


def notes(decisions: Decisions) -> list[str]:
    """What a user of the rows that certified should know."""
    return _notes(decisions.rows, decisions.certificates[0].confidence)


def _notes(rows: CertifyingRows, confidence: float) -> list[str]:
    lines = []
    if rows.source == OWN_TEST:
        lines.append(
            "The run's test rows certified: from now on they are not independent of the threshold, and later"
            " evaluations on them say nothing new about it."
        )
    if rows.num_repeated:
        together = max(confidence - rows.earlier_risk, 0.0)
        lines.append(
            f"This is look {rows.look} at labelled rows, and {rows.num_repeated:,} of the {rows.num_rows:,} rows were"
            f" used in an earlier one: {'both' if rows.look == 2 else f'all {rows.look}'} certificates of this run hold"
            " together with at least"
            f" {100 * together:.4g} %. New rows have the full guarantee."
        )
    return lines


def certificate_rows(decisions: Decisions) -> list[Row]:
    """The rows of the table of certificates, in the order of `CERTIFICATE_COLUMNS`."""
    names = ("all",) if decisions.classes is None else decisions.classes
    return [(name, *_cells(one)) for name, one in zip(names, decisions.certificates, strict=True)]


def stage_rows(cascade: MemberCascade) -> list[Row]:
    """The stages of a cascade, in the order of `STAGE_COLUMNS`: the first members, all members, a person."""
    first, everyone = str(cascade.num_first), str(cascade.num_members)
    return [
        (_first_stage(cascade), _threshold(cascade.first_threshold), _share(cascade.share_first), first),
        (f"all {everyone} members", _threshold(cascade.second_threshold), _share(cascade.share_second), everyone),
        ("a person", "", _share(cascade.share_person), everyone),
    ]


def run_cascade_sentences(cascade: RunCascade) -> list[str]:
    """The cascade of two runs in sentences, the guarantee first."""
    lines, one = [cascade.guarantee()], cascade.certificate
    if cascade.has_threshold:
        always, low, high = cascade.seconds[1], *cascade.seconds_interval
        change = cascade.mean_seconds / always - 1 if always else 0.0
        lines += [
            f"Automated: {_share(one.coverage)}{_interval(one)} of the {one.num_rows:,} certifying rows; {one.errors}"
            f" of these {one.num_automated:,} are wrong ({_share(one.errors / max(one.num_automated, 1))}).",
            f"Measured here: {1000 * cascade.mean_seconds:.3g} ms per row ({100 * one.confidence:.4g} % interval"
            f" {1000 * low:.3g} to {1000 * high:.3g}, at these times per run) instead of {1000 * always:.3g} ms with"
            f" the second run alone, {_share(abs(change))} {'less' if change <= 0 else 'more'}.",
        ]
    return lines + _notes(cascade.rows, one.confidence)


def run_cascade_table(cascade: RunCascade) -> FittedTable:
    """One row per stage: both runs, and a person."""
    first, second = cascade.seconds
    rows: list[Row] = [
        ("first run", _threshold(cascade.first_threshold), _share(cascade.share_first), f"{1000 * first:.3g}"),
        ("second run", _threshold(cascade.second_threshold), _share(cascade.share_second), f"{1000 * second:.3g}"),
        ("a person", "", _share(cascade.share_person), ""),
    ]
    caption = (
        "Threshold: on the largest probability of the run. Answered: share of the certifying rows. Time: per row that"
        " the run sees."
    )
    return _table("Certified cascade", caption, ("Stage", "Threshold", "Answered", "ms per row"), rows)


def score_rows(decisions: Decisions) -> list[Row]:
    """Each score with its AURC and the paired interval of its gain over the largest probability, best first."""
    choice = decisions.choice
    rows: list[Row] = []
    for name, value in sorted(choice.aurc.items(), key=lambda pair: pair[1]):
        ends = choice.gain.get(name)
        gain = "" if ends is None else f"{1000 * ends[0]:+.1f} to {1000 * ends[1]:+.1f}"
        rows.append((SCORES[name], f"{1000 * value:.1f}", gain, "used" if name == decisions.score else ""))
    return rows


def cost_rows(decisions: Decisions) -> list[Row]:
    """Each policy with its cost per 1,000 rows: measured, its interval, and expected by the probabilities."""
    if decisions.costs is None:
        return []
    return [
        (
            POLICIES[one.policy],
            f"{one.per_1000:,.0f}",
            f"{one.interval[0]:,.0f} to {one.interval[1]:,.0f}",
            f"{one.expected_per_1000:,.0f}",
            _share(one.share_asked),
        )
        for one in decisions.costs.policies
    ]


def certificate_table(decisions: Decisions) -> FittedTable:
    """One row per certificate, or per stage of a cascade."""
    title, columns, rows, caption = _thresholds(decisions)
    return _table(title, caption, columns, rows)


def certificate_caption(decisions: Decisions) -> str:
    """What the figures are."""
    if decisions.stages is not None:
        return "Threshold: on the largest probability of the stage. Answered: share of the certifying rows."
    level = f"{100 * decisions.certificates[0].confidence:.4g} %"
    return f"Automated, and wrong of these: on the certifying rows, with {level} intervals."


def score_table(decisions: Decisions) -> FittedTable:
    """One row per ranking score."""
    return _table("Which score ranks best", score_caption(decisions), SCORE_COLUMNS, score_rows(decisions))


def score_caption(decisions: Decisions) -> str:
    """What the columns are, and why this score is used."""
    name, reason = SCORES[decisions.score], decisions.choice.reason
    return (
        f"On the {decisions.rows.num_reference:,} validation rows. AURC: area under the risk-coverage curve, in"
        " thousandths; lower is better. Gain: interval of the AURC of the largest probability minus this one, 95 % for"
        f" all together. Used: {name}, {'as given' if reason == 'as given' else f'since {reason}'}."
    )


def cost_table(decisions: Decisions) -> FittedTable | None:
    """One row per policy; None without costs."""
    if decisions.costs is None:
        return None
    return _table("Cost per 1,000 rows", cost_caption(decisions), COST_COLUMNS, cost_rows(decisions))


def cost_caption(decisions: Decisions) -> str:
    """What the columns are; empty without costs."""
    costs = decisions.costs
    if costs is None:
        return ""
    return (
        f"On the certifying rows, with {100 * costs.confidence:.4g} % intervals; expected: by the probabilities."
        f" Asking a person costs {costs.ask:g}."
    )


def decisions_context(decisions: Decisions) -> Json:
    """The sentences and tables for the page: each table its title, columns, rows and caption."""
    tables = [
        _thresholds(decisions),
        ("Which score ranks best", SCORE_COLUMNS, score_rows(decisions), score_caption(decisions)),
    ]
    if decisions.costs is not None:
        tables.append(("Cost per 1,000 rows", COST_COLUMNS, cost_rows(decisions), cost_caption(decisions)))
    first, *others = sentences(decisions)
    rows = decisions.rows
    where = f"Certified on {rows.num_rows:,} rows ({rows.source}), {rows.date[:10]}."
    return {"guarantee": first, "sentences": [*others, where], "tables": tables}


def _thresholds(decisions: Decisions) -> tuple[str, Row, list[Row], str]:
    """Title, columns, rows and caption of the table of thresholds."""
    caption = certificate_caption(decisions)
    if decisions.stages is not None:
        return "Certified cascade", STAGE_COLUMNS, stage_rows(decisions.stages), caption
    return "Certified thresholds", CERTIFICATE_COLUMNS, certificate_rows(decisions), caption


def _cascade_sentences(cascade: MemberCascade, certificate: Certificate) -> list[str]:
    low, high = cascade.members_interval
    saved = 1 - cascade.mean_members / cascade.num_members
    return [
        f"Of the {certificate.num_rows:,} certifying rows {_share(cascade.share_first)} are answered by the"
        f" {_first_stage(cascade)}, {_share(cascade.share_second)} by all {cascade.num_members}, and"
        f" {_share(cascade.share_person)} are left to a person. Automated: {_share(certificate.coverage)}"
        f"{_interval(certificate)}; {certificate.errors} of these {certificate.num_automated:,} are wrong"
        f" ({_share(certificate.errors / max(certificate.num_automated, 1))}).",
        f"Member passes per row: {cascade.mean_members:.2f} ({100 * certificate.confidence:.4g} % interval {low:.2f} to"
        f" {high:.2f}) instead of {cascade.num_members}, {_share(saved)} fewer.",
    ]


def _first_stage(cascade: MemberCascade) -> str:
    return "first member" if cascade.num_first == 1 else f"first {cascade.num_first} members"


def _threshold(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"


def _set_sentences(decisions: Decisions) -> list[str]:
    sets, sizes = decisions.sets, decisions.set_sizes
    assert sets is not None
    assert sizes is not None
    each = ", for each class" if sets.by_class else ""
    lines = [
        f"Prediction sets ({sets.method.upper()}) have the right answer in at least {100 * (1 - sets.alpha):.4g} % of"
        f" rows{each}, on average over the draw of certifying rows and new ones. Of the certifying rows"
        f" {_share(sizes.one)} have one answer in the set, {_share(sizes.several)} several (each may be right), and"
        f" {_share(sizes.none)} none (no answer fits as well as right ones usually do); a set has"
        f" {sizes.mean:.2f} answers on average."
    ]
    if full := sum(math.isinf(quantile) for quantile in sets.quantiles):
        which = "1 class has too few rows and is" if full == 1 else f"{full} classes have too few rows and are"
        lines.append(f"{which} in every set.")
    return lines


def _worst_confusion(decisions: Decisions) -> str:
    """The most expensive confusion in words, so that exchanged axes are noticed."""
    costs = decisions.costs
    assert costs is not None
    pairs = [(a, t) for a in range(len(costs.labels)) for t in range(len(costs.labels)) if a != t]
    a, t = max(pairs, key=lambda pair: costs.costs[pair[0]][pair[1]])
    return f"Most expensive: to answer {costs.labels[a]!r} where {costs.labels[t]!r} is right ({costs.costs[a][t]:g})."


def _cells(one: Certificate) -> Row:
    if one.threshold is None:
        return ("none", "0 %", "", "", refusal(one))
    ends = one.coverage_interval or (0.0, 1.0)
    wrong = f"{one.errors} of {one.num_automated:,} ({_share(one.errors / max(one.num_automated, 1))})"
    return (f"{one.threshold:.4g}", _share(one.coverage), f"{_share(ends[0])} to {_share(ends[1])}", wrong, "")


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _interval(one: Certificate) -> str:
    if one.coverage_interval is None:
        return ""
    low, high = one.coverage_interval
    return f" ({100 * one.confidence:.4g} % interval {100 * low:.1f} to {100 * high:.1f} %)"


def _table(title: str, caption: str, columns: Row, rows: list[Row]) -> FittedTable:
    table = Table(
        title=Text(title),
        caption=Text(caption),
        box=SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    for number, column in enumerate(columns):
        is_text = number == 0 or column.startswith("If ")
        table.add_column(column, justify="left" if is_text else "right", overflow="fold", no_wrap=not is_text)
    for row in rows:
        table.add_row(*map(Text, row))
    return FittedTable(table)
