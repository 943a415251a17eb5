# SPDX-License-Identifier: Apache-2.0
"""Rows to ids and masks: what is trained, that prompts agree with training, one BOS, and templates kept in bounds."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

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
    runs = [[i for i, _ in run] for trained, run in groupby(zip(ids, mask, strict=True), key=lambda p: p[1]) if trained]
    return [tokenizer.decode(run, skip_special_tokens=False, continuation=True) for run in runs]


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
@settings(max_examples=60, deadline=None)
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


def test_choice_of_template(byte_tokenizer: Tokenizer) -> None:
    assert template_for(byte_tokenizer).source == "plain"
    own = replace(byte_tokenizer, chat_template="{{ bos_token }}x")
    assert template_for(own).render(CHAT) == "<s>x"
    assert template_for(own, name="chatml").source == "chatml"
    with pytest.raises(DataError, match="vicuna"):
        template_for(own, name="vicuna")


def test_the_plain_template(byte_tokenizer: Tokenizer) -> None:
    chat = [{"role": "system", "content": "Be kind."}, *CHAT[:2]]
    rendered = template_for(byte_tokenizer).render(chat, add_generation_prompt=True)
    assert rendered == (
        "### System:\nBe kind.\n\n### User:\nWhat is two and two?\n\n### Assistant:\nFour.</s>\n\n### Assistant:\n"
    )


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
    "lorem": ("{{ lipsum(n=10**9) }}", "lipsum"),
}


@pytest.mark.parametrize("name", BAD_TEMPLATES)
def test_a_template_that_fails_is_named_with_its_row(byte_tokenizer: Tokenizer, name: str) -> None:
    source, expected = BAD_TEMPLATES[name]
    template = ChatTemplate(source, byte_tokenizer.token_names, "the template of x")
    start = time.perf_counter()
    with pytest.raises(DataError, match=expected) as caught:
        encode_messages(template, byte_tokenizer, CHAT, where="rows.jsonl line 7")
    assert time.perf_counter() - start < 5  # none may hang; each takes some milliseconds
    assert "rows.jsonl line 7" in str(caught.value) and "the template of x" in str(caught.value)


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
