"""The command line as a user meets it."""

import subprocess
import sys

import pytest

from core.files import REPOSITORY
from tests.test_bad_input import fails_in_one_line

DIGITS = "--config=configs/ddpm/digits.py"


def run(*arguments):
    return subprocess.run([sys.executable, "main.py", *arguments], cwd=REPOSITORY, capture_output=True, text=True)


def test_help_lists_every_flag():
    done = run("--help")
    assert done.returncode == 0
    for flag in ("--mode", "--config", "--workdir", "--sampler", "--n_steps", "gls", "--t_start", "--eval_folder"):
        assert flag in done.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["--mode=train", "--nonsense"], ["--mode=eval", DIGITS]])
def test_help_and_wrong_flags_load_no_jax(arguments):
    """Seconds of imports before the answer to a typing error."""
    code = f"""
import sys, main
try:
    main.main(["main.py", *{arguments}])
finally:
    print("jax" in sys.modules, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert "False" in done.stderr.splitlines()


ALL_MODES = ["prepare", "train", "fid_stats", "eval", "sweep", "score", "sample", "analyze", "import", "export"]


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
        (f"--mode=eval {DIGITS} --workdir={{tmp}} --config.eval.reference=absent.npz", "a file that is there"),
        (f"--mode=import {DIGITS} --workdir={{tmp}} --source=absent.pth", "absent.pth"),
        (f"--mode=sample {DIGITS} --workdir={{tmp}} --num=0", "num"),
        (f"--mode=sample {DIGITS} --workdir={{tmp}} --sampler=ode --trajectory", "adaptive"),
        (f"--mode=export {DIGITS} --workdir={{tmp}} --dest=unused", "no checkpoint in"),
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
    """A traceback, a second line, a zero exit code, or a workdir made by a command that was refused."""
    fails_in_one_line(arguments.format(tmp=tmp_path / "run").split(), says, tmp_path / "log")
    assert not (tmp_path / "run").exists()


def test_mistake_of_the_program_itself():
    """A restart, an import or a setting of logging that only the program has, and that says more than one line."""
    done = run("--mode=eval", DIGITS)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "main.py: --mode=eval needs --workdir\n"
