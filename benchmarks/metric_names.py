"""What metrics are called in tables, how many decimals they have, and which way is better."""

from __future__ import annotations

# Title, decimals, and 'higher', 'lower' or 'none'.
METRICS: dict[str, tuple[str, int, str]] = {
    "auc": ("AUC", 4, "higher"),
    "auc_share": ("of the teacher's AUC", 4, "higher"),
    "user_averaged_auc": ("user-averaged AUC", 4, "higher"),
    "log_loss": ("log loss", 4, "lower"),
    "mrr": ("MRR", 4, "higher"),
    "perplexity": ("perplexity", 2, "lower"),
    "trainable_share": ("trained share", 4, "none"),
    "seconds": ("seconds", 0, "none"),
    "step_milliseconds": ("milliseconds a step", 0, "lower"),
    "request_p95_milliseconds": ("p95", 0, "lower"),
    "cold_milliseconds": ("cold", 0, "lower"),
    "tokens": ("tokens", 0, "none"),
    "tokens_per_second": ("tokens/s", 0, "higher"),
    "throughput_ratio": ("throughput ratio", 2, "higher"),
    "times_faster": ("times as fast", 2, "none"),
    "answered": ("answered", 0, "none"),
    "requests_per_second": ("requests/s", 0, "higher"),
    "refused_429": ("429", 0, "none"),
    "compiled_after_ready": ("compiled after ready", 0, "lower"),
    "processor_milliseconds": ("processor ms a request", 1, "lower"),
    "p50_milliseconds": ("p50, ms", 0, "lower"),
    "p95_milliseconds": ("p95, ms", 0, "lower"),
    "p99_milliseconds": ("p99, ms", 0, "lower"),
    "chat_p50_milliseconds": ("p50 of chat, ms", 0, "lower"),
    "resident_mib_first_third": ("MiB, first third", 0, "none"),
    "resident_mib_last_third": ("MiB, last third", 0, "none"),
    "resident_mib_per_minute": ("growth, MiB a minute", 2, "lower"),
    "ready_seconds": ("seconds until ready", 1, "lower"),
    "ready_processor_seconds": ("processor s", 1, "lower"),
    "programs": ("programs", 0, "lower"),
    "processor_seconds": ("processor s", 0, "lower"),
    "events_per_processor_second": ("events a processor second", 0, "higher"),
    "written_mib": ("written, MiB", 0, "none"),
    "peak_own_memory_mib": ("without mapped files, MiB", 0, "lower"),
    "peak_memory_mib": ("peak memory, MiB", 0, "lower"),
    # Of written texts; BLEU and ROUGE are percentages.
    "fmr": ("FMR", 3, "higher"),
    "true_share": ("true attributes", 3, "higher"),
    "all_true_share": ("texts all true", 3, "higher"),
    "bytes": ("bytes", 0, "lower"),
    "ms_per_candidate": ("ms a candidate", 2, "lower"),
    "request_milliseconds": ("ms a request", 1, "lower"),
    "fastest_milliseconds": ("fastest", 1, "lower"),
    # Of exports.
    "verified_rows": ("rows", 0, "none"),
    "model_auc": ("model's AUC", 4, "none"),
    "start_milliseconds": ("ms to start", 0, "lower"),
    "candidate_milliseconds": ("ms a candidate", 2, "lower"),
    "cached_candidate_milliseconds": ("ms a candidate, history kept", 2, "lower"),
    "parameters": ("parameters", 0, "none"),
    "nonzero_parameters": ("not zero", 0, "none"),
    "largest_difference_ppm": ("largest difference, millionths", 1, "none"),
}

# Metrics over some of the rows begin so.
_OF_SOME = {"held_out/": "unseen"}
# Metrics of these beginnings, the same of each.
_FAMILIES: dict[str, tuple[str, int, str]] = {
    "hit_rate@": ("HR@", 4, "higher"),
    "chance@": ("chance of HR@", 4, "none"),
    "ndcg@": ("NDCG@", 4, "higher"),
    "recall@": ("recall@", 4, "higher"),
    "new/recall@": ("new items' recall@", 4, "higher"),
    "bleu_": ("BLEU-", 2, "higher"),
    "rouge_": ("ROUGE-", 2, "higher"),
}


def describe_metric(metric: str) -> tuple[str, int, str]:
    """Returns a metric's title, its number of decimals and 'higher', 'lower' or 'none'."""
    if metric in METRICS:
        return METRICS[metric]
    for prefix, some in _OF_SOME.items():
        if metric.startswith(prefix):
            title, decimals, better = describe_metric(metric.removeprefix(prefix))
            return f"{title}, {some}", decimals, better
    for prefix, (title, decimals, better) in _FAMILIES.items():
        if metric.startswith(prefix):
            return title + metric.removeprefix(prefix), decimals, better
    return metric.replace("_", " "), 4, "none"
