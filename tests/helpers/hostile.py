"""Files of others that are odd, damaged or hostile, and what loading each of them gives.

`python tests/helpers/hostile.py` makes and loads them all, and prints a table of what was said. Those
that would run code would write a file, the canary.
"""

from __future__ import annotations

import json
import pickle
import resource
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from foreign import DECODED
from hostile_files import (
    GIB,
    World,
    as_safetensors,
    attribute_trick,
    bytes_bomb,
    changed,
    changed_names,
    converted,
    copies,
    cut,
    cut_legacy,
    cut_safetensors,
    deep_dicts,
    deep_key,
    deepspeed,
    evil_beside,
    evil_legacy,
    filled,
    joined_biases,
    legacy_claim,
    lying_safetensors,
    many_views,
    namespace_trick,
    no_weights,
    packed_folder,
    parts,
    pickled,
    scripted,
    tarred,
    tensor,
    views,
    wide,
    with_args,
    with_counter,
    with_optimizer,
    without,
    zip_bomb,
)
from torch import Tensor

import tubelet
from tubelet.errors import TubeletError


@dataclass(frozen=True)
class Hostile:
    """A file, and what is said of it: in the report of a right model, or in the one error."""

    name: str
    make: Callable[[World], Path]
    says: str  # a regular expression
    right: bool = False
    bomb: bool = False  # would take memory
    patch: int = 8
    stored: Callable[[Tensor], Tensor] = lambda value: value  # what the file keeps of the source's
    told: dict[str, Any] = field(default_factory=dict)


