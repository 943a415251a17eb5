# SPDX-License-Identifier: Apache-2.0
"""The built-in chat templates in the template language of Go, which Ollama renders, and how a model's own is recognised.

They are given what Ollama gives: `.Messages`, each with `.Role`, `.Content` and `.Thinking`. Go's templates cannot cut white
space off a value, so what Jinja's `trim` takes from the ends of a message stays here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from .errors import DataError, ExportError
from .template_texts import BUILT_IN
from .templates import ChatTemplate, Message

# @BOS@, @EOS@ and @START@ (what stands before everything) are put in as values. In each, $role is that of the last message.
_PLAIN = """\
{{- $role := "" }}@START@
{{- range .Messages }}### {{ if eq .Role "system" }}System{{ else if eq .Role "user" }}User{{ else if eq .Role "assistant" -}}
Assistant{{ else }}Tool{{ end }}:
{{ .Content }}{{ if eq .Role "assistant" }}@EOS@{{ end }}

{{ $role = .Role }}{{ end }}
{{- if ne $role "assistant" }}### Assistant:
{{ end }}"""

_CHATML = """\
{{- $role := "" }}@START@
{{- range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ $role = .Role }}{{ end }}
{{- if ne $role "assistant" }}<|im_start|>assistant
{{ end }}"""

_LLAMA2 = """\
{{- $first := true }}{{ $given := false }}{{ $system := "" }}
{{- range .Messages }}
{{- if eq .Role "system" }}{{ $given = true }}{{ $system = .Content }}
{{- else if eq .Role "user" }}{{ if $first }}@START@{{ else }}@BOS@{{ end }}[INST] {{ if $given }}<<SYS>>
{{ $system }}
<</SYS>>

{{ $given = false }}{{ end }}{{ .Content }} [/INST]
{{- $first = false }}
{{- else }} {{ .Content }} @EOS@
{{- end }}
{{- end }}"""

_LLAMA3 = """\
{{- $role := "" }}@START@
{{- range .Messages }}<|start_header_id|>{{ .Role }}<|end_header_id|>

{{ .Content }}<|eot_id|>
{{- $role = .Role }}{{ end }}
{{- if ne $role "assistant" }}<|start_header_id|>assistant<|end_header_id|>

{{ end }}"""

_PHI3 = """\
{{- $role := "" }}@START@
{{- range .Messages }}<|{{ .Role }}|>
{{ .Content }}<|end|>
{{ $role = .Role }}{{ end }}
{{- if eq $role "assistant" }}@EOS@{{ else }}<|assistant|>
{{ end }}"""

_ZEPHYR = """\
{{- $role := "" }}@START@
{{- range .Messages }}<|{{ .Role }}|>
{{ .Content }}@EOS@
{{ $role = .Role }}{{ end }}
{{- if ne $role "assistant" }}<|assistant|>
{{ end }}"""

# without calls of tools: Ollama offers tools only to templates that list them, and ours do not
_QWEN3 = """\
{{- $role := "" }}{{ $asked := len .Messages }}
{{- range $i, $m := .Messages }}{{ if eq $m.Role "user" }}{{ $asked = $i }}{{ end }}{{ end }}@START@
{{- range $i, $m := .Messages }}{{ $rest := slice $.Messages $i }}
{{- if eq $m.Role "tool" }}{{ if ne $role "tool" }}<|im_start|>user{{ end }}
<tool_response>
{{ $m.Content }}
</tool_response>
{{- $more := false }}{{ if gt (len $rest) 1 }}{{ $more = eq (index $rest 1).Role "tool" }}{{ end }}
{{- if not $more }}<|im_end|>
{{ end }}
{{- else }}<|im_start|>{{ $m.Role }}
{{ if and (eq $m.Role "assistant") (gt $i $asked) (or $m.Thinking (eq (len $rest) 1)) }}<think>
{{ $m.Thinking }}
</think>

{{ end }}{{ $m.Content }}<|im_end|>
{{ end }}{{ $role = $m.Role }}{{ end }}
{{- if ne $role "assistant" }}<|im_start|>assistant
{{ end }}"""

_TEXTS = {
    "plain": _PLAIN,
    "chatml": _CHATML,
    "llama2": _LLAMA2,
    "llama3": _LLAMA3,
    "phi3": _PHI3,
    "zephyr": _ZEPHYR,
    "qwen3": _QWEN3,
}
_QUESTION, _ANSWER = {"role": "user", "content": "A question?"}, {"role": "assistant", "content": "An answer."}
_SYSTEM = "A system message."
_PROBES: tuple[tuple[Message, ...], ...] = (
    (_QUESTION,),
    ({"role": "system", "content": _SYSTEM}, _QUESTION),
    (_QUESTION, _ANSWER, {"role": "user", "content": "Another one"}),
    ({"role": "system", "content": _SYSTEM}, _QUESTION, _ANSWER, _QUESTION, _ANSWER, _QUESTION),
)


def go_template(name: str, *, bos: str = "", eos: str = "", first: str = "", adds_bos: bool) -> str:
    """A built-in template in Go's language.

    Args:
        name: a key of `BUILT_IN`.
        bos, eos: texts of the special tokens.
        first: a space that must stand before everything, or nothing.
        adds_bos: the reader puts BOS before what is rendered, so that the template must not.
    """
    begins = ("" if adds_bos else bos) if name in ("llama2", "llama3") else ""
    text = _TEXTS[name]
    for mark, value in (("@START@", first + begins), ("@BOS@", bos), ("@EOS@", eos)):
        text = text.replace(mark, f"{{{{ {json.dumps(value, ensure_ascii=False)} }}}}" if value else "")
    return text


def recognise(template: ChatTemplate) -> tuple[str, str]:
    """(name of the built-in template that asks as this one does, the system message that it puts in when there is none).

    Prompts are compared, which is what a chat program sends; how the last answer ends does not matter.

    Raises:
        ExportError: none does.
    """
    if template.source in BUILT_IN:
        return template.source, ""
    wanted = [_prompt(template, probe) for probe in _PROBES]
    for name in sorted(BUILT_IN, key=lambda n: n == "qwen3"):  # it asks as ChatML does where nothing was thought
        known = ChatTemplate(name, template.variables)
        if [_prompt(known, probe) for probe in _PROBES] == wanted:
            return name, ""
        system = _own_system(wanted[0], known)
        probes = [p if p[0]["role"] == "system" else ({"role": "system", "content": system}, *p) for p in _PROBES]
        if system and [_prompt(known, probe) for probe in probes] == wanted:
            return name, system
    raise ExportError(
        f"{template.name}: has no form in Go's template language here, which Ollama needs",
        hint=f"known are the built-in ones ({', '.join(BUILT_IN)}); the format gguf holds every template",
    )


def _prompt(template: ChatTemplate, messages: Sequence[Message]) -> str | None:
    try:
        return template.render(messages, add_generation_prompt=True)
    except DataError:
        return None


def _own_system(text: str | None, known: ChatTemplate) -> str:
    """What stands in `text`, a question alone, where `known` would have a system message."""
    with_system = _prompt(known, _PROBES[1])
    if text is None or with_system is None:
        return ""
    head, _, tail = with_system.partition(_SYSTEM)
    fits = text.startswith(head) and text.endswith(tail) and len(text) > len(head) + len(tail)
    return text[len(head) : len(text) - len(tail)] if fits else ""
