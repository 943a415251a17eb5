# SPDX-License-Identifier: Apache-2.0
"""The programs of a model, compiled once and bound to surfaces: embedded tokens to logits, gradients back to trained values.

The procedures of the layers pass activations on through shared surfaces, and trained values lie in surfaces of their own that
both directions of a layer read. Nothing is compiled after the engine is made.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _core_ane, _core_mil
from .ane_programs import ATTENTION, FFN, NORMS, Job, Procedure, banks, build
from .errors import BackendError, RestartNeeded
from .weights import F32Array, ParamSet, Weights

HalfArray = npt.NDArray[np.float16]
Surfaces = Mapping[str, _core_ane.AneSurface]
BLOB = "@model_path/weights/weight.bin"  # as csrc/mil names it
TIMEOUT = 60.0  # seconds; a call takes milliseconds
DOCUMENTS = 2048  # whole numbers that fp16 holds exactly
NORM = "model.norm.weight"


class Call:
    """A procedure bound to surfaces; its ports go by their roles, "x" for "i00_x".

    Args:
        size: bytes of each surface that is not given; some machines are reported to refuse surfaces of different sizes.
        given: {role: surface}, what other calls use too.

    Attributes:
        inputs, outputs: {role: port}.
        surfaces: {role: surface}.
    """

    def __init__(self, program: _core_ane.AneProgram, name: str, *, size: int = 0, given: Surfaces | None = None) -> None:
        at = program.procedure(name)
        self.inputs, self.outputs = ({_role(port): port for port in side} for side in program.ports(at))
        self._ports = self.inputs | self.outputs
        size = size or max(port.size for port in self._ports.values())
        self.surfaces = {role: (given or {}).get(role) or _core_ane.AneSurface(program.device, size) for role in self._ports}
        bound = {port.name: self.surfaces[role] for role, port in self._ports.items()}
        self._request = _core_ane.AneRequest(program, at, surfaces=bound)

    @contextlib.contextmanager
    def view(self, role: str, *, write: bool = False) -> Iterator[HalfArray]:
        """The memory of a port as (channels, width), without a copy; to be used inside the `with` alone."""
        with self.surfaces[role].lock(self._ports[role], write=write) as array:
            yield array[0, :, 0, :]

    def layout(self, role: str) -> tuple[Any, ...]:
        """How the port lies in its surface."""
        port = self._ports[role]
        return port.dtype, port.shape, port.strides

    def run(self) -> None:
        self._request.run(timeout=TIMEOUT)


def _role(port: _core_ane.AnePort) -> str:
    return port.name.split("_", 1)[1]


def _agree(calls: list[Call]) -> None:
    """What one call writes another reads: each shared surface must look the same to all of them."""
    seen: dict[int, tuple[Any, ...]] = {}
    for call in calls:
        for role, surface in call.surfaces.items():
            if seen.setdefault(id(surface), call.layout(role)) != call.layout(role):
                raise BackendError(f"port {role} lies differently in two programs: {seen[id(surface)]}, {call.layout(role)}")


def roles(layer: int) -> dict[str, str]:
    """{role of a port: canonical name} of all that can be trained in a layer."""
    prefix = f"model.layers.{layer}."
    found = {f"{n}_gain": f"{prefix}{stored}.weight" for n, stored in NORMS.items()}
    found |= {f"{n}_gain": f"{prefix}self_attn.{n}.weight" for n in ("q_norm", "k_norm")}
    modules = {n: f"self_attn.{m}" for n, m in ATTENTION.items()} | {n: f"mlp.{m}" for n, m in FFN.items()}
    for n, module in modules.items():
        found |= {f"{n}_{kind}": f"{prefix}{module}.{kind}" for kind in ("weight", "bias")}
        found |= {f"{n}_lora_{ab.lower()}": f"{prefix}{module}.lora_{ab}.weight" for ab in "AB"}
    return found


def _as_port(role: str, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A trained value as its port has it, or its gradient back: B transposed, a vector as one row; a view."""
    return values.T if role.endswith("lora_b") else np.atleast_2d(values)


