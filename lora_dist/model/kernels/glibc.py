"""Settings of glibc's allocator, without effect where the C library is another one."""

import ctypes


def keep_freed_memory() -> None:
    """Keep the memory that tensors free.

    By default it returns large blocks to the system, which then has to clear their pages again at each step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-3, 2**25)  # M_MMAP_THRESHOLD, bytes: its largest value
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD, bytes


def return_freed_memory() -> None:
    """Return the free memory that has been kept to the system, once."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)
