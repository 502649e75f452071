"""Runs a trainer step by step from outside, so that two trainings can take turns in one process.

A `Stepper` owns the thread that `trainer.train()` runs in. The thread holds still except inside `advance`,
and the global random number generators are swapped when it stops and goes on, so each training sees the
numbers it would see alone. Why take turns: this way both runs meet the same mood of the machine, and their
seconds compare.

Invariant: at most one of all steppers runs at any time, and only while its owner waits in `advance` or
`stop`.
"""

from __future__ import annotations

import random
import threading
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback, set_seed


class Stepper:
    """Drives one trainer, optimizer step by optimizer step."""

    def __init__(self, trainer: Any, seed: int) -> None:
        self.trainer = trainer
        self.done = False
        self._seed = seed
        self._stopping = False
        self._error: BaseException | None = None
        self._go, self._paused = threading.Semaphore(0), threading.Semaphore(0)
        self._random: tuple[Any, ...] | None = None
        trainer.add_callback(_PauseAfterStep(self))
        self._thread = threading.Thread(target=self._train, daemon=True)
        self._thread.start()

    def advance(self) -> bool:
        """Run to the end of the next optimizer step; False when training is over. Raises its errors."""
        if not self.done:
            self._go.release()
            self._paused.acquire()
        if self._error is not None:
            raise self._error
        return not self.done

    def stop(self) -> None:
        """End the training after the step it is in, which is none unless `advance` was interrupted."""
        self._stopping = True
        self._go.release()
        self._thread.join()

    def _train(self) -> None:
        self._go.acquire()
        try:
            if not self._stopping:
                set_seed(self._seed)
                self.trainer.train()
        except BaseException as error:
            self._error = error
        self.done = True
        self._paused.release()

    def _pause(self) -> bool:
        """Called in the trainer's thread after each step; True to end the training."""
        if not self._stopping:
            self._random = _random_state()
            self._paused.release()
            self._go.acquire()
            _set_random_state(self._random)
        return self._stopping


class _PauseAfterStep(TrainerCallback):  # type: ignore[misc, unused-ignore]
    def __init__(self, stepper: Stepper) -> None:
        self._stepper = stepper

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        control.should_training_stop |= self._stepper._pause()
        return control


def _random_state() -> tuple[Any, ...]:
    return random.getstate(), np.random.get_state(), torch.random.get_rng_state()


def _set_random_state(state: tuple[Any, ...]) -> None:
    random.setstate(state[0])
    np.random.set_state(state[1])
    torch.random.set_rng_state(state[2])
