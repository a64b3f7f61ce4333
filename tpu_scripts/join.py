"""`m6rec` as one process of several: joins the other hosts, then hands over to the command line.

    python join.py train --gin_file FILE --gin.NAME=VALUE ...

The command line itself never calls `jax.distributed.initialize`, and without it JAX has no
coordinator: Orbax's barriers, and the agreement of all processes to save and leave at a SIGTERM,
rest on it. Called without arguments it finds the other hosts by the metadata of the TPU VM. It must
come before anything that asks JAX for devices.
"""

import sys

import jax


def main() -> int:
    jax.distributed.initialize()
    from m6rec_jax.cli import main as m6rec

    return m6rec()


if __name__ == "__main__":
    sys.exit(main())
