"""A damaged name of a base is looked for among downloads, never on the network."""

from __future__ import annotations

import huggingface_hub
import pytest


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
