# SPDX-License-Identifier: Apache-2.0
"""llama.cpp as the independent reader of GGUF files, through the package xllamacpp, in a process of its own.

A process of its own, because llama.cpp ends the process on files it does not like, and because xllamacpp opens a port on
this machine's loopback interface; no request from there is answered without a random key.

python -m neuralforge.llama_cpp     reads one JSON request from stdin and writes the answers to stdout
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .errors import ExportError
from .weights import F32Array

_CONTEXT = 512  # tokens; the conversations of the check have about 200 in a vocabulary of single characters
_SECONDS = 600  # for one file; reading a model of a few GB from a slow disk takes minutes
Prompt = Sequence[int] | str


def available() -> bool:
    """Whether xllamacpp is installed."""
    return importlib.util.find_spec("xllamacpp") is not None


def log_probabilities(
    model: Path, prompts: Sequence[Prompt], *, vocab_size: int, letter: int, adapter: Path | None = None
) -> tuple[F32Array, list[int]]:
    """What llama.cpp expects after each prompt.

    Args:
        model: a .gguf file.
        prompts: ids, or texts that llama.cpp tokenises itself, special tokens parsed.
        vocab_size: of the model.
        letter: id of a token that is an ordinary letter. llama.cpp is made to choose it, because it says nothing of what it
            expected where it chooses the end of the text or half a character.
        adapter: a LoRA adapter in a .gguf file.

    Returns:
        (prompts, V) log-probabilities of the next token, and the number of tokens of each prompt.

    Raises:
        ExportError: llama.cpp cannot read the file.
    """
    ask: dict[str, Any] = {"model": str(model), "prompts": list(prompts), "vocab": vocab_size, "letter": letter}
    ask["adapter"] = None if adapter is None else str(adapter)
    answer, _ = _child(ask, model)
    rows = np.full((len(prompts), vocab_size), -np.inf, np.float32)
    for row, pairs in zip(rows, answer["rows"], strict=True):
        ids, values = zip(*pairs, strict=True)
        row[list(ids)] = values
    return rows, answer["counts"]


def greedy(model: Path, prompt: Prompt, *, count: int) -> str:
    """The text that llama.cpp goes on with, always taking the likeliest token."""
    answer, _ = _child({"model": str(model), "prompts": [prompt], "greedy": count, "adapter": None}, model)
    return str(answer["text"])


def _child(ask: dict[str, Any], model: Path) -> tuple[dict[str, Any], str]:
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__], input=json.dumps(ask).encode(), capture_output=True, timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise ExportError(
            f"{model}: llama.cpp did not read it within {_SECONDS} seconds", hint="export with verify=False"
        ) from None
    lines = done.stdout.decode("utf-8", "replace").splitlines()
    log = done.stderr.decode("utf-8", "replace")
    if done.returncode or not lines:
        reasons = [line.strip() for line in log.splitlines() if "error" in line.lower()] or [f"exit code {done.returncode}"]
        raise ExportError(f"{model}: llama.cpp cannot read it: {reasons[0][:300]}", hint="please report this model")
    answer: dict[str, Any] = json.loads(lines[-1])
    return answer, log


def main() -> None:
    """Answer one request; llama.cpp's own messages go to stderr."""
    import secrets

    import xllamacpp as x

    ask = json.load(sys.stdin)
    p = x.CommonParams()
    p.model.path = ask["model"]
    p.n_parallel, p.n_gpu_layers, p.warmup, p.verbosity = 1, 0, False, 0
    p.n_ctx = _CONTEXT
    p.api_keys = [secrets.token_hex(16)]
    if "greedy" not in ask:  # its own half-precision cache is not what is checked
        p.cache_type_k = p.cache_type_v = x.ggml_type.GGML_TYPE_F32
        p.flash_attn_type = x.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    if ask["adapter"]:
        lora = x.CommonAdapterLoraInfo()
        lora.path, lora.scale = ask["adapter"], 1.0
        p.lora_adapters = [lora]
    server = x.Server(p)
    if "greedy" in ask:
        answer = server.handle_completions(
            {"prompt": ask["prompts"][0], "n_predict": ask["greedy"], "temperature": 0, "cache_prompt": False}
        )
        print(json.dumps({"text": answer["choices"][0]["text"]}))
        return
    rows, counts = [], []
    wanted = {"n_predict": 1, "n_probs": ask["vocab"], "logprobs": ask["vocab"], "temperature": 0, "samplers": []}
    wanted |= {"logit_bias": [[ask["letter"], 1e6]], "cache_prompt": False}
    for prompt in ask["prompts"]:
        answer = server.handle_completions({"prompt": prompt, **wanted})
        if "usage" not in answer:
            raise SystemExit(f"error: {answer}")
        rows.append([[t["id"], t["logprob"]] for t in _candidates(answer)])
        counts.append(answer["usage"]["prompt_tokens"])
    print(json.dumps({"rows": rows, "counts": counts}))


def _candidates(answer: dict[str, Any]) -> list[dict[str, Any]]:
    found = answer.get("completion_probabilities") or answer["choices"][0]["logprobs"]["content"]
    top: list[dict[str, Any]] = found[0]["top_logprobs"]
    return top


if __name__ == "__main__":
    main()
