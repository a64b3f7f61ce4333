"""MovieLens-100k: pretraining, scoring and retrieval tasks.

    m6rec data fetch movielens-100k
    m6rec data prepare movielens-100k        (split per_user_temporal, then leave_one_out)

Tasks, for TEMPORAL and the same for LEAVE_ONE_OUT (see `pipeline.registration` for what each does):

    movielens_100k_ctr                like or dislike; a rating of 4 or 5 is a like
    movielens_100k_ctr_ratings        the five ratings as classes, likes being the upper two
    movielens_100k_retrieval
    movielens_100k_infilling, _generation, _outcomes, _pretrain, _foundation

and movielens_100k_bank, a mixture of the first three for tuning them in one run. Leave-one-out with
a tenth of the films in no training or validation row has movielens_100k_unseen_items_*, with a
vocabulary that has not read the titles of these films
(gin_configs/data/movielens-100k/prepare_unseen_items.gin).

Texts to write, of TEMPORAL (gin_configs/data/movielens-100k/generation.gin):

    movielens_100k_explanations       why may the user like a film? What it shares with liked ones
    movielens_100k_contents, _titles  category and title of a film to like next, or the title alone
    movielens_100k_queries            what the user searches for

and movielens_100k_content, a mixture of the last three: their prefixes tell them apart.
"""

import seqio

from m6rec_jax.pipeline.registration import register_generation_tasks, register_recommendation_tasks

# Scoring, and the foundation: a user's first 80% of ratings train, 10% validate, 10% test.
TEMPORAL = register_recommendation_tasks(
    "movielens_100k",
    dataset="movielens-100k",
    split="per_user_temporal",
    rating_values=(1, 2, 3, 4, 5),
    positive_rating=4,
)

WRITING = register_generation_tasks("movielens_100k", dataset="movielens-100k")

# Retrieval: a user's last rating tests, the one before validates. The foundation is the one above,
# and so is its vocabulary.
LEAVE_ONE_OUT = register_recommendation_tasks(
    "movielens_100k_leave_one_out",
    dataset="movielens-100k",
    split="leave_one_out",
    vocabulary_split="per_user_temporal",
)

UNSEEN_ITEMS = register_recommendation_tasks(
    "movielens_100k_unseen_items",
    dataset="movielens-100k",
    split="held_out_items-ofleave_one_out-fraction0_1",
)

seqio.MixtureRegistry.add("movielens_100k_content", WRITING[1:], default_rate=1.0)
seqio.MixtureRegistry.add(
    "movielens_100k_bank",
    [f"movielens_100k_{kind}" for kind in ("ctr", "ctr_ratings", "retrieval")],
    default_rate=1.0,
)
