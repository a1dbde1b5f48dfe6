# SPDX-License-Identifier: Apache-2.0
"""Layers by name: which there are, which ran in a forward, and which of those have a map."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor
from torch.nn import Module


def find_layers(network: Module, layers: str | Sequence[str]) -> dict[str, Module]:
    """The named modules of `network`, in the order asked for.

    Args:
        network: where to look.
        layers: one name or several, as in `network.named_modules()`.

    Raises:
        ValueError: no name was given, or the network has no module of that name; names some that it has.
    """
    names = [layers] if isinstance(layers, str) else list(layers)
    modules = {name: module for name, module in network.named_modules() if name}
    if not names:
        raise ValueError(f"no layer given; choose among {listed(list(modules))}")
    for name in names:
        if name not in modules:
            similar = [other for other in modules if other.endswith(f".{name}")]
            similar += difflib.get_close_matches(name, modules, cutoff=0.8)
            raise ValueError(f"no layer {name!r}; choose among {listed([*similar, *modules])}")
    return {name: modules[name] for name in names}


class LayerRuns:
    """Output shapes of the modules that ran in one forward, and which of them can be recorded."""

    def __init__(self) -> None:
        self._shapes: dict[str, list[tuple[int, ...] | None]] = {}

    def note(self, name: str, output: Any) -> None:
        """One run of a module."""
        self._shapes.setdefault(name, []).append(tuple(output.shape) if isinstance(output, Tensor) else None)

    def fault(self, name: str) -> str:
        """Why a layer cannot be recorded; empty when it can."""
        shapes = self._shapes.get(name, [])
        if len(shapes) != 1:
            return f"ran {len(shapes)} times in one forward, not once"
        shape = shapes[0]
        if shape is None:
            return "does not return a tensor"
        if len(shape) < 3 or max(shape[2:]) == 1:
            return f"has no spatial extent, its output is {shape}"
        return ""

    def check(self, layers: Iterable[str]) -> None:
        """Raises ValueError for the first layer with a fault, naming layers without."""
        for name in layers:
            if fault := self.fault(name):
                valid = [other for other in self._shapes if not self.fault(other)]
                raise ValueError(f"layer {name!r} {fault}; choose among {listed(valid)}")


def listed(names: Sequence[str], most: int = 12) -> str:
    """Names for a message, outermost modules first."""
    ordered = sorted(dict.fromkeys(names), key=lambda name: name.count("."))
    return ", ".join(ordered[:most]) + (", ..." if len(ordered) > most else "")