PLAIN = r"encoder\.patch_embed"  # in a report of nothing but names
CASES = [
    Hostile("a bare dict", lambda w: w.save(w.state), PLAIN, right=True),
    Hostile("under `module`", lambda w: w.save({"module": w.state}), PLAIN, right=True),
    Hostile(
        "under `model`, and there under `module`",
        lambda w: w.save({"model": {"module": w.state, "step": 3}}),
        "step",
        right=True,
    ),
    Hostile(
        "prefixes of DDP and torch.compile",
        lambda w: changed_names(w, lambda n, _: f"module._orig_mod.{n}"),
        "module._orig_mod.encoder",
        right=True,
    ),
    Hostile(
        "every second name with a prefix",
        lambda w: changed_names(w, lambda n, at: f"module.{n}" if at % 2 else n),
        "module.",
        right=True,
    ),
    Hostile(
        "float16",
        converted(torch.float16),
        "float16: read as float32",
        right=True,
        stored=lambda v: v.half().float(),
    ),
    Hostile(
        "bfloat16",
        converted(torch.bfloat16),
        "bfloat16: read as float32",
        right=True,
        stored=lambda v: v.bfloat16().float(),
    ),
    Hostile("float64", converted(torch.float64), "float64: read as float32", right=True),
    Hostile("one bias for queries, keys and values", joined_biases, "keys' part", right=True),
    Hostile("patches of 16 pixels", lambda w: w.save(w.state), PLAIN, right=True, patch=16),
    Hostile(
        "the format before torch 1.6",
        lambda w: w.save({"model": w.state}, _use_new_zipfile_serialization=False),
        PLAIN,
        right=True,
    ),
    Hostile("a Namespace, paths and numpy's numbers beside", with_args, "args", right=True),
    Hostile("an optimizer and a scaler beside", with_optimizer, "training state", right=True),
    Hostile(
        "the same weights twice",
        lambda w: w.save({"model": w.state, "state_dict": dict(w.state)}),
        "the same weights again",
        right=True,
    ),
    Hostile(
        "an average beside",
        lambda w: w.save({"model": w.state, "model_ema": {n: v + 1 for n, v in w.state.items()}}),
        "another set of weights: --wrapper model_ema reads it",
        right=True,
    ),
    Hostile(
        "two sets of weights, one of them named",
        lambda w: w.save({"model": {n: v + 1 for n, v in w.state.items()}, "module": w.state}),
        "model",
        right=True,
        told={"wrapper": "module"},
    ),
    Hostile("views of one storage", views, PLAIN, right=True),
    Hostile("a counter among the weights", with_counter, "a counter, no weight", right=True),
    Hostile("a folder of DeepSpeed's", deepspeed, "dp_world_size", right=True),
    Hostile("safetensors named .pth", as_safetensors, PLAIN, right=True),
    # damaged
    Hostile("cut in half", cut, "is cut short"),
    Hostile("cut, in the format before torch 1.6", cut_legacy, "unexpected EOF"),
    Hostile("cut safetensors", cut_safetensors, "cannot be read as weights"),
    Hostile("an empty file", lambda w: w.write(b""), r"empty \(0 bytes\)"),
    Hostile(
        "a web page",
        lambda w: w.write(b"\n<!DOCTYPE html><html>Google Drive - Quota exceeded"),
        "a web page: the download failed",
    ),
    Hostile(
        "a pointer of git-lfs",
        lambda w: w.write(b"version https://git-lfs.github.com/spec/v1\noid sha256:1"),
        "git lfs pull",
    ),
    Hostile("an error message in JSON", lambda w: w.write(b'{"error": "404"}'), "JSON"),
    Hostile("a tar archive", tarred, "an archive: unpack it first"),
    Hostile("a packed folder", packed_folder, "zip archive .*VideoMAE/w.pth.* unpack it first"),
    Hostile(
        "torch's file named .safetensors", lambda w: w.save(w.state, "w.safetensors"), "rename"
    ),
    Hostile("zeros", lambda w: w.write(bytes(4096)), "nothing but zeros"),
    Hostile(
        "a number that is not one",
        changed("encoder.blocks.1.attn.q_bias", filled(float("nan"))),
        "not finite, in 1 of",
    ),
    Hostile(
        "an infinite number",
        changed("decoder.head.weight", filled(float("inf"))),
        "not finite, in 1 of",
    ),
    Hostile(
        "a wrong shape",
        changed("encoder.blocks.1.mlp.fc2.weight", lambda v: v[:, :-1].clone()),
        "fc2.weight is 48x191, the model's is 48x192",
    ),
    Hostile("a missing block", without("encoder.blocks.0."), "blocks.0 is missing"),
    Hostile(
        "a missing tensor",
        without("blocks.1.attn.proj.bias"),
        "lacks .*attn.proj.bias.* --allow-missing-weights",
    ),
    Hostile(
        "tensors of another network",
        lambda w: w.save({**w.state, "text.proj": torch.ones(2)}),
        "no place for: text.proj.* --allow-extra text.proj",
    ),
    Hostile(
        "the same names with a prefix and without",
        lambda w: w.save(
            {**w.state, **{n.removeprefix("encoder."): v for n, v in w.state.items()}}
        ),
        "twice, as encoder.* two sets of weights",
    ),
    Hostile(
        "two sets of weights",
        lambda w: w.save({"model": w.state, "module": {n: v + 1 for n, v in w.state.items()}}),
        "Say which: --wrapper model or module",
    ),
    Hostile("an average alone", lambda w: w.save({"model_ema": w.state}), "--wrapper model_ema"),
    Hostile(
        "a wrapper that is not there",
        lambda w: w.save(w.state),
        "no entry 'teacher'",
        told={"wrapper": "teacher"},
    ),
    Hostile("a list", lambda w: w.save(list(w.state.values())), "holds a list"),
    Hostile("an empty dict", lambda w: w.save({}), "holds an empty dict"),
    Hostile("an empty `model`", lambda w: w.save({"model": {}, "epoch": 1}), "no state dict"),
    Hostile(
        "int8 weights",
        lambda w: w.save({n: (v * 64).to(torch.int8) for n, v in w.state.items()}),
        "of int8, where weights are floats",
    ),
    Hostile(
        "empty tensors", lambda w: w.save({n: v[:0] for n, v in w.state.items()}), "no numbers"
    ),
    Hostile(
        "sparse tensors", lambda w: w.save({n: v.to_sparse() for n, v in w.state.items()}), "sparse"
    ),
    Hostile("one part of several", parts("mp_rank_{:02}_model_states.pt"), "zero_to_fp32.py"),
    Hostile(
        "parts of ZeRO-3",
        parts("zero_pp_rank_{}_mp_rank_00_model_states.pt"),
        "zero_to_fp32.py",
    ),
    Hostile("a folder without weights", no_weights, "log.txt"),
    # hostile
    Hostile("a pickle that runs a command", lambda w: w.save(w.evil()), "asks to run .*system"),
    Hostile("the same, beside good weights", evil_beside, "asks to run .*system"),
    Hostile("the same, before torch 1.6", evil_legacy, "asks to run .*system"),
    Hostile(
        "the same, by pickle alone",
        lambda w: w.write(pickle.dumps(w.evil(), 4)),
        "asks to run .*system",
    ),
    Hostile("a Namespace that shall call", namespace_trick, "it holds a Namespace"),
    Hostile("a dict that shall call", attribute_trick, "of an OrderedDict: refused"),
    Hostile("a whole module", lambda w: w.save(w.model), "asks to run tubelet.model.MaskedModel"),
    Hostile("a TorchScript program", scripted, "TorchScript"),
    Hostile("a zip bomb", zip_bomb, "would unpack to", bomb=True),
    Hostile("bytes out of nothing", bytes_bomb, "asks to run builtins.bytearray", bomb=True),
    Hostile("a dict copied 20000 times", copies, "copies more than", bomb=True),
    Hostile("a key of half a million levels", deep_key, "not named by text", bomb=True),
    Hostile(
        "a block numbered by 6000 digits",
        lambda w: w.save({**w.state, f"encoder.blocks.{'9' * 6000}.x": torch.ones(2)}),
        "damaged, refused",
    ),
    Hostile(
        "a name of five million letters",
        lambda w: w.save({**w.state, "n" * 5_000_000: torch.ones(2)}),
        "has a tensor named 'nnn.*damaged, refused",
    ),
    Hostile(
        "a name that steers the terminal",
        lambda w: w.save({**w.state, "\x1b[31m\ud800": torch.ones(2)}),
        r"named .*x1b\[31m.*ud800.*damaged, refused",
    ),
    Hostile("300 wrappers", deep_dicts, "no state dict"),
    Hostile(
        "a shape that its storage has not",
        lambda w: w.archive(pickled(tensor(16, (GIB, 16), (16, 1))), **{"0": bytes(64)}),
        "claims a tensor of shape",
        bomb=True,
    ),
    Hostile(
        "a shape of steps of zero",
        lambda w: w.archive(pickled(tensor(16, (GIB, 16), (0, 1))), **{"0": bytes(64)}),
        "claims a tensor of shape",
        bomb=True,
    ),
    Hostile(
        "a storage that its record has not",
        lambda w: w.archive(pickled(tensor(GIB, (GIB,), (1,))), **{"0": bytes(64)}),
        "claims 4294967296 bytes for its record",
        bomb=True,
    ),
    Hostile("a storage of 64 GiB before torch 1.6", legacy_claim, "claims .* bytes", bomb=True),
    Hostile("safetensors of 4 TiB", lying_safetensors, "cannot be read as weights", bomb=True),
    Hostile(
        "a network of 600 GB by 10 MB",
        wide,
        "would make a network of",
        bomb=True,
        told={"heads": 64},
    ),
    Hostile("one storage under a thousand names", many_views, "its tensors claim", bomb=True),
]


