"""The model under t5x: `python -m t5x.train` runs the models, tasks and gin files of this package.

No other folder imports t5x, which is on no package index; docs/t5x.md tells how it is installed.
Run files that use it are in gin_configs/t5x/.

    model              the model as a `t5x.models.BaseTransformerModel`
    variables          our two trees as t5x's one, and the names of their axes
    data               the feature converter and the data sets of training
    trainer            gradient accumulation with denominators of the whole batch
    scores             what `t5x.infer` and exported models compute
    predictions        what `t5x.infer` writes
    evaluation         the figures of `m6rec eval`, by `t5x.eval`
    export             the inputs of exported models
    restoring          what a new run takes over from a checkpoint
    checkpoint_manager mends what t5x's own lacks
    description        files beside checkpoints which say what model they are of
    checkpoints        runs under t5x become runs of ours and back (needs no t5x)
"""
