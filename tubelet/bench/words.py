"""What docs/performance.md says beside its numbers."""

ABOUT = """Each row is a process of its own with the same threads, and only one works at a time: they
take turns. A ratio is the other's time through ours, pair by pair, and its median is given with the
least and the greatest; above 1 ours is quicker. Memory is our peak through theirs, below 1 ours is
smaller; it is the whole process's, with the libraries that a row imports. FLOPs are counted, attention included; the share of rate is that of the machine's rate for a
product of two 2048x2048 matrices in that precision, measured after each turn. *floor* stands for a bar
that products alone forbid at that rate: the note says what they allow. In the picture what met its bar is
green, what missed it red, *floor* grey, and what has no bar black. A machine that is not quiet shows in the
range over turns."""

HEADS: dict[str, tuple[str, str]] = {
    "step": (
        "Training steps",
        """Whole updates (targets, forward, backward, AdamW) on random clips with the published masks and
decoders, all with the weights of one seed. In float32 the losses of the first step are checked to be
equal within 1e-5, or the run is an error.

- *ours*: the step as `tubelet pretrain` makes it, from uint8. `-best` is the quicker of float32 and bf16
  on this machine, by measurement in the same run; a processor that only emulates bf16 is measured in
  float32 alone (`--emulated` measures bf16 there too).
- *hf*: `VideoMAEForPreTraining` of transformers, as its users make it: fused attention,
  fused AdamW.
- *plain*: the formulation as it was published, in eager PyTorch: a convolution over the whole clip,
  boolean selects, attention written out, every token through every decoder block, torch's AdamW
  (`tubelet/bench/plain/`). Theirs begin with clips that are float and normalised already.
- `videomae-v2-b-best` is VideoMAE V2's step with its decoder mask against our own VideoMAE step.
- `mvd-...`: distillation with two ViT-B teachers, per student view: with k masks a clip, one clip gives k
  views. `decoder-mask` adds V2's mask of the decoder, which no paper did.
- `maskfeat-...`: MViTv2-S with HOG as its target.""",
    ),
    "loader": (
        "The loader",
        """Clips per CPU second of one core, 16 frames with stride 4 at 224x224, from H.264 files that the
benchmark makes. *plain*: every frame from the key frame on is decoded and made RGB, resized by Pillow and
normalised frame by frame. *plain-1*: the same with the file opened for each clip, as published.
`prepared`: ours on the file as `tubelet prepare` makes it, theirs on the original.""",
    ),
    "decode": ("Decoding", "Frames for a clip, without what follows; per CPU second of one core."),
    "targets": (
        "Targets",
        "What is to be predicted, for a clip: pixels, HOG, a teacher's features.",
    ),
    "memory": ("Memory", "The peak of a training step, in a process of its own each."),
    "wait": (
        "Waiting for data",
        """The share of its time that a training run waits for its loading workers, after the first
steps.""",
    ),
}

HOW = """## How to run it

```sh
make performance                        # = tubelet bench all --out docs; about 40 minutes on two cores
tubelet bench all --out docs --keep     # goes on where one was stopped, with the same versions
tubelet bench step --cases videomae-b-f32 --turns 7 --out one.json
```

Nothing else should run meanwhile. In small, to see that it runs:

```bash
tubelet bench step --quick --turns 1 --cases videomae-s-f32
```
"""
