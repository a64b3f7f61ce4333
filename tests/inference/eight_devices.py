"""Run by test_generation.py in a process with 8 virtual CPU devices; prints one JSON object.

Texts and scores of one request per rule set, spread over a mesh, beside those of one device.
"""

import json
import sys

import jax
import numpy as np
from flax import linen as nn

from m6rec_jax.inference.bundle import variable_targets
from m6rec_jax.inference.generation import Generator
from m6rec_jax.inference.retrieval import Retriever
from m6rec_jax.inference.shared_titles import SharedTitles
from m6rec_jax.inference.title_trie import TitleTrie
from m6rec_jax.model import M6Rec, ModelConfig, PromptConfig
from m6rec_jax.model.m6rec import initial_features
from m6rec_jax.sharding import data_parallel, fully_sharded_2d, make_mesh
from m6rec_jax.text.vocabulary import Vocabulary

HISTORIES = [["likes comedy", f"liked Film {name}"] for name in "ABC"]
TITLES = [f"Film {name}, drama" for name in "ABCDEFGAA"]


def main() -> None:
    vocabulary = Vocabulary(sys.argv[1])
    prompts = PromptConfig(
        num_prompts=2,
        adapter_rank=2,
        retrieval_dim=4,
        special_token_ids=vocabulary.special_ids,
    )
    config = ModelConfig(
        vocab_size=vocabulary.size,
        embed_dim=16,
        num_encoder_layers=2,
        num_decoder_layers=2,
        num_heads=2,
        head_dim=8,
        mlp_dim=32,
        late_layers_start=1,
        prompts=prompts,
    )
    model, key = M6Rec(config), jax.random.key(0)
    init = jax.jit(lambda key: nn.meta.unbox(model.init(key, initial_features())))
    variables = init({"params": key, "prompts": key})
    variables = jax.tree.map(lambda leaf: np.asarray(leaf) * 2, variables)
    trie = TitleTrie(vocabulary, TITLES)
    found = {}
    for name, mesh, rules in (
        ("one device", None, ()),
        ("data_parallel", make_mesh(8, 1, 1), data_parallel()),
        ("fully_sharded_2d", make_mesh(2, 2, 2), fully_sharded_2d()),
    ):
        placed = variables
        if mesh is not None:
            targets = variable_targets(model, mesh, rules)
            placed = jax.tree.map(
                lambda leaf, target: jax.device_put(leaf, target.sharding), variables, targets
            )
        shapes = {
            "source_length": 16,
            "target_length": 16,
            "batch_sizes": (8,),
            "source_buckets": (16,),
            "mesh": mesh,
            "rules": rules,
        }
        generator = Generator(model, placed, vocabulary, **shapes)
        titles = generator.recommend(HISTORIES, trie, 3)
        texts = [f"{title}, {place} percent" for place, title in enumerate(TITLES)]
        shared = SharedTitles(Retriever(model, placed, vocabulary, **shapes), trie, texts)
        told = generator.recommend(
            HISTORIES,
            trie,
            7,
            lead_ins=["likes", "user", "liked it,"],
            seen=[[1], [], [7]],
            item_scores=shared.item_scores(HISTORIES),
        )
        samples = generator.sample(HISTORIES, num_samples=2, seed=3)
        found[name] = {
            "titles": [[one.title for one in row] for row in titles],
            "scores": [[one.score for one in row] for row in titles],
            "places": [[one.places for one in row] for row in told],
            "samples": [[one.text for one in row] for row in samples],
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
