# SPDX-License-Identifier: Apache-2.0
"""Core ML packages: the program says what the model says, its states are never read stale, damage is one typed error.

Nothing here runs on Apple hardware. The interpreter is compared with coremltools' own evaluation of operations.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import family_models as f
import numpy as np
import pytest
from small import open_model
from test_export import adapted, family

import neuralforge as nf
from neuralforge import formats, verify
from neuralforge.cli import main
from neuralforge.errors import ExportError, ModelError
from neuralforge.formats import coreml, coreml_program, coreml_weights, mlprogram
from neuralforge.formats.coreml_weights import QUANTS
from neuralforge.model import Model
from neuralforge.tokenizer import Tokenizer

ct = pytest.importorskip("coremltools", reason="coremltools writes the packages; installed by `make test-all`")
pytestmark = pytest.mark.slow  # it takes seconds to be imported, and for each package


def greedy(program: mlprogram.Program, first: int, count: int) -> tuple[list[int], list[float]]:
    """(ids, how far the second best logit was behind at each)."""
    states, ids, gaps = program.new_states(), [first], []
    for at in range(count):
        logits = program.run("main", {"input_ids": [[ids[-1]]], "positions": [[at]]}, states)["logits"][0]
        second, best = np.sort(logits.astype(np.float32))[-2:]
        ids.append(int(logits.argmax()))
        gaps.append(float(best - second))
    return ids, gaps


# --- a real model


@pytest.fixture(scope="module")
def stories(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, nf.Exported]:
    """stories260K in every form."""
    model = open_model(shared / "models" / "stories260K" / "stories260K.bin")
    folder = tmp_path_factory.mktemp("stories")
    return {q: nf.export(model, folder / f"{q}.mlpackage", format="coreml", quant=q) for q in QUANTS}


def test_the_story_is_the_published_one(shared: Path, stories: dict[str, nf.Exported]) -> None:
    """Token by token in fp16; where another machine's rounding differs, the gap of the logits says whether it was a tie."""
    published = json.loads((shared / "models" / "stories260K" / "greedy_ids.json").read_text())["ids"][:201]
    ids, gaps = greedy(mlprogram.load(stories["fp16"].path), published[0], 200)
    first = next((i for i, (a, b) in enumerate(zip(ids, published, strict=True)) if a != b), None)
    assert first is None, f"differs first at token {first}, where the two best logits lie {gaps[first - 1]} apart"


@pytest.mark.parametrize("quant", QUANTS[1:])
def test_coarse_forms_tell_a_story(shared: Path, stories: dict[str, nf.Exported], quant: str) -> None:
    model = open_model(shared / "models" / "stories260K" / "stories260K.bin")
    text = model.tokenizer.decode(greedy(mlprogram.load(stories[quant].path), 1, 60)[0])
    assert text.strip().startswith("Once upon a time, there was a little girl named Lily. She loved to play")


def test_finer_forms_differ_less_and_coarser_ones_are_smaller(stories: dict[str, nf.Exported]) -> None:
    checked = {q: done.verification for q, done in stories.items()}
    kl = {q: v.kl for q, v in checked.items() if v is not None}
    print({q: f"{kl[q]:.2g} nats, weights {weight_file(done.path).stat().st_size}" for q, done in stories.items()})
    assert kl["fp16"] < kl["int8"] < kl["palettised"] < kl["int4"]
    sizes = [weight_file(stories[q].path).stat().st_size for q in ("fp16", "int8", "palettised", "int4")]
    assert sizes == sorted(sizes, reverse=True)
    assert all(v is not None and v.places > 100 and "Apple hardware" in v.reader for v in checked.values())


def weight_file(package: Path) -> Path:
    return package / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"


def test_apples_own_code_reads_the_package(tmp_path: Path, stories: dict[str, nf.Exported]) -> None:
    for quant, done in stories.items():
        copy = shutil.copytree(done.path, tmp_path / f"{quant}.mlpackage")  # it writes the manifest anew when it opens one
        package = ct.libmodelpackage.ModelPackage(str(copy))
        assert Path(package.getRootModel().path()) == copy / "Data" / "com.apple.CoreML" / "model.mlmodel"
        assert package.findItemByNameAuthor("tokenizer", "neuralforge").path() == str(
            copy / "Data" / "neuralforge" / "tokenizer"
        )
        spec = ct.models.MLModel(str(copy), skip_model_load=True).get_spec()
        assert spec.specificationVersion == 9 and spec.description.defaultFunctionName == "main"
        functions = {d.name: d for d in spec.description.functions}
        for name, tokens in (("main", 1), ("prompt", 64)):
            shapes = {i.name: list(i.type.multiArrayType.shape) for i in (*functions[name].input, *functions[name].output)}
            assert shapes == {"input_ids": [1, tokens], "positions": [1, tokens], "logits": [1, 512]}
            states = {s.name: list(s.type.stateType.arrayType.shape) for s in functions[name].state}
            assert states == {"key_cache": [5, 4, 512, 8], "value_cache": [5, 4, 512, 8]}


