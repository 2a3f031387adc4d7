"""What the commands do, as functions: pretrain, finetune, evaluate, predict, ..."""

from tubelet.bench.run import bench, bench_all
from tubelet.data.prepare.job import prepare
from tubelet.data.prepare.reencode import Settings as PrepareSettings
from tubelet.verbs.comparing import compared, compared_clip, similarity
from tubelet.verbs.converting import convert
from tubelet.verbs.distilling import distil, distil_from
from tubelet.verbs.embedding import embed
from tubelet.verbs.finetuning import classifier_of, finetune, finetune_from
from tubelet.verbs.inspecting import inspect
from tubelet.verbs.merging import MergeConfig, merge_labels
from tubelet.verbs.planning import plan
from tubelet.verbs.pretraining import cache, pretrain
from tubelet.verbs.using import evaluate, masked_model, predict, reconstruct, run_masks, test_views

__all__ = [
    "MergeConfig",
    "PrepareSettings",
    "bench",
    "bench_all",
    "cache",
    "classifier_of",
    "compared",
    "compared_clip",
    "convert",
    "distil",
    "distil_from",
    "embed",
    "evaluate",
    "finetune",
    "finetune_from",
    "inspect",
    "masked_model",
    "merge_labels",
    "plan",
    "predict",
    "prepare",
    "pretrain",
    "reconstruct",
    "run_masks",
    "similarity",
    "test_views",
]
