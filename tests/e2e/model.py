"""Writes a language model small enough to make on the spot: `model.py OUT.gguf`, 0.6 MB.

Its weights are noise from a fixed seed, so it talks nonsense. Everything around the weights is real: tokenizer, chat
template, sampling, streaming and, what matters here, the counting of tokens.
"""

import sys

import gguf
import numpy as np

WIDTH, HEADS, LAYERS, INNER, CONTEXT = 64, 4, 2, 128, 32768
END_OF_TEXT = 2
WORDS = """
a about after all an and any are as at back be because but by can come could day do down even find first for from get
give go good great have he her here him his how if in into is it just know like little look make man many may more most
much must my new no not now of on one only or other our out over people river say see she so some stream take than that
the their them then there these they thing think this time to two up use very was water way we well weir what when
""".split()
CHAT = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def vocabulary():
    """Three control tokens, each byte, each printable character, and each word with all its beginnings.

    The tokenizer builds a word by joining neighbours, so every beginning of a word has to be a token, too.
    """
    kind = gguf.TokenType
    entries = [("<unk>", 0.0, kind.UNKNOWN), ("<s>", 0.0, kind.CONTROL), ("</s>", 0.0, kind.CONTROL)]
    entries += [(f"<0x{byte:02X}>", 0.0, kind.BYTE) for byte in range(256)]
    singles = ["\u2581"] + [chr(code) for code in range(0x21, 0x7F)]
    entries += [(text, -9999.0, kind.NORMAL) for text in singles]
    first_word = len(entries)
    beginnings = dict.fromkeys("\u2581" + word[:end] for word in WORDS for end in range(1, len(word) + 1))
    entries += [(text, -float(rank), kind.NORMAL) for rank, text in enumerate(beginnings, 1)]
    return entries, first_word


def main(path):
    entries, first_word = vocabulary()
    noise = np.random.default_rng(20)

    def weights(*shape, scale=0.08):
        return (noise.standard_normal(shape) * scale).astype(np.float32)

    out = gguf.GGUFWriter(path, "llama")
    out.add_name("noise")
    out.add_context_length(CONTEXT)
    out.add_embedding_length(WIDTH)
    out.add_block_count(LAYERS)
    out.add_feed_forward_length(INNER)
    out.add_head_count(HEADS)
    out.add_head_count_kv(HEADS)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_rope_dimension_count(WIDTH // HEADS)
    out.add_vocab_size(len(entries))
    out.add_file_type(gguf.LlamaFileType.ALL_F32)
    out.add_tokenizer_model("llama")
    out.add_token_list([text.encode() for text, _, _ in entries])
    out.add_token_scores([score for _, score, _ in entries])
    out.add_token_types([int(kind) for _, _, kind in entries])
    out.add_unk_token_id(0)
    out.add_bos_token_id(1)
    out.add_eos_token_id(END_OF_TEXT)
    out.add_add_bos_token(True)
    out.add_chat_template(CHAT)

    # Words win over bytes, and the end of text never does: an answer is as long as the request allows.
    head = weights(len(entries), WIDTH, scale=3.0)
    head[:first_word] *= 0.05
    head[END_OF_TEXT] = 0.0
    out.add_tensor("token_embd.weight", weights(len(entries), WIDTH))
    out.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    out.add_tensor("output.weight", head)
    for layer in range(LAYERS):
        for name in ("attn_norm", "ffn_norm"):
            out.add_tensor(f"blk.{layer}.{name}.weight", np.ones(WIDTH, np.float32))
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            out.add_tensor(f"blk.{layer}.{name}.weight", weights(WIDTH, WIDTH))
        out.add_tensor(f"blk.{layer}.ffn_gate.weight", weights(INNER, WIDTH))
        out.add_tensor(f"blk.{layer}.ffn_up.weight", weights(INNER, WIDTH))
        out.add_tensor(f"blk.{layer}.ffn_down.weight", weights(WIDTH, INNER))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


if __name__ == "__main__":
    main(sys.argv[1])
