"""Train, evaluate and study DDPMs with a Gaussian late start.

python main.py --mode=prepare   --config=configs/ddpm/cifar10.py
python main.py --mode=train     --config=configs/ddpm/digits.py --workdir=results/digits
python main.py --mode=fid_stats --config=configs/ddpm/digits.py
python main.py --mode=eval      --config=configs/ddpm/digits.py --workdir=results/digits --gls --t_start=400
python main.py --mode=sweep     --config=configs/ddpm/digits.py --workdir=results/digits
python main.py --mode=plan      --config=configs/ddpm/digits.py --workdir=results/digits --budget=5
python main.py --mode=sample    --config=configs/ddpm/digits.py --workdir=results/digits --num=16 --compare
python main.py --mode=analyze   --config=configs/ddpm/digits.py --workdir=results/digits
python main.py --mode=score     --config=configs/ddpm/digits.py --source=images/
python main.py --mode=verify    --source=sampling:ddim

Any field of the config is set by --config.section.field=value. Without --config, the program uses the config in the
workdir. An import without --config reads the config from the file of weights, if this file describes its network.

Exit codes:
  0: the mode finished.
  1: a bug; the traceback is printed. Or verify found that a claim of the sampler is false.
  2: a wrong input, a full disk or too little memory; one line explains it.
  3: another process of a distributed run was lost. The code is 134 if JAX notices the loss first.
  128 + n: signal n stopped the program: 129 SIGHUP, 130 SIGINT (Ctrl-C), 138 SIGUSR1, 140 SIGUSR2, 143 SIGTERM,
    152 SIGXCPU. Training saves its state first.
After 3, 134 and 128 + n the same command continues the work from what is saved.
"""

import argparse
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from core.compilation_cache import keep_programs
from core.errors import Stopped, UserError
from core.huge_pages import restart_with_huge_pages
from core.paths import expanded
from core.streams import tolerate_failed_writes

PATHS = ("workdir", "eval_folder", "source", "reference", "dest", "plan")  # flags whose values become Paths
CONFIGS = Path(__file__).parent / "configs"
SAMPLING = ("sampler", "n_steps", "gls", "t_start")  # flags that set fields of config.sampling


class Mode(NamedTuple):
    """A row of MODES. run(run_lib, config, flags) runs the mode; run_lib is an argument because it is imported late."""

    run: Callable[[ModuleType, ConfigDict, flags.FlagValues], object]
    needed: tuple[str, ...] = ()  # flags that must be given, besides --config
    optional: tuple[str, ...] = ()
    distributed: bool = False  # whether the mode can run in several processes
    needs_config: bool = True


