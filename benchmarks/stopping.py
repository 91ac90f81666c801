"""Callbacks that ask a job to stop."""

from lorchestra.training.callbacks import Callback


class StopWhen(Callback):
    """Requests a stop as soon as `stop()` is true."""

    def __init__(self, stop):
        self.should_stop = stop