def test_what_must_travel_along_is_in_the_package(shared: Path, stories: dict[str, nf.Exported]) -> None:
    model = open_model(shared / "models" / "stories260K" / "stories260K.bin")
    done = stories["int8"]
    known = {k.removeprefix("neuralforge."): v for k, v in mlprogram.load(done.path).metadata.items()}
    assert json.loads(known["stop_token_ids"]) == sorted(model.stop_ids)
    assert (known["context_length"], known["prompt_length"], known["bos_token_id"], known["add_bos_token"]) == (
        "512",
        "64",
        "1",
        "true",
    )
    assert known["chat_template"] == outgoing_template(model) and known["quant"] == "int8"
    measured = json.loads(known["verified"])
    assert done.verification is not None and measured["kl"] == pytest.approx(done.verification.kl, rel=1e-3)
    again = Tokenizer.from_file(done.path / "Data" / known["tokenizer"])
    text = "Lily saw <s> a café 🙂"
    assert again.encode(text) == model.tokenizer.encode(text)


def outgoing_template(model: Model) -> str:
    from neuralforge.exporting import outgoing_of

    return outgoing_of(model, Path("x"), "fp16").template


# --- families


@pytest.mark.parametrize("name", f.FAMILIES)
def test_every_family_runs_as_it_was_trained(tmp_path: Path, name: str) -> None:
    """With an adapter on all modules. Logits of about ±10 in float16, of which 0.01 is a rounding at the end alone."""
    model = adapted(family(name, tmp_path / "model"))
    done = nf.export(model, tmp_path / "out.mlpackage", format="coreml")
    assert done.quant == "fp16" and done.verification is not None
    program = mlprogram.load(done.path)
    context = program.functions["main"].states["key_cache"].shape[2]
    assert context == (24 if "longrope" in name or "partial" in name else 256)
    ids = np.random.default_rng(1).integers(0, model.config.vocab_size, min(context, 70)).astype(np.int32)
    ours = model.logits(ids)
    places, rows = coreml.runnable(done.path).rows(ids.tolist())
    assert set(places) == set(range(len(ids)))
    gap = np.abs(rows - ours[places]).max() / np.abs(ours).max()
    print(f"{name}: largest difference {gap:.2g} of the largest logit, {done.verification}")
    assert gap < 0.02


def read_by_coremltools(package: Path) -> dict[str, dict[str, Any]]:
    """{function: {name: value}} of all constants, decompressed, by the reader of coremltools alone."""
    from coremltools.converters.mil.frontend.milproto.load import load

    model = ct.models.MLModel(str(package), skip_model_load=True)
    spec = model.get_spec()
    program = load(spec, specification_version=spec.specificationVersion, file_weights_dir=model.weights_dir)
    found: dict[str, dict[str, Any]] = {}
    for name, function in program.functions.items():
        constants = found.setdefault(name, {})
        for op in function.operations:
            if op.op_type == "const":
                constants[op.outputs[0].name] = op.outputs[0].val
            elif op.op_type.startswith("constexpr_"):
                constants[op.outputs[0].name] = op.materialized_val_inference()
    return found


