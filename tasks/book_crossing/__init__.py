"""Book-Crossing: pretraining, conversion, retrieval and zero-shot tasks.

    m6rec data fetch book-crossing
    m6rec data sample book-crossing --gin_file gin_configs/data/book-crossing-small/prepare.gin
    m6rec data prepare book-crossing-small ...      (per_user_temporal, then leave_one_out)

Taking a book is a click, rating it 8 or more a conversion. Both are proxies, and there are no
times: splits are random (`tasks.book_crossing.source` says how). Tasks of ALL, and the same
of SMALL and RATED:

    book_crossing_ctr           conversion: of the books that a reader took, which were loved?
    book_crossing_retrieval     clicks: which book comes next?
    book_crossing_zero_shot, _infilling, _generation, _outcomes, _pretrain, _foundation
"""

from m6rec_jax.pipeline.registration import register_recommendation_tasks

ALL = register_recommendation_tasks("book_crossing", dataset="book-crossing")
SMALL = register_recommendation_tasks("book_crossing_small", dataset="book-crossing-small")

# Retrieval: a book that was left out of each reader's tests.
SMALL_LEAVE_ONE_OUT = register_recommendation_tasks(
    "book_crossing_small_leave_one_out",
    dataset="book-crossing-small",
    split="leave_one_out",
    vocabulary_split="per_user_temporal",
)

# Only books that were rated, on MovieLens' scale and in its words
# (gin_configs/data/book-crossing-small/prepare_rated.gin).
RATED = register_recommendation_tasks("book_crossing_rated", dataset="book-crossing-rated")
