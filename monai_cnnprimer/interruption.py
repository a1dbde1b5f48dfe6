# SPDX-License-Identifier: Apache-2.0
"""When a run of an evaluator ends other than well: all who must hear of it do, and the process still ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any
from weakref import WeakKeyDictionary

from ignite.engine import Engine, Events

Cleanup = Callable[[BaseException], None]
_CLEANUPS: WeakKeyDictionary[Engine, list[Cleanup]] = WeakKeyDictionary()
_RESTORES: WeakKeyDictionary[Engine, Cleanup] = WeakKeyDictionary()


class Terminated(SystemExit):
    """SIGTERM as an exception: every clean-up hears of it, then the process exits with 143, as after the signal."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


def cleanup_on_exception(engine: Engine, cleanup: Cleanup) -> None:
    """Calls `cleanup(exception)` when `engine` fails; after all of them the exception is raised again, once.

    An EXCEPTION_RAISED handler that does not raise lets `run()` return as if all were well; one that does keeps those
    listed after it from hearing of it. Handlers that share this function all hear of it. ignite tells an exception
    inside an iteration twice, so a clean-up must bear to be called again.
    """
    if engine in _CLEANUPS:
        _CLEANUPS[engine].append(cleanup)
        return
    _CLEANUPS[engine] = [cleanup]
    engine.add_event_handler(Events.EXCEPTION_RAISED, _clean_up_and_raise)


def raise_on_sigterm(engine: Engine) -> None:
    """While `engine` runs, SIGTERM raises `Terminated` in it, so that what `cleanup_on_exception` knows hears of it.

    The handler that stood before is put back at the end, after what was registered until the latest call of this
    function, and called after a SIGTERM if it is a function. A SIGTERM that is ignored stays ignored, and outside the
    main thread, where Python allows no handlers, nothing changes.
    """
    if engine in _RESTORES:
        _move_to_the_end(engine, _RESTORES[engine])
        return
    previous: list[Any] = []

    def install() -> None:
        ours_to_change = signal.getsignal(signal.SIGTERM) not in (signal.SIG_IGN, None, _raise_terminated)
        if ours_to_change and threading.current_thread() is threading.main_thread():
            previous.append(signal.signal(signal.SIGTERM, _raise_terminated))

    def restore(exception: Any = None) -> None:  # at the end of a run that went well ignite gives the engine
        if not previous:
            return
        handler = previous.pop()
        signal.signal(signal.SIGTERM, handler)
        if isinstance(exception, Terminated) and callable(handler):
            handler(signal.SIGTERM, None)

    engine.add_event_handler(Events.STARTED, install)
    engine.add_event_handler(Events.COMPLETED, _RESTORES.setdefault(engine, restore))
    cleanup_on_exception(engine, restore)


def _move_to_the_end(engine: Engine, restore: Cleanup) -> None:
    engine.remove_event_handler(restore, Events.COMPLETED)
    engine.add_event_handler(Events.COMPLETED, restore)
    _CLEANUPS[engine].remove(restore)
    _CLEANUPS[engine].append(restore)


def _clean_up_and_raise(engine: Engine, exception: BaseException) -> None:
    for cleanup in _CLEANUPS[engine]:
        cleanup(exception)
    raise exception


def _raise_terminated(signal_number: int, frame: FrameType | None) -> None:
    raise Terminated