MODES = {
    "prepare": Mode(lambda lib, config, _: lib.prepare(config)),
    "train": Mode(
        lambda lib, config, given: lib.train(config, given.workdir),
        needed=("workdir",),
        optional=("seed",),
        distributed=True,
    ),
    "fid_stats": Mode(lambda lib, config, _: lib.fid_stats(config), optional=("workdir",), distributed=True),
    "eval": Mode(
        lambda lib, config, given: lib.evaluate(config, given.workdir, given.eval_folder),
        needed=("workdir",),
        optional=(*SAMPLING, "plan", "seed", "eval_folder"),
        distributed=True,
    ),
    "sweep": Mode(
        lambda lib, config, given: lib.sweep(config, given.workdir, given.eval_folder),
        needed=("workdir",),
        optional=("plan", "seed", "eval_folder"),
        distributed=True,
    ),
    "plan": Mode(
        lambda lib, config, given: lib.plan(config, given.workdir, given.budget),
        needed=("workdir", "budget"),
        optional=("seed",),
    ),
    "score": Mode(
        lambda lib, config, given: lib.score(
            config, given.workdir or Path("results/score"), given.source, given.reference
        ),
        needed=("source",),
        optional=("workdir", "reference"),
    ),
    "sample": Mode(
        lambda lib, config, given: sample(lib, config, given),
        needed=("workdir",),
        optional=(*SAMPLING, "plan", "seed", "num", "format", "trajectory", "compare"),
    ),
    "analyze": Mode(
        lambda lib, config, given: lib.analyze(config, given.workdir, given.eval_folder),
        needed=("workdir",),
        optional=("seed", "eval_folder"),
    ),
    "import": Mode(
        lambda lib, config, given: lib.import_weights(config, given.workdir, given.source),
        needed=("workdir", "source"),
    ),
    "export": Mode(
        lambda lib, config, given: {"weights": lib.export_weights, "start": lib.export_start}[given.what](
            config, given.workdir, given.dest
        ),
        needed=("workdir", "dest"),
        optional=("what", *SAMPLING),
    ),
    "verify": Mode(
        lambda lib, _, given: sys.exit(0 if lib.verify_sampler(str(given.source)) else 1),
        needed=("source",),
        needs_config=False,
    ),
}
BUG, USER_ERROR, PEER_LOST, INTERRUPTED = 1, 2, 3, 130  # exit codes
PEER_LOST_SIGNS = ("Gloo", "gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "heartbeat", "oordination")

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "A file of configs/ whose get_config() returns the config.")
flags.DEFINE_boolean("help", False, "Prints this text.", short_name="h")
flags.DEFINE_enum("mode", None, list(MODES), "What to do.")
flags.DEFINE_string(
    "workdir", None, "Folder of checkpoints and results; not needed by prepare, fid_stats, score and verify."
)
flags.DEFINE_string("eval_folder", "eval", "Folder in the workdir for the results of eval and sweep.")
flags.DEFINE_integer("seed", None, "Sets config.seed.")
flags.DEFINE_integer("num", 64, "Number of images that sample draws.", lower_bound=1)
flags.DEFINE_enum("format", "png", ["png", "npz"], "Output of sample: one PNG per image, or one npz.")
flags.DEFINE_boolean("trajectory", False, "With --mode=sample: also writes a film strip of the predicted x_0.")
flags.DEFINE_boolean(
    "compare", False, "With --mode=sample: draws one picture of all samplers, with and without a late start."
)
flags.DEFINE_boolean("compilation_cache", True, "Keeps compiled programs in the user's cache folder, for later runs.")
flags.DEFINE_boolean("distributed", False, "Runs as one of several processes; TPU pods and SLURM give it an index.")
flags.DEFINE_string(
    "coordinator", None, "With --distributed, but without a TPU pod or SLURM: host:port of the first process."
)
flags.DEFINE_integer("process_count", None, "With --coordinator: the number of processes.", lower_bound=1)
flags.DEFINE_integer("process_id", None, "With --coordinator: the index of this process, from 0.", lower_bound=0)
flags.DEFINE_string(
    "source", None, "Input of import (file or folder of weights), score (images) and verify (module:function)."
)
flags.DEFINE_string("reference", None, "With --mode=score: a folder, .npy or .npz of images to compare with.")
flags.DEFINE_string("dest", None, "Output of export, a new file or folder: .npz, diffusers folder, or .safetensors.")
flags.DEFINE_enum(
    "what", "weights", ["weights", "start"], "What export writes: the network, or a late start for other programs."
)
flags.DEFINE_string("sampler", None, "Sets config.sampling.sampler: ddpm, ddim, pndm, ...")
flags.DEFINE_integer("n_steps", None, "Sets config.sampling.n_steps, the number of steps of the sampler.")
flags.DEFINE_boolean("gls", None, "Sets config.sampling.gls: the Gaussian late start.")
flags.DEFINE_string(
    "t_start", None, "Sets config.sampling.t_start, the first timestep of a late start; auto chooses it."
)
flags.DEFINE_integer("budget", None, "With --mode=plan: the number of network calls for each image.")
flags.DEFINE_string("plan", None, "A plan.json of --mode=plan, whose best solver and start eval, sweep and sample use.")


