# SPDX-License-Identifier: Apache-2.0
"""Rows to ids and masks: what is trained, that prompts agree with training, one BOS, and templates kept in bounds."""

from __future__ import annotations

import json
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from conftest import write_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralforge.bpe import byte_letters
from neuralforge.chat import (
    encode_completion,
    encode_messages,
    encode_text,
    prompt_ids,
)
from neuralforge.errors import DataError, TokenizerError
from neuralforge.ingest import Dataset
from neuralforge.templates import BUILT_IN, ChatTemplate, template_for
from neuralforge.tokenizer import Tokenizer

SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")

LLAMA3 = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
ZEPHYR = """\
{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
{% else %}
{{ '<|assistant|>\\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""
# Earlier thoughts are dropped; the generation prompt is followed by an empty thought where none is wanted.
THINKING = """\
{%- set ns = namespace(last=-1) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
    {%- set content = m.content %}
    {%- if m.role == 'assistant' and loop.index0 < ns.last %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' + m.role + '\\n' + content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if no_thought %}{{- '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}"""
# As Mistral's and Llama 2's: roles must alternate, and no role for the system.
STRICT = """\
{{- bos_token }}
{%- for m in messages %}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {{- '[INST] ' + m.content + ' [/INST]' if m.role == 'user' else ' ' + m.content + eos_token }}
{%- endfor %}"""
GENERATION = """\
{%- for m in messages %}
{{- m.role + ': ' }}{% generation %}{{ m.content + eos_token }}{% endgeneration %}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"""
NO_END = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
NO_PROMPT = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"

TEMPLATES = {
    "plain": "plain",
    "chatml": "chatml",
    "llama3": LLAMA3,
    "zephyr": ZEPHYR,
    "thinking": THINKING,
    "strict": STRICT,
    "generation": GENERATION,
    "no end": NO_END,
    "no prompt": NO_PROMPT,
}

CHAT = [
    {"role": "user", "content": "What is two and two?"},
    {"role": "assistant", "content": "Four."},
    {"role": "user", "content": "And three?"},
    {"role": "assistant", "content": "Six, I think."},
]


def _byte_tokenizer(folder: Path, *, bos: bool = True, eos: str | None = "</s>") -> Tokenizer:
    """One token for each byte, and the special ones."""
    flags = dict.fromkeys(("normalized", "lstrip", "rstrip", "single_word"), False)
    added = [{"id": 256 + n, "content": text, "special": True, **flags} for n, text in enumerate(SPECIAL)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    spec = {"version": "1.0", "added_tokens": added, "pre_tokenizer": byte_level, "decoder": byte_level}
    model = {"type": "BPE", "vocab": byte_letters(), "merges": []}
    (folder / "tokenizer.json").write_text(json.dumps({**spec, "model": model}))
    names = {"bos_token": "<s>", "add_bos_token": bos} | ({"eos_token": eos} if eos else {})
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return Tokenizer.from_file(folder)


@pytest.fixture(params=["bytes", "sentencepiece"])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    if request.param == "bytes":
        return _byte_tokenizer(tmp_path)
    write_tokenizer(tmp_path / "tokenizer.bin")
    return Tokenizer.from_file(tmp_path)


@pytest.fixture(scope="module")
def byte_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return _byte_tokenizer(tmp_path_factory.mktemp("bytes"))


def _template(name: str, tokenizer: Tokenizer, **variables: str) -> ChatTemplate:
    return ChatTemplate(TEMPLATES[name], {**tokenizer.token_names, **variables})


def _trained_texts(tokenizer: Tokenizer, ids: list[int], mask: list[bool]) -> list[str]:
    assert len(ids) == len(mask)
    borders = np.flatnonzero(np.diff(np.array([False, *mask, False])))
    return [tokenizer.decode(ids[a:b], skip_special_tokens=False, continuation=True) for a, b in borders.reshape(-1, 2)]


# --- what is trained ---

EXPECTED = {
    "plain": ["Four.</s>", "Six, I think.</s>"],
    "chatml": ["Four.<|im_end|>", "Six, I think.<|im_end|>"],
    "llama3": ["Four.<|eot_id|>", "Six, I think.<|eot_id|>"],
    "zephyr": ["Four.</s>", "Six, I think.</s>"],
    "thinking": ["Four.<|im_end|>", "Six, I think.<|im_end|>"],
    "strict": [" Four.</s>", " Six, I think.</s>"],
    "generation": ["Four.</s>", "Six, I think.</s>"],
    "no end": ["Four.\n", "Six, I think.\n</s>"],
    "no prompt": ["[assistant]Four.</s>", "[assistant]Six, I think.</s>"],
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_only_the_assistants_turns_are_trained(byte_tokenizer: Tokenizer, name: str) -> None:
    template = _template(name, byte_tokenizer)
    ids, mask = encode_messages(template, byte_tokenizer, CHAT)
    assert _trained_texts(byte_tokenizer, ids, mask) == EXPECTED[name]
    written = byte_tokenizer.decode(ids, skip_special_tokens=False).removeprefix("<s>")
    rendered = template.render(CHAT).removeprefix("<s>")
    assert written == (rendered + "</s>" if name == "no end" else rendered)


@pytest.mark.parametrize("name", TEMPLATES)
def test_prompts_are_the_beginning_of_training_rows(tokenizer: Tokenizer, name: str) -> None:
    template = _template(name, tokenizer)
    ids, mask = encode_messages(template, tokenizer, CHAT)
    for turn in (1, 3):
        prompt = prompt_ids(template, tokenizer, CHAT[:turn])
        assert ids[: len(prompt)] == prompt
        assert mask[len(prompt)] and not mask[len(prompt) - 1]


@pytest.mark.parametrize("name", TEMPLATES)
def test_bos_once_and_an_end_that_is_trained(tokenizer: Tokenizer, name: str) -> None:
    for chat in (CHAT[:2], CHAT):
        ids, mask = encode_messages(_template(name, tokenizer), tokenizer, chat)
        assert ids.count(tokenizer.bos_id or -1) == 1 and ids[0] == tokenizer.bos_id and not mask[0]
        last = max(n for n, trained in enumerate(mask) if trained)
        assert ids[last] in tokenizer.special_tokens.values()
        prompt = prompt_ids(_template(name, tokenizer), tokenizer, chat[:1])
        assert prompt.count(tokenizer.bos_id or -1) == 1


def test_a_tokenizer_without_bos_gets_none(tmp_path: Path) -> None:
    tokenizer = _byte_tokenizer(tmp_path, bos=False)
    ids, _ = encode_messages(_template("chatml", tokenizer), tokenizer, CHAT)
    assert tokenizer.bos_id not in ids
    ids, _ = encode_messages(_template("llama3", tokenizer), tokenizer, CHAT)
    assert ids.count(tokenizer.bos_id or -1) == 1  # the template writes it


def test_dropped_thoughts(byte_tokenizer: Tokenizer) -> None:
    """Only the last turn keeps its thought; the turns before are found in their rewritten form."""
    thought = "<think>\nhm\n</think>\n\n"
    chat = [{**m, "content": thought + m["content"]} if m["role"] == "assistant" else m for m in CHAT]
    expected = ["Four.<|im_end|>", thought + "Six, I think.<|im_end|>"]
    for extra in ({}, {"no_thought": "yes"}):
        ids, mask = encode_messages(_template("thinking", byte_tokenizer, **extra), byte_tokenizer, chat)
        assert _trained_texts(byte_tokenizer, ids, mask) == expected


def test_a_prompt_with_more_than_the_turn_begins_with(byte_tokenizer: Tokenizer) -> None:
    """Contents that begin like the prompt's extra text are still trained whole."""
    chat = [CHAT[0], {"role": "assistant", "content": "<thin ice>"}, *CHAT[2:]]
    ids, mask = encode_messages(_template("thinking", byte_tokenizer, no_thought="yes"), byte_tokenizer, chat)
    assert _trained_texts(byte_tokenizer, ids, mask) == ["<thin ice><|im_end|>", "Six, I think.<|im_end|>"]


def test_a_rewritten_turn_without_a_prompt_of_its_own(byte_tokenizer: Tokenizer) -> None:
    """The template never writes a header as prompt, so the header is part of what the model has to say."""
    short = "m.content if loop.last else m.content.split('</think>')[-1]"
    source = "{% for m in messages %}[{{ m.role }}]{{ " + short + " }}{{ eos_token }}{% endfor %}"
    chat = [CHAT[0], {"role": "assistant", "content": "<think>hm</think>Four."}, *CHAT[2:]]
    template = ChatTemplate(source, byte_tokenizer.token_names)
    ids, mask = encode_messages(template, byte_tokenizer, chat)
    assert _trained_texts(byte_tokenizer, ids, mask) == ["[assistant]Four.</s>", "[assistant]Six, I think.</s>"]
    assert ids[: mask.index(True)] == prompt_ids(template, byte_tokenizer, chat[:1])


def test_earlier_turns_are_cut_the_same_way_in_a_prompt(tmp_path: Path) -> None:
    """ " the" is one piece, but the prompt of the first turn ended with its space."""
    write_tokenizer(tmp_path / "tokenizer.bin")
    tokenizer = Tokenizer.from_file(tmp_path)
    chat = [{**m, "content": "the"} for m in CHAT]
    template = _template("no end", tokenizer)
    ids, mask = encode_messages(template, tokenizer, chat)
    prompt = prompt_ids(template, tokenizer, chat[:3])
    assert ids[: len(prompt)] == prompt and mask[len(prompt)]
    assert prompt != tokenizer.encode(template.render(chat[:3], add_generation_prompt=True))


@pytest.mark.parametrize("name", BUILT_IN)
def test_answers_of_weight_0_are_not_trained(byte_tokenizer: Tokenizer, name: str) -> None:
    record = {"messages": [dict(m) for m in CHAT]}
    answers = [m for m in record["messages"] if m["role"] == "assistant"]
    answers[0]["weight"] = 0
    (row,) = Dataset.from_list([record])
    template = template_for(byte_tokenizer, name=name)
    ids, mask = encode_messages(template, byte_tokenizer, row.data["messages"])
    all_ids, all_mask = encode_messages(template, byte_tokenizer, CHAT)
    assert ids == all_ids
    assert _trained_texts(byte_tokenizer, ids, mask) == _trained_texts(byte_tokenizer, all_ids, all_mask)[1:]
    with pytest.raises(DataError, match="every answer has weight 0"):
        encode_messages(template, byte_tokenizer, row.data["messages"][:2])
    answers[0]["weight"] = 2
    with pytest.raises(DataError, match="message 1: weight 2 is neither 0 nor 1"):
        Dataset.from_list([record])


def test_a_row_that_ends_with_the_user_gets_no_eos(byte_tokenizer: Tokenizer) -> None:
    ids, mask = encode_messages(_template("no end", byte_tokenizer), byte_tokenizer, CHAT[:3])
    assert byte_tokenizer.eos_id not in ids
    assert _trained_texts(byte_tokenizer, ids, mask) == ["Four.\n"]


def test_blocks_on_lines_of_their_own_leave_no_trace() -> None:
    source = "{% for m in messages %}\n    {% if m.role == 'user' %}\n  {{ m.content }}\n    {% endif %}\n{% endfor %}\n"
    assert ChatTemplate(source).render(CHAT) == "  What is two and two?\n  And three?\n"


def test_the_template_of_llama_3_2(byte_tokenizer: Tokenizer, shared: Path) -> None:
    config = json.loads((shared / "configs/Llama-3.2-1B-Instruct/tokenizer_config.json").read_text())
    template = ChatTemplate(config["chat_template"], {"bos_token": "<s>"})
    ids, mask = encode_messages(template, byte_tokenizer, CHAT)
    assert _trained_texts(byte_tokenizer, ids, mask) == ["Four.<|eot_id|>", "Six, I think.<|eot_id|>"]
    assert ids[: mask.index(True)] == prompt_ids(template, byte_tokenizer, CHAT[:1])
    assert "Today Date: 26 Jul 2024" in byte_tokenizer.decode(ids)


def test_turns_beside_each_other_and_at_the_start(byte_tokenizer: Tokenizer) -> None:
    chat = [{"role": "assistant", "content": a} for a in ("Hello.", "Again.")] + [{"role": "user", "content": "bye"}]
    ids, mask = encode_messages(_template("chatml", byte_tokenizer), byte_tokenizer, chat)
    assert _trained_texts(byte_tokenizer, ids, mask) == ["Hello.<|im_end|>", "Again.<|im_end|>"]
    assert byte_tokenizer.eos_id not in ids  # the row ends with the user
    same = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}] * 3
    ids, mask = encode_messages(_template("plain", byte_tokenizer), byte_tokenizer, same)
    assert _trained_texts(byte_tokenizer, ids, mask) == ["a</s>"] * 3


