"""Detects NVIDIA GPUs on this machine without CUDA's Python packages."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from pathlib import Path
from uuid import UUID

PCI_DEVICES = Path("/sys/bus/pci/devices")
VENDOR = "0x10de"
DRIVER = "libcuda.so.1"
_UUID_BYTES = 16


def is_present() -> bool:
    """True if this machine has an NVIDIA device, even without a driver."""
    for device in PCI_DEVICES.glob("*"):
        with suppress(OSError):
            vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
            if vendor == VENDOR and kind.startswith("0x03"):
                return True
    return False


def count_usable() -> int:
    """Number of usable GPUs; 0 if the driver is missing or broken."""
    count = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL(DRIVER)
        works = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
    except (OSError, AttributeError):
        return 0
    return count.value if works else 0


def list_usable() -> tuple[str, ...]:
    """UUIDs of usable GPUs, as in CUDA_VISIBLE_DEVICES; empty without a driver."""
    found = []
    for number in range(count_usable()):
        device, uuid = ctypes.c_int(0), (ctypes.c_ubyte * _UUID_BYTES)()
        driver = ctypes.CDLL(DRIVER)
        if driver.cuDeviceGet(ctypes.byref(device), number) or driver.cuDeviceGetUuid(uuid, device):
            return ()
        found.append(f"GPU-{UUID(bytes=bytes(uuid))}")
    return tuple(found)
