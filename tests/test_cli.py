"The command: answers, records and failures."

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import tomllib
import warnings
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
    assert record["devices"]["kernels"].startswith(("simulator ready (", "no simulator: "))
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


@pytest.mark.parametrize("name", [None, "info", "train", "runs", "data", "bench"])
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
    listed = [b["name"] for b in json.loads(capsys.readouterr().out)["benchmarks"]]
    assert listed == list(bench.BENCHMARKS) and {"micrograd", "eager"} <= set(listed)


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
        (["train", "digts"], "did you mean digits? there are: digits, mlp"),
        (["train", "digits", "--lr", "0.1"], "train digits has no --lr; train mlp has"),
        (["train", "mlp", "--data", "mnits"], "did you mean mnist?"),
        (["train", "mlp", "--resume", "x"], "there is no run 'x'"),
        (["train", "mlp", "--out", "file"], "not a folder"),
        (["runs"], "there are no runs in runs"),
        (["data", "get", "mnits"], "did you mean mnist?"),
        (["data", "get"], "takes a name: mnist"),
        (["data", "list", "mnist"], "list takes no name"),
        (["data", "lst"], "did you mean list?"),
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
    "arguments",
    [
        ["train"],
        ["train", "digits", "--seed", "-1"],
        ["train", "mlp", "--seed", str(2**64)],
        ["train", "mlp", "--lr", "nan"],
        ["train", "mlp", "--epochs", "1.5"],
        ["train", "mlp", "--hidden", "30,x"],
        ["info", "--what"],
    ],
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


# ------------------------------------------------------------- train mlp, runs, data

SHORT = ["train", "mlp", "--data", "digits", "--epochs", "2", "--hidden", "16"]


def test_train_mlp_ends_with_one_object(capsys, tmp_path):
    assert cli.main([*SHORT, "--seed", "3", "--json"]) == 0
    out, err = capsys.readouterr()
    record = json.loads(out)
    assert {"model", "data", "seed", "steps", "seconds", "train_loss"} <= record.keys()
    assert {"val_loss", "test_accuracy", "settings", "versions"} <= record.keys()
    assert record["model"] == "MLP 64-16-10" and record["seed"] == 3
    assert "epoch 2/2" in err and "digits" in err
    assert record["command"] == (
        "gradbook train mlp --profile quick --data digits --epochs 2 --lr 0.002 "
        "--batch-size 32 --hidden 16 --seed 3"
    )
    folder = Path(record["run"])
    assert folder == Path("runs", "mlp-digits-quick-seed3")
    assert sorted(p.name for p in folder.iterdir()) == ["checkpoints", "log.jsonl", "run.json"]
    assert cli.main(record["command"].split()[1:]) == 0  # the command says it all
    assert "runs/mlp-digits-quick-seed3-2" in capsys.readouterr().out
    pair = [json.loads(Path(f"{folder}{end}", "run.json").read_text()) for end in ("", "-2")]
    assert pair[0]["test_loss"] == pair[1]["test_loss"]


def test_train_lenet_is_a_run_like_others(capsys):
    short = ["train", "lenet", "--epochs", "1", "--batch-size", "500"]
    assert cli.main([*short, "--json"]) == 0
    record = json.loads(capsys.readouterr()[0])
    assert record["model"] == "LeNet-5" and record["run"] == "runs/lenet-mnist-quick-seed0"
    assert "--hidden" not in record["command"] and record["settings"]["shift"] == 1
    for words, message in (
        (["--hidden", "16"], "train lenet has no --hidden"),
        (["--data", "digits"], "no data set 'digits'"),
    ):
        assert cli.main([*short, *words]) == 1
        assert message in capsys.readouterr().err
    assert cli.main(["train", "mlp", "--resume", record["run"]]) == 1
    assert "is no record of train mlp" in capsys.readouterr().err