def test_tools_and_other_keys_pass(byte_tokenizer: Tokenizer) -> None:
    source = "{% for m in messages %}{{ m.content or (m.tool_calls | tojson) }}{{ eos_token }}{% endfor %}"
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "größe"}]}
    chat = [CHAT[0], call, {"role": "tool", "content": "7"}, CHAT[1]]
    template = ChatTemplate(source, byte_tokenizer.token_names)
    ids, mask = encode_messages(template, byte_tokenizer, chat)
    assert _trained_texts(byte_tokenizer, ids, mask) == ['[{"name": "größe"}]</s>', "Four.</s>"]


CONTENT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="<\ue0f1\ue0f2"), min_size=1, max_size=12)


@pytest.mark.parametrize("name", [n for n in TEMPLATES if n not in ("strict", "no end")])
@settings(max_examples=60)
@given(contents=st.lists(CONTENT, min_size=2, max_size=6), system=st.booleans())
def test_every_conversation(byte_tokenizer: Tokenizer, name: str, contents: list[str], system: bool) -> None:
    """Whatever is said: trained text is what the assistant said, the row is the rendering, prompts agree."""
    chat = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(contents)]
    chat = ([{"role": "system", "content": "Be kind."}] if system else []) + chat
    template = _template(name, byte_tokenizer)
    ids, mask = encode_messages(template, byte_tokenizer, chat)
    trained = _trained_texts(byte_tokenizer, ids, mask)
    said = [m["content"] for m in chat if m["role"] == "assistant"]
    assert len(trained) == len(said)
    for text, content in zip(trained, said, strict=True):
        assert content.strip() in text and text.rstrip().endswith((">",))
    assert ids[0] == byte_tokenizer.bos_id and ids.count(ids[0]) == 1
    assert byte_tokenizer.decode(ids[1:], False) == template.render(chat).removeprefix("<s>")
    turn = max(n for n, m in enumerate(chat) if m["role"] == "assistant")
    prompt = prompt_ids(template, byte_tokenizer, chat[:turn])
    assert ids[: len(prompt)] == prompt


