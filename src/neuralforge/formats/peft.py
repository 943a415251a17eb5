# SPDX-License-Identifier: Apache-2.0
"""LoRA adapters as PEFT keeps them: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..config import LINEAR_MODULES, LoraConfig, ModelConfig, tensor_shapes
from ..errors import AdapterError, AdapterMismatchError, ConfigError, OutputError
from ..files import fsync_dir, make_folder, output_error, read_bytes, read_json, write_atomic
from ..lora import StoredPair, pair_names, split_pairs, stored_linears, stored_pairs
from ..models.fields import Fields
from ..weights import STORED, F32Array, ParamSet, Tensor
from . import canonical_name, from_half, safetensors, to_half

_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_DAMAGED = "both files of an adapter must come from one training: copy the folder again"
_MAGNITUDE = "lora_magnitude_vector"
_NOT_PEFT = "save the adapter with peft: model.save_pretrained(folder)"
_FINGERPRINT = "neuralforge.base_fingerprint"
_READ = {"peft_type", "r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "bias", "init_lora_weights"}
_READ |= {"rank_pattern", "alpha_pattern", "layers_to_transform", "use_dora"}
# Entries that change nothing in a trained adapter, whatever they hold.
_HARMLESS = {
    "task_type",
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "peft_version",
    "megatron_core",
    "qalora_group_size",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "runtime_config",
    "ensure_weight_tying",
    "layers_pattern",  # says where to find what layers_to_transform names; here there is only one place
}
# Ways to begin that leave the base as it is; the others (pissa, olora, corda, loftq) train against a changed base.
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class Adapter:
    """A trained adapter and the model it belongs to.

    Attributes:
        config: rank, scale and target modules.
        base: shape of the base model; it says in which rotary order the rows of q and k are.
        params: `model.layers.N.self_attn.q_proj.lora_A.weight` [r, in], `.lora_B.weight` [out, r] and so on, with the
            rows of q and k in the rotary layout of the base.
        base_name: path or name of the base model.
        base_fingerprint: see `lora.base_fingerprint`; empty when it is not known.
        magnitudes: of DoRA, {weight: [out]}; such an adapter is applied by merging it.
    """

    config: LoraConfig
    base: ModelConfig
    params: ParamSet
    base_name: str
    base_fingerprint: str
    magnitudes: Mapping[str, F32Array] = field(default_factory=dict)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the adapter as a folder in PEFT's layout; see `save`."""
        save(self, folder)


def save(adapter: Adapter, folder: str | Path) -> None:
    """Write an adapter so that PEFT loads it; the same adapter gives the same bytes.

    The config is written last, and an older one that differs is removed first: a folder that has it is complete, also
    after a crash.

    Args:
        adapter: what to write.
        folder: made if need be; an adapter in it is replaced.

    Raises:
        AdapterError: a value is NaN or infinite; nothing is written then.
        OutputError: a file cannot be written.
    """
    for name in adapter.params:
        if not np.isfinite(adapter.params[name]).all():
            raise AdapterError(
                f"{folder}: the adapter is not written: {name} holds NaN or infinite values",
                hint="train again with a lower learning_rate",
            )
    folder = make_folder(folder)
    pairs, lengths = pairs_and_lengths(adapter)
    config = (json.dumps(_config_entries(adapter, pairs), indent=2) + "\n").encode()
    _remove_other(folder / _CONFIG, config)
    tensors: dict[str, F32Array] = {}
    for name, pair in pairs.items():
        a, b = pair_names(_PREFIX + name)
        # PEFT's files are for Hugging Face models: rows of q and k in half-split order, whatever the base's file has
        tensors |= {a: pair.a, b: np.ascontiguousarray(to_half(pair.b, adapter.base, name))}
        if name in lengths:
            tensors[_PREFIX + name.removesuffix("weight") + _MAGNITUDE] = lengths[name]
    metadata = {"format": "pt", _FINGERPRINT: adapter.base_fingerprint}
    shapes = {name: values.shape for name, values in tensors.items()}
    safetensors.write(folder / _WEIGHTS, shapes, iter(tensors.values()), dtype="F32", metadata=metadata)
    write_atomic(folder / _CONFIG, config)