def check_stored(found: Any, value: Any, quant: str, name: str) -> None:
    """A weight as it was read is the trained one, within what its form can say."""
    if value.ndim == 1 or quant == "fp16":
        np.testing.assert_array_equal(found, value.astype(np.float16), err_msg=name)
        return
    error, largest = found.astype(np.float64) - value, np.abs(value).max(1, keepdims=True)
    if quant == "palettised":
        step = 16 if len(value) % 16 == 0 else len(value)
        for at in range(0, len(value), step):  # chosen for these rows, so no worse than evenly spaced ones of as many
            rows, read = value[at : at + step], found[at : at + step]
            width = (rows.max() - rows.min()) / 63
            even = rows.min() + width * np.rint((rows - rows.min()) / width)
            assert len(set(read.ravel().tolist())) <= 64, name
            assert np.square(read - rows, dtype=np.float64).sum() <= np.square(even - rows, dtype=np.float64).sum(), (name, at)
    elif quant == "int8" or not name.startswith("model.layers."):
        assert (np.abs(error) <= largest * (1 / 254 + 2.0**-10)).all(), name  # half a step; scale and value are float16
    else:  # the best of a few scales is no worse than the plain one, of which half a step is a 14th of the largest
        blocks = np.abs(value).reshape(len(value), -1, coreml_weights.BLOCK).max(2)
        worst = np.sqrt(np.square(error).reshape(*blocks.shape, -1).mean(2))
        assert (worst <= blocks * (1 / 14 + 2.0**-10)).all(), name


@pytest.mark.parametrize("name", f.FAMILIES)
def test_coremltools_reads_the_weights_back(tmp_path: Path, name: str) -> None:
    """Every weight of every form, in both functions, beside the trained one."""
    model = family(name, tmp_path / "model")
    trained = {n: formats.to_half(t.float32(), model.config, n) for n, t in model.weights.items()}
    for quant in QUANTS:
        done = nf.export(model, tmp_path / f"{quant}.mlpackage", format="coreml", quant=quant, verify=False)
        for function, constants in read_by_coremltools(done.path).items():
            assert function in ("main", "prompt")
            for key, value in trained.items():
                check_stored(np.asarray(constants[key.replace(".", "_")]), value, quant, key)


@pytest.mark.parametrize("quant", QUANTS)
def test_values_beyond_the_squares_of_float16(tmp_path: Path, tiny_llama: Callable[..., Path], quant: str) -> None:
    """A residual stream of thousands, as large models have: its squares are beyond float16, the norm must not be."""
    from safetensors.numpy import load_file, save_file

    folder = tiny_llama()
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"] *= 5000
    save_file(tensors, folder / "model.safetensors")
    model = open_model(folder)
    done = nf.export(model, tmp_path / "out.mlpackage", format="coreml", quant=quant)
    assert done.verification is not None and done.verification.kl < verify.LIMITS[quant]