def test_special_tokens_that_name_the_end_but_are_unknown(tmp_path: Path) -> None:
    """ChatML for a tokenizer without its tokens: plain text, and a trained EOS at the end."""
    write_tokenizer(tmp_path / "tokenizer.bin")
    tokenizer = Tokenizer.from_file(tmp_path)
    ids, mask = encode_messages(template_for(tokenizer, name="chatml"), tokenizer, CHAT)
    assert ids[-1] == tokenizer.eos_id and mask[-1]


# --- completions and texts ---


def test_completions(tokenizer: Tokenizer) -> None:
    ids, mask = encode_completion(tokenizer, "the hen", " is in</s>")
    assert ids[0] == tokenizer.bos_id and ids[-1] == tokenizer.eos_id
    assert ids.count(tokenizer.bos_id or -1) == ids.count(tokenizer.eos_id or -1) == 1  # the one in the text is text
    assert _trained_texts(tokenizer, ids, mask) == [" is in</s></s>"]
    assert ids[: mask.index(True)] == tokenizer.encode("the hen")
    assert tokenizer.decode(ids) == "the hen is in</s>"


def test_texts(tokenizer: Tokenizer) -> None:
    ids, mask = encode_text(tokenizer, "the hen")
    assert ids == [*tokenizer.encode("the hen"), tokenizer.eos_id]
    assert mask == [False] + [True] * (len(ids) - 1)


