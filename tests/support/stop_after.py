"""A callback that requests a stop after some micro-batches."""

from lorchestra.training.callbacks import Callback


class StopAfter(Callback):
    """Requests a stop once it was asked `number` times whether to; with `finish`, to end with the best adapters."""

    def __init__(self, number, *, finish=False):
        self.left, self.finish = number, finish

    def should_stop(self):
        self.left -= 1
        return self.left < 0

    def should_finish(self):
        return self.finish
