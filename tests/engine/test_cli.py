"""The command line: help that costs nothing, flags in their place, results for machines, quiet interrupts."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from engine import verb_shards
from engine.cli import MODULES, Launch, main, parse, validate
from engine.flags import LAUNCHER_FLAGS, make_parser

ROOT = Path(__file__).parents[2]
CPU = Launch(backend="cpu")
VERBS = sorted(MODULES)
QUICKSTART = str(ROOT / "recipes" / "quickstart" / "cnn_adv.yaml")


def run(*words: str | Path, program: str = "launch_gpu.py") -> int:
    return main([str(word) for word in words], CPU, program=program)


# ---- help


@pytest.mark.parametrize("program", sorted(LAUNCHER_FLAGS))
@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(
    verb: str, program: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        run(verb, "-h", program=program)
    assert exit_.value.code == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith(f"usage: {program} {verb} ")
    assert "--json PATH" in out
    example = out.split("example:\n  python ")[1].split()
    launcher, words = example[0], [word for word in example[1:] if word != "--cpu"]
    assert launcher in LAUNCHER_FLAGS
    assert parse(words, launcher).verb == verb, "the example is a command that works"


def test_the_launchers_flags_are_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    for program, flags in LAUNCHER_FLAGS.items():
        out = make_parser(program).format_help()
        assert out.startswith(f"usage: {program} [--")
        assert all(out.count(flag) >= 2 for flag in flags)
        assert all(re.search(rf"\n +{verb} +\w", out) for verb in VERBS)


@pytest.mark.parametrize("words", [["--help"], ["train", "-h"], ["train", QUICKSTART, "--bogus"]])
def test_help_and_mistakes_do_not_import_torch(words: list[str]) -> None:
    code = f"""
import runpy, sys
sys.argv = ["launch_gpu.py", *{words!r}]
try:
    runpy.run_path({str(ROOT / "launch_gpu.py")!r}, run_name="__main__")
except SystemExit as exit_:
    code = exit_.code
heavy = {{"torch", "timm", "torch_xla", "accelerate", "numpy"}} & sys.modules.keys()
print(code, sorted(heavy))
"""
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True, cwd=ROOT
    )
    wrong = "--bogus" in words
    assert done.stdout.splitlines()[-1] == f"{2 * wrong} []"
    assert done.stderr == ("error: unrecognized arguments: --bogus; see `launch_gpu.py train -h`\n" * wrong)


# ---- arguments


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("", "arguments are required: VERB; see `launch_gpu.py -h`"),
        ("trian r.yaml", "invalid choice: 'trian' (choose from"),
        ("train", "arguments are required: recipe"),
        ("train r.yaml --outptu x", "unrecognized arguments: --outptu x; see `launch_gpu.py train -h`"),
        ("train r.yaml --out x", "unrecognized arguments: --out x"),
        ("train r.yaml --output", "--output: expected one argument; see `launch_gpu.py train -h`"),
        ("--verbose train r.yaml", "unrecognized arguments: --verbose"),
        ("eval", "arguments are required: RUN_OR_WEIGHTS"),
        ("eval a b", "unrecognized arguments: b"),
        ("eval a x=3", "a does not exist"),
        ("attack a --eps 4/255 --steps many", "--steps: invalid int value: 'many'"),
        ("shards", "arguments are required: action, PATH"),
        ("train r.yaml --cpu", "--cpu stands before the verb: `launch_gpu.py --cpu train ...`"),
        (
            "train r.yaml --num-processes 2",
            "--num-processes stands before the verb: `launch_gpu.py --num-processes N train ...`",
        ),
        ("train r.yaml --num-processes=2", "--num-processes stands before the verb"),
        (
            "--num-devices 2 train",
            "--num-devices is a flag of launch_xla.py; drop it, or start launch_xla.py",
        ),
    ],
)
def test_refusals(words: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*words.split()) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert err.startswith("error: ")
    assert says in err


def test_overrides_may_stand_anywhere() -> None:
    words = ["train", "a=1", "r.yaml", "b=2", "--output", "o", "c=[1, 2]", "--dry-run", "d=x=y"]
    words[1], words[2] = words[2], words[1]
    arguments = parse(words, "p")
    assert str(arguments.recipe) == "r.yaml"
    assert sorted(arguments.overrides) == ["a=1", "b=2", "c=[1, 2]", "d=x=y"]
    assert str(arguments.output) == "o"
    assert arguments.dry_run


def test_validate_needs_no_data_and_no_device(tmp_path: Path) -> None:
    assert validate(["train", QUICKSTART, "data.train=nowhere"], "p") == "train"
    assert validate(["eval", "nowhere"], "p") == "eval"
    with pytest.raises(ValueError, match=r"optim\.lrr is not a field; did you mean optim\.lr\?"):
        validate(["train", QUICKSTART, "optim.lrr=1"], "p")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        validate(["train", str(tmp_path / "none.yaml")], "p")
    with pytest.raises(ValueError, match="not a file in an existing folder"):
        validate(["eval", "nowhere", "--json", str(tmp_path / "no" / "x.json")], "p")


# ---- results


def test_dry_run_prints_the_resolved_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = tmp_path / "result.json"
    words = ("train", QUICKSTART, "optim.lr=0.5", "--dry-run", "--output", tmp_path / "o", "--json", result)
    assert run(*words) == 0
    out, err = capsys.readouterr()
    assert "images/s of updates" in err
    assert yaml.safe_load(out)["optim"]["lr"] == 0.5
    assert out.splitlines()[-1] == f"# hash: {json.loads(result.read_text())['recipe']}"
    assert not (tmp_path / "o").exists()


def test_json_of_shards(digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = tmp_path / "info.json"
    assert run("shards", "info", digits / "val", "--json", result) == 0
    facts = json.loads(result.read_text())
    assert (facts["num_samples"], facts["num_classes"]) == (359, 10)
    assert "num_samples  359" in capsys.readouterr().out


def test_only_rank_0_writes(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    made = tmp_path / "made"
    assert run("shards", "make", digits / "images" / "val", made, "--json", tmp_path / "x.json") == 0
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_is_quiet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(verb_shards, "run", interrupted)
    assert run("shards", "info", "x") == 130
    assert capsys.readouterr() == ("", "")


def test_traceback_for_debugging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUST_BITS_TRACEBACK", "1")
    with pytest.raises(ValueError, match="no run folder"):
        run("eval", "nowhere")
