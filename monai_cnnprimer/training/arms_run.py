# SPDX-License-Identifier: Apache-2.0
"""One arm trained, and asked: MONAI's trainer over examples made beforehand, answers in float32."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from monai.handlers import LrScheduleHandler
from monai.inferers import Inferer
from numpy.typing import NDArray
from torch import Tensor

from monai_cnnprimer.training.arms import Arm, ArmOutput, SharedArms
from monai_cnnprimer.training.arms_data import Batch, Examples, normalised
from monai_cnnprimer.training.arms_loss import ArmLoss, Named


@dataclass(frozen=True)
class Optimisation:
    """The optimiser's settings, one set for all arms: AdamW under a one-cycle schedule.

    Attributes:
        learning_rate: at its height, after a quarter of the steps.
        weight_decay: of AdamW.
        bfloat16: whether the forward pass computes in it.
    """

    learning_rate: float = 0.002
    weight_decay: float = 0.02
    bfloat16: bool = True


class BatchInferer(Inferer):
    """The forward pass in bfloat16 and channels-last; the arms' answers are float32 by themselves.

    Args:
        bfloat16: False computes in float32.
    """

    def __init__(self, bfloat16: bool) -> None:
        super().__init__()
        self.bfloat16 = bfloat16

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What `network` answers to `inputs` `(N, 1, H, W)`."""
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.bfloat16):
            return network(inputs.contiguous(memory_format=torch.channels_last))


class LossDiverged(ValueError):
    """The loss of a training is no longer a number."""


def train(
    network: Arm | SharedArms,
    examples: Examples,
    supervision: str,
    optimisation: Optimisation,
    device: torch.device,
    on_step: Callable[[], None] = lambda: None,
) -> list[float]:
    """Trains one arm, or several on one encoder, by one pass over the examples.

    Args:
        network: in place; moved to the device, channels last.
        examples: what to learn from.
        supervision: `image` or `masks`, see `ArmLoss`.
        optimisation: the optimiser's settings.
        device: where to compute.
        on_step: called after each step.

    Returns:
        The loss of each step.

    Raises:
        LossDiverged: a loss that is not finite.
        ValueError: an unknown supervision.
    """
    answering: SharedArms | Named = network if isinstance(network, SharedArms) else Named(network)
    answering.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    steps, losses = len(examples), list[float]()
    optimizer = torch.optim.AdamW(
        answering.parameters(), lr=optimisation.learning_rate, weight_decay=optimisation.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=optimisation.learning_rate, total_steps=steps + 1, pct_start=0.25
    )
    trainer = SupervisedTrainer(
        device=device,
        max_epochs=1,
        train_data_loader=examples,
        network=answering,
        optimizer=optimizer,
        loss_function=ArmLoss(answering.strides, supervision),
        inferer=BatchInferer(optimisation.bfloat16),
        prepare_batch=_prepare,
        train_handlers=[LrScheduleHandler(schedule, epoch_level=False, print_lr=False)],  # type: ignore[arg-type]
        decollate=False,
        optim_set_to_none=True,
    )

    def record(engine: Engine) -> None:
        output: Any = engine.state.output
        losses.append(output["loss"].item())
        if not math.isfinite(losses[-1]):
            raise LossDiverged(f"the loss of step {len(losses)} is {losses[-1]}: lower the learning_rate")
        on_step()

    trainer.add_event_handler(Events.ITERATION_COMPLETED, record)
    trainer.run()
    return losses


@dataclass(frozen=True)
class Answer:
    """An arm's answer to some images: log-odds `(N,)`, and of each dense map's cells `(N, h, w)`, all float32."""

    logit: NDArray[np.float32]
    maps: dict[str, NDArray[np.float32]]


@torch.inference_mode()
def ask(
    arm: Arm, images: NDArray[np.float32], device: torch.device, bfloat16: bool = False, batch_size: int = 32
) -> Iterable[Answer]:
    """An arm's answers to images `(N, H, W)` in [0, 1], batch by batch; the arm is left in the mode it came in."""
    training = arm.training
    arm.eval()
    infer = BatchInferer(bfloat16)
    try:
        for start in range(0, len(images), batch_size):
            batch = normalised(torch.from_numpy(images[start : start + batch_size])).to(device)
            output: ArmOutput = infer(batch, arm)
            yield Answer(
                output.logit.float().cpu().numpy(),
                {name: cells.float().cpu().numpy() for name, cells in output.maps.items()},
            )
    finally:
        arm.train(training)


def _prepare(
    batch: Batch, device: torch.device, non_blocking: bool, **kwargs: Mapping[str, Any]
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Image and truth, as the trainer wants them."""
    image, label, mask = (part.to(device, non_blocking=non_blocking) for part in batch)
    return image, (label, mask)