def pairs_and_lengths(adapter: Adapter) -> tuple[dict[str, StoredPair], dict[str, F32Array]]:
    """(see `lora.stored_pairs`; of DoRA the lengths of each one's rows, in half-split rotary order).

    Weights that DoRA leaves alone have neither.

    Raises:
        AdapterError: only some rows of a fused tensor have lengths.
    """
    pairs = stored_pairs(adapter.base, adapter.params)
    lengths: dict[str, F32Array] = {}
    if not adapter.magnitudes:
        return pairs, lengths
    for stored, names in stored_linears(adapter.base).items():
        given = [n for n in names if n in adapter.magnitudes]
        if given and given != names:
            raise AdapterError(
                f"the DoRA adapter has lengths for {given[0]} alone, and the model's files hold it in {stored}",
                hint="merge it: export as hf or gguf",
            )
        if given:
            rows = [to_half(adapter.magnitudes[n], adapter.base, n) for n in names]
            lengths[stored] = np.ascontiguousarray(np.concatenate(rows))
    return {stored: pair for stored, pair in pairs.items() if stored in lengths}, lengths


def _remove_other(path: Path, content: bytes) -> None:
    if not path.is_file() or read_bytes(path, error=OutputError) == content:
        return
    try:
        path.unlink()
    except OSError as e:
        raise output_error(path, e) from e
    fsync_dir(path.parent)


def _config_entries(adapter: Adapter, pairs: Mapping[str, StoredPair]) -> dict[str, Any]:
    """The entries that every version of PEFT knows; an unknown one would break older versions.

    Pairs of a fused tensor may have a larger rank than the adapter; patterns say so, with the alpha that keeps the scale.
    """
    c = adapter.config
    modules = list(dict.fromkeys(name.split(".")[-2] for name in pairs))
    whole = {name for name in stored_linears(adapter.base) if name.split(".")[-2] in modules}
    ranks: dict[str, set[int]] = {m: set() for m in modules}
    for name, pair in pairs.items():
        ranks[name.split(".")[-2]].add(pair.a.shape[0])
    pattern: dict[str, int] = {}
    for name, pair in pairs.items():
        module, rank = name.split(".")[-2], pair.a.shape[0]
        if ranks[module] != {c.r}:
            pattern[module if len(ranks[module]) == 1 else name.removesuffix(".weight")] = rank
    alphas = {key: c.scale * (math.sqrt(rank) if c.use_rslora else rank) for key, rank in pattern.items()}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base_name,
        "revision": None,
        "r": c.r,
        "lora_alpha": int(c.lora_alpha) if float(c.lora_alpha).is_integer() else c.lora_alpha,
        "lora_dropout": c.lora_dropout,
        "target_modules": modules if pairs.keys() == whole else [name.removesuffix(".weight") for name in pairs],
        "use_rslora": c.use_rslora,
        "use_dora": bool(adapter.magnitudes),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        "layers_to_transform": None,
        "layers_pattern": None,
        "rank_pattern": pattern,
        "alpha_pattern": alphas,
    }


def matches_adapter(path: Path) -> bool:
    """Whether this is a folder in PEFT's layout."""
    return (path / _CONFIG).is_file() and not (path / "adapters.safetensors").is_file()


