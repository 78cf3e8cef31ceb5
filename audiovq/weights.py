"""A model's tensors: what is kept of them until they change, and which files of them are taken."""

import math
import os.path
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import safetensors
import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook
from torch.overrides import TorchFunctionMode

from audiovq.files import FileRefused

SAMPLED = 8
"""Numbers of each tensor that are compared to see whether it was written to, or one more."""
FILE_TYPES = {torch.float32: ("F32", "F16", "BF16"), torch.bool: ("BOOL",)}
"""Types in a file, in safetensors' names, of a tensor that has this type in memory."""

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)


class _Snapshot:
    """What a model's tensors were at one time, as far as is needed to see a change of them.

    PyTorch counts the writes to a tensor, but not those of fused optimizers, those through `.data`
    and those through numpy. All optimizers report their steps (`_forget_stepped`); the others write
    to whole tensors, so a few numbers of each tell. Reading every number would take 3 ms for the
    bundled model, a tenth of encoding a second; this takes a tenth of a millisecond.
    """

    def __init__(self, tensors: list[Tensor]) -> None:
        self._versions = list(map(_version, tensors))
        # The views also keep the memory, so that no other tensor can come to lie at its address.
        self._views = [
            tensor.detach().flatten()[:: max(1, tensor.numel() // SAMPLED)]
            for tensor in tensors
            if tensor.is_floating_point() and tensor.is_contiguous()
        ]
        self._numbers = torch.cat(self._views)

    def matches(self, tensors: list[Tensor]) -> bool:
        return self._versions == list(map(_version, tensors)) and torch.equal(
            self._numbers, torch.cat(self._views)
        )


def _version(tensor: Tensor) -> tuple[int, int]:
    # Tensors that were made under torch.inference_mode() have no count.
    return tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version


_kept: weakref.WeakKeyDictionary[nn.Module, tuple[_Snapshot, dict[str, Any]]]
_kept = weakref.WeakKeyDictionary()


def kept(model: nn.Module, name: str, make: Callable[[], T]) -> T:
    """`make()`, once for each model and name, and anew after the model's tensors have changed.

    What it makes must not refer to the model. Raises `ValueError` when weights are not float32.
    """
    tensors = model.state_dict(keep_vars=True)
    known = _kept.get(model)
    if known is None or not known[0].matches(list(tensors.values())):
        check_types(tensors)
        known = _kept[model] = (_Snapshot(list(tensors.values())), {})
    if name not in known[1]:
        with torch.no_grad():
            known[1][name] = make()
    return cast(T, known[1][name])


def _forget_stepped(optimizer: Optimizer, args: object, kwargs: object) -> None:
    """Drop what is kept of models whose parameters an optimizer has moved."""
    if not _kept:
        return
    moved = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for model in list(_kept):
        if any(id(parameter) in moved for parameter in model.parameters()):
            _kept.pop(model, None)


register_optimizer_step_post_hook(_forget_stepped)


def check_types(tensors: Mapping[str, Tensor]) -> None:
    """Raise `ValueError` that names the first tensor of numbers that are not float32."""
    for name, tensor in tensors.items():
        if tensor.dtype not in FILE_TYPES:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ValueError(
                f"{name} is {kind}, and a model computes in float32 alone, because tokens hang on "
                "it; load the model anew, or call model.float()."
            )


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise `ValueError` that names the first tensor which holds NaN or infinity."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel():
            if not all(math.isfinite(bound) for bound in tensor.detach().aminmax()):
                raise ValueError(f"{name} holds numbers that are not finite (NaN or infinity).")


class _Budget(TorchFunctionMode):
    """Where modules are made: `MemoryError` before more than `left` numbers are asked for."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self.left = left

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (torch.empty, torch.randn):  # what weights are made by
            self.left -= math.prod(args[0] if isinstance(args[0], Sequence) else args)
            if self.left < 0:
                raise MemoryError
        return func(*args, **(kwargs or {}))


def load_weights(make: Callable[[], M], path: Path) -> M:
    """The module that `make` makes, with the weights of a safetensors file.

    The file's header must have the module's names and shapes. It is read first, so that no more
    memory is taken than the file is long, and compared before any weight is. Raises `FileRefused`.
    """
    if not os.path.isfile(path):
        raise FileRefused(f"{path} is missing.")
    try:
        with safetensors.safe_open(path, "pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}
            try:
                with _Budget(sum(map(math.prod, shapes.values()))):
                    module = make()
            except MemoryError as error:
                raise FileRefused(
                    f"{path} does not fit the config beside it, which asks for more weights."
                ) from error
            own = module.state_dict()
            _compare(path, file, own)
            module.load_state_dict({name: file.get_tensor(name) for name in own})
    except (OSError, safetensors.SafetensorError) as error:
        raise FileRefused(f"{path} is missing or damaged ({error}).") from error
    return module


def _compare(path: Path, file: Any, expected: Mapping[str, Tensor]) -> None:
    """Raise `FileRefused` when the header of an open file is not that of `expected`."""
    wrong = set(file.keys()) ^ set(expected)
    if wrong:
        name = min(wrong)
        how = "lacks" if name in expected else "has a tensor that the model lacks,"
        raise FileRefused(f"{path} does not fit the config beside it: it {how} {name!r}.")
    for name, tensor in expected.items():
        shape, kind = file.get_slice(name).get_shape(), file.get_slice(name).get_dtype()
        if shape != list(tensor.shape):
            raise FileRefused(
                f"{path} does not fit the config beside it: {name} is {shape} and must be "
                f"{list(tensor.shape)}."
            )
        if kind not in FILE_TYPES[tensor.dtype]:
            allowed = " or ".join(FILE_TYPES[tensor.dtype])
            raise FileRefused(f"{path} is not usable: {name} is {kind} and must be {allowed}.")