# --- templates ---


def test_choice_of_template(byte_tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert template_for(byte_tokenizer).source == "plain"
    own = replace(byte_tokenizer, chat_template="{{ bos_token }}x")
    assert template_for(own).render(CHAT) == "<s>x"
    assert template_for(own, name="chatml").source == "chatml"
    with pytest.raises(DataError, match="vicuna"):
        template_for(own, name="vicuna")
    file = tmp_path / "own.jinja"
    file.write_text("{{ eos_token }}ü", encoding="utf-8")
    assert template_for(own, name=str(file)).render(CHAT) == "</s>ü"
    file.write_text("x" * (2 << 20))
    with pytest.raises(DataError, match="characters, more than"):
        template_for(own, name=str(file)).render(CHAT)


def test_the_plain_template(byte_tokenizer: Tokenizer) -> None:
    chat = [{"role": "system", "content": "Be kind."}, *CHAT[:2]]
    rendered = template_for(byte_tokenizer).render(chat, add_generation_prompt=True)
    assert rendered == (
        "### System:\nBe kind.\n\n### User:\nWhat is two and two?\n\n### Assistant:\nFour.</s>\n\n### Assistant:\n"
    )


QUESTION, ANSWER = {"role": "user", "content": "A?"}, {"role": "assistant", "content": "B."}
SYSTEM = {"role": "system", "content": "S"}
# what the model cards of the families show: a conversation with a system message, and a question that waits for its answer
BUILT_IN_OUTPUT = {
    "chatml": (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nA?<|im_end|>\n<|im_start|>assistant\nB.<|im_end|>\n",
        "<|im_start|>user\nA?<|im_end|>\n<|im_start|>assistant\n",
    ),
    "llama2": ("<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nA? [/INST] B. </s>", "<s>[INST] A? [/INST]"),
    "llama3": (
        "<s><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nA?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nB.<|eot_id|>",
        "<s><|start_header_id|>user<|end_header_id|>\n\nA?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "phi3": (
        "<|system|>\nS<|end|>\n<|user|>\nA?<|end|>\n<|assistant|>\nB.<|end|>\n</s>",
        "<|user|>\nA?<|end|>\n<|assistant|>\n",
    ),
    "zephyr": ("<|system|>\nS</s>\n<|user|>\nA?</s>\n<|assistant|>\nB.</s>\n", "<|user|>\nA?</s>\n<|assistant|>\n"),
    "qwen3": (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nA?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\nB.<|im_end|>\n",
        "<|im_start|>user\nA?<|im_end|>\n<|im_start|>assistant\n",
    ),
    "plain": ("### System:\nS\n\n### User:\nA?\n\n### Assistant:\nB.</s>\n\n", "### User:\nA?\n\n### Assistant:\n"),
}


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_templates(byte_tokenizer: Tokenizer, name: str) -> None:
    template = template_for(byte_tokenizer, name=name)
    whole, waiting = BUILT_IN_OUTPUT[name]
    assert template.render([SYSTEM, QUESTION, ANSWER]) == whole
    assert template.render([QUESTION], add_generation_prompt=True) == waiting


def test_no_mark_of_the_next_turn_is_trained(byte_tokenizer: Tokenizer) -> None:
    """Phi-3 ends only the last turn with EOS; what follows an earlier one begins with "<" as well."""
    ids, mask = encode_messages(template_for(byte_tokenizer, name="phi3"), byte_tokenizer, CHAT)
    assert _trained_texts(byte_tokenizer, ids, mask) == ["Four.<|end|>\n", "Six, I think.<|end|>\n</s>"]
    known = replace(byte_tokenizer, special_tokens={**byte_tokenizer.special_tokens, "<|end|>": 999})
    ids, mask = encode_messages(template_for(known, name="phi3"), known, CHAT)
    assert _trained_texts(known, ids, mask)[0] == "Four.<|end|>"


def test_thoughts_and_tools_of_qwen3(byte_tokenizer: Tokenizer) -> None:
    template = template_for(byte_tokenizer, name="qwen3")
    thinking = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nB."}
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": "é"}}}]}
    chat = [QUESTION, thinking, QUESTION, call, {"role": "tool", "content": "7"}, {"role": "tool", "content": "8"}, thinking]
    assert template.render(chat) == (
        "<|im_start|>user\nA?<|im_end|>\n<|im_start|>assistant\nB.<|im_end|>\n<|im_start|>user\nA?<|im_end|>\n"
        '<|im_start|>assistant\n<tool_call>\n{"name": "f", "arguments": {"a": "é"}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\n7\n</tool_response>\n<tool_response>\n8\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n<think>\nhm\n</think>\n\nB.<|im_end|>\n"
    )
    ids, mask = encode_messages(template, byte_tokenizer, chat)
    said = _trained_texts(byte_tokenizer, ids, mask)
    assert [text.startswith(("B.", "<tool_call>", "<think>")) for text in said] == [True] * 3


def medquad(shared: Path) -> list[list[dict[str, str]]]:
    """Question and answer of each pair in the XML files of the archive."""
    chats = []
    with zipfile.ZipFile(shared / "instruct" / "medquad_subset.zip") as archive:
        for name in sorted(n for n in archive.namelist() if n.endswith(".xml")):
            for pair in ElementTree.fromstring(archive.read(name)).iter("QAPair"):
                texts = [(pair.findtext(tag) or "").strip() for tag in ("Question", "Answer")]
                if all(texts):
                    chats.append([{"role": r, "content": t} for r, t in zip(("user", "assistant"), texts, strict=True)])
    return chats


@pytest.fixture(scope="module")
def real_chats(shared: Path) -> list[list[dict[str, str]]]:
    """Every row of both data sets as a chat, and half of them again as chats of two turns below a system message."""
    pubmed = [row.data["messages"] for row in Dataset.from_path(shared / "instruct" / "pubmedqa_ori_pqal.json")]
    pairs = medquad(shared)
    assert (len(pubmed), len(pairs)) == (1000, 2790)
    return [*pubmed, *pairs, *([SYSTEM, *a, *b] for a, b in zip(pairs[::4], pairs[1::4], strict=False))]


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILT_IN)
def test_masks_of_real_chats(real_chats: list[list[dict[str, str]]], byte_tokenizer: Tokenizer, name: str) -> None:
    """Each token of an answer is trained once with the token that ends it, and no token of a prompt."""
    template = template_for(byte_tokenizer, name=name)
    ends = {"chatml": "<|im_end|>", "qwen3": "<|im_end|>", "llama3": "<|eot_id|>"}
    for chat in real_chats:
        ids, mask = encode_messages(template, byte_tokenizer, chat)
        rendered = template.render(chat)
        assert byte_tokenizer.decode(ids, skip_special_tokens=False).removeprefix("<s>") == rendered.removeprefix("<s>")
        said = _trained_texts(byte_tokenizer, ids, mask)
        answers = [m["content"] for m in chat if m["role"] == "assistant"]
        assert len(said) == len(answers)
        for i, (text, answer) in enumerate(zip(said, answers, strict=True)):
            bare = text.removeprefix("<think>\n\n</think>\n\n") if name == "qwen3" else text
            end = ends.get(name, "</s>")
            if name == "phi3":
                end = "<|end|>\n</s>" if i == len(answers) - 1 else "<|end|>\n"
            assert bare.strip(" ").removesuffix(end).strip() == answer.strip()
            assert bare.strip(" ").endswith(end)
        prompt = prompt_ids(template, byte_tokenizer, chat[:-1])
        assert ids[: len(prompt)] == prompt and mask[len(prompt)] and not mask[len(prompt) - 1]


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_templates_in_transformers(
    real_chats: list[list[dict[str, str]]], byte_tokenizer: Tokenizer, name: str
) -> None:
    """What an exported tokenizer will render with our text of the template."""
    transformers = pytest.importorskip("transformers", reason="the oracle package is not installed")
    oracle = transformers.PreTrainedTokenizerFast(tokenizer_file=str(byte_tokenizer.path), bos_token="<s>", eos_token="</s>")
    template = template_for(byte_tokenizer, name=name)
    for chat in (CHAT, [SYSTEM, *CHAT], *real_chats):
        for prompt in (False, True):
            words = {"chat_template": template.jinja, "tokenize": False, "add_generation_prompt": prompt}
            assert template.render(chat, add_generation_prompt=prompt) == oracle.apply_chat_template(chat, **words)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in TEMPLATES if n not in BUILT_IN])
