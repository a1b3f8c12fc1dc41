"""One call at a time on a model, and the model left as it was found, also by an error or Ctrl-C at any moment.

1. Whoever runs or changes a model takes a turn: calls from other threads wait, calls inside the turn go on.
2. The step that undoes a change is noted before the change. At its end a turn takes all noted steps, also those of an
   inner turn that an interrupt kept from its end.
3. Ctrl-C waits while a model is changed or put back, which takes milliseconds.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from types import FrameType
from typing import Any, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn

from tl_vzero.errors import InputError, warn_caller

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Step = Callable[[], object]


class Turn:
    """One turn on a model, with the steps that undo its changes, taken from the last to the first."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.runs_model = False
        self._steps: list[Step] = []

    def undo_by(self, step: Step) -> None:
        """Note a step before the change that it undoes; it must be harmless where the change was not made."""
        self._steps.append(step)

    def undo(self) -> None:
        """Take the steps; an interrupted step is taken again by the next call."""
        while self._steps:
            self._steps[-1]()
            self._steps.pop()


class _OfThread(threading.local):
    """The turns that a thread is in, from the outermost to the innermost."""

    def __init__(self) -> None:
        self.turns: list[Turn] = []


_THREAD = _OfThread()
_LOCKS: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()


@contextmanager
def turn_on(model: nn.Module) -> Iterator[Turn]:
    """Lock a model for this thread; at the end, undo what the turn has changed."""
    with _LOCKS.setdefault(model, threading.RLock()):  # one step for all threads: the dictionary's own
        turn = Turn(model)
        _THREAD.turns.append(turn)
        try:
            yield turn
        finally:
            _end(turn)


def _end(turn: Turn) -> None:
    """Undo a turn, and any inside it that an interrupt kept from its end."""
    turns = _THREAD.turns
    if turn in turns:  # else an outer turn has ended it
        with interrupts_wait():
            while turn in turns:
                turns[-1].undo()
                turns.pop()


def takes_turn(call: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Let a public call, whose first argument is a model, take a turn on it.

    Raises InputError for a call from inside a run of the same model: from a `distance=` or `metric=` of the user's.
    """

    @wraps(call)
    def in_turn(*args: Any, **kwargs: Any) -> Any:
        model = args[0] if args else kwargs.get("model")
        if not isinstance(model, nn.Module):  # the call itself says what it expects
            return call(*args, **kwargs)
        with turn_on(model) as turn:
            check_idle(model)
            device = next((weight.device.type for weight in nn.Module.parameters(model)), "cpu")
            if torch.is_autocast_enabled(device):
                warn_caller("autocast is on: it is left for this call, and scores are of the weights' own dtype")
            with interrupts_wait():
                left = ExitStack()
                turn.undo_by(left.close)
                leave_modes(left, device)
            return call(*args, **kwargs)

    return in_turn


def leave_modes(left: ExitStack, *devices: str) -> None:
    """Leave the caller's inference mode, and autocast on devices, until `left` is closed."""
    if torch.is_inference_mode_enabled():
        left.enter_context(torch.inference_mode(False))
        left.enter_context(torch.no_grad())  # which inference mode is, too
    for device in devices:
        if torch.is_autocast_enabled(device):
            left.enter_context(torch.autocast(device, enabled=False))


def check_idle(model: nn.Module) -> None:
    """Raise InputError where this thread is inside a run of a model."""
    if any(turn.runs_model and turn.model is model for turn in _THREAD.turns):
        raise InputError(
            "this model is in the middle of a run: a distance=, a metric= or a hook of yours called tl_vzero on the "
            "model that it is called for; expected a call before or after that run, or on another model"
        )


def check_own_run(model: nn.Module, point: Any, function: Callable[..., object], maker: int) -> None:
    """Raise InputError where a hook that another thread set, for a run of its own, acts in a run of ours.

    TransformerLens's `run_with_hooks` takes no turn: its hooks are on the model for every thread meanwhile. Those
    that stay there, by `add_hook`, are meant to act.
    """
    if maker == threading.get_ident() or not any(turn.runs_model and turn.model is model for turn in _THREAD.turns):
        return
    if any(handle.user_hook is function and handle.context_level for handle in point.fwd_hooks):
        raise InputError(
            "another thread runs this model with hooks of value_zeroing_hooks at this moment, and they would act here "
            "too: expected run_with_hooks, and tl_vzero on the same model, one at a time; share a lock between the "
            "threads, make the hooks in the thread that uses them, or load a model for each"
        )


class _Interrupts:
    """Ctrl-C, held back while a model is changed. Only the main thread of a program gets it."""

    def __init__(self) -> None:
        self._handler: Any = None
        self._came: tuple[int, FrameType | None] | None = None

    def _note(self, signal_number: int, frame: FrameType | None) -> None:
        self._came = signal_number, frame

    def hold(self) -> None:
        handler = signal.getsignal(signal.SIGINT)
        if callable(handler) and handler != self._note:
            self._handler = handler
            signal.signal(signal.SIGINT, self._note)

    def let_go(self) -> None:
        if self._handler is None:
            return
        handler = self._handler
        signal.signal(signal.SIGINT, handler)
        came, self._came, self._handler = self._came, None, None
        if came is not None:
            handler(*came)


_INTERRUPTS = _Interrupts()


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Within, Ctrl-C waits: it comes at the end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    try:
        _INTERRUPTS.hold()
        yield
    finally:
        _INTERRUPTS.let_go()