def inspect_adapter(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """See `adapters`."""
    return read_json(path / _CONFIG, error=AdapterError), safetensors.read(path / _WEIGHTS, error=AdapterError)[0]


def load(folder: str | Path, config: ModelConfig, *, base_fingerprint: str | None = None) -> Adapter:
    """Read an adapter, strictly.

    Args:
        folder: in PEFT's layout, written by PEFT or by `save`.
        config: the base model that it is for.
        base_fingerprint: of that base; an adapter that remembers another one is refused.

    Raises:
        AdapterError: missing, damaged, incomplete, or of a kind that is not supported (trained biases, ...).
        AdapterMismatchError: it belongs to another base.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise AdapterError(f"{folder}: no such folder", hint=f"give the folder that holds {_CONFIG}")
    values = read_json(folder / _CONFIG, error=AdapterError)
    entries = Fields(values, str(folder / _CONFIG), AdapterError)
    _refuse_unsupported(entries)
    if not (folder / _WEIGHTS).exists() and (folder / "adapter_model.bin").exists():
        raise AdapterError(
            f"{folder / 'adapter_model.bin'}: is a PyTorch pickle, which is never opened because it can run code",
            hint="save the adapter again with a newer peft, as safetensors",
        )
    stored, metadata = safetensors.read(folder / _WEIGHTS, error=AdapterError)
    fingerprint = metadata.get(_FINGERPRINT, "")
    if base_fingerprint and fingerprint and fingerprint != base_fingerprint:
        raise AdapterMismatchError(
            f"{folder / _WEIGHTS}: was trained on another base model than this one",
            hint=f"load the base it names: {values.get('base_model_name_or_path') or 'unknown'}",
        )
    tensors = _by_own_name(stored, folder / _WEIGHTS)
    dora = entries.flag("use_dora", False)
    magnitudes = {n: tensors.pop(n) for n in list(tensors) if dora and n.endswith(_MAGNITUDE)}
    lora, params = _read(entries, tensors, config, folder / _WEIGHTS)
    lengths = _magnitudes(magnitudes, tensors, config, folder / _WEIGHTS) if dora else {}
    return Adapter(lora, config, params, entries.text("base_model_name_or_path", ""), fingerprint, lengths)


load_adapter = load


def _refuse_unsupported(entries: Fields) -> None:
    if entries.text("peft_type") != "LORA":
        raise entries.wrong("peft_type", "is not supported; only LORA is")
    if entries.values.get("bias") not in (None, "none"):
        raise entries.wrong("bias", "is not supported; only 'none' is")
    if entries.values.get("init_lora_weights", True) not in _PLAIN_STARTS:
        raise entries.wrong(
            "init_lora_weights",
            "such an adapter fits only a changed base",
            hint="convert it to plain LoRA with peft when saving",
        )
    for key, value in entries.values.items():
        # Newer versions of PEFT write entries that are not listed here, null or empty where they are not in use.
        if value and key not in _READ | _HARMLESS:
            raise entries.wrong(key, "is not supported")


def _by_own_name(stored: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        own = canonical_name(name.removeprefix(_PREFIX))
        if own.endswith(f"{_MAGNITUDE}.weight"):  # some versions of peft keep it in a module of its own
            own = own.removesuffix(".weight")
        if not name.startswith(_PREFIX):
            raise AdapterError(f"{path}: tensor {name!r} is not the name of a LoRA tensor", hint=_NOT_PEFT)
        if own in tensors:
            raise AdapterError(f"{path}: tensor {own!r} occurs twice, with and without 'model.'", hint=_NOT_PEFT)
        tensors[own] = tensor
    return tensors


def _read(entries: Fields, tensors: Mapping[str, Tensor], base: ModelConfig, path: Path) -> tuple[LoraConfig, ParamSet]:
    """One rank and one scale for all pairs: smaller ranks are filled up with zeros, other scales go into B."""
    r, alpha, rslora = entries.whole("r"), entries.number("lora_alpha"), entries.flag("use_rslora", False)
    weights = _targets(entries, tensors, base)
    shapes, parts = tensor_shapes(base), stored_linears(base)
    _check_names(weights, tensors, parts, path)
    scales, pairs = {}, {}
    for name in weights:
        rank = _by_pattern(entries, "rank_pattern", name, r, path)
        rows = sum(shapes[part][0] for part in parts[name])
        a, b = pair_names(name)
        pairs[name] = StoredPair(
            _values(tensors, a, (int(rank), shapes[parts[name][0]][1]), path), _values(tensors, b, (rows, int(rank)), path)
        )
        scales[name] = _by_pattern(entries, "alpha_pattern", name, alpha, path) / (math.sqrt(rank) if rslora else rank)
    widest = max((pair.a.shape[0] for pair in pairs.values()), default=r)
    scale = alpha / (math.sqrt(r) if rslora else r)
    pairs = {name: StoredPair(p.a, p.b * np.float32(scales[name] / scale)) for name, p in pairs.items()}
    params = split_pairs(base, pairs, r=widest)
    for name in params:
        if ".lora_B." in name:
            params[name][...] = from_half(params[name], base, name)
    grown = alpha if widest == r else scale * (math.sqrt(widest) if rslora else widest)
    return _lora_config(entries, widest, grown, params, rslora=rslora), params


def _magnitudes(given: Mapping[str, Tensor], pairs: Mapping[str, Tensor], base: ModelConfig, path: Path) -> dict[str, F32Array]:
    """{weight: lengths of its rows} of DoRA, one for each pair, in the rotary layout of the base."""
    shapes, parts, found = tensor_shapes(base), stored_linears(base), {}
    wanted = {pair.split(".lora_")[0] + f".{_MAGNITUDE}": pair.split(".lora_")[0] + ".weight" for pair in pairs}
    for key in sorted(wanted.keys() ^ given.keys()):
        if key in given:
            raise _unexpected(key, set(), path, known=False)
        raise AdapterError(f"{path}: incomplete: {key} of DoRA is missing", hint=_DAMAGED)
    for key, stored in wanted.items():
        ends = np.cumsum([shapes[n][0] for n in parts[stored]])
        rows = _values(given, key, (int(ends[-1]),), path)
        for name, part in zip(parts[stored], np.split(rows, ends[:-1]), strict=True):
            found[name] = np.ascontiguousarray(from_half(part, base, name))
    return found


def _lora_config(entries: Fields, r: int, alpha: float, params: ParamSet, *, rslora: bool) -> LoraConfig:
    dropout = entries.values.get("lora_dropout") or 0.0
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)):
        raise entries.wrong("lora_dropout", "must be a number")
    found = {name.split(".lora_")[0].split(".")[-1] for name in params}
    modules = tuple(m for m in LINEAR_MODULES if m in found)
    try:
        return LoraConfig(r=r, lora_alpha=alpha, target_modules=modules, lora_dropout=float(dropout), use_rslora=rslora)
    except ConfigError as e:
        raise AdapterError(f"{entries.source}: {e.message}", hint=_DAMAGED) from None


def _targets(entries: Fields, tensors: Mapping[str, Tensor], base: ModelConfig) -> list[str]:
    """The stored weights that the adapter is for; targets may be names, paths, "all-linear" or a pattern."""
    linears = list(stored_linears(base))
    modules = list(dict.fromkeys(name.split(".")[-2] for name in linears))
    targets, layers = entries.values.get("target_modules"), entries.values.get("layers_to_transform")
    layers = [layers] if isinstance(layers, int) else layers
    if layers is not None and not (isinstance(layers, list) and all(isinstance(i, int) for i in layers)):
        raise entries.wrong("layers_to_transform", "must be a list of layer numbers")
    wanted = [name for name in linears if not layers or int(name.split(".")[2]) in layers]
    if targets == "all-linear":
        return wanted
    if isinstance(targets, str) and targets not in modules:  # a pattern: what it matched is what is stored
        stored = {name.split(".lora_")[0] + ".weight" for name in tensors}
        return [name for name in wanted if name in stored]
    names = [targets] if isinstance(targets, str) else targets
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise entries.wrong("target_modules", "must be a list of module names")
    unknown = sorted({n.split(".")[-1] for n in names} - set(modules))
    if unknown:
        raise entries.wrong("target_modules", f"{unknown[0]!r} is not supported", hint=f"supported: {', '.join(modules)}")
    return [name for name in wanted if any(_means(n, name) for n in names)]


def _means(target: str, weight: str) -> bool:
    """Whether a target names this weight, by its whole path or the end of it."""
    path = weight.removesuffix(".weight")
    return path == canonical_name(target) or path.endswith(f".{target}")


def _by_pattern(entries: Fields, key: str, weight: str, usual: float, path: Path) -> float:
    """The value of the first key of a pattern table that names this weight; PEFT's regular expressions are not run."""
    table = entries.inner(key)
    for pattern in table.values:
        plain = pattern.removeprefix("^").removesuffix("$").replace("\\.", ".")
        if not all(part.isidentifier() or part.isdecimal() for part in plain.split(".")):
            raise entries.wrong(key, f"{pattern!r} is not supported; only names and paths of modules are")
        if _means(plain, weight):
            return table.whole(pattern, most=4096) if key == "rank_pattern" else table.number(pattern)
    return usual


def _check_names(weights: Sequence[str], tensors: Mapping[str, Tensor], linears: Collection[str], path: Path) -> None:
    expected = [name for weight in weights for name in pair_names(weight)]
    modules = {weight.split(".")[-2] for weight in weights}
    for name in tensors:
        if name not in expected:
            raise _unexpected(name, modules, path, known=name.split(".lora_")[0] + ".weight" in linears)
    missing = [name for name in expected if name not in tensors]
    if missing or not expected:
        raise AdapterError(
            f"{path}: incomplete: {len(missing)} of {len(expected)} tensors are missing, the first is "
            f"{missing[0] if missing else 'any at all'}",
            hint=_DAMAGED,
        )


def _values(tensors: Mapping[str, Tensor], name: str, shape: tuple[int, ...], path: Path) -> F32Array:
    tensor = tensors[name]
    if tensor.dtype not in STORED:
        raise AdapterError(f"{path}: {name} is {tensor.dtype}", hint="save the adapter as F32, F16 or BF16")
    _check_shape(name, tensor.shape, shape, path)
    values = tensor.float32()
    if not np.isfinite(values).all():
        raise AdapterError(f"{path}: {name} holds NaN or infinite values", hint="the training that made it went wrong")
    return values


def _unexpected(name: str, modules: set[str], path: Path, *, known: bool) -> AdapterError:
    for part, what in (
        (_MAGNITUDE, "DoRA without use_dora or a pair"),
        ("lora_embedding_", "LoRA on embeddings"),
        (".default.", "a named adapter"),
    ):
        if part in name:
            return AdapterError(f"{path}: tensor {name!r}: {what} is not supported", hint="merge it into its base with peft")
    if not known and name.endswith((".lora_A.weight", ".lora_B.weight")) and name.split(".lora_")[0].split(".")[-1] in modules:
        return AdapterMismatchError(
            f"{path}: tensor {name!r} has no place in this base model", hint="load the base it was trained on"
        )
    return AdapterError(f"{path}: tensor {name!r} is not one that {_CONFIG} calls for", hint=_DAMAGED)


def _check_shape(name: str, given: tuple[int, ...], expected: tuple[int, ...], path: Path) -> None:
    if given == expected:
        return
    rank = 0 if name.endswith("lora_A.weight") else 1
    if len(given) == 2 and given[1 - rank] == expected[1 - rank]:
        raise AdapterError(f"{path}: {name} has rank {given[rank]}, but {_CONFIG} says r={expected[rank]}", hint=_DAMAGED)
    raise AdapterMismatchError(
        f"{path}: {name} is {list(given)}, this base model needs {list(expected)}", hint="load the base it was trained on"
    )


# --- the format for `export`

EXPORTS = {"peft": ("f32",)}


def check_export(name: str, config: ModelConfig, quant: str) -> None:
    """Adapters of every family can be written; see `outgoing.writers`."""


def check_intended(name: str, intended: Any) -> None:
    """See `outgoing.writers`."""
    intended.needs_adapter()


def export(name: str, model: Any, path: Path) -> None:
    """Write the adapter of an `Outgoing` as a folder in PEFT's layout."""
    save(model.only_adapter(name, dora=True), path)


def reading(name: str, path: Path, base: str) -> dict[str, Any]:
    """See `outgoing.writers`."""
    return {"place": path, "base": Path(base), "llama_cpp": False}
