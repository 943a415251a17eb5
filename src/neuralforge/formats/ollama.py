# SPDX-License-Identifier: Apache-2.0
"""Folders for `ollama create NAME -f Modelfile`: the model as GGUF, or its base and the adapter, and the Modelfile."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config import ModelConfig
from ..errors import ExportError
from ..files import make_folder, write_atomic
from ..go_templates import go_template, recognise
from ..templates import ChatTemplate
from ..tokenizer import Tokenizer
from . import gguf_adapter, gguf_tokenizer, gguf_write
from .outgoing import Intended, Outgoing

_QUANTS = gguf_write.EXPORTS["gguf"]
EXPORTS = {"ollama": _QUANTS, "ollama-lora": _QUANTS}
MODELFILE, MODEL, BASE, ADAPTER = "Modelfile", "model.gguf", "base.gguf", "adapter.gguf"


def check_export(name: str, config: ModelConfig, quant: str) -> None:
    """See `outgoing.writers`."""
    gguf_write.check(config, quant)


def check_intended(name: str, intended: Intended) -> None:
    """See `outgoing.writers`."""
    if name == "ollama-lora":
        intended.needs_adapter()
    gguf_write.check_intended(name, intended)
    modelfile(intended.tokenizer, intended.template, intended.config)


def export(name: str, model: Outgoing, path: Path) -> None:
    """Write the folder; of "ollama-lora" the base is the same file for every adapter, so that Ollama keeps it once."""
    if name == "ollama-lora":
        model.only_adapter(name)
    tokenizer = model.need_tokenizer("Ollama runs no model without one")
    template = ChatTemplate(model.template, tokenizer.token_names, f"chat template of {model.base}")
    lines = _from(name) + modelfile(tokenizer, template, model.config)  # before anything is written: it may be refused
    folder = make_folder(path)
    if name == "ollama":
        gguf_write.export("gguf", model, folder / MODEL)
    else:
        adapter = replace(model, quant="f32")
        gguf_adapter.export("gguf-lora", adapter, folder / ADAPTER)
        gguf_write.export("gguf", replace(model, stored=model.base_stored, name=Path(model.base).stem), folder / BASE)
    write_atomic(folder / MODELFILE, "".join(f"{line}\n" for line in lines).encode())


def _from(name: str) -> list[str]:
    return [f"FROM ./{MODEL}"] if name == "ollama" else [f"FROM ./{BASE}", f"ADAPTER ./{ADAPTER}"]


def modelfile(tokenizer: Tokenizer, template: ChatTemplate, config: ModelConfig) -> list[str]:
    """TEMPLATE, SYSTEM where the model's own chat template has one, and a stop parameter for each text that ends a turn.

    Raises:
        ExportError: the chat template has no form in Go's template language.
    """
    known, system = recognise(template)
    text = go_template(
        known,
        bos=tokenizer.token_names.get("bos_token", ""),
        eos=tokenizer.token_names.get("eos_token", ""),
        first=gguf_tokenizer.leading_space(tokenizer, template.jinja),
        adds_bos=tokenizer.add_bos,
    )
    lines = [f"TEMPLATE {_quoted(text)}"]
    if system:
        lines.append(f"SYSTEM {_quoted(system)}")
    return lines + [f"PARAMETER stop {_quoted(stop)}" for stop in _stops(tokenizer, config)]


def _stops(tokenizer: Tokenizer, config: ModelConfig) -> list[str]:
    texts = {i: text for text, i in tokenizer.special_tokens.items()}
    ends = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    return [texts[i] for i in dict.fromkeys((*ends, *config.eos_token_ids)) if i in texts]


def _quoted(text: str) -> str:
    """As a Modelfile has texts: nothing in them is escaped, so three quotes cannot stand in one of several lines."""
    if '"' not in text and "\n" not in text:
        return f'"{text}"'
    if '"""' in text or text.endswith('"'):
        raise ExportError(f"a Modelfile cannot hold the text {text[:60]!r}", hint="export as gguf, and write it yourself")
    return f'"""{text}"""'


def reading(name: str, path: Path, base: str) -> dict[str, Any]:
    """See `outgoing.writers`."""
    if name == "ollama":
        return {"place": path / MODEL, "base": None, "llama_cpp": True}
    return {"place": path / ADAPTER, "base": path / BASE, "llama_cpp": True}
