"""Train, evaluate and study DDPMs with a Gaussian late start.

python main.py --mode=prepare   --config=configs/ddpm/cifar10.py
python main.py --mode=train     --config=configs/ddpm/digits.py --workdir=results/digits
python main.py --mode=fid_stats --config=configs/ddpm/digits.py
python main.py --mode=eval      --config=configs/ddpm/digits.py --workdir=results/digits --gls --t_start=400
python main.py --mode=sweep     --config=configs/ddpm/digits.py --workdir=results/digits
python main.py --mode=sample    --config=configs/ddpm/digits.py --workdir=results/digits --num=16 --compare
python main.py --mode=analyze   --config=configs/ddpm/digits.py --workdir=results/digits
python main.py --mode=score     --config=configs/ddpm/digits.py --source=images/

Any field of the config is set by --config.section.field=value.

Exit codes: 0 done; 1 a bug, with its traceback; 2 a mistake, or a disk or memory that is full, said in one line;
3 another process of a distributed run was lost (134 where JAX noticed it first); 130 and 143 stopped by SIGINT and
SIGTERM, training with its state saved. After 3, 130, 134 and 143 the same command goes on.
"""

import os
import re
import sys
import traceback
from pathlib import Path

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from core.errors import Stopped, UserError
from core.huge_pages import restart_with_huge_pages

SAMPLING = ["sampler", "n_steps", "gls", "t_start"]  # flags that stand for fields of config.sampling
MODES = {  # the flags that a mode needs besides --config, and those that it may be given
    "prepare": ([], []),
    "train": (["workdir"], ["seed"]),
    "fid_stats": ([], ["workdir"]),
    "eval": (["workdir"], [*SAMPLING, "seed", "eval_folder"]),
    "sweep": (["workdir"], ["seed", "eval_folder"]),
    "score": (["source"], ["workdir", "reference"]),
    "sample": (["workdir"], [*SAMPLING, "seed", "num", "format", "trajectory", "compare"]),
    "analyze": (["workdir"], ["seed", "eval_folder"]),
    "import": (["workdir", "source"], []),
    "export": (["workdir", "dest"], []),
}
DISTRIBUTED = ["train", "fid_stats", "eval", "sweep"]  # modes that run in several processes
BUG, USER_ERROR, PEER_LOST, INTERRUPTED = 1, 2, 3, 130
SIGNS_OF_LOSS = ("Gloo", "gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "heartbeat", "oordination")

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "A file of configs/ whose get_config() makes the config.")
flags.DEFINE_boolean("help", False, "Shows this.", short_name="h")
flags.DEFINE_enum("mode", None, list(MODES), "What to do.")
flags.DEFINE_string("workdir", None, "Where checkpoints and results lie; prepare, fid_stats and score do without.")
flags.DEFINE_string("eval_folder", "eval", "The folder of the workdir with the results of eval and sweep.")
flags.DEFINE_integer("seed", None, "Sets config.seed.")
flags.DEFINE_integer("num", 64, "How many images sample draws.", lower_bound=1)
flags.DEFINE_enum("format", "png", ["png", "npz"], "What sample writes: a PNG each, or one npz.")
flags.DEFINE_boolean("trajectory", False, "Makes sample write a film strip of the predicted x_0 as well.")
flags.DEFINE_boolean("compare", False, "Makes sample draw one picture: all samplers with and without a late start.")
flags.DEFINE_boolean("distributed", False, "This is one of several processes; a TPU pod or SLURM says which one.")
flags.DEFINE_string("coordinator", None, "With --distributed: host:port of the first process, where nothing says it.")
flags.DEFINE_integer("process_count", None, "With --coordinator: how many processes there are.", lower_bound=1)
flags.DEFINE_integer("process_id", None, "With --coordinator: which of them this is, from 0.", lower_bound=0)
flags.DEFINE_string("source", None, "What import reads (.npz, .pth, diffusers' folder), or score (folder, .npz).")
flags.DEFINE_string("reference", None, "The images, a folder or .npz, that score takes in place of the statistics.")
flags.DEFINE_string("dest", None, "The new .npz, or folder for diffusers, that export writes.")
flags.DEFINE_string("sampler", None, "Sets config.sampling.sampler: ddpm, ddim, pndm, ...")
flags.DEFINE_integer("n_steps", None, "Sets config.sampling.n_steps: how many steps the sampler takes.")
flags.DEFINE_boolean("gls", None, "Sets config.sampling.gls: the Gaussian late start.")
flags.DEFINE_string("t_start", None, "Sets config.sampling.t_start: where the late start begins; auto: by a trial.")


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
    """The line that tells a user what happened, and the exit code; None for a bug."""
    text = one_line(error)
    match error:
        case UserError() | OSError():  # of the latter: a workdir that cannot be written, a full disk
            return str(error), USER_ERROR
        case Stopped():
            return f"{error}; the same command goes on from there", 128 + error.number
        case KeyboardInterrupt():
            return "interrupted; the same command goes on from what is saved", INTERRUPTED
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
        return f"out of memory: lower training.batch_size, eval.batch_size or model.nf ({text})", USER_ERROR
    if FLAGS["distributed"].value and any(sign in text for sign in SIGNS_OF_LOSS):
        return f"another process was lost; the same commands go on from the last checkpoint ({text})", PEER_LOST
    return None


