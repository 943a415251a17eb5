# SPDX-License-Identifier: Apache-2.0
"""The bridge to the Neural Engine as Python objects: an extension of its own, loaded when it is asked for."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import BackendError, WontFitError


def _ane() -> tuple[Any, Any]:
    """(ffi, lib) of the bridge, or of its stub."""
    from ._ane import ffi as ane_ffi
    from ._ane import lib as ane

    return ane_ffi, ane


def _check_ane(status: int) -> None:
    ane_ffi, ane = _ane()
    if status == ane.NF_OK:
        return
    message = ane_ffi.string(ane.nf_last_error()).decode("utf-8", "replace")
    raise (WontFitError if status == ane.NF_ERR_MEMORY else BackendError)(message)


def ane_built() -> bool:
    """Whether this build has the bridge to the Neural Engine; without it `AneDevice` raises and says why."""
    return bool(_ane()[1].nf_ane_built())


def ane_compile_count() -> int:
    """Programs that this process has compiled; the system takes about 119."""
    return int(_ane()[1].nf_ane_compile_count())


@dataclass(frozen=True)
class AnePort:
    """How a tensor lies in its surface.

    Attributes:
        name: of the parameter or result in the program.
        shape, strides: batches, channels, height, width; strides in bytes.
        size: bytes that its surface must have at least.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    size: int


class AneDevice:
    """The opened framework; see ane_bridge/ane.h for what each call does.

    Args:
        framework: library with the private classes; None is the one of the system.
        cache: folder in which compiled programs outlive the process; None keeps none.

    Raises:
        BackendError: there is no Neural Engine, no bridge to it in this build, or the system has changed.
    """

    def __init__(self, framework: str | None = None, *, cache: str | None = None) -> None:
        ane_ffi, ane = _ane()
        out = ane_ffi.new("nf_ane_device **")
        paths = [ane_ffi.NULL if p is None else ane_ffi.new("char[]", os.fsencode(p)) for p in (framework, cache)]
        _check_ane(ane.nf_ane_open(out, *paths))
        self.handle = ane_ffi.gc(out[0], ane.nf_ane_close)

    def info(self) -> dict[str, Any]:
        """What the system says of the device: architecture, subtype, os_build, cores, engines, virtual_machine, scratch."""
        ane_ffi, ane = _ane()
        out = ane_ffi.new("nf_ane_info *")
        ane.nf_ane_device_info(self.handle, out)
        texts = {key: ane_ffi.string(getattr(out, key)).decode() for key in ("architecture", "subtype", "os_build", "scratch")}
        return texts | {key: getattr(out, key) for key in ("cores", "engines", "virtual_machine")}


class AneSurface:
    """Memory that processor and Neural Engine share, zero at first."""

    def __init__(self, device: AneDevice, size: int) -> None:
        ane_ffi, ane = _ane()
        out = ane_ffi.new("nf_ane_surface **")
        _check_ane(ane.nf_ane_surface_new(out, device.handle, size))
        self.handle = ane_ffi.gc(out[0], ane.nf_ane_surface_free)
        self.size = int(ane.nf_ane_surface_bytes(self.handle))

    @contextlib.contextmanager
    def lock(self, port: AnePort, *, write: bool) -> Iterator[npt.NDArray[Any]]:
        """The surface as the array of `port`, without a copy; it may be used inside the `with` alone."""
        ane_ffi, ane = _ane()
        if port.size > self.size:
            raise BackendError(f"port {port.name} needs {port.size} bytes, the surface has {self.size}")
        base = ane_ffi.new("void **")
        _check_ane(ane.nf_ane_surface_lock(self.handle, not write, base))
        try:
            array: npt.NDArray[Any] = np.ndarray(
                port.shape, port.dtype, ane_ffi.buffer(base[0], self.size), strides=port.strides
            )
            array.flags.writeable = write
            yield array
        finally:
            _check_ane(ane.nf_ane_surface_unlock(self.handle, not write))


