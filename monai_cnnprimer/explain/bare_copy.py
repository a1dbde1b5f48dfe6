# SPDX-License-Identifier: Apache-2.0
"""A copy of a network to run in passing, unseen by handlers that watch the original."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import torch
from torch.nn import Module


def bare_copy(network: Module) -> Module:
    """A copy of a network, in the same mode, without its hooks; the original and those who watch it notice nothing."""
    hooks = [
        value
        for module in network.modules()
        for name, value in vars(module).items()
        if name.startswith(("_forward", "_backward")) and isinstance(value, OrderedDict)
    ]
    # A hook can be a method, and copying it would copy all that its object holds.
    memo: dict[int, Any] = {id(value): OrderedDict() for value in hooks}
    with torch.inference_mode(False), torch.no_grad():
        return copy.deepcopy(network, memo)