def test_train_names_and_dates(capsys):
    assert cli.main("train names --epochs 1 --hidden 8 --batch-size 512 --json".split()) == 0
    record = json.loads(capsys.readouterr()[0])
    assert record["run"] == "runs/names-names-quick-seed0" and record["settings"]["hidden"] == 8
    assert 2 < record["bits"] < 5 and "--hidden 8" in record["command"]
    assert cli.main("train dates --epochs 1 --hidden 8".split()) == 0
    assert "of unseen dates exactly right" in capsys.readouterr()[0]
    assert cli.main("runs show dates-dates-quick-seed0".split()) == 0
    assert "of unseen dates exactly right" in capsys.readouterr()[0]
    for line, message in (
        ("train names --hidden 8,8", "train names has one hidden width"),
        ("train names --data mnist", "no data set 'mnist'; there are: names"),
        ("train dates --resume names-names-quick-seed0", "is no record of train dates"),
    ):
        assert cli.main(line.split()) == 1
        assert message in capsys.readouterr().err


GPT = ["train", "gpt", "--preset", "quick", "--steps", "6", "--batch-size", "4"]


def test_a_language_model_trains_and_writes(capsys):
    Path("mine.txt").write_text("to be or not to be\n" * 200)
    assert cli.main([*GPT, "--data", "mine.txt", "--json"]) == 0
    record = json.loads(capsys.readouterr()[0])
    assert record["run"] == "runs/gpt-mine-quick-seed0" and record["preset"] == "quick"
    assert record["steps"] == 6 and 0 < record["val_loss"] < 4
    assert cli.main(record["command"].split()[1:]) == 0  # the command says it all
    assert "bits per byte, 6 steps" in capsys.readouterr()[0]
    write = ["generate", "gpt-mine-quick-seed0", "--prompt", "to be", "--tokens", "12"]
    assert cli.main(write) == 0
    text = capsys.readouterr()[0]
    assert text.startswith("to be") and len(text) == len("to be") + 12 + 1
    assert cli.main([*write, "--json"]) == 0
    assert json.loads(capsys.readouterr()[0])["text"] == text[:-1]
    assert cli.main([*write, "--seed", "9", "--temperature", "3"]) == 0
    assert capsys.readouterr()[0] != text
    long = "to be or " * 10  # a prompt of 90 tokens, where the context is 32
    texts = []
    for prompt in (long, long[-32:]):
        assert cli.main([*write, "--prompt", prompt, "--json"]) == 0
        texts.append(json.loads(capsys.readouterr()[0])["text"].removeprefix(prompt))
    assert texts[0] == texts[1] and len(texts[0]) == 12


def test_the_help_names_all_presets(capsys):
    from gradbook.models.gpt import PRESETS

    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    assert f"--preset {', '.join(PRESETS)}" in capsys.readouterr()[0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train gpt --preset big", "no preset 'big'; there are: laptop, nanogpt"),
        ("train gpt --data shakespear", "no data set 'shakespear'; did you mean shakespeare?"),
        ("train gpt --data absent.txt", "absent.txt"),
        ("train gpt --profile full", "train gpt has no --profile; presets: laptop, nanogpt"),
        ("train gpt --epochs 3", "train gpt has no --epochs"),
        ("train mlp --preset quick", "train mlp has no --preset; it has --profile"),
        ("train mlp --steps 3", "train mlp has no --steps"),
        ("train digits --preset quick", "train digits has no --preset"),
        ("generate mine", "there is no run of train gpt in runs"),
    ],
)
def test_what_a_language_model_refuses(line, message, capsys):
    assert cli.main(line.split()) == 1
    assert message in capsys.readouterr().err


def test_what_writing_refuses(capsys):
    Path("mine.txt").write_text("to be or not to be\n" * 200)
    assert cli.main([*GPT, "--data", "mine.txt"]) == 0
    capsys.readouterr()
    name = "gpt-mine-quick-seed0"
    for words, message in (
        (["gpt-mine-quick-seed1"], f"did you mean {name}?"),
        ([name, "--temperature", "-1"], "temperature is -1.0; 0 or more is needed"),
        ([name, "--top-p", "2"], "top_p is 2.0"),
        ([name, "--prompt", "zebra"], "'z'"),
        ([name, "--prompt", ""], "a prompt of 0 tokens"),
    ):
        assert cli.main(["generate", *words]) == 1
        out, err = capsys.readouterr()
        assert message in err and not out  # nothing is written before all is known to be right
    Path("runs", name, "tokenizer.json").write_text("{}")
    assert cli.main(["generate", name]) == 1
    assert "tokenizer.json" in capsys.readouterr().err
    Path("runs", name, "tokenizer.json").unlink()
    assert cli.main(["generate", name]) == 1
    assert "tokenizer.json: it is not there" in capsys.readouterr().err
    assert cli.main(["train", "gpt", "--resume", name, "--preset", "laptop"]) == 1
    assert "was begun with preset 'quick' (now 'laptop')" in capsys.readouterr().err


