# SPDX-License-Identifier: Apache-2.0
"""A classifier as a file that runs without this package: ONNX, a `torch.export` program, or TorchScript."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from monai_cnnprimer.atomic import write_atomically

SUFFIXES = {"onnx": ".onnx", "program": ".pt2", "torchscript": ".ts"}
INPUT, OUTPUT = "image", "pred"
"""Names in the file, those of the bundles' `network_data_format`."""
SMALLEST_SIDE = 33
"""Pixels of a side: up to 32 the last map of a ResNet-50 is one cell wide, for which a program would need a case."""
NOTES = "notes.json"
_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def export_network(network: nn.Module, file: str | Path, notes: Mapping[str, Any] | None = None) -> None:
    """Writes the network for images of any number and size, in float32 whatever autocast is on.

    The format follows from the suffix: `.onnx` (one file, weights within), `.pt2` (`torch.export`), `.ts`
    (TorchScript, by tracing; PyTorch itself advises against it for new work).

    Args:
        network: `(N, 1, H, W) -> (N, K)` in evaluation mode, on the CPU; left as it is.
        file: where to; complete or not there.
        notes: what the file says of itself: metadata of the ONNX model, else an extra file `notes.json` within.

    Raises:
        ValueError: an unknown suffix, a network in training mode or on a GPU, or packages that ONNX needs are missing.
    """
    file = Path(file)
    _check(network, file)
    write = {".onnx": _onnx, ".pt2": _program, ".ts": _torchscript}[file.suffix]
    with torch.no_grad(), torch.autocast("cpu", enabled=False), _quiet_exporters():
        write_atomically(file, write(network, _example(), dict(notes or {})))


def load_exported(file: str | Path) -> Callable[[Tensor], Tensor]:
    """The exported network on the CPU, as its users run it: from images `(N, 1, H, W)` to logits `(N, K)`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an unknown suffix, or onnxruntime is missing.
    """
    file = Path(file)
    _check_suffix(file)
    if not file.is_file():
        raise FileNotFoundError(f"no exported network at {file.name}; cnnprimer convert writes one")
    if file.suffix == ".onnx":
        return _onnx_session(file)
    with _quiet_exporters():
        return torch.jit.load(file, "cpu") if file.suffix == ".ts" else torch.export.load(file).module()


class Traced(nn.Module):
    """A network as its trace: what `torch.jit.script` can take where it cannot read the network's own Python.

    Args:
        network: `(N, 1, H, W) -> (N, K)` in evaluation mode.

    Raises:
        ValueError: the network is in training mode.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        _check_mode(network)
        example = _example().to(next(network.parameters()).device)
        with torch.no_grad(), _quiet_exporters():
            self.network = torch.jit.trace(network, example, check_trace=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(N, K)` of images `(N, 1, H, W)`."""
        return self.network(x)


def logits_in_batches(run: Callable[[Tensor], Tensor], images: Tensor, batch_size: int) -> Tensor:
    """Logits `(N, K)` of images `(N, 1, H, W)`, `batch_size` at a time; the last batch may be smaller."""
    with torch.inference_mode():
        return torch.cat([run(batch) for batch in images.split(batch_size)])


def missing_for_onnx() -> list[str]:
    """Packages of the extra `onnx` that are not installed."""
    return [name for name in _ONNX_PACKAGES if find_spec(name) is None]


def _onnx(network: nn.Module, example: Tensor, notes: dict[str, Any]) -> bytes:
    program = torch.onnx.export(
        network,
        (example,),
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes=_any_shape(),
        dynamo=True,
        verbose=False,
    )
    assert program is not None  # it is None only for the former exporter
    model = program.model_proto
    for name, value in notes.items():
        model.metadata_props.add(key=name, value=value if isinstance(value, str) else json.dumps(value))
    return bytes(model.SerializeToString(deterministic=True))


def _program(network: nn.Module, example: Tensor, notes: dict[str, Any]) -> bytes:
    program = torch.export.export(network, (example,), dynamic_shapes=_any_shape())
    stream = io.BytesIO()
    torch.export.save(program, stream, extra_files={NOTES: json.dumps(notes)})
    return stream.getvalue()


def _torchscript(network: nn.Module, example: Tensor, notes: dict[str, Any]) -> bytes:
    traced, stream = torch.jit.trace(network, example, check_trace=False), io.BytesIO()
    torch.jit.save(traced, stream, _extra_files={NOTES: json.dumps(notes)})
    return stream.getvalue()


def _example() -> Tensor:
    """No 1 and no equal sides: what is measured of them could be taken for a constant."""
    return torch.zeros(2, 1, 96, 64)


def _any_shape() -> tuple[dict[int, Any]]:
    sides = (torch.export.Dim(name, min=SMALLEST_SIDE) for name in ("height", "width"))
    return ({0: torch.export.Dim("batch"), **dict(enumerate(sides, start=2))},)


def _onnx_session(file: Path) -> Callable[[Tensor], Tensor]:
    _need_onnx()
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])


def _check(network: nn.Module, file: Path) -> None:
    _check_suffix(file)
    _check_mode(network)
    if any(tensor.is_cuda for tensor in network.state_dict().values()):
        raise ValueError("the network is on a GPU: export it from the CPU, network.to('cpu'); the file runs on both")
    if file.suffix == ".onnx":
        _need_onnx()


def _check_mode(network: nn.Module) -> None:
    if network.training:
        raise ValueError("the network is in training mode, with batch norm of each batch: call network.eval() first")


def _check_suffix(file: Path) -> None:
    if file.suffix not in SUFFIXES.values():
        raise ValueError(f"{file.name}: unknown suffix; name the file with one of {', '.join(SUFFIXES.values())}")


def _need_onnx() -> None:
    if missing := missing_for_onnx():
        raise ValueError(f"ONNX needs {', '.join(missing)}: pip install 'monai_cnnprimer[onnx]'")


@contextmanager
def _quiet_exporters() -> Iterator[None]:
    """Keeps back what PyTorch tells its own developers; that sizes were not frozen is measured, not hoped."""
    registry = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registry.level
    registry.setLevel(logging.ERROR)  # torchvision is not there, and not needed
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="`torch.jit", category=DeprecationWarning)
            warnings.filterwarnings("ignore", message=".*treespec", category=FutureWarning)
            # The number of a skip's channels, which is fixed.
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
            yield
    finally:
        registry.setLevel(level)
