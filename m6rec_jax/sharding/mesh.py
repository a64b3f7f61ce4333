"""The device mesh: three named axes whatever the machine.

- `data`: examples are split over it, parameters are copied.
- `fsdp`: examples *and* parameters are split over it; parameters are gathered when used.
- `tensor`: heads, feed-forward width and vocabulary are split over it.

In gin:

    from m6rec_jax.sharding import mesh

    make_mesh.fsdp = 8
    make_mesh.tensor = 2        # data = -1 takes the remaining devices

TPU slices that the data centre's network joins (multislice) lie along `data`, the axis that
communicates least. The sizes are then those within one slice, so that a run that moves from one
slice to two keeps its settings.
"""

import math
from collections.abc import Sequence

import gin
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from m6rec_jax.errors import ConfigError

MESH_AXES = ("data", "fsdp", "tensor")


@gin.configurable
def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    devices: Sequence[jax.Device] | None = None,
    largest_fsdp: int | None = None,
) -> Mesh:
    """A mesh over all devices of all processes; use it with `jax.set_mesh(mesh)`.

    The axes are `AxisType.Auto`: JAX's default, Explicit, refuses sharding constraints by logical
    name.

    Args:
      data, fsdp, tensor: sizes of the axes within a slice (everywhere but on several TPU slices:
        within all devices); at most one may be -1, which takes what remains.
      devices: those to use; None: all of them.
      largest_fsdp: with fsdp = -1, the most that it takes; `data` is multiplied by what remains.
        More devices that share parameters save memory, but wait for more neighbours.

    Raises:
      ConfigError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    num_slices = _num_slices(devices)
    count = len(devices) // num_slices
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    wanted = ", ".join(f"{name}={size}" for name, size in sizes.items())
    bad = [name for name, size in sizes.items() if size < 1 and size != -1]
    if largest_fsdp is not None and largest_fsdp < 1:
        raise ConfigError(f"make_mesh.largest_fsdp = {largest_fsdp} must be at least 1")
    if bad:
        raise ConfigError(
            f"make_mesh({wanted}): {' and '.join(bad)} must be at least 1, or -1 for what remains"
        )
    open_axes = [name for name, size in sizes.items() if size == -1]
    if len(open_axes) > 1:
        raise ConfigError(
            f"make_mesh({wanted}): only one axis may be -1, not {' and '.join(open_axes)}"
        )
    there = f"{count} devices" + (f" of each of {num_slices} slices" if num_slices > 1 else "")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if open_axes:
        if count % fixed:
            raise ConfigError(
                f"make_mesh({wanted}): the other axes multiply to {fixed}, which does not divide "
                f"the {there}"
            )
        sizes[open_axes[0]] = count // fixed
    elif fixed != count:
        raise ConfigError(
            f"make_mesh({wanted}): sizes multiply to {fixed}, but there are {there}; set "
            "one axis to -1 to take what remains"
        )
    if largest_fsdp is not None and fsdp == -1:
        remaining = sizes["fsdp"]
        sizes["fsdp"] = max(
            size for size in range(1, min(largest_fsdp, remaining) + 1) if not remaining % size
        )
        sizes["data"] *= remaining // sizes["fsdp"]
    return Mesh(
        _device_array(tuple(sizes[name] for name in MESH_AXES), devices, num_slices),
        MESH_AXES,
        axis_types=(AxisType.Auto,) * len(MESH_AXES),
    )


def _num_slices(devices: Sequence[jax.Device]) -> int:
    """Slices that the devices belong to; 1 on anything but TPUs.

    XLA gives the GPUs of every host a slice index of their own, but parameters may be split over
    all.
    """
    tpus = [device for device in devices if device.platform == "tpu"]
    return len({getattr(device, "slice_index", None) for device in tpus}) or 1


def _device_array(
    shape: tuple[int, ...], devices: Sequence[jax.Device], num_slices: int
) -> np.ndarray:
    """Devices `[data, fsdp, tensor]`, neighbours in the mesh near each other in the machine.

    Axes of a TPU's torus are split where a mesh axis is not a product of whole ones.
    """
    if num_slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return mesh_utils.create_hybrid_device_mesh(
        shape, (num_slices, 1, 1), devices, allow_split_physical_axes=True
    )
