"""An engine that waits for its test."""

import threading

from bei.engines.null import NullEngine
from tests.support.waiting import LIMIT


class Gate(NullEngine):
    """The null engine, which waits for `go` and fails on the word of `poison`."""

    def __init__(self, checkpoint):
        super().__init__(checkpoint)
        self.go = threading.Event()
        self.go.set()
        self.entered = threading.Event()
        self.poison = -1

    def run(self, batch):
        self.entered.set()
        assert self.go.wait(LIMIT)
        if self.poison in batch.input_ids:
            raise RuntimeError("poisoned")
        return super().run(batch)
