"""Keeps compiled programs on disk, so that a second run of a mode loads them instead of compiling them again."""

import hashlib
import os
import platform
import re
import warnings
from pathlib import Path

MAX_BYTES = 64 * 2**20  # small, because before each write JAX reads when every stored program was last used


def keep_programs() -> None:
    """Sets up JAX's persistent compilation cache in the user's cache folder. Call it before the first compilation.

    It changes nothing if the user has set JAX_COMPILATION_CACHE_DIR, or if the folder cannot be written or locked.
    Each kind of CPU has its own folder, because JAX does not document whether its cache key includes the instruction
    sets of the CPU.
    """
    if "avx512" in cpu_features():  # on these CPUs XLA logs a false error for every loaded program (xla#44565)
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
    warnings.filterwarnings("ignore", "Error (read|writ)ing persistent compilation cache")  # JAX then compiles again


def folder_of_this_cpu() -> Path:
    """This project's folder for programs that run on this kind of CPU. Raises RuntimeError as `user_cache` does."""
    return user_cache() / "gaussian-late-start" / hashlib.sha256(cpu_features().encode()).hexdigest()[:16]


def user_cache() -> Path:
    """The user's cache folder, by the XDG specification. Raises RuntimeError if the user has no home folder."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return given if given.is_absolute() else Path.home() / ".cache"


def cpu_features() -> str:
    """The model and the instruction sets of the CPU on Linux; only the architecture on other systems."""
    try:
        first_core = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0]
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return "\n".join(re.findall(r"^(?:model name|flags|Features|CPU \w+)\s*:.*", first_core, re.MULTILINE))


def remove_unfinished(folder: Path) -> None:
    """Removes programs that lack the file with the time of their last use.

    Such a program is left if a process is killed between the writes of the two files. JAX fails at each such program
    and then stores no new ones. It writes both files under the lock that is used here.
    Raises OSError if the folder cannot be written, and NotImplementedError if it cannot be locked.
    """
    from filelock import FileLock  # takes 0.1 s to import

    with FileLock(folder / ".lockfile", timeout=10, fallback_to_soft=False):
        for program in folder.glob("*-cache"):
            if not program.with_name(program.name.removesuffix("cache") + "atime").exists():
                program.unlink()