def test_rendering_equals_transformers(byte_tokenizer: Tokenizer, name: str) -> None:
    transformers = pytest.importorskip("transformers", reason="the oracle package is not installed")
    oracle = transformers.PreTrainedTokenizerFast(tokenizer_file=str(byte_tokenizer.path), bos_token="<s>", eos_token="</s>")
    for prompt in (False, True):
        expected = oracle.apply_chat_template(CHAT, chat_template=TEMPLATES[name], tokenize=False, add_generation_prompt=prompt)
        assert _template(name, byte_tokenizer).render(CHAT, add_generation_prompt=prompt) == expected


@pytest.mark.slow
def test_minimind_equals_transformers(shared: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the oracle package is not installed")
    folder = shared / "tokenizers/minimind"
    oracle = transformers.AutoTokenizer.from_pretrained(str(folder))
    tokenizer = Tokenizer.from_file(folder)
    template = template_for(tokenizer)
    chats = [
        CHAT,
        [{"role": "system", "content": "Sei kurz."}, *CHAT[:2]],
        [*CHAT[:3], {"role": "assistant", "content": "<think>\nhm\n</think>\n\nSechs"}],
        [*CHAT[:2], {"role": "tool", "content": "7"}, CHAT[3]],
    ]
    for chat in chats:
        assert template.render(chat) == oracle.apply_chat_template(chat, tokenize=False)
        ids, mask = encode_messages(template, tokenizer, chat)
        assert ids == oracle(oracle.apply_chat_template(chat, tokenize=False)).input_ids
        assert _trained_texts(tokenizer, ids, mask)[-1].endswith(chat[-1]["content"].split("\n")[-1] + "<|im_end|>")
        asked = oracle.apply_chat_template(chat[:1], tokenize=False, add_generation_prompt=True)
        assert prompt_ids(template, tokenizer, chat[:1]) == oracle(asked).input_ids


BAD_TEMPLATES = {
    "syntax": ("{% for m in messages %}{{ m }", "line 1"),
    "raises": ("{{ raise_exception('no system role here') }}", "no system role here"),
    "undefined": ("{{ messages[0].nothing.more }}", "nothing"),
    "unknown filter": ("{{ messages | nosuch }}", "nosuch"),
    "type": ("{{ 1 + 'a' }}", "TypeError"),
    "escape": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "Security"),
    "change": ("{{ messages.append(1) }}", "Security"),
    "range": ("{% for i in range(10**9) %}{% endfor %}", "range"),
    "ranges": ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "range"),
    "power": ("{{ 9 ** 999999999 }}", "exponent"),
    "tower": ("{{ 9 ** 64 ** 2 ** 9 }}", "large"),
    "long text": ("{{ 'x' * 10**9 }}", "too long"),
    "long list": ("{{ [1] * 10**9 }}", "too long"),
    "output": ("{% for i in range(9999) %}{{ 'x' * 9999 }}{% endfor %}", "characters of output"),
    "endless": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "Recursion"),
    "loops": ("{% for a in range(9999) %}{% for b in 'x' * 9999 %}{% endfor %}{% endfor %}", "takes more than 2 s"),
    "filtered loop": ("{% for a in 'x' * 4000000 if (('x' * 9999) | upper) == a %}{% endfor %}", "takes more than"),
    "macros": ("{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}", "takes more than"),
    "doubling": ("{% set n = namespace(s='x') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}", "too long"),
    "joining": ("{% set n = namespace(s='x') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}", "too long"),
    "captured": (
        "{% set n = namespace(s='x') %}{% for i in range(60) %}{% set n.s %}{{ n.s }}{{ n.s }}{% endset %}{% endfor %}",
        "too long",
    ),
    "nested macros": (
        "{% macro m(x) %}{{ x }}{{ x }}{% endmacro %}" + "{{ " + "m(" * 40 + "'x'" + ")" * 40 + " | length }}",
        "too long",
    ),
    "nested calls": (
        "{% macro m() %}{{ caller() }}{{ caller() }}{% endmacro %}"
        + "{% call m() %}" * 12
        + "{{ 'x' * 99999 }}"
        + "{% endcall %}" * 12,
        "too long",
    ),
    "lists": ("{% set n = namespace(s=[1]) %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}", "too long"),
    "replace": ("{{ ('x' * 4000000).replace('x', 'y' * 4000000) }}", "replacement is too long"),
    "replace filter": ("{{ ('x' * 4000000) | replace('x', 'y' * 4000000) }}", "replacement is too long"),
    "join": ("{{ (['x' * 4000000] * 4000) | join }}", "joined text is too long"),
    "join method": ("{{ ('x' * 4000000).join(('a' * 99) | list) }}", "too long"),
    "width": ("{{ '%999999999d' % 1 }}", "formatted text is too long"),
    "star width": ("{{ '%*d' | format(99999999, 1) }}", "number is too large"),
    "format": ("{{ '{:>999999999}'.format(1) }}", "formatted text is too long"),
    "padding": ("{{ 'x'.ljust(10 ** 9) }}", "number is too large"),
    "centre": ("{{ 'x' | center(999999999) }}", "number is too large"),
    "batch": ("{{ [1] | batch(999999999, 0) | list }}", "number is too large"),
    "indent": ("{{ ('\\n' * 4000000) | indent(999999) }}", "indented text is too long"),
    "the clock": (
        "{% set neuralforge_clock = 1 %}{% for a in range(9999) %}{% for b in 'x' * 9999 %}{% endfor %}{% endfor %}",
        "2 s",
    ),
    "random": ("{{ [1, 2] | random }}", "random"),
    "lorem": ("{{ lipsum(n=10**9) }}", "lipsum"),
}