def loaded(case: Hostile, folder: Path) -> tuple[World, Any]:
    """The world of a case, and the model or the error that its file gives."""
    world = World(folder, case.patch)
    path = case.make(world)
    try:
        return world, tubelet.load(path, **{**world.told, **case.told})
    except TubeletError as error:
        return world, error


def said(result: Any) -> str:
    """What loading said, in a line."""
    if isinstance(result, Exception):
        return str(result)
    told = result.report.to_dict()
    return " ".join(json.dumps(told[key]) for key in ("renamed", "resized", "dropped", "notes"))


def main() -> None:
    """Prints the table."""
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            world, result = loaded(case, Path(folder))
            right = not isinstance(result, Exception)
            line = result.report.line() if right else str(result)
            ran = " CODE WAS RUN" if world.canary.exists() else ""
            print(
                f"{'loaded ' if right else 'refused'}  {case.name}: {line.replace(folder, '')}{ran}"
            )


def bombs(paths: list[str]) -> None:
    """Loads files that would take memory (after a good one), where no more than 1 GiB is to be had;
    prints what was said and by how many MB the peak is above what was resident before."""
    tubelet.load(paths.pop(0), **DECODED)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + GIB
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    before = peak()
    for path in paths:
        try:
            tubelet.load(path, heads=64, decoder_heads=2, trained=(8, 32, 32))
        except TubeletError as error:
            print(json.dumps({"MB": peak() - before, "said": str(error)}))


def peak() -> float:
    """MB, of this process until now."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    if sys.argv[1:2] == ["bombs"]:
        bombs(sys.argv[2:])
    else:
        main()
