"Dates as people write them, the translator, and what the page says of its runs."

from __future__ import annotations

import json
import os
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from gradbook.models.seq2seq import (
    DIGITS,
    FIRST,
    LAST,
    SYMBOLS,
    DatesSettings,
    Translator,
    date_set,
    draw_dates,
    exact,
    load_dates,
    ordinal,
    recommended_dates,
    train_dates,
    translator_for,
    written,
)
from gradbook.tensor import random
from gradbook.tensor.core import no_grad
from gradbook.train.checkpoint import CheckpointError

RESULTS = Path(__file__).resolve().parent.parent / "nbs" / "results" / "dates.json"


def test_days_have_english_endings() -> None:
    found = " ".join(ordinal(d) for d in (1, 2, 3, 4, 10, 11, 12, 13, 14, 21, 22, 23, 30, 31))
    assert found == "1st 2nd 3rd 4th 10th 11th 12th 13th 14th 21st 22nd 23rd 30th 31st"


def test_a_date_is_written_in_twelve_ways() -> None:
    found = written(date(2003, 9, 1))
    assert len(set(found)) == 12
    assert "september 1, 2003" in found and "monday, 1 september 2003" in found
    assert "01.09.03" in found and "9/1/2003" in found and "1st sep '03" in found
    for day in (FIRST, LAST):
        assert all(set(text) <= set(SYMBOLS) for text in written(day))


def test_no_date_is_drawn_twice() -> None:
    pairs = draw_dates(random.key(0), 5000)
    answers = [answer for _, answer in pairs]
    assert len(set(answers)) == 5000 and pairs == draw_dates(random.key(0), 5000)
    assert min(answers) >= FIRST.isoformat() and max(answers) <= LAST.isoformat()
    for text, answer in pairs[:200]:
        assert text in written(date.fromisoformat(answer))
    assert len({written(date.fromisoformat(a)).index(t) for t, a in pairs}) == 12


def test_dates_as_ids() -> None:
    text, lengths, begun, answer = date_set([("3.5.19", "2019-05-03"), ("1", "2000-01-01")]).arrays
    assert "".join(SYMBOLS[i] for i in text[0]) == "3.5.19" and lengths.tolist() == [6, 1]
    assert "".join(DIGITS[i] for i in answer[0]) == "2019-05-03"
    assert begun[:, 0].tolist() == [len(DIGITS)] * 2
    np.testing.assert_array_equal(begun[:, 1:], answer[:, :-1])


def test_dates_that_can_not_be() -> None:
    capital, small = (date_set([(text, "2019-05-03")]) for text in ("3 May 2019", "3 may 2019"))
    np.testing.assert_array_equal(capital.arrays[0], small.arrays[0])
    with pytest.raises(ValueError, match="'é' at 3 of '3 fév 2019'"):
        date_set([("3 fév 2019", "2019-02-03")])
    with pytest.raises(ValueError, match="there is no date"):
        date_set([])
    with pytest.raises(ValueError, match="50,000 dates; there are 36,525"):
        draw_dates(random.key(0), 50_000)
    with pytest.raises(ValueError, match="Translator: hidden is 15; an even number"):
        Translator(42, 11, 15)
    with pytest.raises(ValueError, match="no profile 'fast'; there are: quick, full"):
        recommended_dates("fast")


@pytest.mark.parametrize("looks", [True, False], ids=["attention", "one vector"])
def test_writing_alone_is_what_scores_say(looks: bool) -> None:
    "Fed with what it wrote, the model scores that as the likeliest; in a batch or alone."
    model = Translator(len(SYMBOLS), len(DIGITS), 16, looks, key=0)
    ids, lengths, begun, _ = date_set(draw_dates(random.key(0), 5)).arrays
    answer = model.translate(ids, lengths, 10)
    begun[:, 1:] = answer[:, :-1]
    with no_grad():
        scores = model(ids, lengths, begun).numpy()
    np.testing.assert_array_equal(scores.argmax(axis=1), answer)
    for k, n in enumerate(lengths):
        np.testing.assert_array_equal(model.translate(ids[k : k + 1, :n], [n], 10)[0], answer[k])
    assert model.training


def test_nobody_looks_at_the_filling() -> None:
    model = Translator(len(SYMBOLS), len(DIGITS), 16, key=0)
    ids, lengths, begun, _ = date_set(draw_dates(random.key(0), 6)).arrays
    places, state = model.encode(ids, lengths)
    states, _ = model.decoder(model.table(begun), state)
    looks = model.weights(states, places, lengths).numpy()
    np.testing.assert_allclose(looks.sum(axis=-1), 1, atol=1e-5)
    for k, n in enumerate(lengths):
        assert not looks[k, :, n:].any()
    loss = (model(ids, lengths, begun) ** 2).sum()
    loss.backward()
    assert all(np.isfinite(p.grad.numpy()).all() for p in model.parameters())
    plain = Translator(len(SYMBOLS), len(DIGITS), 16, attention=False, key=0)
    with pytest.raises(ValueError, match="without attention"):
        plain.weights(states, places, lengths)


def test_a_quick_training_translates_and_is_kept(tmp_path: Path) -> None:
    settings = recommended_dates(epochs=3)
    record = train_dates(settings, tmp_path)
    assert record["exact"] > 0.9 and record["val_loss"] < 0.1
    kept = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert kept["settings"]["attention"] is True and kept["exact"] == record["exact"]
    model = load_dates(tmp_path)
    assert exact(model, date_set(draw_dates(random.key(0), 1000))) == record["exact"]
    again = train_dates(settings, tmp_path, resume=True)
    assert again["exact"] == record["exact"] and again["steps"] == record["steps"]


def test_a_run_without_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"settings": {}}', encoding="utf-8")
    with pytest.raises(CheckpointError, match="has no checkpoint"):
        load_dates(tmp_path)
    with pytest.raises(CheckpointError, match="has no checkpoint"):
        load_dates(tmp_path / "nowhere")
    assert translator_for(DatesSettings(attention=False)).ask is None


def test_the_stored_runs_are_as_the_page_says() -> None:
    kept = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert kept["commit"] and len(kept["runs"]) == 6
    for run in kept["runs"]:
        mark = run["exact"]
        assert mark >= 0.99 if run["settings"]["attention"] else mark < 0.99


@pytest.mark.skipif(not os.environ.get("FULL"), reason="long: make test FULL=1")
def test_the_stored_figure_comes_again(tmp_path: Path) -> None:
    assert train_dates(recommended_dates("full"), tmp_path)["exact"] >= 0.99
