"Settings: three places in order, and errors that say where and what."

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gradbook.settings import KNOBS, Settings, SettingsError, load

ROOT = Path(__file__).resolve().parent.parent


def write(folder: Path, text: str) -> Path:
    path = folder / "settings.ini"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_repositorys_file_lists_every_knob_with_its_default_and_variable():
    text = (ROOT / "settings.ini").read_text(encoding="utf-8")
    found = load(ROOT, {})
    assert found == Settings(sources=found.sources)
    assert set(found.sources) == {knob.name for knob in KNOBS}
    assert re.findall(r"\((GRADBOOK_\w+)\)", text) == [knob.variable for knob in KNOBS]


def test_without_a_file_the_defaults_hold(tmp_path):
    assert load(tmp_path, {}) == Settings()
    assert load(tmp_path, {}).where("seed") == "default"


def test_a_file_is_found_from_a_folder_below(tmp_path):
    path = write(tmp_path, "[gradbook]\nseed = 5\n")
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    assert load(below, {}).seed == 5
    assert load(below, {}).where("seed") == f"{path}, section [gradbook], seed"


def test_the_environment_goes_first(tmp_path):
    write(tmp_path, "[gradbook]\nseed = 5\nprofile = full\n")
    found = load(tmp_path, {"GRADBOOK_SEED": " 6 "})
    assert (found.seed, found.profile) == (6, "full")


@pytest.mark.parametrize(
    "text", ["[DEFAULT]\nseed = x\n", "[metadata]\nname = y\n", "no ini at all", "\x00\xff"]
)
def test_files_of_other_projects_are_passed_over(tmp_path, text):
    write(tmp_path, "[gradbook]\nseed = 5\n")
    inner = tmp_path / "other"
    inner.mkdir()
    write(inner, text)
    assert load(inner, {}).seed == 5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[gradbook]\nseed = many", ["section [gradbook]", "seed", "'many'", "whole number"]),
        ("[gradbook]\nseed = -1", ["'-1'", "0 or more"]),
        ("[gradbook]\nseed = 1.5", ["'1.5'"]),
        ("[gradbook]\nseed =", ["''", "whole number"]),
        ("[gradbook]\nprofile = Quick", ["'Quick'", "quick or full", "did you mean quick?"]),
        ("[gradbook]\nthreads = 5000", ["'5000'", "1024"]),
        ("[gradbook]\nprofil = quick", ["no setting 'profil'", "did you mean profile?"]),
        ("[gradbook]\n[figures]\nformat = pdf", ["section [figures]", "svg or png"]),
        ("[gradbook]\n[arrays]\ndtype = int8", ["float32 or float64"]),
        ("[gradbook]\n[arrays]\nbackend = torch", ["numpy or cupy"]),
        ("[gradbook]\n[data]\nfolder = nowhere", ["'nowhere'", "folder that exists"]),
        ("[gradbook]\n[array]\ndtype = float32", ["no section [array]", "did you mean arrays?"]),
        ("[gradbook]\n[DEFAULT]\nseed = 1", ["no section [DEFAULT]"]),
        ("[gradbook]\nseed = 1\nseed = 2", ["seed", "already exists"]),
        ("[gradbook]\nseed", ["parsing errors"]),
    ],
)
def test_a_bad_file_is_named_with_what_is_allowed(tmp_path, text, words):
    path = write(tmp_path, text)
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, {})
    for word in [str(path), *words]:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bad_variable_is_named(tmp_path):
    with pytest.raises(SettingsError, match=r"variable GRADBOOK_DTYPE: 'f8' .*float32 or float64"):
        load(tmp_path, {"GRADBOOK_DTYPE": "f8"})


def test_a_misspelt_variable_is_refused_and_others_are_left_alone(tmp_path):
    with pytest.raises(SettingsError, match=r"GRADBOOK_SEDE is .*; did you mean GRADBOOK_SEED\?"):
        load(tmp_path, {"GRADBOOK_SEDE": "1"})
    assert load(tmp_path, {"GRADBOOK_PROGRESS": "x", "GRADBOOK_HOME": "y"}) == Settings()


def test_a_relative_data_folder_starts_at_the_file_and_values_may_have_comments(tmp_path):
    (tmp_path / "sets").mkdir()
    (tmp_path / "below").mkdir()
    write(tmp_path, "[gradbook]\nseed = 3  # lucky\n[data]\nfolder = sets\n")
    found = load(tmp_path / "below", {})
    assert (found.seed, found.data) == (3, (tmp_path / "sets").resolve())


def test_where_knows_only_settings():
    with pytest.raises(SettingsError, match=r"no setting 'sed'; did you mean seed\?"):
        Settings().where("sed")