def leave(message: str | None, code: int) -> None:
    """Ends the program; one of several processes does not wait for the others, which may not come."""
    if message:
        print(f"main.py: {message}", file=sys.stderr, flush=True)
    if FLAGS["distributed"].value and code in (BUG, USER_ERROR, PEER_LOST):
        os._exit(code)
    sys.exit(code)


def parse(argv: list[str]) -> ConfigDict | None:
    """The config of the file and of --config.section.field=value, with the sampling flags put in."""
    try:
        rest, config = FLAGS(argv), FLAGS.config
        if config is not None:
            config.lock()  # a config file that cannot be read says so at the first access
    except Exception as error:  # absl and ml_collections raise many kinds, and a broken config file any
        raise UserError(one_line(error)) from error
    if FLAGS.help:
        return None
    if len(rest) > 1:
        raise UserError(f"{rest[1]!r} is no flag; --help lists them")
    if FLAGS.mode is None or config is None:
        raise UserError(f"--mode ({', '.join(MODES)}) and --config are needed; --help lists all flags")
    check_flags(*MODES[FLAGS.mode])

    for name in SAMPLING:
        if FLAGS[name].present:
            config.sampling[name] = start_of(FLAGS.t_start) if name == "t_start" else FLAGS[name].value
    if FLAGS.seed is not None:
        config.seed = FLAGS.seed
    if FLAGS.t_start is not None and not (config.sampling.gls or FLAGS.compare):
        raise UserError(f"--t_start={FLAGS.t_start} needs --gls: without a late start every sampler starts at the end")
    return config


def start_of(text: str) -> int:
    if text == "auto":
        return -1  # sampling.time_grid.AUTO_START, whose import would take a second
    if not text.isdecimal():
        raise UserError(f"--t_start={text} must be a whole number, or auto")
    return int(text)


def check_flags(needed: list[str], optional: list[str]) -> None:
    """A flag that the mode lacks, or would not read, is a mistake."""
    for name in needed:
        if not FLAGS[name].value:
            raise UserError(f"--mode={FLAGS.mode} needs --{name}")
    known = {name for flags_of_mode in MODES.values() for names in flags_of_mode for name in names}
    for name in sorted(known - {*needed, *optional}):
        if FLAGS[name].present:
            raise UserError(f"--{name} means nothing to --mode={FLAGS.mode}")
    if FLAGS.distributed and FLAGS.mode not in DISTRIBUTED:
        raise UserError(f"--distributed means nothing to --mode={FLAGS.mode}")
    check_processes(FLAGS.coordinator, FLAGS.process_count, FLAGS.process_id)
    others = FLAGS.trajectory or FLAGS.sampler or FLAGS.gls is not None or FLAGS["format"].present
    if FLAGS.compare and others:
        raise UserError("--compare draws all samplers of config.sweep, with and without a late start, and nothing else")


def check_processes(coordinator: str | None, count: int | None, index: int | None) -> None:
    given = [value is not None for value in (coordinator, count, index)]
    if any(given) and not (FLAGS.distributed and all(given)):
        raise UserError("--coordinator, --process_count and --process_id go together, with --distributed")
    if coordinator and not re.fullmatch(r".+:\d{1,5}", coordinator):
        raise UserError(f"--coordinator={coordinator} must be host:port")
    if count and not index < count:
        raise UserError(f"--process_id={index} must be below --process_count={count}")


def one_line(error: BaseException) -> str:
    if isinstance(error, AttributeError | KeyError):  # ml_collections, on an unknown field; its text is quoted twice
        return "no such config field: " + str(error).replace("\\n", " ").replace("\\'", "").strip("'\"")
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return f"{lines[0]} {lines[-1]}" if len(lines) > 1 else lines[0]


def path_of(name: str) -> Path | None:
    return Path(FLAGS[name].value).expanduser() if FLAGS[name].value else None


def run(config: ConfigDict) -> None:
    from configs.validation import (
        validate,  # here, as what follows: --help and a wrong flag should not cost its seconds
    )

    validate(config)
    if FLAGS.distributed:
        from core import parallel

        parallel.join(FLAGS.coordinator, FLAGS.process_count, FLAGS.process_id)
    import run_lib  # takes seconds that a wrong field should not cost

    workdir, source, reference, dest = (path_of(name) for name in ("workdir", "source", "reference", "dest"))
    match FLAGS.mode:
        case "prepare":
            run_lib.prepare(config)
        case "train":
            run_lib.train(config, workdir)
        case "fid_stats":
            run_lib.fid_stats(config)
        case "eval":
            run_lib.evaluate(config, workdir, FLAGS.eval_folder)
        case "sweep":
            run_lib.sweep(config, workdir, FLAGS.eval_folder)
        case "score":
            run_lib.score(config, workdir or Path("results/score"), source, reference)
        case "sample":
            if FLAGS.compare:
                run_lib.compare(config, workdir, FLAGS.num)
            else:
                run_lib.sample(config, workdir, FLAGS.num, FLAGS.format, FLAGS.trajectory)
        case "analyze":
            run_lib.analyze(config, workdir, FLAGS.eval_folder)
        case "import":
            run_lib.import_weights(config, workdir, source)
        case "export":
            run_lib.export_weights(config, workdir, dest)


if __name__ == "__main__":
    restart_with_huge_pages()
    logging.set_verbosity(logging.FATAL)  # orbax logs with a traceback what it raises as well
    main(sys.argv)
