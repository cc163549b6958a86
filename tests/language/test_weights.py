"""Weights in and out: what is read is what was written, and a damaged file is said to be one."""

from __future__ import annotations

import json

import equinox as eqx
import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from habitus.core.errors import CheckpointError, UnknownName
from habitus.language.config import FAMILIES, DecoderConfig
from habitus.language.decoder import Decoder
from habitus.language.gguf_file import GGUFFile, read_gguf
from habitus.language.lora import adapt, merged
from habitus.language.rope import Rope, to_neighbours
from habitus.language.tensors import named
from habitus.language.weights import read_folder, write_folder


def made(family: str, **more) -> Decoder:
    sizes = dict(width=32, family=family, kv_heads=2, qkv_bias=family == "qwen2", eos=(2,), bos=1) | more
    return Decoder.random(DecoderConfig.tiny(16, **sizes), jax.random.key(0), spread=0.2)


def same(a: Decoder, b: Decoder) -> bool:
    return bool(eqx.tree_equal(a, b))


@pytest.fixture(scope="module")
def llama() -> Decoder:
    return made("llama", tied=False)


@pytest.fixture
def folder(llama, tmp_path):
    return write_folder(llama, tmp_path / "model")


def write_gguf(decoder: Decoder, path, without: str = "", more: dict | None = None, **entries) -> None:
    """As llama.cpp writes it: rows of queries and keys reordered for Llama, 1-D tensors in float32."""
    config = decoder.config
    back = {ours: theirs for theirs, ours in names(config).items()}
    writer = gguf.GGUFWriter(path, entries.pop("arch", config.family))
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.width)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.hidden)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_size)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope.base)
    writer.add_eos_token_id(2)
    writer.add_bos_token_id(1)
    for name, array in named(decoder):
        if config.family == "llama" and (".q_proj." in name or ".k_proj." in name):
            array = to_neighbours(array, config.heads if ".q_proj." in name else config.kv_heads)
        if name != without:
            writer.add_tensor(back[name], np.ascontiguousarray(array))
    for name, array in (more or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def names(config: DecoderConfig) -> dict[str, str]:
    from habitus.language.gguf_file import PARTS, WHOLE

    whole = {f"{theirs}.weight": ours for theirs, ours in WHOLE.items()}
    return whole | {
        f"blk.{i}.{theirs}.{kind}": f"model.layers.{i}.{ours}.{kind}"
        for i in range(config.layers)
        for theirs, ours in PARTS.items()
        for kind in ("weight", "bias")
    }


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("most_bytes", [2**30, 20_000])
def test_a_folder_is_read_as_it_was_written(family, most_bytes, tmp_path):
    decoder = made(family, tied=family == "qwen3")
    write_folder(decoder, tmp_path, most_bytes)
    assert same(read_folder(tmp_path), decoder)
    assert ((tmp_path / "model.safetensors.index.json").exists()) == (most_bytes == 20_000)


def test_precision_is_kept_and_chosen(llama, tmp_path):
    write_folder(llama.astype(jnp.bfloat16), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert same(read_folder(tmp_path, jnp.bfloat16), llama.astype(jnp.bfloat16))
    assert read_folder(tmp_path).embedding.dtype == jnp.float32


def test_lora_is_merged_when_written(llama, tmp_path):
    wrapped = adapt(llama, 2, jax.random.key(1), parts=("q",))
    wrapped = eqx.tree_at(lambda d: d.layers.q.up, wrapped, replace_fn=lambda x: x + 0.1)
    write_folder(wrapped, tmp_path)
    assert same(read_folder(tmp_path), merged(wrapped)) and not same(read_folder(tmp_path), llama)


@pytest.mark.parametrize("family", FAMILIES)
def test_gguf_is_read_as_it_was_written(family, tmp_path):
    decoder = made(family, tied=family != "llama", rope=Rope(500.0), norm_eps=1e-5)
    write_gguf(decoder, tmp_path / "m.gguf")
    read = read_gguf(tmp_path / "m.gguf")
    assert read.config.eos == (2,) and read.config.bos == 1
    for (name, a), (_, b) in zip(named(read), named(decoder), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)


def test_llama_keeps_the_order_of_a_gguf_if_asked(llama, tmp_path):
    write_gguf(llama, tmp_path / "m.gguf")
    kept = read_gguf(tmp_path / "m.gguf", interleaved=True)
    assert kept.config.interleaved and not np.array_equal(kept.layers.q.weight, llama.layers.q.weight)
    write_folder(kept, tmp_path / "model")  # and it goes back to halves
    for (_, a), (_, b) in zip(named(read_folder(tmp_path / "model")), named(llama), strict=True):
        np.testing.assert_array_equal(a, b)


def test_quantised_tensors_come_out_nearly(llama, tmp_path):
    decoder = made("llama", tied=True)
    back = {ours: theirs for theirs, ours in names(decoder.config).items()}
    target = "model.layers.1.mlp.up_proj.weight"
    array = dict(named(decoder))[target]
    coarse = gguf.quantize(array, gguf.GGMLQuantizationType.Q8_0)
    writer_path = tmp_path / "m.gguf"
    write_gguf(decoder, writer_path, without=target)
    reader = gguf.GGUFReader(writer_path)
    writer = gguf.GGUFWriter(tmp_path / "q.gguf", "llama")
    for field in reader.fields.values():
        if field.name.startswith(("llama.", "tokenizer.")):
            writer.add_key_value(field.name, field.contents(), field.types[0])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.add_tensor(back[target], coarse, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = dict(named(read_gguf(tmp_path / "q.gguf")))[target]
    np.testing.assert_allclose(found, array, atol=0.01)
    assert not np.array_equal(found, array)


def test_positions_scaled_as_in_llama_3_are_recognised(tmp_path):
    rope = Rope(5e5, "llama3", 8.0)
    decoder = made("llama", tied=True, head_size=8, rope=rope)
    write_gguf(decoder, tmp_path / "m.gguf", more={"rope_freqs.weight": rope.divisors(8).astype(np.float32)})
    assert GGUFFile(tmp_path / "m.gguf").config.rope == rope
    write_gguf(decoder, tmp_path / "n.gguf", more={"rope_freqs.weight": np.array([1, 5, 2, 8], np.float32)})
    with pytest.raises(CheckpointError, match="neither linear nor Llama 3"):
        GGUFFile(tmp_path / "n.gguf")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.999])
def test_a_truncated_gguf_is_said_to_be_one(llama, tmp_path, share):
    path = tmp_path / "m.gguf"
    write_gguf(llama, path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(CheckpointError, match="m.gguf is truncated"):
        read_gguf(path)


def test_a_gguf_of_another_kind_is_refused(llama, tmp_path):
    write_gguf(llama, tmp_path / "m.gguf", arch="mamba")
    with pytest.raises(UnknownName, match="'mamba' is not supported"):
        read_gguf(tmp_path / "m.gguf")
    write_gguf(llama, tmp_path / "n.gguf", without="model.norm.weight")
    with pytest.raises(CheckpointError, match="lacks 1 tensor: model.norm.weight"):
        read_gguf(tmp_path / "n.gguf")
    write_gguf(llama, tmp_path / "o.gguf", more={"blk.0.attn_sinks.weight": np.ones(4, np.float32)})
    with pytest.raises(CheckpointError, match="1 tensor: blk.0.attn_sinks.weight"):
        read_gguf(tmp_path / "o.gguf")
    with pytest.raises(CheckpointError, match="does not exist"):
        read_gguf(tmp_path / "none.gguf")


def changed(folder, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_missing_extra_and_misshapen_tensors_are_named(folder):
    changed(folder, lambda t: t.update(surplus=np.ones(1, np.float32)))
    with pytest.raises(CheckpointError, match="beyond what the model has, 1 tensor: surplus"):
        read_folder(folder)
    changed(folder, lambda t: (t.pop("surplus"), t.pop("lm_head.weight")))
    with pytest.raises(CheckpointError, match="lacks 1 tensor: lm_head.weight"):
        read_folder(folder)
    changed(folder, lambda t: t.update({"lm_head.weight": np.ones((3, 32), np.float32)}))
    with pytest.raises(CheckpointError, match=r"lm_head.weight of shape \(3, 32\)"):
        read_folder(folder)


def test_what_older_versions_wrote_beside_is_let_pass(tmp_path):
    decoder = made("llama", tied=True)
    write_folder(decoder, tmp_path)
    more = {"lm_head.weight": np.ones((16, 32), np.float32), "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4)}
    changed(tmp_path, lambda t: t.update(more))
    assert same(read_folder(tmp_path), decoder)


def test_damaged_folders_are_said_to_be(folder):
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for cut in (0, 5, len(whole) // 2):
        weights.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match="model.safetensors is damaged"):
            read_folder(folder)
    weights.unlink()
    with pytest.raises(CheckpointError, match="does not exist"):
        read_folder(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="config.json is damaged"):
        read_folder(folder)


def test_an_index_cannot_lead_out_of_its_folder(folder):
    index = {"weight_map": {"model.norm.weight": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="weight_map"):
        read_folder(folder)


def test_ends_of_responses_are_read_from_both_files(folder):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 9]}))
    assert read_folder(folder).config.eos == (2, 9)
