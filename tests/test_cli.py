"The command: answers, records and failures."

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import gradbook
from gradbook import bench, cli
from gradbook.scalar import neural

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    "Run in an empty folder, with none of this machine's settings."
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("GRADBOOK_"):
            monkeypatch.delenv(name)


@pytest.fixture
def small(monkeypatch):
    for name in ("quick", "full"):
        monkeypatch.setitem(neural.PROFILES, name, neural.Profile(hidden=2, epochs=1))


def command(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    place = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "gradbook", *arguments],
        capture_output=True,
        text=True,
        env=place,
        **options,
    )


def test_info_as_a_command_from_another_folder():
    run = command("info", "--json")
    record = json.loads(run.stdout)
    assert (run.returncode, run.stderr) == (0, "")
    assert record["gradbook"] == gradbook.__version__ and record["devices"]["cpu"] == "ready"
    assert record["data"]["digits"] == "1797 images, checked"
    assert record["settings"]["seed"] == {"value": 0, "from": "default"}
    host = platform.node()
    assert not host or host not in run.stdout


def test_info_for_people(capsys, monkeypatch):
    monkeypatch.setenv("GRADBOOK_PROFILE", "full")
    assert cli.main(["info"]) == 0
    text = capsys.readouterr().out
    assert "full      environment variable GRADBOOK_PROFILE" in text
    assert "seed           0         default" in text


def test_extras_are_those_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    listed = {k: " ".join(v) for k, v in project["optional-dependencies"].items()}
    assert listed.keys() == cli.EXTRAS.keys()
    assert all(name in listed[extra] for extra, names in cli.EXTRAS.items() for name in names)
    assert project["scripts"] == {"gradbook": "gradbook.cli:main"}


@pytest.mark.parametrize("name", [None, "info", "train", "bench"])
def test_help_is_a_page_with_examples(capsys, name):
    with pytest.raises(SystemExit) as end:
        cli.main([name, "--help"] if name else ["--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0 and f"gradbook {name or 'info'}" in text and "examples" in text
    assert max(map(len, text.splitlines())) <= 100


def test_without_arguments_it_helps(capsys):
    assert cli.main([]) == 0 and "examples" in capsys.readouterr().out


def test_train_keeps_a_record_and_ends_with_one_object(capsys, small, tmp_path):
    assert cli.main(["train", "digits", "--seed", "3", "--json"]) == 0
    out, err = capsys.readouterr()
    record = json.loads(out)
    assert {"model", "data", "steps", "seconds"} <= set(record)
    assert {"train_loss", "val_loss", "test_accuracy"} <= set(record)
    assert record["seed"] == 3 and "val accuracy" in err
    kept = json.loads((tmp_path / record["file"]).read_text(encoding="utf-8"))
    assert record["file"] == str(Path("runs", "digits-quick-seed3.json"))
    assert kept["command"] == "gradbook train digits --profile quick --seed 3"
    assert len(kept["history"]) == 1
    assert kept.items() >= {k: v for k, v in record.items() if k != "file"}.items()


def test_settings_choose_profile_and_seed_and_runs_are_kept(capsys, small, tmp_path):
    (tmp_path / "settings.ini").write_text("[gradbook]\nprofile = full\nseed = 9\n")
    for _ in range(2):
        assert cli.main(["train", "digits", "--out", "r"]) == 0
    kept = sorted(p.name for p in Path("r").iterdir())
    assert kept == ["digits-full-seed9-2.json", "digits-full-seed9.json"]
    assert "% of the test images right" in capsys.readouterr().out


def test_the_thread_setting_reaches_the_libraries(monkeypatch):
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "7")
    monkeypatch.setenv("GRADBOOK_THREADS", "2")
    assert cli.main(["bench"]) == 0 and os.environ["OPENBLAS_NUM_THREADS"] == "2"


def test_bench_lists(capsys):
    assert cli.main(["bench", "--json"]) == 0
    assert [b["name"] for b in json.loads(capsys.readouterr().out)["benchmarks"]] == [
        *("micrograd", "eager", "arrays", "random"),
    ]


def test_bench_writes_the_report(capsys, monkeypatch):
    def run(repeat: int) -> bench.Report:
        times = bench.compare(repeat=repeat, peer=lambda: sum(range(99)), gradbook=lambda: None)
        return bench.Report("toy", "m", 1, {}, bench.rows_of("sum", times), {"runs": repeat}, "")

    monkeypatch.setitem(bench.BENCHMARKS, "toy", bench.Benchmark("toy", "adding up", run))
    assert cli.main(["bench", "toy", "--repeat", "2", "--json"]) == 0
    out, err = capsys.readouterr()
    record = json.loads(out)
    assert record["runs"] == 2 and "adding up (2 rounds)" in err
    assert json.loads(Path(record.pop("file")).read_text(encoding="utf-8")) == record


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "did you mean train?"),
        (["train", "digts"], "did you mean digits? there are: digits"),
        (["bench", "micrograt"], "did you mean micrograd?"),
        (["bench", "micrograd", "--repeat", "1"], "at least 2"),
        (["train", "digits", "--out", "file"], "not a folder"),
    ],
)
def test_failures_are_one_line_and_status_1(capsys, arguments, words):
    pytest.importorskip("micrograd")
    Path("file").touch()
    assert cli.main(arguments) == 1
    out, err = capsys.readouterr()
    assert out == "" and words in err and "Traceback" not in err
    assert err.splitlines()[-1].startswith("gradbook: ")


@pytest.mark.parametrize(
    "arguments", [["train"], ["train", "digits", "--seed", "-1"], ["info", "--what"]]
)
def test_usage_errors_are_one_line_and_status_2(capsys, arguments):
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    err = capsys.readouterr().err
    assert end.value.code == 2 and err.count("\n") == 1 and "--help" in err


def test_a_bad_setting_is_one_line():
    Path("settings.ini").write_text("[gradbook]\nseed = x\n")
    run = command("info")
    assert run.returncode == 1 and run.stderr.count("\n") == 1
    assert "section [gradbook], seed" in run.stderr


def test_debug_shows_the_traceback(capsys, monkeypatch):
    def broken(*_):
        raise KeyError("oops")

    monkeypatch.setattr(cli, "digits_state", broken)
    assert cli.main(["info"]) == 1
    assert capsys.readouterr().err == "gradbook: KeyError: 'oops' (--debug shows where)\n"
    assert cli.main(["info", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_stopping_is_quiet(capsys, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "digits_state", stop)
    assert cli.main(["info"]) == 130 and capsys.readouterr().err == "gradbook: stopped\n"


def test_a_closed_pipe_is_no_traceback():
    place = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = f"{sys.executable} -m gradbook info | true"
    run = subprocess.run(["sh", "-c", line], capture_output=True, text=True, env=place)
    assert run.stderr == ""


def test_a_record_is_whole_or_not_there(tmp_path):
    with pytest.raises(TypeError):
        cli.keep({"a": object()}, tmp_path, "run")
    assert list(tmp_path.iterdir()) == []
