"""MovieLens-100k, leave-one-out with a tenth of the films in no training or validation row.

    m6rec data prepare movielens-100k \\
        --gin_file gin_configs/data/movielens-100k/prepare_unseen_items.gin

registers the tasks of `tasks.movielens` as movielens_100k_unseen_items_*. Their vocabulary is their
own: one that had read the titles of unseen films would hold them as pieces.
"""

from m6rec_jax.pipeline.registration import register_recommendation_tasks

UNSEEN_ITEMS = register_recommendation_tasks(
    "movielens_100k_unseen_items",
    dataset="movielens-100k",
    split="held_out_items-ofleave_one_out-fraction0_1",
)