def test_a_wrong_program_is_refused(tmp_path: Path, tiny_llama: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    right = coreml_program.inverse_frequencies
    monkeypatch.setattr(coreml_program, "inverse_frequencies", lambda *a, **k: (2 * right(*a, **k)[0], 1.0))
    with pytest.raises(ExportError, match=r"out\.mlpackage: differs from the trained model: .*interpreter"):
        nf.export(open_model(tiny_llama()), tmp_path / "out.mlpackage", format="coreml")
    assert [p.name for p in tmp_path.iterdir()] == ["tiny"]


def test_the_same_model_gives_the_same_bytes(tmp_path: Path, tiny_llama: Callable[..., Path]) -> None:
    model = open_model(tiny_llama(tied=True))
    for place in ("a/m.mlpackage", "b/m.mlpackage"):
        nf.export(model, tmp_path / place, format="coreml", quant="int4", verify=False)
    one, two = (
        {p.relative_to(root): hashlib.sha256(p.read_bytes()).hexdigest() for p in root.rglob("*") if p.is_file()}
        for root in (tmp_path / "a", tmp_path / "b")
    )
    assert one == two and len(one) == 6


def test_an_interrupted_export_leaves_nothing(
    tmp_path: Path, tiny_llama: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_model(tiny_llama())

    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(coreml, "_describe", interrupted)
    with pytest.raises(KeyboardInterrupt):
        nf.export(model, tmp_path / "out.mlpackage", format="coreml")
    assert [p.name for p in tmp_path.iterdir()] == ["tiny"]


def test_nothing_is_printed(tmp_path: Path, tiny_llama: Callable[..., Path], capfd: Any) -> None:
    nf.export(open_model(tiny_llama()), tmp_path / "out.mlpackage", format="coreml", verify=False)
    assert capfd.readouterr() == ("", "")


def test_info_of_a_package(stories: dict[str, nf.Exported], capfd: Any) -> None:
    place = str(stories["int4"].path)
    assert main(["info", place, "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["key"] == "package" and told["value"]["functions"] == ["main", "prompt"]
    assert (told["value"]["quant"], told["value"]["bytes"]) == ("int4", stories["int4"].bytes)
    assert told["value"]["states"] == [f"{name}_cache FLOAT16 [5, 4, 512, 8]" for name in ("key", "value")]


def test_a_package_is_no_base_model(tmp_path: Path, stories: dict[str, nf.Exported]) -> None:
    with pytest.raises(ModelError, match=r"fp16\.mlpackage: is a Core ML package"):
        formats.load(stories["fp16"].path)


def test_a_model_without_a_tokenizer(tmp_path: Path, tiny_llama: Callable[..., Path]) -> None:
    folder = tiny_llama()
    (folder / "tokenizer.bin").unlink()
    done = nf.export(open_model(folder), tmp_path / "out.mlpackage", format="coreml", quant="int8")
    assert done.verification is not None and done.verification.places > 60
    assert mlprogram.load(done.path).metadata["neuralforge.tokenizer"] == ""
    assert not (done.path / "Data" / "neuralforge").exists()


# --- states


def stale_reads(program: mlprogram.Program, function: str) -> list[str]:
    """What is wrong with the reads of states: two without a write between, or a value of an old one used after a write."""
    newest: dict[str, str | None] = {}  # state -> the value that its latest read gave; None after a write
    old: dict[str, str] = {}  # values that a later write has made stale -> their state
    wrong = []
    for operation in program.functions[function].operations:
        used = {x for given in operation.inputs.values() for x in given if isinstance(x, str)}
        wrong += [f"{operation.label} uses {x}, read before the last write of {old[x]}" for x in sorted(used & old.keys())]
        if operation.kind == "read_state":
            state = str(operation.inputs["input"][0])
            if newest.get(state) is not None:
                wrong.append(f"{operation.label} reads {state} again")
            newest[state] = operation.outputs[0][0]
        elif operation.kind == "write_state":
            state = str(operation.inputs["input"][0])
            read = newest.get(state)
            if read is not None:
                old[read] = state
            newest[state] = None
    return wrong


@pytest.mark.parametrize("quant", QUANTS)
def test_no_state_is_read_twice(stories: dict[str, nf.Exported], quant: str) -> None:
    program = mlprogram.load(stories[quant].path)
    for name, function in program.functions.items():
        kinds = [(o.kind, str(o.inputs["input"][0])) for o in function.operations if o.kind in ("read_state", "write_state")]
        assert kinds.count(("write_state", "key_cache")) == kinds.count(("write_state", "value_cache")) == 5
        assert stale_reads(program, name) == []


def test_before_lowering_each_state_has_one_read(tiny_llama: Callable[..., Path]) -> None:
    """In the builder's program a read is pure; what follows an update must be what the update gave back."""
    model = open_model(tiny_llama())
    weights = {n: coreml_weights.stored(t.float32(), "fp16", n) for n, t in model.weights.items()}
    for function in coreml_program.build(model.config, weights).functions.values():
        reads = [op.inputs["input"].name for op in function.operations if op.op_type == "read_state"]
        assert sorted(reads) == ["key_cache", "value_cache"]


def test_the_walk_finds_a_stale_read(tmp_path: Path) -> None:
    """Two reads with an update between: coremltools merges them without a word, and the sum is of the old state."""
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    @mb.program(
        input_specs=[mb.TensorSpec((4,), dtype=types.fp16), mb.StateTensorSpec((4,), dtype=types.fp16)],
        opset_version=ct.target.iOS18,
    )
    def wrong(x: Any, kept: Any) -> Any:
        before = mb.read_state(input=kept)
        mb.coreml_update_state(state=kept, value=mb.add(x=before, y=x))
        return mb.add(x=mb.read_state(input=kept), y=np.float16(1), name="out")

    place = tmp_path / "wrong.mlpackage"
    ct.convert(wrong, minimum_deployment_target=ct.target.iOS18, skip_model_load=True).save(str(place))
    program = mlprogram.load(place)
    (told,) = stale_reads(program, "main")
    assert "read before the last write of kept" in told
    states = program.new_states()
    assert program.run("main", {"x": [5] * 4}, states)["out"].tolist() == [1] * 4  # 6 is what was meant
    assert states["kept"].tolist() == [5] * 4


# --- the interpreter beside coremltools


def test_constants_are_what_coremltools_makes_of_them(tiny_llama: Callable[..., Path], tmp_path: Path) -> None:
    """Each decompressed weight, read from the file, beside the operation's own definition."""
    model = open_model(tiny_llama(hidden_size=64, head_dim=16, intermediate_size=96))
    for quant in QUANTS[1:]:
        done = nf.export(model, tmp_path / f"{quant}.mlpackage", format="coreml", quant=quant, verify=False)
        weights = {
            n: coreml_weights.stored(t.float32(), quant, n, coarse=n.startswith("model.layers."))
            for n, t in model.weights.items()
        }
        built = coreml_program.build(model.config, weights).functions["main"]
        ours, compared = mlprogram.load(done.path).functions["main"].constants, 0
        for op in built.operations:
            if op.op_type.startswith("constexpr_"):
                compared += 1
                np.testing.assert_array_equal(ours[op.outputs[0].name], op.materialized_val_inference())
        assert compared == 16  # 7 in each of two layers, embedding, head


VALUES = {
    "x": np.linspace(-3, 3, 24, dtype=np.float16).reshape(2, 3, 4),
    "y": np.linspace(0.5, 2, 24, dtype=np.float16).reshape(2, 3, 4),
    "i": np.array([[1, 0], [2, 2]], np.int32),
}
CASES: list[tuple[str, Callable[[Any, dict[str, Any]], Any]]] = [
    ("abs", lambda mb, v: mb.abs(x=v["x"])),
    ("add", lambda mb, v: mb.add(x=v["x"], y=v["y"])),
    ("cast", lambda mb, v: mb.cast(x=v["x"], dtype="int32")),
    ("concat", lambda mb, v: mb.concat(values=[v["x"], v["y"]], axis=1)),
    ("expand_dims", lambda mb, v: mb.expand_dims(x=v["x"], axes=[1, -1])),
    ("gather", lambda mb, v: mb.gather(x=v["x"], indices=v["i"], axis=1, validate_indices=False)),
    ("greater_equal", lambda mb, v: mb.greater_equal(x=v["x"], y=v["y"])),
    ("less_equal", lambda mb, v: mb.less_equal(x=v["x"], y=v["y"])),
    ("matmul", lambda mb, v: mb.matmul(x=v["x"], y=v["y"], transpose_y=True)),
    ("maximum", lambda mb, v: mb.maximum(x=v["x"], y=v["y"])),
    ("mul", lambda mb, v: mb.mul(x=v["x"], y=v["y"])),
    ("real_div", lambda mb, v: mb.real_div(x=v["x"], y=v["y"])),
    ("reduce_max", lambda mb, v: mb.reduce_max(x=v["x"], axes=[-1], keep_dims=True)),
    ("reduce_mean", lambda mb, v: mb.reduce_mean(x=v["x"], axes=[0, 2])),
    ("reshape", lambda mb, v: mb.reshape(x=v["x"], shape=[4, -1])),
    ("rsqrt", lambda mb, v: mb.rsqrt(x=v["y"], epsilon=np.float16(0.5))),
    ("select", lambda mb, v: mb.select(cond=mb.less_equal(x=v["x"], y=v["y"]), a=v["x"], b=v["y"])),
    ("slice_by_index", lambda mb, v: mb.slice_by_index(x=v["x"], begin=[0, 1, 0], end=[2, 3, 4], stride=[1, 1, 2])),
    (
        "slice_by_index",
        lambda mb, v: mb.slice_by_index(
            x=v["x"], begin=[1, 0, 1], end=[0, 2, 0], begin_mask=[False, True, False], end_mask=[False, False, True],
            squeeze_mask=[True, False, False],
        ),
    ),
    ("softmax", lambda mb, v: mb.softmax(x=v["x"], axis=-1)),
    ("sub", lambda mb, v: mb.sub(x=v["x"], y=v["y"])),
    ("transpose", lambda mb, v: mb.transpose(x=v["x"], perm=[2, 0, 1])),
]  # fmt: skip


class Recording(dict):  # type: ignore[type-arg]
    """Remembers what was asked for."""

    names: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Any:
        self.names = tuple(dict.fromkeys((*self.names, name)))
        return super().__getitem__(name)


@pytest.mark.parametrize(("kind", "make"), CASES, ids=[f"{i} {kind}" for i, (kind, _) in enumerate(CASES)])
def test_an_operation_is_what_coremltools_says(tmp_path: Path, kind: str, make: Callable[[Any, dict[str, Any]], Any]) -> None:
    """coremltools folds operations on constants; we run the same ones on inputs."""
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import Function, Program, types

    used = Recording(VALUES)
    with Function({}, opset_version=ct.target.iOS18):
        wanted = make(mb, used).val
    program = Program()
    kinds = {n: types.int32 if n == "i" else types.fp16 for n in used.names}
    with Function({n: mb.placeholder(VALUES[n].shape, kinds[n]) for n in kinds}, opset_version=ct.target.iOS18) as function:
        out = make(mb, dict(function.inputs))
        out = mb.cast(x=out, dtype="fp16") if wanted.dtype == np.bool_ else out  # no output may be boolean
        function.set_outputs([out])
    program.add_function("main", function)
    ct.convert(
        program,
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
        package_dir=str(tmp_path / "one.mlpackage"),
    )
    read = mlprogram.load(tmp_path / "one.mlpackage")
    assert kind in [o.kind for o in read.functions["main"].operations]
    ours = read.run("main", {n: VALUES[n] for n in kinds}, {})[out.name]
    # one rounding of float16, where coremltools computes in float16 and we in float32
    np.testing.assert_allclose(ours.astype(np.float32), wanted.astype(np.float32), rtol=2e-3, atol=2e-3)


def test_every_operation_of_the_program_is_compared(stories: dict[str, nf.Exported]) -> None:
    """But for those that coremltools folds nowhere: the test above or the whole models are their proof."""
    alone = {kind for kind, _ in CASES}
    used = {o.kind for fn in mlprogram.load(stories["fp16"].path).functions.values() for o in fn.operations}
    assert used - alone == {"linear", "silu", "slice_update", "read_state", "write_state"}
    assert alone <= used | {"select", "greater_equal", "less_equal"}


# --- damage


def damaged(package: Path, folder: Path, change: Callable[[Path], None]) -> Path:
    copy = folder / "damaged.mlpackage"
    shutil.copytree(package, copy)
    change(copy)
    return copy


def edit(change: Callable[[Any], None]) -> Callable[[Path], None]:
    """A change of the protobuf message."""

    def apply(package: Path) -> None:
        model = package / "Data" / "com.apple.CoreML" / "model.mlmodel"
        spec = mlprogram.parse(model.read_bytes(), model)
        change(spec)
        model.write_bytes(spec.SerializeToString())

    return apply


def operations(spec: Any) -> Any:
    return spec.mlProgram.functions["main"].block_specializations["CoreML8"].operations


def first(spec: Any, kind: str) -> Any:
    return next(o for o in operations(spec) if o.type == kind)


def blob(spec: Any) -> Any:
    return next(o.attributes["val"] for o in operations(spec) if o.attributes["val"].WhichOneof("value") == "blobFileValue")


def poke(offset: int, data: bytes) -> Callable[[Path], None]:
    """Bytes of the weight file overwritten."""

    def apply(package: Path) -> None:
        content = bytearray(weight_file(package).read_bytes())
        content[offset : offset + len(data)] = data
        weight_file(package).write_bytes(content)

    return apply


def cut(name: str, size: int) -> Callable[[Path], None]:
    def apply(package: Path) -> None:
        place = package / name
        place.write_bytes(place.read_bytes()[:size])

    return apply


def manifest(path: str) -> Callable[[Path], None]:
    def apply(package: Path) -> None:
        values = json.loads((package / "Manifest.json").read_text())
        values["itemInfoEntries"][values["rootModelIdentifier"]]["path"] = path
        (package / "Manifest.json").write_text(json.dumps(values))

    return apply


MODEL, WEIGHTS = "Data/com.apple.CoreML/model.mlmodel", "Data/com.apple.CoreML/weights/weight.bin"
DAMAGE: list[tuple[str, Callable[[Path], None], str]] = [
    ("no manifest", lambda p: (p / "Manifest.json").unlink(), "Manifest.json: no such file"),
    ("manifest of another place", manifest("../../../secret"), "names no model file"),
    ("manifest of an absolute place", manifest("/etc/passwd"), "names no model file"),
    ("manifest that is no JSON", cut("Manifest.json", 40), "Manifest.json"),
    ("manifest without items", lambda p: (p / "Manifest.json").write_text("{}") and None, "names no model file"),
    ("no model", lambda p: (p / MODEL).unlink(), "model.mlmodel: no such file"),
    ("half a model", cut(MODEL, 5000), "model.mlmodel: is damaged"),
    ("an empty model", cut(MODEL, 0), "holds no ML program"),
    ("no weights", lambda p: (p / WEIGHTS).unlink(), "weight.bin: cannot be read"),
    ("empty weights", cut(WEIGHTS, 0), "weight.bin: cannot be read"),
    ("half of the weights", cut(WEIGHTS, 4000), "of a weight file of 4000"),
    ("no sentinel", poke(64, b"\0\0\0\0"), "not the head of a FLOAT16 tensor"),
    ("weights of another type", poke(68, b"\x04"), "not the head of a FLOAT16 tensor"),
    ("weights of a type that is not there", poke(68, b"\xff"), "not the head of a FLOAT16 tensor"),
    ("weights of another size", poke(72, b"\x02\0\0\0\0\0\0\0"), "has 2 bytes for"),
    ("weights outside of the file", poke(80, b"\xff" * 7), "of a weight file"),
    ("weight file outside", edit(lambda s: setattr(blob(s).blobFileValue, "fileName", "@model_path/../../x")), "is outside"),
    ("weight file of the system", edit(lambda s: setattr(blob(s).blobFileValue, "fileName", "/etc/passwd")), "is outside"),
    ("offset outside", edit(lambda s: setattr(blob(s).blobFileValue, "offset", 1 << 63)), "lies at byte"),
    ("unknown operation", edit(lambda s: setattr(first(s, "linear"), "type", "conv")), "'conv' is not known here"),
    ("a value from nowhere", edit(lambda s: setattr(first(s, "abs").inputs["x"].arguments[0], "name", "gone")), "'gone'"),
    ("a state from nowhere", edit(lambda s: setattr(first(s, "read_state").inputs["input"].arguments[0], "name", "x")), "'x'"),
    ("no output", edit(lambda s: first(s, "abs").ClearField("outputs")), "of a wrong number"),
    ("a write of nothing", edit(lambda s: first(s, "write_state").inputs["data"].ClearField("arguments")), "of a wrong number"),
    ("no body", edit(lambda s: s.mlProgram.functions["main"].block_specializations.clear()), "has 0 bodies"),
    ("an unknown type", edit(lambda s: setattr(first(s, "abs").outputs[0].type.tensorType, "dataType", 12)), "FLOAT64"),
    (
        "a shape without end",
        edit(lambda s: setattr(first(s, "abs").outputs[0].type.tensorType.dimensions[0].constant, "size", 1 << 62)),
        "too large",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), [d[1:] for d in DAMAGE], ids=[d[0] for d in DAMAGE])
def test_a_damaged_package_is_named(
    tmp_path: Path, stories: dict[str, nf.Exported], change: Callable[[Path], None], message: str
) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        mlprogram.load(damaged(stories["fp16"].path, tmp_path, change))
    assert "damaged.mlpackage" in caught.value.message


WRONG: list[tuple[str, Callable[[Any], None], str]] = [
    (
        "a declared shape",
        lambda s: setattr(first(s, "abs").outputs[0].type.tensorType.dimensions[2].constant, "size", 3),
        r"\(abs\) gives shape \(1, 1, 64\); the program says \(1, 1, 3\)",
    ),
    ("a missing parameter", lambda s: first(s, "concat").inputs.pop("axis"), "cannot be computed"),
    ("a state as a value", lambda s: setattr(first(s, "abs").inputs["x"].arguments[0], "name", "ids"), "which is not there"),
]


@pytest.mark.parametrize(("change", "message"), [d[1:] for d in WRONG], ids=[d[0] for d in WRONG])
def test_a_program_that_cannot_be_right_is_named(
    tmp_path: Path, stories: dict[str, nf.Exported], change: Callable[[Any], None], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        coreml.runnable(damaged(stories["fp16"].path, tmp_path, edit(change))).rows([1, 2, 3])


def test_random_bytes_give_one_typed_error_or_a_program(tmp_path: Path, stories: dict[str, nf.Exported]) -> None:
    package = damaged(stories["int4"].path, tmp_path, lambda p: None)
    whole, random = (package / MODEL).read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        content = bytearray(whole)
        for at in random.integers(0, len(content), 4):
            content[at] = int(random.integers(0, 256))
        (package / MODEL).write_bytes(content)
        try:
            coreml.runnable(package).rows([1, 2])
        except ModelError:
            refused += 1
    assert refused > 50
