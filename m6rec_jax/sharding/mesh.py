"""The device mesh: three named axes whatever the machine.

- `data`: examples are split over it, parameters are copied.
- `fsdp`: examples *and* parameters are split over it; parameters are gathered when used.
- `tensor`: heads, feed-forward width and vocabulary are split over it.

In gin:

    from m6rec_jax.sharding import mesh

    make_mesh.fsdp = 8
    make_mesh.tensor = 2        # data = -1 takes the remaining devices
"""

import math
from collections.abc import Sequence

import gin
import jax
from jax.sharding import AxisType, Mesh

from m6rec_jax.errors import ConfigError

MESH_AXES = ("data", "fsdp", "tensor")


@gin.configurable
def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh over all devices of all processes.

    Use it with `jax.set_mesh(mesh)`. The axes are `AxisType.Auto`: JAX's default, Explicit, refuses
    sharding constraints by logical name.

    Args:
      data, fsdp, tensor: sizes of the axes; at most one may be -1, which takes what remains.
      devices: those to use; None: all of them.

    Raises:
      ConfigError: if the sizes do not multiply to the number of devices.
    """
    count = jax.device_count() if devices is None else len(devices)
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    wanted = ", ".join(f"{name}={size}" for name, size in sizes.items())
    bad = [name for name, size in sizes.items() if size < 1 and size != -1]
    if bad:
        raise ConfigError(
            f"make_mesh({wanted}): {' and '.join(bad)} must be at least 1, or -1 for what remains"
        )
    open_axes = [name for name, size in sizes.items() if size == -1]
    if len(open_axes) > 1:
        raise ConfigError(
            f"make_mesh({wanted}): only one axis may be -1, not {' and '.join(open_axes)}"
        )
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if open_axes:
        if count % fixed:
            raise ConfigError(
                f"make_mesh({wanted}): the other axes multiply to {fixed}, which does not divide "
                f"the {count} devices"
            )
        sizes[open_axes[0]] = count // fixed
    elif fixed != count:
        raise ConfigError(
            f"make_mesh({wanted}): sizes multiply to {fixed}, but there are {count} devices; set "
            "one axis to -1 to take what remains"
        )
    return jax.make_mesh(
        tuple(sizes[name] for name in MESH_AXES),
        MESH_AXES,
        axis_types=(AxisType.Auto,) * len(MESH_AXES),
        devices=devices,
    )