def test_a_run_goes_on_and_refuses_another_setting(capsys):
    assert cli.main(SHORT) == 0
    first = json.loads(Path("runs/mlp-digits-quick-seed0/run.json").read_text())
    assert cli.main(["train", "mlp", "--resume", "mlp-digits-quick-seed0", "--json"]) == 0
    out, _ = capsys.readouterr()
    again = json.loads(out[out.index("{") :])
    assert again["test_loss"] == first["test_loss"]
    for name in ("runs/mlp-digits-quick-seed0", "mlp-digits-quick-seed0"):
        assert cli.main(["train", "mlp", "--resume", name, "--lr", "1"]) == 1
        assert "was begun with lr 0.002 (now 1.0)" in capsys.readouterr().err
    Path("runs/mlp-digits-quick-seed0/run.json").write_text("{}")
    assert cli.main(["train", "mlp", "--resume", "mlp-digits-quick-seed0"]) == 1
    assert "is no record of train mlp" in capsys.readouterr().err


def test_a_run_that_explodes_is_one_line(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cli.main([*SHORT, "--lr", "1e30", "--seed", str(2**64 - 1)]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("gradbook: step ") and "the loss is" in last


def test_runs_of_which_one_is_damaged(capsys):
    for seed in ("0", "1", "2"):
        assert cli.main([*SHORT[:4], "--epochs", "1", "--hidden", "4", "--seed", seed]) == 0
    names = [f"mlp-digits-quick-seed{k}" for k in range(3)]
    capsys.readouterr()
    assert cli.main(["runs", "compare", *names]) == 0
    assert capsys.readouterr().out.split()[:3] == names
    path = Path("runs", names[1], "log.jsonl")
    rows = path.read_text().splitlines()
    path.write_text("\n".join(rows[:-1]))
    assert cli.main(["runs", "show", names[1]]) == 0
    assert f"{names[1]}: no end, quiet for 0 s, 1 epochs" in capsys.readouterr().out
    path.write_text("\n".join([*rows, "[]"]))
    assert cli.main(["runs"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 4 and "unreadable" in table[2] and table[2].endswith("a log: '[]'")
    assert cli.main(["runs", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)["runs"][1]
    assert row["status"] == "unreadable" and "line 4" in row["trouble"]
    assert cli.main(["runs", "compare", *names]) == 1
    assert f"{names[1]} is unreadable: " in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_ctrl_c_says_how_to_go_on():
    line = [sys.executable, "-m", "gradbook", *SHORT[:4], "--epochs", "5000"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    running = subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    )
    lines = [running.stderr.readline() for _ in range(3)]
    assert "epoch 1/" in lines[1]
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130 and out == ""
    *_, how, last = err.splitlines()
    assert how == "gradbook train mlp --resume runs/mlp-digits-quick-seed0 goes on from here"
    assert last == "gradbook: stopped"
    assert list(Path("runs/mlp-digits-quick-seed0/checkpoints").glob("*.safetensors"))


def test_it_works_with_numpy_alone_and_without_a_network():
    "Right after `pip install .`: no extra, no download, the images in the package."
    code = (
        "import sys\n"
        "for name in ('tqdm', 'tensorboardX', 'safetensors', 'matplotlib', 'IPython', 'nbdev'):\n"
        "    sys.modules[name] = None\n"
        "import socket; socket.getaddrinfo = socket.socket.connect = None\n"
        "from gradbook.cli import main\n"
        "sys.exit(main(['train', 'mlp', '--data', 'mnist', '--epochs', '1']))\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert "images that come with the package" in done.stderr and "test images right" in done.stdout


def test_tensorboard_is_asked_for_and_missing(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    assert cli.main([*SHORT, "--tensorboard"]) == 1
    assert "pip install 'gradbook[train]'" in capsys.readouterr().err


def test_runs_in_every_way(capsys, small):
    assert cli.main(SHORT) == 0 and cli.main([*SHORT, "--lr", "0.01"]) == 0
    assert cli.main(["train", "digits"]) == 0
    capsys.readouterr()
    assert cli.main(["runs"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in table] == [
        *("run", "digits-quick-seed0", "mlp-digits-quick-seed0", "mlp-digits-quick-seed0-2")
    ]
    assert cli.main(["runs", "--json"]) == 0
    assert [run["model"] for run in json.loads(capsys.readouterr().out)["runs"]][1:] == [
        *("MLP 64-16-10", "MLP 64-16-10")
    ]
    assert cli.main(["runs", "show", "mlp-digits-quick-seed0"]) == 0
    text = capsys.readouterr().out
    assert "hidden" in text and "val_loss" in text and "of the test images right" in text
    assert cli.main(["runs", "show", "digits-quick-seed0"]) == 0
    names = ["mlp-digits-quick-seed0", "mlp-digits-quick-seed0-2"]
    assert cli.main(["runs", "compare", *names]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()].count(
        ["lr", "0.002", "0.01"]
    )
    assert cli.main(["runs", "plot", names[0], "--svg", "one.svg"]) == 0
    assert cli.main(["runs", "plot", *names, "--metric", "accuracy", "--svg", "two.svg"]) == 0
    assert "two.svg" in capsys.readouterr().out
    for name in ("one.svg", "two.svg"):
        assert Path(name).read_text(encoding="utf-8").count("<polyline") == 2
    for line, words in (
        ("show", "takes 1 names, not 0"),
        ("show mlp", "there is no run 'mlp'"),
        ("compare mlp-digits-quick-seed0", "takes 2 to 4 names, not 1"),
        ("list mlp-digits-quick-seed0", "takes 0 names, not 1"),
        ("sho", "did you mean show?"),
        ("plot mlp-digits-quick-seed0 --metric top5", "there are: accuracy, epoch"),
        ("plot mlp-digits-quick-seed0 --svg no/a.svg", "--svg no/a.svg: No such file"),
    ):
        assert cli.main(["runs", *line.split()]) == 1
        assert words in capsys.readouterr().err


def test_data_list_and_get(capsys, monkeypatch):
    assert cli.main(["data"]) == 0
    out = capsys.readouterr().out
    assert "mnist" in out and "60,000 + 10,000 images" in out and "shakespeare" in out
    assert cli.main(["data", "list", "--json"]) == 0
    sets = json.loads(capsys.readouterr().out)["datasets"]
    assert {"name", "shapes", "licence", "state"} <= sets[0].keys()
    assert cli.main(["data", "get", "breast_cancer", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "package"
    monkeypatch.setenv("GRADBOOK_DOWNLOAD", "off")
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path.cwd()))
    assert cli.main(["data", "get", "mnist"]) == 1
    assert "downloads are switched off" in capsys.readouterr().err


def test_data_get_finds_what_is_there(capsys, monkeypatch):
    shared = ROOT.parent / "shared" / "data"
    if not (shared / "mnist").is_dir():
        pytest.skip("MNIST is not on this machine")
    monkeypatch.setenv("GRADBOOK_DATA", str(shared))
    assert cli.main(["data", "get", "mnist"]) == 0
    assert "mnist: GRADBOOK_DATA" in capsys.readouterr().out


def test_a_device_that_is_not_there(capsys):
    assert cli.main(["train", "mlp", "--device", "gpu"]) == 1
    assert "there is no device 'gpu'; there are: cpu, cuda" in capsys.readouterr().err
    assert not Path("runs").exists()
    assert cli.main([*SHORT, "--device", "cpu"]) == 0
