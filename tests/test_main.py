"""The command line, as users see it."""

import os
import subprocess
import sys

import pytest

from core.files import REPOSITORY
from tests.test_bad_input import fails_in_one_line

DIGITS = "--config=configs/ddpm/digits.py"


def run(*arguments):
    return subprocess.run([sys.executable, "main.py", *arguments], cwd=REPOSITORY, capture_output=True, text=True)


def test_help_lists_every_flag():
    """Catches a flag that --help does not list."""
    done = run("--help")
    assert done.returncode == 0
    for flag in ("--mode", "--config", "--workdir", "--sampler", "--n_steps", "gls", "--t_start", "--eval_folder"):
        assert flag in done.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["--mode=train", "--nonsense"], ["--mode=eval", DIGITS]])
def test_help_and_wrong_flags_load_no_jax(arguments):
    """Catches seconds of imports before a wrong flag is reported."""
    code = f"""
import sys, main
try:
    main.main(["main.py", *{arguments}])
finally:
    print("jax" in sys.modules, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert "False" in done.stderr.splitlines()


ALL_MODES = [
    "prepare",
    "train",
    "fid_stats",
    "eval",
    "sweep",
    "plan",
    "score",
    "sample",
    "analyze",
    "import",
    "export",
    "verify",
]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("", f"--mode ({', '.join(ALL_MODES)}) and --config are needed"),
        (f"--mode=bogus {DIGITS}", f"value should be one of <{'|'.join(ALL_MODES)}>"),
        (f"--mode=train {DIGITS} --nonsense", "nonsense"),
        (f"--mode=train {DIGITS} stray", "'stray' is not a flag"),
        (f"--mode=train {DIGITS}", "needs --workdir"),
        (f"--mode=import {DIGITS} --workdir={{tmp}}", "needs --source"),
        (f"--mode=score {DIGITS} --workdir={{tmp}}", "needs --source"),
        (f"--mode=score {DIGITS} --workdir={{tmp}} --source=absent.npz --reference=absent", "no absent.npz: give a"),
        (f"--mode=eval {DIGITS} --workdir={{tmp}} --config.eval.reference=absent.npz", "a file that exists"),
        (f"--mode=import {DIGITS} --workdir={{tmp}} --source=absent.pth", "absent.pth"),
        ("--mode=import --workdir={tmp} --source=absent.pth", "--mode=import needs --config for absent.pth"),
        ("--mode=import --workdir={tmp} --source=absent.pkl", "absent.pkl: cannot be read"),
        ("--mode=eval --workdir={tmp}", "--config are needed"),
        (f"--mode=sample {DIGITS} --workdir={{tmp}} --num=0", "num"),
        (f"--mode=sample {DIGITS} --workdir={{tmp}} --sampler=ode --trajectory", "adaptive"),
        (f"--mode=export {DIGITS} --workdir={{tmp}} --dest=unused", "no checkpoint in"),
        (
            f"--mode=export {DIGITS} --workdir={{tmp}} --dest=unused --sampler=ddim",
            "are for --mode=export",
        ),
        (f"--mode=export {DIGITS} --workdir={{tmp}} --dest=a.safetensors --what=start", "give --gls"),
        (f"--mode=plan {DIGITS} --workdir={{tmp}}", "needs --budget"),
        (f"--mode=plan {DIGITS} --workdir={{tmp}} --budget=-1", "--budget=-1 network calls must be from 1 to"),
        (f"--mode=eval {DIGITS} --workdir={{tmp}} --plan=a.json --gls", "--plan sets the sampler and the start"),
        (f"--mode=eval {DIGITS} --workdir={{tmp}} --plan=absent.json", "absent.json"),
        (f"--mode=verify {DIGITS} --source=sampling:ddim", "--config is not used by --mode=verify"),
        ("--mode=verify", "needs --source"),
        ("--mode=verify --source=absent:sampler", "give module:function"),
        ("--mode=train --config=absent.py --workdir={tmp}", "No such file"),
        (f"--mode=train {DIGITS}:argument --workdir={{tmp}}", "get_config() takes 0"),
        (f"--mode=train {DIGITS} --workdir={{tmp}} --config.model.nff=1", 'Did you mean "nf"'),
        (f"--mode=train {DIGITS} --workdir={{tmp}} --config.model.nf=many", "many"),
        (f"--mode=train {DIGITS} --workdir={{tmp}} --config.model.nf=40", "multiple of 32"),
        (f"--mode=train {DIGITS} --workdir={{tmp}} --config.data.dataset=birds", "one of digits, mnist, fashion_mnist"),
        (f"--mode=train {DIGITS} --workdir={{tmp}} --config.optim.lr=nan", "optim.lr"),
        (f"--mode=eval {DIGITS} --workdir={{tmp}} --sampler=euler", "one of ddpm, ddim, pndm"),
        (f"--mode=eval {DIGITS} --workdir={{tmp}} --t_start=300", "needs --gls"),
        (f"--mode=eval {DIGITS} --workdir={{tmp}} --gls --t_start=1000", "from 1 to 999"),
        (f"--mode=eval {DIGITS} --workdir={{tmp}} --gls --t_start=3 --n_steps=5", "at most 4"),
        (f"--mode=eval {DIGITS} --workdir={{tmp}}", "no checkpoint in"),
        (f"--mode=sweep {DIGITS} --workdir={{tmp}} --sampler=ddim", "--sampler is not used by --mode=sweep"),
        (f"--mode=sample {DIGITS} --workdir={{tmp}} --compare --trajectory", "and nothing else"),
        (f"--mode=sample {DIGITS} --workdir={{tmp}} --compare --t_start=2000", "from 1 to 999"),
        (f"--mode=train {DIGITS} --workdir={{tmp}} --config.model.ch_mult=('a',)", "each a whole number"),
        (f"--mode=sweep {DIGITS} --workdir={{tmp}} --config.sweep.t_starts=()", "a list of 1 or more"),
        (f"--mode=train {DIGITS} --workdir=/dev/null/run", "/dev/null"),
        (f"--mode=sweep {DIGITS} --workdir={{tmp}} --config.sweep.n_steps=(2000,)", "n_steps=2000 is too many"),
        (
            "--mode=fid_stats --config=configs/ddpm/cifar10.py --config.data.data_dir={tmp}",
            "run python main.py --mode=pr",
        ),
        (f"--mode=prepare {DIGITS} --workdir={{tmp}}", "--workdir is not used by --mode=prepare"),
        ("--mode=prepare --config=configs/ddpm/custom.py", "custom needs --config.data.path"),
        (
            "--mode=prepare --config=configs/ddpm/custom.py --config.data.path={tmp}",
            "set --config.data.path to a folder",
        ),
        ("--mode=prepare --config=configs/ddpm/custom.py --config.data.held_out=1.0", "up to, but not including, 1"),
    ],
)
def test_mistakes_end_in_one_line(arguments, says, tmp_path):
    """Catches a traceback, a second line, exit code 0, or a workdir made by a command that was refused."""
    fails_in_one_line(arguments.format(tmp=tmp_path / "run").split(), says, tmp_path / "log")
    assert not (tmp_path / "run").exists()


def test_mistake_of_the_program_itself():
    """Catches a second line that is printed by the restart, an import or a log setting of main.py as a program."""
    done = run("--mode=eval", DIGITS)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "main.py: --mode=eval needs --workdir\n"


def test_a_backend_that_this_machine_lacks_is_one_line(tmp_path):
    """Catches a traceback of JAX, and a workdir that is created before the error."""
    done = subprocess.run(
        [sys.executable, "main.py", "--mode=train", DIGITS, f"--workdir={tmp_path}/run"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "no_such_backend"},
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and not (tmp_path / "run").exists()
    assert done.stderr.startswith("main.py: JAX_PLATFORMS=no_such_backend: JAX cannot start this backend here")


def test_a_config_file_in_the_home_folder_is_found(tmp_path):
    """Catches ~ that is not expanded. A shell does not expand it after an equals sign."""
    (tmp_path / "mine.py").write_text("def get_config():\n    raise RuntimeError('found')\n")
    done = subprocess.run(
        [sys.executable, "main.py", "--mode=prepare", "--config=~/mine.py"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        env=os.environ | {"HOME": str(tmp_path)},
    )
    assert (done.returncode, done.stderr) == (2, "main.py: found\n")


def test_workdir_or_source_stands_for_a_config(tmp_path):
    """Catches a given --config that is replaced, and an inferred --config that is inserted after its overrides."""
    from main import with_config

    (tmp_path / "config.json").write_text("{}")
    workdir = f"--workdir={tmp_path}"
    overrides = ["--mode=eval", "--config.seed=1"]
    name, config, *rest = with_config(["main.py", *overrides, workdir])
    assert config.startswith("--config=") and config.endswith(f"configs/stored.py:{tmp_path}")
    assert (name, rest) == ("main.py", [*overrides, workdir])
    assert with_config(["main.py", "--workdir", str(tmp_path)])[1] == config
    for given in (
        ["--config=mine.py", workdir],
        ["--config", "mine.py", workdir],
        [f"{workdir}/absent"],
        ["--workdir"],
    ):
        assert with_config(["main.py", *given]) == ["main.py", *given]
    source = ["--mode=import", "--source=net.pkl", workdir]
    assert with_config(["main.py", *source])[1].endswith("configs/imported.py:net.pkl")
