"""The model under t5x: `python -m t5x.train` runs the models, tasks and gin files of this package.

No other folder imports t5x, which is on no package index; docs/t5x.md says how to install it.
Run files that use it are in gin_configs/t5x/.

    model        the model as a `t5x.models.BaseTransformerModel`, and its scores
    variables    our two trees as t5x's one, and the names of their axes
    data         the feature converter, the rows of training, the inputs of exported models
    trainer      gradient accumulation with denominators of the whole batch
    predictions  what `t5x.infer` writes
    evaluation   the metrics of `m6rec eval`, by `t5x.eval`
    recording    what a run writes beside its checkpoints when it starts
    restoring    what a run takes from checkpoints
    programs     t5x's programs in several processes
    checkpoints  runs under t5x become runs of ours and back (needs no t5x)
"""
