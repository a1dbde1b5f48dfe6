# SPDX-License-Identifier: Apache-2.0
"""What the commands share: where they print, and how they name their folder for results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

console = Console()
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for the results; made if missing.")]
