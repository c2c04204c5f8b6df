"""Flags over YAML, errors in one line, exit codes."""

import subprocess
import sys
from collections.abc import Sequence

import pytest

from pnfrec_dist.cli import EXIT_FAILED, EXIT_INPUT, EXIT_INTERRUPTED, Parser, parse_train_settings, run_command
from pnfrec_dist.errors import InputError, RunError


def test_yaml_lies_over_defaults_and_flags_over_yaml() -> None:
    assert parse_train_settings(["--model", "pnfrec"]).loss.alpha == 0.45
    assert parse_train_settings(["--model", "pnfrec", "--loss.alpha", "0.1"]).loss.alpha == 0.1
    assert parse_train_settings(["--model=sasrec_p"]).loss.alpha == 0.0


def test_train_yaml_follows_the_data_set_unless_chosen() -> None:
    assert parse_train_settings([]).config == "synthetic"
    assert parse_train_settings(["--dataset", "ml1m"]).config == "ml1m"
    assert parse_train_settings(["--dataset", "ml25m"]).config == "default"
    assert parse_train_settings(["--config", "default"]).train.batch_size == 500


@pytest.mark.parametrize(("dataset", "length"), [("ml1m", 50), ("ml20m", 50), ("toys", 25), ("kion", 25)])
def test_the_papers_data_sets_have_their_lengths(dataset: str, length: int) -> None:
    """l per side for models that read likes, 2 l for those that read all."""
    for model in ("pnfrec", "pnfrec_pn", "pnfrec_pc", "sasrec_p"):
        assert parse_train_settings(["--dataset", dataset, "--model", model]).encoder.positions == length
    for model in ("pnfrec_signed", "sasrec", "sasrec_c"):
        settings = parse_train_settings(["--dataset", dataset, "--model", model])
        assert settings.encoder.positions == 2 * length and settings.loss.alpha == 0
    assert settings.loss.beta > 0 and settings.contrastive.temperature == 0.1


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--model", "pnfrek"], "write conf/model/pnfrek.yaml, or name another one; did you mean 'pnfrec'?"),
        (["--config", "defautl"], "'default'"),
        (["--train.batchsize", "3"], "--train.batch-size"),
        (["--train.batch-size", "many"], "'many'"),
        (["--train.batch-size", "0"], "train.batch_size is 0"),
        (["--model", "sasrec", "--loss.alpha", "0.5"], "loss.alpha is 0.5; it must be 0 if encoder.history is all"),
        (["--model", "sasrec_p", "--encoder.likes-share", "0.5"], "auto, or given with encoder.history both"),
        (["--contrastive.similarity", "cos"], "cosine"),
        (["--encoder.num-heads", "5"], "encoder.num_heads is 5"),
        (["--evaluation.cutoffs", "5", "20"], "that include 10"),
        (["--num-workers", "0"], "num_workers is 0"),
        (["--epochs"], "--epochs"),
        (["stray"], "stray"),
        (["--optimizer.lr", "nan"], "optimizer.lr is nan"),
        (["--model", "../../etc/passwd"], "unknown model"),
        (["--train.compile", "True"], "to turn it off: --train.no-compile"),
        (["--output-dir", "s3://bucket/runs"], "output_dir is 's3://bucket/runs'"),
        (["--stall-timeout", "inf"], "at most 30 days"),
        (
            ["--config", "default", "--train.accumulation", "501"],
            "from 1 to train.batch_size (500)",
        ),
        (["--loss.cross-entropy", "sampled"], "did you mean 'sampled_softmax'?"),
        (["--encoder.block", "sasreck"], "did you mean 'sasrec'?"),
        (["--encoder.block", "my.blocks:"], "encoder.block is 'my.blocks:'"),
        (["--loss.terms", "diversity"], "a term must be name=weight"),
        (["--loss.terms", "ce_main=2"], "another term than those of loss.alpha and loss.beta"),
        (["--loss.terms", "diversity=0.1"], "loss.terms is 'diversity'"),
        (["--evaluation.measures", "hr"], "a list with ndcg"),
        (["--encoder.history", "all"], "0 if encoder.history is all"),
    ],
)
def test_wrong_flags_are_one_line_that_names_value_or_way_out(args: list[str], said: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_train_settings(args)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (InputError("a is\n  'b'."), EXIT_INPUT, "error: a is 'b'\n"),
        (InputError("a name with \x1b[31m in it"), EXIT_INPUT, "error: a name with \\x1b[31m in it\n"),
        (RunError("workers failed"), EXIT_FAILED, "error: workers failed\n"),
        (KeyboardInterrupt(), EXIT_INTERRUPTED, "interrupted\n"),
    ],
)
def test_a_command_ends_with_a_line_and_a_code(
    error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(args: Sequence[str]) -> int:
        assert list(args) == ["--flag"]
        raise error

    monkeypatch.setattr(sys, "argv", ["command", "--flag"])
    with pytest.raises(SystemExit) as caught:
        run_command(main)
    assert caught.value.code == code and capsys.readouterr().err == said


def test_a_command_that_is_done_ends_with_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["command"])
    with pytest.raises(SystemExit) as caught:
        run_command(lambda _: None)
    assert caught.value.code == 0


def test_a_command_without_settings_names_a_wrong_flag() -> None:
    with pytest.raises(InputError, match="--port; see python -m x --help"):
        Parser(prog="python -m x").parse_args(["--port"])


def test_a_switch_is_turned_off_as_its_error_says() -> None:
    assert not parse_train_settings(["--train.no-compile", "--no-dry-run"]).train.compile


ONE_COMMAND = """
import sys
from pnfrec_dist.cli import run_command
sys.argv = ["command"]
run_command(lambda _: print(sys.argv[0], "Mis\u00e9rables"))
"""


@pytest.mark.parametrize(
    ("shell", "code", "out", "err"),
    [
        ("{} >&-", 0, "", ""),
        ("{} > /dev/full", 1, "", "error: [Errno 28] No space left on device; make room\n"),
        ("PYTHONIOENCODING=ascii {}", 0, "command Mis\\xe9rables\n", ""),
        ("{} | true", 0, "", ""),
    ],
)
def test_output_that_is_closed_full_or_ascii(shell: str, code: int, out: str, err: str) -> None:
    line = shell.format(f"{sys.executable} -c '{ONE_COMMAND}'")
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, out, err)