class Engine:
    """All procedures of a job on the device.

    Args:
        job: model, mode and tokens of a stream.
        weights: constants of the programs; where all weights are trained they come with `write` instead.
        training: also the backward procedures.
        limits: as `ane_programs.banks` takes them; "compiles" counts for the whole process.

    Raises:
        ConfigError, BackendError: a model or length that the programs cannot have, or the device refuses them.
        RestartNeeded: the process may compile no more programs.
    """

    def __init__(
        self,
        device: _core_ane.AneDevice,
        job: Job,
        weights: Weights,
        *,
        training: bool,
        limits: dict[str, int] | None = None,
    ) -> None:
        self.job, self.training = job, training
        self._device, self._limits = device, limits
        self._programs: list[_core_ane.AneProgram] = []
        self._found: dict[tuple[str, str, int], tuple[_core_ane.AneProgram, str]] = {}
        cut = banks(job, limits)
        try:
            for bank in cut:
                self._load([p for p in bank if training or p.way == "forward"], weights)
        except BaseException:
            for program in self._programs:
                program.close()
            raise
        self.rows = [p.rows for bank in cut for p in bank if p.part == "head" and p.way == "forward"]
        self._bind_layers()
        self._bind_head()

    @property
    def programs(self) -> int:
        """How many it has loaded."""
        return len(self._programs)

    @property
    def seq(self) -> int:
        """Tokens of a stream."""
        return self.job.seq

    def _load(self, bank: list[Procedure], weights: Weights) -> None:
        if not bank:
            return
        # one that an earlier process compiled would be no compile, but those come first, while there is still room
        compiles = _core_ane.ane_compile_count()
        if compiles >= (_core_mil.MIL_LIMITS | (self._limits or {}))["compiles"]:
            raise RestartNeeded(compiles=compiles, opened=len(self._programs))
        made = build(self.job, bank, weights, limits=self._limits)
        text = made.text()
        blobs = {BLOB: made.blob()} if made.blob_bytes() else {}
        program = _core_ane.AneProgram(self._device, text, blobs)
        self._programs.append(program)
        self._found |= {(p.part, p.way, p.index): (program, p.name) for p in bank}

    def _procedure(self, part: str, way: str, index: int) -> tuple[_core_ane.AneProgram, str] | None:
        return self._found.get((part, way, index)) or self._found.get((part, way, -1))

    # --- binding

    def _bind_layers(self) -> None:
        """Calls of all parts in order: part k reads state k and writes state k + 1, and slopes come back the same way."""
        kinds = ("layer",) if self.job.whole_layers else ("attention", "ffn")
        self._parts = [(kind, layer) for layer in range(self.job.config.num_hidden_layers) for kind in kinds]
        size = max(_largest(*found) for (part, _, _), found in self._found.items() if part in kinds)
        states, slopes = ([_core_ane.AneSurface(self._device, size) for _ in range(count)] for count in (self._states(), 2))
        # the documents, and the gradients of trained values, which are read after each call
        shared: dict[str, _core_ane.AneSurface] = {}
        self._forward: list[Call] = []
        self._backward: list[Call | None] = []  # None: nothing is trained there or below
        for k, (kind, layer) in enumerate(self._parts):
            forward, backward = (self._procedure(kind, way, layer) for way in ("forward", "backward"))
            assert forward is not None
            given = shared | {"x": states[k % len(states)], "y": states[(k + 1) % len(states)]}
            call = Call(*forward, size=size, given=given)
            shared |= {r: s for r, s in call.surfaces.items() if r == "documents"}
            self._forward.append(call)
            self._backward.append(None)
            if backward:
                given = shared | call.surfaces | {"dy": slopes[(k + 1) % 2], "dx": slopes[k % 2]}
                call = Call(*backward, size=size, given=given)
                shared |= {r: s for r, s in call.surfaces.items() if r in call.outputs and r != "dx"}
                self._backward[-1] = call
        _agree(self._forward + [call for call in self._backward if call])

    def _states(self) -> int:
        return len(self._parts) + 1 if self.training else 2

    def _bind_head(self) -> None:
        """The last norm, where it stands alone, and the rows of the classifier; the processor carries between them."""
        self._head: list[Call] = []
        self._head_back: list[Call | None] = []
        self._norm: Call | None = None
        self._norm_back: Call | None = None
        for i in range(len(self.rows)):
            forward, backward = self._both("head", i)
            self._head.append(forward)
            self._head_back.append(backward)
        if len(self.rows) > 1:
            self._norm, self._norm_back = self._both("norm", -1)

    def _both(self, part: str, index: int) -> tuple[Call, Call | None]:
        """A forward call, and the backward one with the same inputs."""
        found = [f for way in ("forward", "backward") if (f := self._found.get((part, way, index)))]
        size = max(_largest(program, name) for program, name in found)
        forward = Call(*found[0], size=size)
        if len(found) == 1:
            return forward, None
        backward = Call(*found[1], size=size, given={r: forward.surfaces[r] for r in forward.inputs})
        _agree([forward, backward])
        return forward, backward

    # --- trained values

    def write(self, params: ParamSet) -> None:
        """Put trained values into their surfaces, rounded to fp16."""
        for (_, layer), call in zip(self._parts, self._forward, strict=True):
            _fill(call, {role: params[name] for role, name in roles(layer).items() if name in params})
        if self.job.mode == "full":
            for call in [*self._head, *([self._norm] if self._norm else [])]:
                _fill(call, {"norm_gain": params[NORM]})
            for call, rows in zip(self._head, self.rows, strict=True):
                _fill(call, {"head_weight": params[self.job.head][slice(*rows)]})

    # --- a pass

    def forward(self, embedded: HalfArray, bounds: npt.NDArray[np.int32]) -> None:
        """All layers and the last norm; `logits` can be asked for afterwards.

        Args:
            embedded: (T, hidden), T at most `seq`.
            bounds: (S + 1,), document s is rows bounds[s]:bounds[s + 1].
        """
        count = bounds.size - 1
        if count > DOCUMENTS:
            raise BackendError(f"{count} documents in a stream, the Neural Engine tells {DOCUMENTS} apart")
        with self._forward[0].view("x", write=True) as x:
            x[:, : embedded.shape[0]] = embedded.T
            x[:, embedded.shape[0] :] = 0  # what follows is hidden from all before it
        if "documents" in self._forward[0].inputs:
            with self._forward[0].view("documents", write=True) as documents:
                documents[0] = count
                documents[0, : embedded.shape[0]] = np.repeat(np.arange(count), np.diff(bounds))
        for call in self._forward:
            call.run()
        last, role = self._forward[-1], "y"
        if self._norm:
            _carry(last, role, self._norm, "x")
            self._norm.run()
            last = self._norm
        for call in self._head:
            _carry(last, role, call, "x")

    def logits(self, places: npt.NDArray[Any] | slice) -> F32Array:
        """(V, places) of the last `forward`."""
        parts = []
        for call in self._head:
            call.run()
            with call.view("y") as y:
                parts.append(y[:, places].astype(np.float32))
        return np.concatenate(parts)

    def backward(self, d_logits: F32Array, places: npt.NDArray[Any], grads: ParamSet) -> HalfArray | None:
        """Add the gradients of trained values of the last `forward` to `grads`.

        Args:
            d_logits: (V, n), rounded to fp16.
            places: (n,) which tokens they belong to; those of the others are 0.

        Returns:
            (hidden, seq), the gradient of what was embedded; None where nothing needs it.
        """
        last = self._head_gradients(d_logits, places, grads)
        _carry(last, "dx", self._last_backward(), "dy")
        call = None
        for (_, layer), call in reversed(list(zip(self._parts, self._backward, strict=True))):
            if call is None:
                return None
            call.run()
            _collect(call, roles(layer), grads)
        assert call is not None
        if "dx" not in call.outputs:
            return None
        with call.view("dx") as dx:
            return np.array(dx)

    def _last_backward(self) -> Call:
        call = self._backward[-1]
        assert call is not None, "the engine was made without gradients"
        return call

    def _head_gradients(self, d_logits: F32Array, places: npt.NDArray[Any], grads: ParamSet) -> Call:
        """The classifier's chunks one after another, then the norm; gives the call whose dx is that of the last layer."""
        last: Call | None = None
        for call, rows in zip(self._head_back, self.rows, strict=True):
            assert call is not None, "the engine was made without gradients"
            with call.view("dy", write=True) as dy, np.errstate(over="ignore"):
                dy[...] = 0
                dy[:, places] = d_logits[slice(*rows)]
            if last is not None:
                _carry(last, "dx", call, "acc")
            call.run()
            _collect(call, {"norm_gain": NORM, "head_weight": self.job.head}, grads, rows=slice(*rows))
            last = call
        assert last is not None
        if self._norm_back is None:
            return last
        _carry(last, "dx", self._norm_back, "dy")
        self._norm_back.run()
        _collect(self._norm_back, {"norm_gain": NORM}, grads)
        return self._norm_back

    def close(self) -> None:
        """Unload the programs; the engine cannot be used afterwards."""
        self._forward, self._backward, self._head, self._head_back = [], [], [], []
        self._norm = self._norm_back = None
        for program in self._programs:
            program.close()


