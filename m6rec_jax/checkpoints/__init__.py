"""Saving and restoring: Orbax checkpoints with a manifest, partial restores, fingerprints.

A run's folder looks like this:

    MODEL_DIR/checkpoints/
      2000/                     one folder per saved step, written atomically
        params/                 the backbone (absent while it is frozen: see params-…)
        prompts/                what is specific to the tasks
        optimizer/              optimizer state, of what trains only
        data/                   one file per data shard: position of its iterator
        manifest/               JSON: model config, vocabulary, shapes, checksums, versions
      params-3f2a…/             a frozen backbone, named by its fingerprint, written once

A frozen backbone is the same at every step, so it lies beside the steps and their manifests say
where (`locations`). The `checkpoints` folder is complete on its own and may be copied or moved;
a single step folder copied away needs its `params-…` neighbour, and restoring says so.
"""
