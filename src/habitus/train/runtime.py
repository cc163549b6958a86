"""Settings of JAX that must be made before it starts: several CPU devices, a compile cache."""

from __future__ import annotations

import gc
import os
from functools import cache
from pathlib import Path
from typing import Any

import jax
from platformdirs import user_cache_path


def cache_folder() -> Path:
    """Where habitus keeps what it can make again; `HABITUS_CACHE` overrides it."""
    chosen = os.environ.get("HABITUS_CACHE")
    return Path(chosen) if chosen else user_cache_path("habitus")


@cache
def prepare() -> None:
    """Gives a CPU one device for each core, so that seeds run side by side, and keeps compiled programs.

    Does nothing that the user has set already, and nothing once JAX has started: everything works
    with one device too.
    """
    settings: Any = jax.config  # its options are attributes that no type checker can see
    if settings.jax_compilation_cache_dir is None and os.environ.get("HABITUS_COMPILE_CACHE", "on") != "off":
        settings.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
        settings.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    chosen = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if settings.jax_num_cpu_devices < 1 and not chosen:
        try:
            settings.update("jax_num_cpu_devices", cores)
        except RuntimeError:  # JAX has already started, and cannot be given more devices
            return


def make_room(share: float = 0.5) -> None:
    """Forgets compiled programs once a process holds this share of the memory maps that Linux grants it.

    On a CPU the programs of one run take some 600 maps. Beyond the limit (65,530 unless raised) XLA
    dies without a message, which a sweep over a hundred sizes of networks in one process would reach.
    What is still needed is read back from the compile cache.
    """
    try:
        limit = int(Path("/proc/sys/vm/max_map_count").read_text())
        used = Path("/proc/self/maps").read_bytes().count(b"\n")
    except OSError:  # not Linux
        return
    if used > share * limit:
        jax.clear_caches()
        gc.collect()