@pytest.mark.parametrize("name", BAD_TEMPLATES)
def test_a_template_that_fails_is_named_with_its_row(byte_tokenizer: Tokenizer, name: str) -> None:
    source, expected = BAD_TEMPLATES[name]
    template = ChatTemplate(source, byte_tokenizer.token_names, "the template of x")
    start = time.perf_counter()
    with pytest.raises(DataError, match=expected) as caught:
        encode_messages(template, byte_tokenizer, CHAT, where="rows.jsonl line 7")
    assert time.perf_counter() - start < 5  # none may hang; each takes some milliseconds, or the 2 s that it may
    assert "rows.jsonl line 7" in str(caught.value) and "the template of x" in str(caught.value)


ORDINARY = {
    "{% for m in messages if m.role == 'user' %}{{ loop.index ~ m.content[:4] ~ '!' }}{% endfor %}": "1What!2And !",
    "{% for m in messages %}{{ loop.length }}{{ loop.last }}{{ loop.revindex0 }}{% endfor %}": "4False34False24False14True0",
    "{{ messages | map(attribute='role') | join(',') }}": "user,assistant,user,assistant",
    "{{ 'a b'.split() | join('-') }}{{ '%s-%02d' % ('x', 7) }}{{ '{}{:>3}'.format('a', 1) }}": "a-bx-07a  1",
    "{{ 'abc' | replace('b', 'x') }}{{ 'a\\nb' | indent(2) }}{{ 'x'.center(3) }}": "axca\n  b x ",
    "{{ 1 + 2 }}{{ 2 * 'ab' }}{{ ['a'] + ['b'] }}{{ 7 % 4 }}{{ 2 ** 3 }}": "3abab['a', 'b']38",
    "{% macro f(a, b=2) %}{{ a ~ b }}{% endmacro %}{{ f('y') }}{{ f(a='z', b='x') }}": "y2zx",
    "{% for m in messages recursive %}{% if loop.depth < 2 %}{{ loop(messages[:1]) }}{% endif %}.{% endfor %}": "........",
    "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content | length }}{% break %}{% endfor %}": "5",
    "{% for m in [] %}x{% else %}none{% endfor %}{% set x %}a{% endset %}{{ x ~ none ~ 1.5 }}": "noneaNone1.5",
    "{{ undefined_name ~ 'a' }}{{ messages[0].get('content')[:4] }}": "aWhat",
}


