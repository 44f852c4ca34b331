"""A pretend accelerator: tensors of "cuda:0" or "mps:0" that lie in the host's memory, so that a
run can be tried where there is none.

Each storage remembers its place. What an accelerator refuses is refused: tensors of two places in
one operation (a host's number beside a device's tensors aside), numpy's view of a device's tensor,
a generator of another place, pinning what is not a host's, double precision on Apple's, and a copy
from place to place while a graph is recorded (`tests.tape`). It shows that everything is where it
should be; it says nothing of an accelerator's arithmetic, streams or speed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests import tape

HOST = torch.device("cpu")
STRICT = ("cat", "stack", "mm", "addmm", "bmm", "baddbmm", "mv", "dot")
"""Operations that take no number of the host's among a device's tensors."""
CROSSING = "copy_"
"""The operation between places; `.to` is the other one, see `_Python`."""


def place_of(tensor: torch.Tensor) -> torch.device:
    """Where a tensor pretends to be."""
    return getattr(tensor.untyped_storage(), "place", HOST)


def _cross(here: torch.device, there: torch.device) -> None:
    if here != there and tape.recording:
        raise RuntimeError("Cannot copy between CPU and CUDA tensors during CUDA graph capture")


def _put(nested, place: torch.device):
    for tensor in _tensors(nested):
        if place.type == "mps" and tensor.dtype == torch.float64:
            raise TypeError("the MPS framework doesn't support float64")
        tensor.untyped_storage().place = place
    return nested


def _tensors(nested) -> list[torch.Tensor]:
    if isinstance(nested, torch.Tensor):
        return [nested]
    parts = nested.values() if isinstance(nested, dict) else nested
    return (
        [x for y in parts for x in _tensors(y)] if isinstance(nested, list | tuple | dict) else []
    )


def _resolve(device) -> torch.device:
    asked = torch.device(device)
    return asked if asked.type == "cpu" else torch.device(asked.type, asked.index or 0)


class Generator(torch.Generator):
    """A generator that pretends to be on a device."""

    def __new__(cls, device="cpu"):
        made = super().__new__(cls)
        made.place = _resolve(device)
        return made

    device = property(lambda self: self.place)  # type: ignore[assignment]


class _Python(TorchFunctionMode):
    """What names a device."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if func == torch.Tensor.device.__get__:
            return place_of(args[0])
        if func == torch.Tensor.is_cuda.__get__:
            return place_of(args[0]).type == "cuda"
        forced = name == "numpy" and kwargs.get("force")
        if name in ("numpy", "__array__") and not forced and place_of(args[0]) != HOST:
            raise TypeError("can't convert a device's tensor to numpy")
        if name == "pin_memory":
            assert place_of(args[0]) == HOST, "only a host's tensor can be pinned"
            return args[0].clone()
        if name in ("to", "cpu", "cuda"):
            return self._move(func, name, args, kwargs)
        if name == "__deepcopy__":
            return _put(func(*args, **kwargs), place_of(args[0]))
        return self._call(func, name, args, kwargs)

    def _call(self, func, name, args, kwargs):
        wanted = kwargs.pop("device", None)
        generator = kwargs.get("generator")
        if wanted is None:
            if generator is not None:
                own = place_of(args[0]) if args and isinstance(args[0], torch.Tensor) else HOST
                assert generator.device == own, f"{name}: a generator of {generator.device}"
            return func(*args, **kwargs)
        place = _resolve(wanted)
        assert generator is None or generator.device == place, f"{name}: generator, {place}"
        out = func(*args, **kwargs)
        if name in ("as_tensor", "asarray") and isinstance(args[0], torch.Tensor):
            _cross(place_of(out), place)
            return out if place_of(out) == place else _put(out.clone(), place)
        return _put(out, place)

    def _move(self, func, name, args, kwargs):
        source, *rest = args
        place = {"cpu": HOST, "cuda": torch.device("cuda", 0)}.get(name)
        wanted = kwargs.pop("device", None)
        for value in rest if name == "to" else []:
            if isinstance(value, torch.Tensor):
                wanted, kwargs["dtype"] = place_of(value), value.dtype
            elif isinstance(value, str | torch.device):
                wanted = value
            elif isinstance(value, torch.dtype):
                kwargs["dtype"] = value
        if wanted is not None:
            place = _resolve(wanted)
        before = place_of(source)
        out = source.to(**kwargs) if kwargs.get("dtype") else source
        if place is None or place == before:
            return out
        _cross(before, place)
        return _put(out.clone() if out is source else out, place)


class _Kernels(TorchDispatchMode):
    """What each operation takes and gives, those of autograd as well."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        taken = _tensors((args, kwargs))
        places = [place_of(tensor) for tensor in taken]
        device = next((place for place in places if place != HOST), None)
        if device is not None and name == CROSSING:
            _cross(*places[:2])
        elif device is not None:
            self._refuse(func, args, kwargs, taken, places)
        out = func(*args, **kwargs)
        if device is not None and name != CROSSING:
            _put(out, device)
        return out

    def _refuse(self, func, args, kwargs, taken, places):
        name = func.overloadpacket.__name__
        if name in ("index", "_unsafe_index", "index_put_", "index_put") and places[0] != HOST:
            return  # indices may be the host's
        numbers = name not in STRICT
        hosts = [
            tensor
            for tensor, place in zip(taken, places, strict=True)
            if place == HOST and not (numbers and tensor.dim() == 0)
        ]
        given = {
            **dict(zip((a.name for a in func._schema.arguments), args, strict=False)),
            **kwargs,
        }
        written = [
            tensor
            for argument in func._schema.arguments
            if argument.alias_info is not None and argument.alias_info.is_write
            for tensor in _tensors(given.get(argument.name))
            if place_of(tensor) == HOST
        ]
        if hosts or written:
            shapes = [(str(place), tuple(t.shape)) for t, place in zip(taken, places, strict=True)]
            raise RuntimeError(f"{name}: tensors of two devices: {shapes}")


class _Stream:
    def __init__(self, device=None, **_):
        self.device = device

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def wait_stream(self, other):
        assert isinstance(other, _Stream)


class _Event:
    def __init__(self, device=None, enable_timing=False):
        self.device = device

    def record(self, stream=None):
        assert isinstance(stream, _Stream), "of the current device, which need not be the policy's"

    def synchronize(self):
        pass

    def elapsed_time(self, other):
        return 0.001


@contextlib.contextmanager
def accelerator(kind: str = "cuda") -> Iterator[None]:
    """Pretend that this process has one, "cuda:0" or "mps:0"."""
    has = {
        "is_available": lambda: True,
        "current_accelerator": lambda: torch.device(kind),
        "device_count": lambda: 1,
        "current_device_index": lambda: 0,
        "synchronize": lambda device=None: None,
        "current_stream": lambda device=None: _Stream(device),
        "get_memory_info": lambda device=None: (2**34, 2**34),
    }
    made = {"Stream": _Stream, "Event": _Event, "Generator": Generator}
    with contextlib.ExitStack() as stack:
        for module, names in ((torch.accelerator, has), (torch, made)):
            for name, value in names.items():
                stack.enter_context(mock.patch.object(module, name, value))
        stack.enter_context(_Python())
        stack.enter_context(_Kernels())
        yield
