# SPDX-License-Identifier: Apache-2.0
"""Grad-CAM from the network's own forward pass: one `autograd.grad` more, and no trace left behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Self
from weakref import WeakSet

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils.hooks import RemovableHandle

from monai_cnnprimer.explain.layers import LayerRuns, find_layers, listed

Target = str | int | Tensor | Callable[[Any], Tensor]
Weigh = Callable[[Tensor, Tensor], Tensor]

_RECORDED: WeakSet[Module] = WeakSet()
_REDUCED = (torch.float16, torch.bfloat16)
_SECOND_PASS: ContextVar[bool] = ContextVar("monai_cnnprimer_second_pass", default=False)


def mean_gradient(activation: Tensor, gradient: Tensor) -> Tensor:
    """Grad-CAM's weights `(N, C)`: each channel's mean gradient (equation 1); of two tensors `(N, C, h, w)`."""
    return gradient.flatten(2).mean(dim=2)


class GradCam:
    """Records signed Grad-CAM maps of every forward inside the `with` block (Selvaraju et al., 2017, arXiv:1610.02391).

    The first target layer that runs hands on a leaf, and autograd records from there to the logits only. What the
    caller gets is what it would have got without: logits bit for bit, with a graph only if gradients were asked for,
    no `.grad`, hooks, `requires_grad` and modes as before, also after an exception. Works under `no_grad`,
    `inference_mode` and on frozen networks.

    Under autocast, or with half-precision weights, gradients of the low-precision pass are too coarse (a float16 one
    can vanish). The caller's pass is then left alone and the maps come from a second pass in float32, for the classes
    predicted by the first; hooks of others ask `in_second_pass` which one it is.

    Args:
        network: the network that will be called.
        layers: names as in `network.named_modules()`, one or several, each run once in a forward and with an output
            `(N, C, h, w)`.
        target: what is explained: `"predicted"` (each case's highest logit), a class, a `LongTensor` `(N,)` of one
            class per case, or a callable from the network's output to scores `(N,)`.
        weigh: from activation and gradient of a layer, both `(N, C, h, w)` in float32, to the weights `(N, C)` of its
            channels in the map; `gradcam_variants.gradcam_plus_plus` is another.

    Attributes:
        maps: layer name to the raw map `(N, 1, h, w)` of the latest forward, float32. Positive cells raise the score,
            negative cells lower it; nothing is clipped or scaled.
        scores: the explained scores `(N,)` of the latest forward, float32.
        logits: the output of the latest forward, without graph.
        forwards: how many forwards were explained so far.

    Raises:
        ValueError: a layer does not exist (at once); a layer did not run, ran twice, or has no spatial extent; the
            target does not fit the output (all of these in the forward).
        RuntimeError: another `GradCam` is recording the same network.

    Example:
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        >>> with torch.no_grad(), GradCam(network, "0", target=2) as cam:
        ...     logits = network(torch.rand(5, 1, 8, 10))
        >>> cam.maps["0"].shape
        torch.Size([5, 1, 6, 8])
    """

    def __init__(
        self,
        network: Module,
        layers: str | Sequence[str],
        target: Target = "predicted",
        weigh: Weigh = mean_gradient,
    ) -> None:
        if isinstance(target, str) and target != "predicted":
            raise ValueError(f'target {target!r}: give "predicted", a class, a LongTensor (N,) or a callable')
        self.network = network
        self.layers = find_layers(network, layers)
        self.target = target
        self.weigh = weigh
        self.maps: dict[str, Tensor] = {}
        self.scores = torch.empty(0)
        self.logits: Any = None
        self.forwards = 0
        self._handles: list[RemovableHandle] = []
        self._survey: list[RemovableHandle] = []
        self._recording: _Recording | None = None

    def __enter__(self) -> Self:
        if self.network in _RECORDED:
            raise RuntimeError("another GradCam records this network; name all layers in one")
        _RECORDED.add(self.network)
        for name, module in self.network.named_modules():
            # The first forward surveys all modules, so that an error can name those that would do.
            handles = self._handles if name in self.layers else self._survey
            if name:
                handles.append(module.register_forward_hook(self._hook(name)))
        self._handles.append(self.network.register_forward_pre_hook(self._before, with_kwargs=True))
        # First of the network's hooks, so that others see the logits as they are without this.
        self._handles.append(
            self.network.register_forward_hook(self._after, prepend=True, with_kwargs=True, always_call=True)
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handles:
            _RECORDED.discard(self.network)
        _remove(self._handles)
        _remove(self._survey)
        self._close()

    def _hook(self, name: str) -> Callable[[Module, Any, Any], Tensor | None]:
        def hook(module: Module, args: Any, output: Any) -> Tensor | None:
            if self._recording is None:
                return None
            return self._recording.layer_ran(name, output, wanted=name in self.layers)

        return hook

    def _before(self, network: Module, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        self._close()  # what an interrupt may have left open
        if _is_reduced(network):
            return None
        self._recording = _Recording(network)
        return _map_tensors(_normal, args), _map_tensors(_normal, kwargs)

    def _after(self, network: Module, args: Any, kwargs: Any, output: Any) -> Any:
        recording, self._recording = self._recording, None
        if recording is None:
            if output is not None:  # None: the forward failed
                self._explain_in_float32(network, args, kwargs, output)
            return None
        with recording.stack:
            if output is None:
                return None
            recording.runs.check(self.layers)
            _remove(self._survey)
            scores = _scores(output, self.target)
            self.maps = recording.maps(scores, self.weigh)
            self.scores = scores.detach().float()
            self.logits = _map_tensors(_plain, output)
            self.forwards += 1
        return None if recording.keeps_graph else _map_tensors(torch.Tensor.detach, output)

    def _explain_in_float32(self, network: Module, args: Any, kwargs: Any, output: Any) -> None:
        """Runs the network again, hooks included, without autocast and with a float32 copy of its weights."""
        scores = _scores(output, self.target).detach().float()
        logits = _map_tensors(_plain, output)
        target = self.target
        second_pass = _SECOND_PASS.set(True)
        try:
            if isinstance(target, str):
                self.target = logits.argmax(dim=1)
            device = _device(network)
            cuda = [device] if device.type == "cuda" else []
            # Dropout and batch statistics of a network in training are left as the caller's pass left them.
            with (
                torch.random.fork_rng(devices=cuda),
                torch.inference_mode(False),
                torch.no_grad(),
                torch.autocast(device.type, enabled=False),
            ):
                arguments = _map_tensors(_widened, (args, kwargs))
                torch.func.functional_call(network, _float32_state(network), *arguments)
        finally:
            self.target = target
            _SECOND_PASS.reset(second_pass)
        self.scores, self.logits = scores, logits

    def _close(self) -> None:
        if self._recording is not None:
            self._recording.stack.close()
            self._recording = None


class _Recording:
    """One forward: what ran, the activations of the target layers, and how to put everything back (`stack`)."""

    def __init__(self, network: Module) -> None:
        self.activations: dict[str, Tensor] = {}
        self.runs = LayerRuns()
        self.keeps_graph = torch.is_grad_enabled() and any(p.requires_grad for p in network.parameters())
        self.stack = ExitStack()
        if torch.is_inference_mode_enabled():
            # Inference tensors cannot be saved for a backward pass; leaving that mode turns gradients on.
            self.stack.enter_context(torch.inference_mode(False))
            self.stack.enter_context(torch.no_grad())
        else:
            self.stack.enter_context(torch.set_grad_enabled(torch.is_grad_enabled()))
        if not self.keeps_graph:
            for parameter in network.parameters():
                if parameter.requires_grad:
                    parameter.requires_grad_(False)
                    self.stack.callback(parameter.requires_grad_, True)

    def layer_ran(self, name: str, output: Any, *, wanted: bool) -> Tensor | None:
        """Notes the run; of a wanted layer, keeps the activation and returns the copy that the network goes on with."""
        self.runs.note(name, output)
        if not wanted or self.runs.fault(name):
            return None
        if output.requires_grad and not self.activations:
            self.keeps_graph = True  # the caller asked for gradients of the input
        torch.set_grad_enabled(True)
        activation = output if output.requires_grad else output.detach().requires_grad_()
        self.activations[name] = activation
        return activation.clone()  # an operation in place that follows must not change what is kept

    def maps(self, scores: Tensor, weigh: Weigh) -> dict[str, Tensor]:
        """Signed maps `(N, 1, h, w)`: the sum over the channels of activation times weight (equation 2)."""
        layers, activations = list(self.activations), list(self.activations.values())
        if any(len(activation) != len(scores) for activation in activations):
            raise ValueError(f"{len(scores)} scores for {len(activations[0])} cases; the target must give one a case")
        if not scores.requires_grad:
            raise ValueError(f"the target's scores do not depend on {listed(layers)}")
        gradients = torch.autograd.grad(scores.sum(), activations, retain_graph=self.keeps_graph, allow_unused=True)
        maps = {}
        for layer, activation, gradient in zip(layers, activations, gradients, strict=True):
            if gradient is None:
                raise ValueError(f"the target's scores do not depend on layer {layer!r}")
            values = _plain(activation).float()
            weights = weigh(values, _plain(gradient).float())
            maps[layer] = torch.einsum("nc,nc...->n...", weights, values).unsqueeze(1)
        return maps


def in_second_pass() -> bool:
    """Whether the forward that is running is one that `GradCam` added, in float32, to explain a low-precision one.

    All hooks of the network fire in it once more. A hook that records or counts the caller's forwards returns at once
    when this is true. Hooks of the network itself see the second pass before the end of the caller's.

    What a hook keeps it should detach in either pass: behind the first explained layer, activations carry a graph.
    """
    return _SECOND_PASS.get()


def _scores(output: Any, target: Target) -> Tensor:
    if callable(target):
        scores = target(output)
        if not isinstance(scores, Tensor) or scores.ndim != 1:
            raise ValueError("the target callable must return one score a case, a tensor (N,)")
        return scores.as_subclass(Tensor)
    if not isinstance(output, Tensor) or output.ndim != 2:
        raise ValueError(f"target {target!r} needs logits (N, K); for other outputs give a callable")
    logits = output.as_subclass(Tensor)
    classes = _classes(logits, target)
    return logits.gather(1, classes[:, None])[:, 0]


def _classes(logits: Tensor, target: str | int | Tensor) -> Tensor:
    cases, count = logits.shape
    if isinstance(target, str):
        return logits.argmax(dim=1)
    classes = torch.as_tensor(target, device=logits.device)
    if classes.ndim == 0:
        classes = classes.expand(cases)
    if classes.shape != (cases,) or classes.dtype != torch.int64:
        raise ValueError(f"target must be one class a case, a LongTensor ({cases},); got {tuple(classes.shape)}")
    if bool(((classes < 0) | (classes >= count)).any()):
        raise ValueError(f"target class outside 0..{count - 1}")
    return classes


def _is_reduced(network: Module) -> bool:
    if torch.is_autocast_enabled(_device(network).type):
        return True
    return any(parameter.dtype in _REDUCED for parameter in network.parameters())


def _device(network: Module) -> torch.device:
    return next((parameter.device for parameter in network.parameters()), torch.device("cpu"))


def _float32_state(network: Module) -> dict[str, Tensor]:
    """Parameters and buffers in float32; buffers as copies, since a network in training writes to them."""
    state = {name: _widened(parameter) for name, parameter in network.named_parameters()}
    return state | {name: _widened(buffer).clone() for name, buffer in network.named_buffers()}


def _widened(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.float() if tensor.dtype in _REDUCED else tensor


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().as_subclass(Tensor)


def _normal(tensor: Tensor) -> Tensor:
    return tensor.clone() if tensor.is_inference() else tensor


def _map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Applies `function` to every tensor in nested tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return type(value)({key: _map_tensors(function, item) for key, item in value.items()})  # type: ignore[call-arg]
    if isinstance(value, (list, tuple)):
        items = [_map_tensors(function, item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def _remove(handles: list[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()
    handles.clear()
