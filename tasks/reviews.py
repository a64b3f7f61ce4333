"""Reviews in PETER's format: TripAdvisor, Yelp and Amazon, as its authors give them out.

A folder with reviews.jsonl, the index files and a reviews.json named after the data set
(`m6rec_jax.data.reviews`), then

    m6rec data prepare FOLDER

Tasks: tripadvisor_explanations, yelp_explanations, amazon_explanations.
"""

from m6rec_jax.pipeline.registration import register_generation_tasks

TASKS = [
    task
    for name in ("tripadvisor", "yelp", "amazon")
    for task in register_generation_tasks(
        name, dataset=name, split="by_group", views=("explanations",)
    )
]
