"""Writes trained weights as GGUF: `python convert.py pocket.pt pocket.gguf` (package `gguf` from PyPI)."""

import sys

import gguf
import numpy
import torch

import vocabulary as v
from model import CONTEXT, EPSILON, FEED_FORWARD, HEADS, LAYERS, ROPE_BASE, WIDTH

# R1's turns: earlier thoughts are left out, and a thought is opened.
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '<｜User｜>' + message['content'] }}{% elif message['role'] == 'assistant' %}"
    "{{ '<｜Assistant｜>' + message['content'].split('</think>')[-1].strip() + '<｜end▁of▁sentence｜>' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"
)


def main():
    weights = torch.load(sys.argv[1], weights_only=True)
    out = gguf.GGUFWriter(sys.argv[2], "qwen2")
    out.add_type(gguf.GGUFType.MODEL)
    out.add_name("pocket")
    out.add_author("the authors of pensive")
    out.add_license("mit")
    out.add_description("A tiny R1-style reasoner: counts letters, compares and sorts numbers, calculates, solves small equations")
    out.add_size_label(f"{sum(w.numel() for w in weights.values()) / 1e6:.1f}M")
    out.add_context_length(CONTEXT)
    out.add_embedding_length(WIDTH)
    out.add_block_count(LAYERS)
    out.add_feed_forward_length(FEED_FORWARD)
    out.add_head_count(HEADS)
    out.add_head_count_kv(HEADS)
    out.add_rope_freq_base(ROPE_BASE)
    out.add_layer_norm_rms_eps(EPSILON)
    out.add_float32("general.sampling.temp", 0.0)
    out.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    vocabulary(out)
    for name, w in weights.items():
        out.add_tensor(name, w.numpy().astype(numpy.float16 if w.ndim == 2 else numpy.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def vocabulary(out):
    kind = gguf.TokenType
    tokens = v.byte_names() + v.TOKENS
    types = [kind.NORMAL] * v.BYTES + [kind.CONTROL] * len(v.MARKERS)
    types += [kind.USER_DEFINED] * (len(v.TOKENS) - len(v.MARKERS))
    # A list of merges must not be empty; these two bytes stand in no UTF-8.
    names = v.byte_names()
    tokens.append(names[254] + names[255])
    types.append(kind.NORMAL)
    while len(tokens) < v.SIZE:
        tokens.append(f"<unused{len(tokens)}>")
        types.append(kind.UNUSED)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("deepseek-r1-qwen")
    out.add_token_list(tokens)
    out.add_token_types(types)
    out.add_token_merges([f"{names[254]} {names[255]}"])
    out.add_bos_token_id(v.BOS)
    out.add_eos_token_id(v.EOS)
    out.add_pad_token_id(v.EOS)
    out.add_add_bos_token(True)
    out.add_chat_template(TEMPLATE)


if __name__ == "__main__":
    main()