def _largest(program: _core_ane.AneProgram, name: str) -> int:
    """Bytes of the largest port of a procedure."""
    return max(port.size for side in program.ports(program.procedure(name)) for port in side)


def _fill(call: Call, values: dict[str, F32Array]) -> None:
    """Write trained values into the ports that the call has; what a port has beyond them stays 0."""
    for role, value in values.items():
        if role in call.inputs:
            shaped = _as_port(role, value)
            with call.view(role, write=True) as port, np.errstate(over="ignore"):
                port[: shaped.shape[0], : shaped.shape[1]] = shaped


def _collect(call: Call, names: dict[str, str], grads: ParamSet, *, rows: slice = slice(None)) -> None:
    """Add the gradients that a call has given; `rows` are those of a matrix of which the call has a part."""
    for role in call.outputs:
        if role.startswith("d_"):
            own = role[2:]
            target = _as_port(own, grads[names[own]][rows] if own == "head_weight" else grads[names[own]])
            with call.view(role) as port:
                target += port[: target.shape[0], : target.shape[1]]


def _carry(source: Call, of: str, target: Call, to: str) -> None:
    """Copy an activation to a port that needs a surface of another size."""
    if to in target.inputs:
        with source.view(of) as values, target.view(to, write=True) as port:
            port[...] = values
