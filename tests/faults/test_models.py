"""Model folders that are broken, given to every command that loads a model."""

import json
import os
import shutil
import struct
from pathlib import Path

import pytest
from injection import refusal, report

from campaign import sampled

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*so it teaches nothing:UserWarning", "ignore:Initializing zero-element tensors:UserWarning"
)
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def write(name, content):
    def damage(folder: Path) -> None:
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return damage


def delete(*names):
    def damage(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return damage


def cut(name, share):
    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * share)])

    return damage


def instead(name, make):
    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return damage


def config(**changes):
    def damage(folder: Path) -> None:
        path = folder / "config.json"
        content = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({name: value for name, value in content.items() if value != "left out"}))

    return damage


def adapter(**content):
    def damage(folder: Path) -> None:
        for name in ("config.json", "model.safetensors"):
            (folder / name).unlink()
        (folder / "adapter_config.json").write_text(json.dumps(content))

    return damage


def adapter_of(text):
    def damage(folder: Path) -> None:
        adapter()(folder)
        write("adapter_config.json", text)(folder)

    return damage


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


HEADER = struct.pack("<Q", 2) + b"{}"
NOT_JSON = ("", "{", "[]", "null", "\x00\x01", "{" * 5000, '{"a": 1' + "0" * 5000 + "}", "\xff")
SPECIAL = {"FIFO": os.mkfifo, "/dev/zero": lambda path: path.symlink_to("/dev/zero"), "folder": Path.mkdir}
LORA = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "target_modules": ["q_proj"]}
FAULTS = {
    "nothing in it": empty,
    **{f"config.json is {text[:12]!r}": write("config.json", text) for text in NOT_JSON},
    **{f"tokenizer.json is {text[:12]!r}": write("tokenizer.json", text) for text in NOT_JSON},
    **{f"tokenizer_config.json is {text[:12]!r}": write("tokenizer_config.json", text) for text in NOT_JSON},
    **{f"weights cut to {share:.1%}": cut("model.safetensors", share) for share in (0, 0.0005, 0.01, 0.3, 0.9, 0.999)},
    **{f"{name} cut to {share:.0%}": cut(name, share) for name in TOKENIZER for share in (0.1, 0.5, 0.9)},
    "weights of noise": write("model.safetensors", os.urandom(4096)),
    "weights of no tensors": write("model.safetensors", HEADER),
    "weights with a huge header": write("model.safetensors", struct.pack("<Q", 2**60) + b"{}"),
    "weights of HTML": write("model.safetensors", "<!doctype html><html>"),
    "an LFS pointer": write("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
    "no config.json": delete("config.json"),
    "no weights": delete("model.safetensors"),
    "no tokenizer": delete(*TOKENIZER),
    "no tokenizer.json": delete("tokenizer.json"),
    "pickled weights of noise": instead(
        "model.safetensors", lambda path: path.with_name("pytorch_model.bin").write_bytes(b"x")
    ),
    "an index of absent shards": instead(
        "model.safetensors",
        lambda path: path.with_name("model.safetensors.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}})
        ),
    ),
    "an index that is no JSON": instead(
        "model.safetensors", lambda path: path.with_name("model.safetensors.index.json").write_text("{")
    ),
    **{
        f"{name} is a {kind}": instead(name, make)
        for name in ("config.json", "model.safetensors", *TOKENIZER, "generation_config.json", "chat_template.jinja")
        for kind, make in SPECIAL.items()
    },
    **{
        f"model_type is {kind!r}": config(model_type=kind)
        for kind in ("left out", "", "nonsense", 3, None, ["llama"], "bert", "t5", "vit")
    },
    **{f"hidden_size is {size!r}": config(hidden_size=size) for size in (0, -1, 17, 32, "16", None, 1.5, 10**30, [])},
    **{f"num_hidden_layers is {size!r}": config(num_hidden_layers=size) for size in (-1, "2", 1.5, None, [])},
    **{f"vocab_size is {size!r}": config(vocab_size=size) for size in (0, -1, 8, "320", None, 10**30)},
    **{f"num_attention_heads is {size!r}": config(num_attention_heads=size) for size in (0, -1, 3, "2", None)},
    **{f"hidden_act is {kind!r}": config(hidden_act=kind) for kind in ("nonsense", 3, None)},
    **{
        f"rope_parameters is {kind!r}": config(rope_parameters=kind) for kind in ("x", 3, {"rope_type": "nonsense"}, [])
    },
    **{f"torch_dtype is {kind!r}": config(dtype=kind) for kind in ("float7", 3, [])},
    "code of its own": config(auto_map={"AutoModelForCausalLM": "absent.Model"}, model_type="own"),
    "quantized by nobody": config(quantization_config={"quant_method": "nonsense"}),
    "an adapter without a base": adapter(**LORA, base_model_name_or_path="/absent/model"),
    "an adapter of nothing": adapter(**LORA, base_model_name_or_path=None),
    "an adapter without a name of its base": adapter(**LORA),
    "an adapter on itself": lambda folder: adapter(**LORA, base_model_name_or_path=str(folder))(folder),
    "an adapter of no kind": adapter(base_model_name_or_path="/absent/model"),
    **{f"an adapter's file of {text[:12]!r}": adapter_of(text) for text in NOT_JSON},
    "a template that is no Jinja": write("chat_template.jinja", "{% for %}"),
    "a template that raises": write("chat_template.jinja", "{{ raise_exception('no') }}"),
    "a template without end": write("chat_template.jinja", "{% for a in range(999999999) %}x{% endfor %}"),
    "a template that is no text": write("chat_template.jinja", b"\xff\xfe"),
}


# What is not read: settings of generation that no file holds, a precision that a flag decides, and of weights that are
# plain what would have quantized them.
HARMLESS = {"generation_config.json is a folder", "torch_dtype is 3", "quantized by nobody"}


@pytest.mark.parametrize("command", ["train", "score"])
def test_a_broken_model_folder_is_refused(command, train, tiny_folder, rows, tmp_path, capsys):
    found = {}
    for index, name in enumerate(sampled(list(FAULTS), 30)):
        folder = tmp_path / f"model {index}"
        shutil.copytree(tiny_folder, folder)
        FAULTS[name](folder)
        words = [str(folder) if word == tiny_folder else word for word in train]
        if command == "score":
            words = ["score", rows, "--model", str(folder), "--out", str(tmp_path / "out" / "scores")]
        (tmp_path / "out").mkdir(exist_ok=True)
        found[name] = refusal(words, capsys, writes_to=tmp_path / "out", is_harmless=name in HARMLESS)
        shutil.rmtree(folder)
        shutil.rmtree(tmp_path / "out")
    report(f"model folders, {command}", found)
