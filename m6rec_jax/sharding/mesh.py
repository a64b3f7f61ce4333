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
    open_axes = [name for name, size in sizes.items() if size == -1]
    if bad or len(open_axes) > 1:
        raise ConfigError(
            f"make_mesh({wanted}): {' and '.join(bad or open_axes)} must be at least 1; only one "
            "axis may be -1, for what remains"
        )
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if count % fixed or not (open_axes or fixed == count):
        there = f"{count} devices" + (f" of each of {num_slices} slices" if num_slices > 1 else "")
        raise ConfigError(
            f"make_mesh({wanted}): the sizes multiply to {fixed}, but there are {there}; they must "
            "be equal, or one axis -1 and the others divide the devices"
        )
    for name in open_axes:
        sizes[name] = count // fixed
    if largest_fsdp is not None and fsdp == -1:
        most = range(1, min(max(largest_fsdp, 1), sizes["fsdp"]) + 1)
        taken = max(size for size in most if not sizes["fsdp"] % size)
        sizes["data"], sizes["fsdp"] = sizes["data"] * sizes["fsdp"] // taken, taken
    # Neighbours in the mesh are near each other in the machine. Axes of a TPU's torus are split
    # where a mesh axis is not a product of whole ones.
    shape = tuple(sizes[name] for name in MESH_AXES)
    if num_slices == 1:
        array = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        array = mesh_utils.create_hybrid_device_mesh(
            shape, (num_slices, 1, 1), devices, allow_split_physical_axes=True
        )
    return Mesh(array, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def _num_slices(devices: Sequence[jax.Device]) -> int:
    """Slices that the devices belong to; 1 on anything but TPUs.

    XLA gives the GPUs of every host a slice index of their own, but parameters may be split over
    all.
    """
    tpus = [device for device in devices if device.platform == "tpu"]
    return len({getattr(device, "slice_index", None) for device in tpus}) or 1
