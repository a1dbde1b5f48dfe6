# SPDX-License-Identifier: Apache-2.0
"""What is kept of every image to tell sites and copies apart later: features of the network, and a keyed hash.

Neither image nor patient can be read off them: 64 numbers are left of the mean over the image of some thousand
channels. Who has the image and the weights can recognise it by them, as by its logit in `predictions.csv`.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from monai_cnnprimer.atomic import telling_a_full_disk, write_atomically
from monai_cnnprimer.explain.gradcam import in_second_pass
from monai_cnnprimer.explain.layers import find_layers
from monai_cnnprimer.interruption import cleanup_on_exception
from monai_cnnprimer.run_directory import RunDirectory, digest_of

FEATURES = "features.csv"
SPOOL = ".features.partial.csv"
SIZE = 64
NAMES = tuple(f"feature_{number:02d}" for number in range(SIZE))
COLUMNS = ("case_id", "image_hash", "layer", *NAMES)

Hashes = Callable[[NDArray[np.float32]], Sequence[str]]


def projected(features: NDArray[np.float32]) -> NDArray[np.float16]:
    """Features by 64 sums of random sign; distances between cases stay, about.

    Achlioptas, J. Comput. Syst. Sci. 2003; 66:671-687. The signs come from a hash: with those of a library's generator
    sites of another version would differ by them.

    Args:
        features: ``(n, channels)``.

    Returns:
        ``(n, 64)``; what is too large for float16 becomes the largest number there.

    Example:
        >>> projected(np.ones((2, 2048), dtype=np.float32)).shape
        (2, 64)
    """
    sums = features.astype(np.float64) @ _signs(features.shape[1]) / np.sqrt(SIZE)
    largest = float(np.finfo(np.float16).max)
    return np.clip(sums, -largest, largest).astype(np.float16)


@cache
def _signs(channels: int) -> NDArray[np.float64]:
    stream = hashlib.shake_256(f"projection of {channels} channels".encode()).digest(channels * SIZE // 8)
    bits = np.unpackbits(np.frombuffer(stream, np.uint8)).reshape(channels, SIZE)
    return np.where(bits == 1, 1.0, -1.0)


class FeatureHandler:
    """Writes `features.csv`: of each predicted case the projected features of a layer, and a hash of its image.

    The features are the layer's means over the image, as `projected`, from the evaluator's own forward. In the list of
    handlers it stands before `CaseTableHandler`: then no case is recorded as predicted before its features are, a
    killed run is taken up without a gap, and the file is there when the run is closed.

    Args:
        run: the run directory.
        network: the network that the evaluator runs, once for each batch.
        layer: name of the layer, as in `network.named_modules()`; the encoder's last one.
        hashes: from the network's input ``(n, C, H, W)`` to a hash of each image in hexadecimal digits, "" for none.

    Raises:
        ValueError: no such layer; in the run, when a batch's images and the network's calls do not match.
    """

    def __init__(self, run: RunDirectory, network: torch.nn.Module, layer: str, hashes: Hashes) -> None:
        self.run = run
        self.layer = layer
        self.hashes = hashes
        self._module = find_layers(network, layer)[layer]
        self._handle: RemovableHandle | None = None
        self._listens = False
        self._pooled: list[Tensor] = []
        self._rows: dict[str, list[str]] = {}

    def attach(self, engine: Engine) -> None:
        """Adds the handler to an evaluator."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_STARTED, self._listen)
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._finish)
        cleanup_on_exception(engine, self._stop)

    def __call__(self, engine: Engine) -> None:
        """Records the batch just predicted."""
        self._listens = False  # other handlers may run the network too
        batch: Any = engine.state.batch
        case_ids, images = batch["case_id"], torch.as_tensor(batch["image"]).as_subclass(Tensor)
        if len(self._pooled) != 1 or len(self._pooled[0]) != len(case_ids):
            seen = [len(pooled) for pooled in self._pooled]
            raise ValueError(
                f"layer {self.layer!r} must run once for each batch of {len(case_ids)} images; it ran {len(seen)} "
                f"times, with {seen} images: sliding windows have no features of the whole image"
            )
        features = projected(self._pooled[0].float().cpu().numpy())
        hashes = self.hashes(images.detach().float().cpu().numpy())
        rows = {
            case_id: [case_id, image_hash, self.layer, *(f"{value:.4g}" for value in row)]
            for case_id, image_hash, row in zip(case_ids, hashes, features.tolist(), strict=True)
        }
        self._rows |= rows
        with telling_a_full_disk(), (self.run.path / SPOOL).open("a", newline="") as spool:
            spool.write(_csv(rows.values()))

    def _start(self, engine: Engine) -> None:
        self._stop()  # a run that was interrupted fires no event at its end
        (self.run.path / FEATURES).unlink(missing_ok=True)
        self._rows = self._taken_up()
        write_atomically(self.run.path / SPOOL, f"{self._identity}\n{_csv(self._rows.values())}")
        self._handle = self._module.register_forward_hook(self._layer_ran)

    def _listen(self, engine: Engine) -> None:
        self._listens, self._pooled = True, []

    def _layer_ran(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        if not self._listens or in_second_pass():
            return
        if not isinstance(output, Tensor) or output.ndim < 2:
            raise ValueError(f"layer {self.layer!r} does not return a tensor (N, C, ...), so that it has no features")
        with torch.no_grad(), torch.autocast(output.device.type, enabled=False):
            plain = output.detach().as_subclass(Tensor).float()
            self._pooled.append(plain.flatten(2).mean(2) if plain.ndim > 2 else plain)

    def _finish(self, engine: Engine) -> None:
        self._stop()
        kept = (self._rows[case_id] for case_id in sorted(self._rows) if case_id in self.run.rows)
        write_atomically(self.run.path / FEATURES, _csv([COLUMNS]) + _csv(kept))
        (self.run.path / SPOOL).unlink(missing_ok=True)

    def _stop(self, exception: BaseException | None = None) -> None:
        if self._handle is not None:
            self._handle.remove()
        self._handle, self._listens = None, False

    @property
    def _identity(self) -> str:
        """Of what the spool's rows are."""
        return digest_of(self.run.identity | {"layer": self.layer})

    def _taken_up(self) -> dict[str, list[str]]:
        """Rows of the cases that a killed run has predicted, if it was this run; half-written lines are dropped."""
        spool = self.run.path / SPOOL
        lines = spool.read_text().splitlines(keepends=True) if spool.is_file() else []
        if not lines or lines[0] != f"{self._identity}\n":
            return {}
        rows = csv.reader(line for line in lines[1:] if line.endswith("\n"))
        return {row[0]: row for row in rows if len(row) == len(COLUMNS) and row[0] in self.run.rows}


def _csv(rows: Iterable[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