def main(argv: list[str]) -> None:
    try:
        config = parse(argv)
        if FLAGS.help:
            print(f"{__doc__}\n{FLAGS.main_module_help()}")
        else:
            run(config)
    except (Exception, KeyboardInterrupt) as error:
        if (ending := explain(error)) is None:
            if not FLAGS["distributed"].value:
                raise
            traceback.print_exc()
            ending = None, BUG
        leave(*ending)


def explain(error: BaseException) -> tuple[str, int] | None:
    """The error message for the user and the exit code; None for a bug."""
    text = one_line(error)
    match error:
        case UserError() | OSError():  # OSError: a workdir that cannot be written, a full disk
            return str(error), USER_ERROR
        case Stopped():
            return f"{error}; the same command continues from there", 128 + error.number
        case KeyboardInterrupt():
            return "interrupted; the same command continues from what is saved", INTERRUPTED
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
        return f"out of memory: lower training.batch_size, eval.batch_size or model.nf ({text})", USER_ERROR
    if FLAGS["distributed"].value and any(sign in text for sign in PEER_LOST_SIGNS):
        return f"another process was lost; the same commands continue from the last checkpoint ({text})", PEER_LOST
    return None


def leave(message: str | None, code: int) -> None:
    """Ends the program. One of several processes exits without waiting for the others, which may have died."""
    if message:
        print(f"main.py: {message}", file=sys.stderr, flush=True)
    if FLAGS["distributed"].value and code in (BUG, USER_ERROR, PEER_LOST):
        os._exit(code)
    sys.exit(code)


def parse(argv: list[str]) -> ConfigDict | None:
    """The config from its file, its overrides and the sampling flags; None if the mode needs no config."""
    try:
        rest = FLAGS(with_config([config_expanded(argument) for argument in argv]))
        config = FLAGS.config
        if config is not None:
            config.lock()  # the first use of FLAGS.config raises the error if the file cannot be read
    except Exception as error:  # absl, ml_collections and a broken config file raise many types
        raise UserError(one_line(error)) from error
    if FLAGS.help:
        return None
    if len(rest) > 1:
        raise UserError(f"{rest[1]!r} is not a flag; --help lists all flags")
    if FLAGS.mode is None or (config is None and MODES[FLAGS.mode].needs_config):
        raise UserError(
            f"--mode ({', '.join(MODES)}) and --config are needed, --config only if the workdir has no config; "
            "--help lists all flags"
        )
    check_flags(MODES[FLAGS.mode])
    for name in PATHS:
        if FLAGS[name].value:
            FLAGS[name].value = expanded(FLAGS[name].value, f"--{name}")
    if config is None:
        return None

    for name in SAMPLING:
        if FLAGS[name].present:
            config.sampling[name] = start_of(FLAGS.t_start) if name == "t_start" else FLAGS[name].value
    if FLAGS.seed is not None:
        config.seed = FLAGS.seed
    if FLAGS.t_start is not None and not (config.sampling.gls or FLAGS.compare):
        raise UserError(
            f"--t_start={FLAGS.t_start} needs --gls: without a late start every sampler starts at the last timestep"
        )
    return config


def config_expanded(argument: str) -> str:
    """The argument. If it sets --config, ~ in the path is replaced by the home folder."""
    flag, _, path = argument.partition("=")
    return f"{flag}={expanded(path, flag)}" if flag in ("--config", "-config") and path else argument