class AneProgram:
    """A loaded program.

    Args:
        mil: its text.
        blobs: {"@model_path/weights/w.bin": bytes}; read where they are, and kept alive.
        donor: a loaded program with the same text and another weight file; then nothing is compiled.

    Raises:
        BackendError: the compiler or the driver refused; the message has what they said.
    """

    def __init__(self, device: AneDevice, mil: str, blobs: Mapping[str, Any], *, donor: AneProgram | None = None) -> None:
        ane_ffi, ane = _ane()
        self.device = device
        text = mil.encode()
        views = [memoryview(blob).cast("B") for blob in blobs.values()]
        paths = [ane_ffi.new("char[]", path.encode()) for path in blobs]
        data = [ane_ffi.from_buffer(view) for view in views]
        given = ane_ffi.new("nf_ane_blob[]", [(p, d, v.nbytes) for p, d, v in zip(paths, data, views, strict=True)])
        source = ane_ffi.from_buffer(text)
        out = ane_ffi.new("nf_ane_program **")
        whence = ane.nf_ane_program_load_by_donor if donor else ane.nf_ane_program_load
        _check_ane(whence(out, donor.handle if donor else device.handle, source, len(text), given, len(views)))
        self.closed = False
        kept = (device.handle, source, data)  # until the program is freed, whatever becomes of this object
        self.handle: Any = ane_ffi.gc(out[0], lambda handle, kept=kept: ane.nf_ane_program_free(handle))

    @property
    def cached(self) -> bool:
        """Whether it was compiled by an earlier process."""
        return bool(_ane()[1].nf_ane_program_origin(self.handle))

    @property
    def procedures(self) -> int:
        """How many functions it has."""
        return int(_ane()[1].nf_ane_program_procedures(self.handle))

    def procedure(self, name: str) -> int:
        """The place of the function `name`."""
        ane_ffi, ane = _ane()
        out = ane_ffi.new("int *")
        _check_ane(ane.nf_ane_program_procedure(self.handle, name.encode(), out))
        return int(out[0])

    def ports(self, procedure: int = 0) -> tuple[list[AnePort], list[AnePort]]:
        """(inputs, outputs) of a procedure in the order of their symbols."""
        ane = _ane()[1]
        return self._ports(ane.nf_ane_program_inputs, procedure), self._ports(ane.nf_ane_program_outputs, procedure)

    def _ports(self, call: Any, procedure: int) -> list[AnePort]:
        ane_ffi, _ = _ane()
        out, count = ane_ffi.new("nf_ane_port **"), ane_ffi.new("int *")
        _check_ane(call(self.handle, procedure, out, count))
        return [_ane_port(out[0][i], ane_ffi.string(out[0][i].name).decode()) for i in range(count[0])]

    def close(self) -> None:
        """Unload it now; its requests cannot run afterwards."""
        self.closed = True
        _ane()[0].release(self.handle)


def _ane_port(p: Any, name: str) -> AnePort:
    strides = (p.batch_stride, p.plane_stride, p.row_stride, p.element_bytes)
    shape = (p.batches, p.channels, p.height, p.width)
    return AnePort(name, np.dtype(f"<f{p.element_bytes}"), shape, strides, p.bytes)


class AneRequest:
    """Surfaces bound to the ports of a procedure.

    Args:
        surfaces: {port name: surface} to be used; the others are made, all inputs in one size and all outputs in one, because
            some machines are reported to refuse others.

    Attributes:
        ports, surfaces: by port name.
    """

    def __init__(self, program: AneProgram, procedure: int = 0, *, surfaces: Mapping[str, AneSurface] | None = None) -> None:
        ane_ffi, ane = _ane()
        sides = program.ports(procedure)
        self.ports = {port.name: port for side in sides for port in side}
        self.surfaces = dict(surfaces or {})
        for side in sides:
            size = max((port.size for port in side), default=0)
            for port in side:
                if port.name not in self.surfaces:
                    self.surfaces[port.name] = AneSurface(program.device, size)
        handles = [[self.surfaces[port.name].handle for port in side] for side in sides]
        given = [x for side in handles for x in (ane_ffi.new("nf_ane_surface *[]", side), len(side))]
        out = ane_ffi.new("nf_ane_request **")
        _check_ane(ane.nf_ane_request_new(out, program.handle, procedure, *given))
        self.program = program
        kept = list(self.surfaces.values())
        self.handle = ane_ffi.gc(out[0], lambda handle, kept=kept: ane.nf_ane_request_free(handle))

    def write(self, name: str, values: npt.NDArray[Any]) -> None:
        """Copy values into an input, in its shape or one that differs by axes of length 1."""
        port = self.ports[name]
        with self.surfaces[name].lock(port, write=True) as array:
            array[...] = values.reshape(port.shape)

    def read(self, name: str) -> npt.NDArray[Any]:
        """A copy of an output, (batches, channels, height, width)."""
        with self.surfaces[name].lock(self.ports[name], write=False) as array:
            return np.array(array)

    def run(self, *, timeout: float = 30.0) -> None:
        """Evaluate and wait; 0 s waits for ever.

        Raises:
            BackendError: the driver refused, or did not answer in time; after that the program must be loaded again.
        """
        if self.program.closed:
            raise BackendError("the program has been unloaded")
        _check_ane(_ane()[1].nf_ane_request_run(self.handle, timeout))
