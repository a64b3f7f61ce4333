"""Run by test_several_devices.py where there are several devices; prints one JSON object.

python tests/engine/on_meshes.py VOCABULARY INDEX PORT: one of two processes of 2 devices each

Answers to requests, spread over a mesh that has not the devices of process 0 first, as those of TPU
slices need not be.
"""

import dataclasses
import json
import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from m6rec_jax.engine.candidates.scoring import Scorer
from m6rec_jax.engine.decoding.generation import Generator, TextRequest
from m6rec_jax.engine.decoding.sampling import SamplingOptions
from m6rec_jax.engine.decoding.title_trie import TitleTrie
from m6rec_jax.engine.engine import EngineOptions
from m6rec_jax.engine.index.retrieval import Retriever
from m6rec_jax.engine.model_folder import variable_targets
from m6rec_jax.engine.programs.runtime import Runtime
from m6rec_jax.engine.segments.cache import SegmentCache
from m6rec_jax.model import M6Rec
from m6rec_jax.sharding import LogicalRules, fully_sharded_2d, make_mesh
from m6rec_jax.text.vocabulary import Vocabulary
from tests.engine.tiny_model import livelier, make_model

HISTORIES = [["likes comedy", f"liked Film {name}"] for name in "ABC"]
TITLES = [f"Film {name}, drama" for name in "ABCDEFGAA"]


def lively_model(vocabulary: Vocabulary) -> tuple[M6Rec, Mapping[str, Any]]:
    """The same in every process; its variables are on the host."""
    model, variables = make_model(vocabulary, {"embedding_rank": 1}, late_layers_start=1)
    return model, jax.tree.map(np.asarray, livelier(variables))


def answers(
    model: M6Rec,
    variables: Mapping[str, Any],
    vocabulary: Vocabulary,
    mesh: Mesh | None,
    rules: LogicalRules,
) -> dict[str, Any]:
    """What a mesh answers; with several processes, in each of them."""
    placed = variables
    if mesh is not None:
        targets = variable_targets(model, mesh, rules)
        placed = jax.tree.map(
            lambda leaf, target: jax.device_put(leaf, target.sharding), variables, targets
        )
    options = EngineOptions(
        source_length=16,
        target_length=16,
        batch_sizes=(2, 5),  # which no mesh divides
        source_buckets=(16,),
        runtime=Runtime(mesh, rules),
    )
    generator = Generator(model, placed, vocabulary, options)
    trie = TitleTrie(vocabulary, TITLES)
    requests = [TextRequest(history) for history in HISTORIES]
    titles = generator.recommend(requests, trie, 3)
    texts = [f"{title}, {i} percent" for i, title in enumerate(TITLES)]
    retriever = Retriever(model, placed, vocabulary, options)
    asked = zip(requests, ["likes", "user", "liked it,"], [[1], [], [7]], strict=True)
    ordered = generator.recommend(
        [request._replace(prefix=prefix, seen=seen) for request, prefix, seen in asked],
        trie,
        7,
    )
    samples = generator.write([one._replace(sampling=SamplingOptions()) for one in requests])
    users, index = retriever.embed_users(HISTORIES), retriever.index(texts)
    scorer = Scorer(model, placed, vocabulary, options)
    late_model, segments = M6Rec(model.config.replace(late_layers_start=1)), None
    if mesh is not None:  # without one there is no cache, and all must be as there
        segments = SegmentCache(
            late_model,
            source_length=16,
            target_length=16,
            runtime=Runtime(mesh, rules),
            source_slots=400,
            candidate_slots=400,
        )
    late_options = dataclasses.replace(options, segments=segments)
    late = Scorer(late_model, placed, vocabulary, late_options)
    asked = HISTORIES, [TITLES, TITLES[:1], TITLES]
    return {
        "titles": [[one.title for one in row] for row in titles],
        "scores": [[one.score for one in row] for row in titles],
        "indices": [[one.indices for one in row] for row in ordered],
        "samples": [one.text for one in samples],
        "users": users.tolist(),
        "items": retriever.embed_items(texts).tolist(),
        "found": index.top_k(users, 4).scores.tolist(),
        "ranks": index.ranks(users, np.array([[0], [4], [8]])).tolist(),
        "probabilities": [row.tolist() for row in scorer.score_requests(*asked)],
        "late": [row.tolist() for _ in range(2) for row in late.score_requests(*asked)],
    }


def main(vocabulary_file: str, index: str, port: str) -> None:
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=int(index))
    a, b, c, d = jax.devices()
    mesh = make_mesh(1, 2, 2, devices=[c, d, a, b])
    vocabulary = Vocabulary(vocabulary_file)
    model, variables = lively_model(vocabulary)
    print(json.dumps(answers(model, variables, vocabulary, mesh, fully_sharded_2d())))


if __name__ == "__main__":
    main(*sys.argv[1:])
