"""verl's device platform "cpu": `VERL_PLATFORM=cpu VERL_USE_EXTERNAL_MODULES=tests.verl_on_cpu.platform`.

verl loads this module in each of its processes, so it is also the place from which the patches of `compat` are
applied. It pretends to be one device of a kind that Ray calls GPU, because verl places its workers by GPUs.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry

from tests.verl_on_cpu import compat

MEMORY_BYTES = (8 << 30, 16 << 30)
"""Free and total, as the trainer's memory log shows it."""

SEED = 0
"""verl leaves the first weights of a critic's value head to chance; two runs are to start alike."""


def _device_module() -> types.ModuleType:
    """`torch.cpu` with what verl calls on `torch.cuda`."""
    module = types.ModuleType("rolltree_verl_cpu_device")
    module.__dict__.update({name: value for name, value in vars(torch.cpu).items() if not name.startswith("__")})
    for name in ("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved"):
        setattr(module, name, lambda *_: 0)
    for name in ("empty_cache", "ipc_collect", "manual_seed", "manual_seed_all", "reset_peak_memory_stats"):
        setattr(module, name, lambda *_: None)
    for name in ("set_device", "synchronize"):
        setattr(module, name, lambda *_: None)
    known: dict[str, Any] = {
        "mem_get_info": lambda *_: MEMORY_BYTES,
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "set_rng_state": lambda state, *_: torch.set_rng_state(state),
        "get_device_name": lambda *_: "cpu",
        "current_device": lambda: 0,  # verl writes f"cpu:{index}"
        "device_count": lambda: 1,
        "is_available": lambda: True,
    }
    module.__dict__.update(known)
    return module


@PlatformRegistry.register(platform="cpu")
class CpuPlatform(PlatformBase):  # type: ignore[misc, unused-ignore]
    """One CPU, which Ray counts as a GPU."""

    device_name = "cpu"
    vendor_name = "cpu"
    device_module = _device_module()

    def is_available(self) -> bool:
        """Always."""
        return True

    def current_device(self) -> torch.device:
        """A device, not an index: FSDP2 moves modules to it."""
        return torch.device("cpu")

    def device_count(self) -> int:
        """One for each process."""
        return 1

    def set_device(self, device_index: int) -> None:
        """Nothing to set."""

    def synchronize(self, device_index: int | None = None) -> None:
        """Nothing runs ahead."""

    def manual_seed(self, seed: int) -> None:
        """Seed torch."""
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        """Seed torch."""
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None:
        """No allocator to set."""

    def empty_cache(self) -> None:
        """No cache to empty."""

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        """None known."""
        return None, None

    def communication_backend_name(self) -> str:
        """Gloo."""
        return "gloo"

    def visible_devices_envvar(self) -> str:
        """Ray's own for GPUs."""
        return "CUDA_VISIBLE_DEVICES"

    @contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        """No profiler."""
        yield

    def profiler_start(self) -> None:
        """No profiler."""

    def profiler_stop(self) -> None:
        """No profiler."""

    def ray_resource_name(self) -> str:
        """`ray.init(num_gpus=...)` makes as many as are wanted."""
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        """As for CUDA."""
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self) -> bool:
        """No: weights travel through shared memory."""
        return False

    def cudart(self) -> None:
        """None."""


compat.apply()
torch.manual_seed(SEED)
