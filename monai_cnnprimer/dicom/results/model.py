# SPDX-License-Identifier: Apache-2.0
"""Which model made a result: its names and hashes, as every object states them."""

from __future__ import annotations

from typing import NamedTuple


class Model(NamedTuple):
    """The model behind a result.

    Attributes:
        name: of the bundle.
        version: of the bundle.
        weights_sha256: of the weights file.
        transforms_sha256: of the preprocessing.

    Example:
        >>> Model("chest_xray_resnet50", "0.1.0", "77b5bb33" * 8, "9f01127e" * 8).short
        'chest_xray_resnet50 0.1.0, weights 77b5bb33'
    """

    name: str
    version: str
    weights_sha256: str
    transforms_sha256: str

    @property
    def short(self) -> str:
        """Name, version and the beginning of the weights' hash, for a person."""
        return f"{self.name} {self.version}, weights {self.weights_sha256[:8]}"