def with_config(argv: list[str]) -> list[str]:
    """Adds --config to arguments without one, if the workdir or the source of an import contains a config."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in ("mode", "config", "workdir", "source"):
        parser.add_argument(f"--{name}", default="")
    try:
        given, _ = parser.parse_known_args(argv[1:])
    except argparse.ArgumentError:  # a flag without its value; absl reports it with a better message
        return argv
    if given.config:
        return argv
    if given.mode == "import" and given.source:
        return [argv[0], f"--config={CONFIGS / 'imported.py'}:{expanded(given.source, '--source')}", *argv[1:]]
    workdir = given.workdir and expanded(given.workdir, "--workdir")
    if workdir and (workdir / "config.json").exists():
        return [argv[0], f"--config={CONFIGS / 'stored.py'}:{workdir}", *argv[1:]]
    return argv


def start_of(text: str) -> int:
    if text == "auto":
        return -1  # sampling.time_grid.AUTO_START, whose import would take a second
    if not text.isdecimal():
        raise UserError(f"--t_start={text} must be a whole number, or auto")
    return int(text)


def check_flags(mode: Mode) -> None:
    """Raises UserError if a flag is missing that the mode needs, or if a flag is given that the mode does not use."""
    for name in mode.needed:
        if not FLAGS[name].value:
            raise UserError(f"--mode={FLAGS.mode} needs --{name}")
    if FLAGS.config is not None and not mode.needs_config:
        raise UserError(f"--config is not used by --mode={FLAGS.mode}")
    known = {name for row in MODES.values() for name in (*row.needed, *row.optional)}
    for name in sorted(known - {*mode.needed, *mode.optional}):
        if FLAGS[name].present:
            raise UserError(f"--{name} is not used by --mode={FLAGS.mode}")
    if FLAGS.mode == "export" and FLAGS.what == "weights" and any(FLAGS[name].present for name in SAMPLING):
        raise UserError(f"--{', --'.join(SAMPLING)} are for --mode=export --what=start")
    if FLAGS.plan and any(FLAGS[name].present for name in SAMPLING):
        raise UserError(f"--plan sets the sampler and the start: leave out --{', --'.join(SAMPLING)}")
    if FLAGS.distributed and not mode.distributed:
        raise UserError(f"--distributed is not used by --mode={FLAGS.mode}")
    check_processes(FLAGS.coordinator, FLAGS.process_count, FLAGS.process_id)
    others = FLAGS.trajectory or FLAGS.sampler or FLAGS.gls is not None or FLAGS["format"].present
    if FLAGS.compare and others:
        raise UserError("--compare draws all samplers of config.sweep, with and without a late start, and nothing else")


def check_processes(coordinator: str | None, count: int | None, index: int | None) -> None:
    given = [value is not None for value in (coordinator, count, index)]
    if any(given) and not (FLAGS.distributed and all(given)):
        raise UserError("--coordinator, --process_count and --process_id go together, with --distributed")
    if coordinator and not re.fullmatch(r"[^/]+:\d{1,5}", coordinator):
        raise UserError(f"--coordinator={coordinator} must be host:port")
    if count and not index < count:
        raise UserError(f"--process_id={index} must be below --process_count={count}")


def one_line(error: BaseException) -> str:
    if isinstance(error, AttributeError | KeyError):  # ml_collections raises them for unknown fields, with extra quotes
        return "no such config field: " + str(error).replace("\\n", " ").replace("\\'", "").strip("'\"")
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return f"{lines[0]} {lines[-1]}" if len(lines) > 1 else lines[0]


def sample(lib: ModuleType, config: ConfigDict, given: flags.FlagValues) -> None:
    if given.compare:
        lib.compare(config, given.workdir, given.num)
    else:
        lib.sample(config, given.workdir, given.num, file_format=given["format"].value, trajectory=given.trajectory)


def run(config: ConfigDict | None) -> None:
    """Validates the config and runs the mode. The slow imports are here, so that --help and flag errors are fast."""
    from core import parallel

    if FLAGS.compilation_cache:
        keep_programs()
    if config is not None:
        from configs import plan_file
        from configs.validation import validate

        if FLAGS.plan:
            plan_file.apply(config, FLAGS.plan)
        validate(config)
    if FLAGS.distributed:
        parallel.join(FLAGS.coordinator, FLAGS.process_count, FLAGS.process_id)
    os.environ["MPLBACKEND"] = "agg"  # notebooks set another backend, whose package may be missing here
    import run_lib

    parallel.require_devices()  # after the import, because models/cpu.py sets a flag of the CPU backend
    MODES[FLAGS.mode].run(run_lib, config, FLAGS)


if __name__ == "__main__":
    restart_with_huge_pages()
    tolerate_failed_writes()
    logging.set_verbosity(logging.FATAL)  # otherwise orbax logs a traceback for each error that it raises
    main(sys.argv)
