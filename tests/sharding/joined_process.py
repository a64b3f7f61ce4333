"""One of two processes, or of one: joins the others and tells about it, in JSON.

python tests/sharding/joined_process.py join|before|during

'before' and 'during' are when the last process gets a signal: SIGTERM before training begins (in a
run that may have been resumed), or Ctrl-C when process 0 has asked ten times whether to stop.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time

import jax

from m6rec_jax.sharding.processes import join_processes


def main(scenario: str) -> None:
    if os.environ.get("JAX_NUM_PROCESSES") == "1":  # JAX joins the only host of a slice with itself
        jax.distributed.initialize(os.environ["JAX_COORDINATOR_ADDRESS"], 1, 0)
    else:
        join_processes(heed_preemption=scenario != "join")
    index, count = jax.process_index(), jax.process_count()
    told = index == count - 1
    if scenario == "join":
        print(json.dumps({"process": index, "count": count}))
        return
    from m6rec_jax.training.preemption import PreemptionGuard

    if scenario == "before":
        if told:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(3)  # the notifier looks once a second; what starts a run takes longer
    with PreemptionGuard() as guard:
        for call in range(1, 1000):
            if signal_name := guard.stopped_by():
                print(json.dumps({"signal": signal_name, "call": call}))
                return
            if call == 10 and scenario == "during" and told:
                os.kill(os.getpid(), signal.SIGINT)  # Ctrl-C is passed on
            time.sleep(0.05)
    raise AssertionError("the signal was lost")


if __name__ == "__main__":
    main(sys.argv[1])
