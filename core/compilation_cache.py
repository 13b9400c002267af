"""Compiled programs kept on disk: a second run of a mode loads them instead of compiling them again."""

import hashlib
import os
import platform
import re
import warnings
from pathlib import Path

MAX_BYTES = 64 * 2**20  # JAX reads the time of every program's last use before it writes one, so few files stay fast


def keep_programs() -> None:
    """Sets up JAX's persistent compilation cache in the user's cache folder. Call it before the first compilation.

    It changes nothing if the user has set JAX_COMPILATION_CACHE_DIR, or if the folder cannot be written or locked.
    Each kind of CPU has its own folder: JAX does not document whether its key holds the CPU's instruction sets.
    """
    if "avx512" in cpu_features():  # XLA logs an error for every loaded program there, though it runs (xla#44565)
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import jax  # takes a second

    if jax.config.jax_compilation_cache_dir is not None:
        return
    try:
        folder = folder_of_this_cpu() / "programs"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        remove_unfinished(folder)
    except (OSError, RuntimeError):  # RuntimeError: no home folder, or a file system without locks
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", MAX_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    warnings.filterwarnings("ignore", "Error (read|writ)ing persistent compilation cache")  # JAX compiles then


def folder_of_this_cpu() -> Path:
    """The folder of this project for programs that run on this kind of CPU. Raises RuntimeError as `user_cache`."""
    return user_cache() / "gaussian-late-start" / hashlib.sha256(cpu_features().encode()).hexdigest()[:16]


def user_cache() -> Path:
    """The user's folder for caches by the XDG specification. Raises RuntimeError if the user has no home folder."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return given if given.is_absolute() else Path.home() / ".cache"


def cpu_features() -> str:
    """The model and the instruction sets of the CPU, for Linux; other systems name only the architecture."""
    try:
        first_core = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0]
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return "\n".join(re.findall(r"^(?:model name|flags|Features|CPU \w+)\s*:.*", first_core, re.MULTILINE))


def remove_unfinished(folder: Path) -> None:
    """Removes programs whose writer was killed: JAX would fail at each, and never write another program.

    JAX writes the time of last use after the program, both under this lock. Raises OSError if the folder cannot be
    written, NotImplementedError if it cannot be locked.
    """
    from filelock import FileLock  # takes 0.1 s to import

    with FileLock(folder / ".lockfile", timeout=10, fallback_to_soft=False):
        for program in folder.glob("*-cache"):
            if not program.with_name(program.name.removesuffix("cache") + "atime").exists():
                program.unlink()
