"""The device mesh in settings: {"data": 1, "fsdp": 8, "tensor": 1}; a missing axis has size 1."""

from famjax.config.checks import ConfigError, at_least, one_of

MESH_AXES = ("data", "fsdp", "tensor")


def mesh_sizes(mesh: dict[str, int]) -> tuple[int, int, int]:
    """Returns the number of devices along `data`, `fsdp` and `tensor`."""
    data, fsdp, tensor = (mesh.get(axis, 1) for axis in MESH_AXES)
    return data, fsdp, tensor


def check_mesh(mesh: dict[str, int]) -> None:
    """Raises `ConfigError` for an unknown axis or an invalid device count."""
    for axis, size in mesh.items():
        one_of("MESH axis", axis, MESH_AXES)
        if not isinstance(size, int) or isinstance(size, bool):
            raise ConfigError(f"MESH axis {axis} is {size!r}; it must be a number of devices")
        at_least(f"MESH axis {axis}", size, 1)
