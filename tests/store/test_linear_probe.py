"""The file of a linear probe: round trip, and files that are damaged or of another run."""

import dataclasses

import numpy as np
import pytest

from lorchestra.errors import CheckpointError
from lorchestra.metrics.linear_probe import LinearProbe
from lorchestra.store.linear_probe import read_linear_probe, write_linear_probe

PROBE = LinearProbe(
    layers=(1, 2),
    mean_F=np.arange(6.0),
    scale_F=np.arange(1.0, 7.0),
    weights_SF=np.arange(12.0).reshape(2, 6),
    intercepts_S=np.array([0.5, -0.5]),
    seen_S=np.array([0, 2]),
    num_labels=3,
    unseen=0.01,
    weight=0.25,
)


def test_a_probe_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "linear_probe.safetensors"
    read = read_linear_probe(path, write_linear_probe(path, PROBE), 3, 4, 3)
    for field in dataclasses.fields(LinearProbe):
        np.testing.assert_array_equal(getattr(read, field.name), getattr(PROBE, field.name))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": 1.5}, "shares are not between 0 and 1"),
        ({"scale_F": np.zeros(6)}, "scale has numbers that are not above 0"),
        ({"weights_SF": np.full((2, 6), np.nan)}, "weights is not float64"),
        ({"seen_S": np.array([2, 0])}, "seen is not ascending"),
        ({"seen_S": np.array([0, 7])}, "seen is not ascending numbers from 0 to 2"),
        ({"layers": (1, 9)}, "layers is not ascending numbers from 0 to 3"),
        ({"mean_F": np.zeros(5)}, "mean is not float64"),
    ],
)
def test_impossible_values_are_refused(tmp_path, change, message):
    path = tmp_path / "linear_probe.safetensors"
    checksum = write_linear_probe(path, dataclasses.replace(PROBE, **change))
    with pytest.raises(CheckpointError, match=message):
        read_linear_probe(path, checksum, 3, 4, 3)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "linear_probe.safetensors"
    with pytest.raises(CheckpointError, match="missing"):
        read_linear_probe(path, "0" * 64, 3, 4, 3)
    write_linear_probe(path, PROBE)
    with pytest.raises(CheckpointError, match="wrong checksum"):
        read_linear_probe(path, "0" * 64, 3, 4, 3)
