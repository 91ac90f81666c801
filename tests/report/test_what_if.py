import io

from rich.console import Console

from lorchestra.report.what_if import what_if_tables

SIZES = {"base": 80, "process": 5, "peak": 100, "limit": 200, "fits": True}
TIMES = {"search": 60.0, "training": 160.0, "evaluation": 7.0, "calibration": 2.0, "total": 169.0}
CELL = {"members": 5, "devices": 2, "tokens": 12_345, "bytes": SIZES, "time_s": TIMES}
BASE = {
    "name": "tiny",
    "parameters": 20,
    "member_parameters": 4,
    "layers": {"adapted": 1, "below": 2, "all": 3},
    "dtype": "float32",
    "flop_per_s": 5e14,
    "bytes_per_s": 2e12,
    "limit": 200,
    "bytes_with_one_member": SIZES,
    "cells": [CELL],
    "least_devices": {},
}
RECORD = {
    "rows": {"train": 10, "val": 5, "mean_tokens": 20.4, "scoring": "text", "assumed": False},
    "epochs": 3,
    "epochs_given": True,
    "device": {"kind": "cpu", "threads": 2, "stated": True},
}


def text_of(base):
    console = Console(width=100, record=True, file=io.StringIO())
    for part in what_if_tables({**RECORD, "bases": [base]}):
        console.print(part, highlight=False)
    return " ".join(console.export_text().split())


def test_a_base_that_fits():
    text = text_of(BASE)
    assert "Given: 10 training rows of 20 tokens on average, 5 for validation, scored by text, 3 epochs." in text
    assert "a member 4 on 1 of 3 layers, 2 below computed once." in text
    assert "500 TFLOP/s (as stated), 2,000 GB/s, 200 bytes of memory to use; the search" in text
    assert "takes 1 min 00 s on one, part of the total." in text
    assert "5 2 100 bytes 12,345 1 min 40 s 9.0 s 2 min 49 s" in text


def test_a_base_that_does_not_fit_says_what_would_hold_its_weights():
    sizes = {**SIZES, "base": 450, "peak": 500, "fits": False}
    base = {**BASE, "cells": [{**CELL, "bytes": sizes}], "bytes_with_one_member": sizes, "least_devices": {"5": None}}
    text = text_of(base)
    assert "with one member the training takes 500 bytes on each device, whatever their number" in text
    assert "Its weights alone (450 bytes) fill 3 such devices; base.quantization" in text
    assert "members devices" not in text
    assert "the search" not in text


def test_members_that_fit_on_more_devices():
    short = {**CELL, "bytes": {**SIZES, "fits": False}}
    text = text_of({**BASE, "cells": [short, {**CELL, "devices": 3}], "least_devices": {"20": 7}})
    assert "5 2 100 bytes 12,345 does not fit" in text
    assert "20 member(s) fit on 7 device(s) or more." in text
