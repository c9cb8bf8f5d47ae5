"""A device that this machine lacks: tensors that claim it, live on the CPU, and keep its rules.

    with machine_with("mps") as device:
        x = torch.zeros(3, device="mps")    # and x + torch.ones(3) raises, as does x.numpy()

What the real device refuses is refused here with PyTorch's own words: operations on tensors of two
devices, a generator of another device, NumPy without ``cpu()``, on Apple's GPUs (mps) float64, a
checkpoint loaded without ``map_location``. What is drawn on the device comes from random numbers
of its own. One rule is ours: an update, which records gradients, moves nothing between devices.
Its kernels are the CPU's: speed, rounding and missing operations are not played.
"""

import contextlib
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from a3.checkpoints import tensors

MOVES = (Tensor.to, Tensor.cpu, Tensor.cuda)
ACROSS = (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default)  # may read another device


class OnDevice(Tensor):
    """A tensor on the device that is played: ``held``, on the CPU, behind another face.

    It works below autograd, so that gradients and what optimizers keep are such tensors too.
    """

    place: torch.device  # of the device that is played now
    noise: torch.Generator  # what the device draws from
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor):
        """Put a copy of a tensor on the device, or a view of one that is there."""
        if cls.place.type == "mps" and held.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework "
                            "doesn't support float64. Please use float32 instead.")
        face = Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(),
            dtype=held.dtype, requires_grad=False)
        face.held = held
        return face

    device = property(lambda self: self.place)
    is_cuda = property(lambda self: self.place.type == "cuda")
    is_mps = property(lambda self: self.place.type == "mps")
    is_cpu = property(lambda self: False)

    def numpy(self, *_, **__):
        """Refuse what NumPy cannot see."""
        raise TypeError(f"can't convert {self.place} device type tensor to numpy. Use Tensor.cpu()"
                        " to copy the tensor to host memory first.")

    def __array__(self, *_, **__):
        return self.numpy()

    def tolist(self):
        """Return the values, which PyTorch copies by itself."""
        return self.held.tolist()

    def __reduce_ex__(self, protocol):
        return self.held.__reduce_ex__(protocol)

    def __repr__(self):
        return f"{self.held!r} on {self.place}"

    def __deepcopy__(self, memo):
        new = OnDevice(self.held.clone()).requires_grad_(self.requires_grad)
        new._is_param = getattr(self, "_is_param", False)
        return memo.setdefault(id(self), new)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        """Compute on the CPU what the rules allow."""
        kwargs = kwargs or {}
        if function not in ACROSS:
            check_devices(function, args, kwargs)
        check_generator(args, kwargs)
        with drawing(torch.Tag.nondeterministic_seeded in function.tags):
            out = function(*held(args), **held(kwargs))
        in_place = bool(args) and isinstance(out, Tensor) and out is held(args[0])
        return args[0] if in_place else placed(out)


def held(value):
    """Return the tensors on the CPU behind those on the device; all else as it is."""
    return value.held if isinstance(value, OnDevice) else within(held, value)


def placed(value):
    """Return tensors as ones on the device; all else as it is."""
    plain = isinstance(value, Tensor) and not isinstance(value, OnDevice)
    return OnDevice(value) if plain else within(placed, value)