@pytest.mark.parametrize("source", ORDINARY)
def test_the_bounds_leave_ordinary_templates_alone(source: str) -> None:
    assert ChatTemplate(source).render(CHAT) == ORDINARY[source]


def test_a_template_cannot_change_the_messages(byte_tokenizer: Tokenizer) -> None:
    chat = [dict(m) for m in CHAT]
    ChatTemplate("{% set messages = messages[1:] %}{{ messages | length }}").render(chat)
    assert chat == CHAT


def test_the_day_is_always_the_same() -> None:
    assert ChatTemplate("{{ strftime_now('%d %b %Y') }}").render(CHAT) == "26 Jul 2024"


# --- bad prompts and rows ---

BAD_MESSAGES: dict[str, tuple[Any, str]] = {
    "none": (None, "no list"),
    "empty": ([], "no list"),
    "text": ("hello", "no list"),
    "one message": (CHAT[0], "no list"),
    "list of text": (["hello"], "message 0 is str"),
    "no role": ([CHAT[0], {"content": "x"}], "message 1 has the role None"),
    "unknown role": ([{"role": "human", "content": "x"}], "'human'"),
    "role a list": ([{"role": [], "content": "x"}], "message 0"),
    "no content": ([CHAT[0], {"role": "assistant"}], "message 1 .* NoneType"),
    "content a list": ([{"role": "user", "content": [{"type": "text"}]}], "message 0 .* list"),
}


