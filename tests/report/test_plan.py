import pytest

from lorchestra.report.plan import _verdict, readable_seconds


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3599.7, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (3_600_000, "1,000 h 00 min"),
    ],
)
def test_seconds_in_words(seconds, text):
    assert readable_seconds(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "below", "kind", "share", "words", "others"),
    [
        (3599, 0, "text", 0.9, [], ["It takes", "--adapt.layers", "--data.scoring"]),
        (30_000, 0, "text", 0.9, ["It takes 8 h 20 min", "--adapt.layers last:10", "--data.scoring tree, as 90 %"], []),
        (30_000, 20, "text", 0.3, ["It takes", "fewer rows"], ["--adapt.layers", "--data.scoring"]),
        (30_000, 20, "tree", 0.9, ["It takes"], ["--data.scoring"]),
    ],
)
def test_a_long_training_comes_with_what_would_shorten_it(seconds, below, kind, share, words, others):
    record = {
        "time_s": {"total": seconds},
        "layers": {"below": below, "all": 30},
        "scoring": {"kind": kind, "choice_tokens": share},
        "bytes": {"limit": 2, "fits": True},
        "disk_bytes": {"fits": True},
    }
    verdict = _verdict(record)
    assert verdict.startswith("It fits into memory.")
    assert all(word in verdict for word in words)
    assert not any(word in verdict for word in others)