def within(function: Callable, value):
    """Return a list, tuple or dict of what a function makes of its values; all else as it is."""
    if isinstance(value, dict):
        return {key: function(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(function, value))
    return value


def names_it(value) -> bool:
    """Return whether a value names the device that is played."""
    return isinstance(value, str | torch.device) and torch.device(value).type == (
        OnDevice.place.type)


def check_devices(function, args: tuple, kwargs: dict) -> None:
    """Let no operation mix devices; numbers, and what an image is indexed by, may be the CPU's."""
    if function._schema.name in ("aten::index", "aten::index_put", "aten::index_put_"):
        args = args[:1] + args[2:]
    for value in (one for _, one in tensors([args, kwargs])):
        if not isinstance(value, OnDevice) and value.dim():
            raise RuntimeError("Expected all tensors to be on the same device, but found at least "
                               f"two devices, {OnDevice.place} and cpu! ({function})")


def check_generator(args: tuple, kwargs: dict) -> None:
    """Let the device draw by no generator of the CPU."""
    if any(isinstance(value, torch.Generator) for value in (*args, *kwargs.values())):
        raise RuntimeError(f"Expected a '{OnDevice.place.type}' device type for generator but "
                           "found 'cpu'")


@contextlib.contextmanager
def drawing(draws: bool) -> Iterator[None]:
    """Put the device's random numbers into the place of the CPU's for a moment."""
    if not draws:
        yield
        return
    before = torch.default_generator.get_state()
    torch.default_generator.set_state(OnDevice.noise.get_state())
    yield
    OnDevice.noise.set_state(torch.default_generator.get_state())
    torch.default_generator.set_state(before)


class Machine(TorchFunctionMode):
    """What comes before the tensors: moves between devices, and new tensors on the device."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        """Call a function of PyTorch."""
        kwargs = dict(kwargs or {})
        if function in MOVES:
            return self.moved(function, *args, **kwargs)
        if not names_it(kwargs.get("device")):
            return function(*args, **kwargs)
        del kwargs["device"]
        check_generator((), kwargs)
        with drawing("rand" in function.__name__):
            return placed(function(*args, **kwargs))

    def moved(self, function, x: Tensor, *args, **kwargs) -> Tensor:
        """Return a tensor where, and as what, ``to`` and its like want it."""
        wanted, kind = x.device, x.dtype
        values = [*args, *kwargs.values(), *{Tensor.cpu: ("cpu",),
                                             Tensor.cuda: ("cuda",)}.get(function, ())]
        for value in values:
            if isinstance(value, Tensor):
                wanted, kind = value.device, value.dtype
            elif isinstance(value, torch.dtype):
                kind = value
            elif isinstance(value, str | torch.device):
                wanted = value
        there = names_it(wanted)
        layout = {key: kwargs[key] for key in ("memory_format",) if key in kwargs}
        if there == isinstance(x, OnDevice):
            return Tensor.to(x, kind, **layout)
        assert not (x.requires_grad and torch.is_grad_enabled()), (
            "an update moves a tensor between devices, where all of it should be on one")
        if there:
            return OnDevice(Tensor.to(x.detach(), kind, copy=True, **layout))
        return Tensor.to(x.held, kind, copy=True, **layout)


@contextlib.contextmanager
def machine_with(kind: str) -> Iterator[torch.device]:
    """Play a machine with one GPU: ``cuda``, which multiplies bfloat16, or ``mps``."""
    OnDevice.place, OnDevice.noise = torch.device(kind, 0), torch.Generator()
    autocast, load = torch.autocast, torch.load

    def manual_seed(seed: int) -> torch.Generator:
        OnDevice.noise.manual_seed(seed)
        return torch.default_generator.manual_seed(seed)

    def cast(device_type: str, *args, **kwargs):
        assert device_type == kind, f"what runs on {kind} is cast for {device_type}"
        return autocast("cpu", *args, **kwargs)

    def load_here(file, map_location=None, **kwargs):
        if map_location is None:
            raise RuntimeError("Attempting to deserialize object on a device, but there is none; "
                               "use torch.load with map_location=torch.device('cpu')")
        state = load(file, map_location="cpu", **kwargs)
        return placed(state) if names_it(map_location) else state

    facts = {"get_rng_state": lambda *_: OnDevice.noise.get_state(),
             "set_rng_state": lambda state, *_: OnDevice.noise.set_state(state),
             "is_available": lambda: True, "device_count": lambda: 1, "synchronize": lambda *_: 0}
    if kind == "cuda":
        facts |= {"get_device_name": lambda *_: "a GPU that is not there", "_lazy_init": int,
                  "get_device_capability": lambda *_: (9, 0), "current_device": lambda: 0,
                  "max_memory_allocated": lambda *_: 2**20}
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    with pytest.MonkeyPatch.context() as patch, Machine():
        for name, value in facts.items():
            patch.setattr(getattr(torch, kind), name, value, raising=False)
        patch.setattr(torch.backends.mps, "is_available", lambda: kind == "mps")
        patch.setattr(torch.accelerator, "current_accelerator", lambda **_: None)
        for name, value in (("autocast", cast), ("load", load_here), ("manual_seed", manual_seed)):
            patch.setattr(torch, name, value)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            yield OnDevice.place
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(overwrites)