@pytest.mark.parametrize("name", BAD_MESSAGES)
def test_bad_messages_of_a_prompt_name_the_message(byte_tokenizer: Tokenizer, name: str) -> None:
    messages, expected = BAD_MESSAGES[name]
    with pytest.raises(DataError, match=expected) as caught:
        prompt_ids(_template("chatml", byte_tokenizer), byte_tokenizer, messages)
    assert str(caught.value).startswith("messages: ")


def test_a_row_without_an_answer_is_named(byte_tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl line 7: nothing to train on"):
        encode_messages(_template("chatml", byte_tokenizer), byte_tokenizer, CHAT[:1], where="rows.jsonl line 7")


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}",
        "{{ messages[0].content }}",
        "nothing",
    ],
)
def test_a_turn_that_the_template_leaves_out(byte_tokenizer: Tokenizer, source: str) -> None:
    with pytest.raises(DataError, match="message 1"):
        encode_messages(ChatTemplate(source), byte_tokenizer, CHAT)


def test_no_end_token(tmp_path: Path) -> None:
    tokenizer = _byte_tokenizer(tmp_path, eos=None)
    for encode in (
        lambda: encode_text(tokenizer, "x"),
        lambda: encode_messages(_template("no end", tokenizer), tokenizer, CHAT),
    ):
        with pytest.raises(TokenizerError, match="no EOS"):
            encode()
    encode_messages(_template("chatml", tokenizer), tokenizer, CHAT)  # its turns end by themselves
