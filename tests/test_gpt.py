"Language models: the decoder, its training, sampling, and weights that others published."

from __future__ import annotations

import json
import math
import os
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradbook import settings as knobs
from gradbook.bench import torch_gpt
from gradbook.data.loader import DataLoader
from gradbook.models.generate import GenerateError, chances, draw, generate, stream, tokens
from gradbook.models.gpt import (
    DATA,
    GPT,
    PRESETS,
    Adder,
    GPTConfig,
    GPTError,
    GPTSettings,
    RandomPlaces,
    decay_groups,
    load_run,
    open_data,
    parts_of,
    recommended,
    solved,
    token_loss,
    train_gpt,
)
from gradbook.models.pretrained import (
    PretrainedError,
    config_of,
    from_pretrained,
    llama2c_tokenizer,
    load_llama2c,
    stories260k,
    tokenizer_of,
)
from gradbook.nn import init
from gradbook.nn.attention import check_causal
from gradbook.nn.embedding import IdError
from gradbook.optim.adam import AdamW
from gradbook.optim.schedule import WarmupCosine
from gradbook.tensor import random
from gradbook.tensor.core import ShapeError, Tensor, no_grad
from gradbook.text.tokenizer import CharTokenizer, TokenizerError
from gradbook.train.callbacks import Callback
from gradbook.train.checkpoint import CheckpointError, load_tensors, save_tensors
from gradbook.train.loop import Trainer

SMALL = GPTConfig(n_vocab=20, context=12, layers=2, heads=2, width=16)
LLAMA = GPTConfig(
    n_vocab=20, context=12, layers=2, heads=4, width=16, kv_heads=2, bias=False, kind="llama",
    tied=False,
)  # fmt: skip
IDS = np.arange(18).reshape(2, 9)


# The decoder


@pytest.mark.parametrize("config", [SMALL, LLAMA], ids=lambda c: c.kind)
def test_no_place_sees_a_later_one(config: GPTConfig) -> None:
    model = GPT(config, key=0)
    assert model(IDS).shape == (2, 9, 20)
    check_causal(model, IDS, at=model.token)


@pytest.mark.parametrize("config", [SMALL, LLAMA], ids=lambda c: c.kind)
def test_the_cache_gives_what_the_full_pass_gives(config: GPTConfig) -> None:
    model = GPT(config, key=0)
    with no_grad():
        whole, caches = model(IDS).numpy(), model.caches()
        parts = [model(IDS[:, a:b], caches).numpy() for a, b in ((0, 4), (4, 5), (5, 9))]
        last = model(IDS, last=True).numpy()
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, atol=1e-5)
    np.testing.assert_allclose(last, whole[:, -1:], atol=1e-6)


def test_it_begins_as_gpt2_does() -> None:
    config = GPTConfig(n_vocab=500, context=64, layers=8, heads=4, width=128)
    model = GPT(config, key=0)
    sizes = {name: p.numpy().std() for name, p in model.named_parameters() if p.ndim > 1}
    for name, size in sizes.items():
        adds = name.endswith(("out_proj.weight", "down.weight"))
        assert size == pytest.approx(0.02 / 4 if adds else 0.02, rel=0.05), name
    assert all(not p.numpy().any() for name, p in model.named_parameters() if "bias" in name)
    loss = float(token_loss(model(IDS), IDS + 100))
    assert loss == pytest.approx(math.log(500), abs=0.2)


def test_gpt2_has_124_million_parameters() -> None:
    c = GPTConfig(n_vocab=50257)
    block = 12 * c.width**2 + 13 * c.width
    total = (c.n_vocab + c.context) * c.width + c.layers * block + 2 * c.width
    assert total == 124_439_808
    small = GPT(GPTConfig(n_vocab=7, context=5, layers=3, heads=2, width=8), key=0)
    assert small.n_parameters() == (7 + 5) * 8 + 3 * (12 * 64 + 13 * 8) + 16
    assert small.n_parameters(positions=False) == small.n_parameters() - 40


@pytest.mark.parametrize("config", [SMALL, LLAMA], ids=lambda c: c.kind)
def test_every_parameter_gets_a_gradient(config: GPTConfig) -> None:
    model = GPT(config, key=0)
    token_loss(model(IDS), IDS).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and np.abs(p.grad.numpy()).max() > 0, name


def test_dropout_changes_only_training() -> None:
    model = GPT(GPTConfig(20, 12, 2, 2, 16, dropout=0.5), key=0)
    assert np.abs(model(IDS).numpy() - model(IDS).numpy()).max() > 0
    model.eval()
    np.testing.assert_array_equal(model(IDS).numpy(), model(IDS).numpy())


def test_wrong_input_is_refused_with_its_numbers() -> None:
    model = GPT(SMALL, key=0)
    with pytest.raises(GPTError, match="13 tokens; the context is 1 to 12"):
        model(np.zeros((1, 13), int))
    with pytest.raises(GPTError, match="0 tokens"):
        model(np.zeros((1, 0), int))
    with pytest.raises(GPTError, match=r"\(4,\); \(batch, T\)"):
        model(np.zeros(4, int))
    with pytest.raises(IdError, match="id 20 at \\(0, 1\\); there are 20 rows"):
        model(np.array([[0, 20]]))
    with no_grad():
        caches = model.caches()
        model(IDS, caches)
        with pytest.raises(GPTError, match="4 tokens after 9 in the cache"):
            model(IDS[:, :4], caches)
    with pytest.raises(ShapeError, match="token_loss"):
        token_loss(np.zeros((2, 3, 4)), np.zeros((2, 4), int))
    with no_grad(), pytest.raises(GPTError, match="1 caches; 2 are needed"):
        model(IDS, model.caches()[:1])
    sizes = {"n_vocab": 9, "context": 8, "width": 16, "heads": 4}
    bad = {"heads": 3, "kind": "bert", "layers": 2.0, "kv_heads": 3, "hidden": 0}
    for name, value in (bad | {"head_dim": -1, "eps": -1.0, "rope_base": math.nan}).items():
        with pytest.raises(GPTError, match="divide" if "heads" in name else name):
            GPTConfig(**{**sizes, name: value})


def test_matrices_decay_and_vectors_do_not() -> None:
    model = GPT(SMALL, key=0)
    matrices, vectors = decay_groups(model, 0.1)
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)
    assert {p.ndim for _, p in matrices["params"]} == {2}
    assert all(name.endswith("bias") or "norm" in name for name, _ in vectors["params"])
    assert len(matrices["params"]) + len(vectors["params"]) == len(list(model.parameters()))


# Data and runs


def test_sums_are_right_and_the_test_has_its_own() -> None:
    train, test = Adder(2), Adder(2, "test")
    assert (len(train), len(test), train.context) == (9500, 500, 6)
    assert not set(train.sums) & set(test.sums)
    for row in test.rows(np.arange(500)):
        a, b, c = (int("".join(map(str, d))) for d in (row[:2], row[2:4], row[:3:-1]))
        assert a + b == c
    ids, targets = train[np.array([3, 5])]
    assert ids.shape == targets.shape == (2, 6)
    assert (targets[:, :3] == -100).all()
    np.testing.assert_array_equal(targets[:, 3:-1], ids[:, 4:])
    with pytest.raises(GPTError, match="Adder: 4 digits"):
        Adder(4)
    with pytest.raises(GPTError, match="-1 sums held back"):
        Adder(2, held_back=-1)
    with pytest.raises(GPTError, match="there are no sums"):
        solved(GPT(GPTConfig(10, 6, 1, 1, 8), key=0), Adder(2, "test", held_back=0))


def test_places_depend_on_seed_and_epoch_only() -> None:
    places = RandomPlaces(50, 1000, seed=3)
    first = places.order(0)
    np.testing.assert_array_equal(first, RandomPlaces(50, 1000, seed=3).order(0))
    assert (first != places.order(1)).any() and (first != RandomPlaces(50, 1000).order(0)).any()
    assert first.min() == 0 and first.max() == 49


@given(st.integers(1, 5000), st.integers(1, 500))
def test_equal_parts_have_all_steps(steps: int, every: int) -> None:
    parts, each = parts_of(steps, every)
    assert each <= every and steps <= parts * each < steps + parts


def test_presets() -> None:
    laptop = GPTSettings()
    found = (laptop.layers, laptop.heads, laptop.width, laptop.context, laptop.batch_size)
    assert found == (4, 4, 128, 64, 12) and laptop.steps == 2000
    assert recommended("nanogpt") == laptop and recommended("laptop").lr == 3e-3
    assert recommended(data="adder").width == 48
    assert recommended("quick", steps=5).steps == 5
    with pytest.raises(GPTError, match=r"did you mean laptop.*there are: laptop, nanogpt"):
        recommended("latop")
    for name in PRESETS:
        s = recommended(name)
        assert s.width % s.heads == 0 and s.data in DATA


class Stop(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, trainer: Any) -> None:
        if trainer.steps == self.step:
            trainer.interrupt()


def quick(**given: Any) -> GPTSettings:
    small = {"layers": 1, "width": 32, "context": 16, "steps": 30, "evaluate": 15, "dropout": 0.1}
    return recommended("quick", **{**small, **given})


@pytest.fixture
def play(tmp_path: Path) -> str:
    path = tmp_path / "play.txt"
    path.write_text("To be, or not to be, that is the question.\n" * 60, encoding="utf-8")
    return str(path)


def test_a_run_learns_is_kept_and_writes(play: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    record = train_gpt(quick(data=play, steps=60), run)
    assert record["steps"] == 60 and record["val_loss"] < 2.5
    assert record["bits_per_byte"] == pytest.approx(record["val_loss"] / math.log(2), rel=1e-6)
    assert record == json.loads((run / "run.json").read_text())
    model, tokenizer = load_run(run)
    assert isinstance(tokenizer, CharTokenizer) and not model.training
    text = generate(model, tokenizer, "To be", 40, key=0)
    assert len(text) == 40 and set(text) <= set(tokenizer.chars)


def test_a_resumed_run_ends_where_an_unbroken_one_does(play: str, tmp_path: Path) -> None:
    s = quick(data=play, accumulate=2)
    whole = train_gpt(s, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train_gpt(s, tmp_path / "broken", callbacks=[Stop(11)])
    broken = train_gpt(s, tmp_path / "broken", resume=True)
    assert broken["val_loss"] == whole["val_loss"]
    assert broken["train_loss"] == whole["train_loss"]
    with pytest.raises(CheckpointError, match="lr"):
        train_gpt(quick(data=play, accumulate=2, lr=1e-4), tmp_path / "broken", resume=True)
    with pytest.raises(CheckpointError, match="holds a run already"):
        train_gpt(s, tmp_path / "broken")


def test_a_run_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="can't be read"):
        load_run(tmp_path)
    (tmp_path / "run.json").write_text('{"model": "MLP"}')
    with pytest.raises(CheckpointError, match="no run of a GPT"):
        load_run(tmp_path)
    for wrong, words in (
        ({"steps": 0}, "steps 0"),
        ({"steps": 2.5}, "steps 2.5: a whole number"),
        ({"min_lr": 1.0}, "lr 0.003, min_lr 1.0"),
    ):
        with pytest.raises(GPTError, match=words):
            train_gpt(recommended(**wrong), tmp_path / "x")
    with pytest.raises(ValueError, match="there are: shakespeare, names"):
        train_gpt(recommended(data="shakespear"), tmp_path / "x")


def test_one_digit_sums_are_learned(tmp_path: Path) -> None:
    model, sums = GPT(GPTConfig(10, 3, 2, 2, 32), key=0), Adder(1, held_back=10)
    optimizer = AdamW(decay_groups(model, 0.1), lr=3e-3, betas=(0.9, 0.95))
    schedule = WarmupCosine(optimizer, 20, 600)
    trainer = Trainer(
        model, token_loss, optimizer, scheduler=schedule, clip_norm=1.0, progress=False
    )
    trainer.fit(DataLoader(sums, 45, shuffle=True), epochs=300)
    assert solved(model, sums) == 1.0


# Sampling

LOGITS = st.lists(st.floats(-20, 20), min_size=1, max_size=30)


@given(LOGITS, st.floats(0.1, 5), st.integers(1, 40), st.floats(0.01, 1))
@settings(max_examples=60, deadline=None)
def test_chances_are_probabilities(z: list[float], t: float, k: int, share: float) -> None:
    p = chances(z, temperature=t, top_k=k, top_p=share)
    assert p.sum() == pytest.approx(1) and (p >= 0).all()
    assert 1 <= np.count_nonzero(p) <= k
    assert z[p.argmax()] == pytest.approx(max(z), abs=1e-9)
    assert chances(z, temperature=0)[np.argmax(z)] == 1


def test_chances_by_hand() -> None:
    z = np.log([0.5, 0.3, 0.15, 0.05])
    np.testing.assert_allclose(chances(z), [0.5, 0.3, 0.15, 0.05])
    np.testing.assert_allclose(chances(z, top_k=2), [0.625, 0.375, 0, 0])
    np.testing.assert_allclose(chances(z, top_p=0.79), [0.625, 0.375, 0, 0])
    assert np.count_nonzero(chances(z, top_p=0.81)) == 3
    np.testing.assert_allclose(chances(z, top_p=0.4), [1, 0, 0, 0])
    half = np.array([0.5, 0.3, 0.15, 0.05]) ** 2
    np.testing.assert_allclose(chances(z, temperature=0.5), half / half.sum())
    np.testing.assert_allclose(
        chances([2.0, -1.0, 0.5], repetition_penalty=2, seen={0, 1}), chances([1.0, -2.0, 0.5])
    )


def test_chances_agree_with_transformers() -> None:
    torch = pytest.importorskip("torch", reason="the peer is not installed")
    t = pytest.importorskip("transformers", reason="the peer is not installed")
    z = random.normal(random.key(0), (1, 50)) * 3
    seen = [3, 7, 11]
    scores = t.RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([seen]), torch.tensor(z))
    scores = t.TemperatureLogitsWarper(0.7)(None, scores)
    scores = t.TopKLogitsWarper(20)(None, scores)
    scores = t.TopPLogitsWarper(0.8)(None, scores)
    mine = chances(
        z[0], temperature=0.7, top_k=20, top_p=0.8, repetition_penalty=1.3, seen=set(seen)
    )
    np.testing.assert_allclose(mine, torch.softmax(scores, -1)[0], atol=1e-6)


def test_draws_have_the_frequencies_of_the_chances() -> None:
    p = np.array([0.0, 0.2, 0.5, 0.3, 0.0])
    drawn = [draw(p, random.fold_in(random.key(1), k)) for k in range(4000)]
    np.testing.assert_allclose(np.bincount(drawn, minlength=5) / 4000, p, atol=0.03)


@pytest.mark.parametrize("config", [SMALL, LLAMA], ids=lambda c: c.kind)
def test_a_cache_changes_the_time_and_no_token(config: GPTConfig) -> None:
    model = GPT(config, key=1)
    for n in (5, 12, 40):  # beyond the context, too
        found = [list(tokens(model, [1, 2, 3], n, key=4, cache=c)) for c in (True, False)]
        assert found[0] == found[1] and len(found[0]) == n


def test_generation_stops_streams_and_repeats() -> None:
    model, abc = GPT(SMALL, key=2), CharTokenizer("abcdefghijklmnopqrst")
    again = [list(tokens(model, [5], 20, key=9)) for _ in range(2)]
    assert again[0] == again[1] != list(tokens(model, [5], 20, key=8))
    stop = again[0][6]
    assert list(tokens(model, [5], 20, key=9, stop={stop})) == again[0][: again[0].index(stop) + 1]
    pieces = list(stream(model, abc, "f", 20, key=9))
    assert "".join(pieces) == abc.decode(again[0]) and len(pieces) == 20


def test_of_a_long_prompt_the_end_counts() -> None:
    model, prompt = GPT(SMALL, key=2), list(range(20))
    for cache in (True, False):
        found = [list(tokens(model, p, 5, key=1, cache=cache)) for p in (prompt, prompt[-12:])]
        assert found[0] == found[1] and len(found[0]) == 5


def test_bad_wishes_are_named() -> None:
    model, abc = GPT(SMALL, key=2), CharTokenizer("abc")
    for name, value in (("temperature", -1), ("top_k", 0), ("top_p", 0), ("repetition_penalty", 0)):
        with pytest.raises(GenerateError, match=f"{name} is {value}"):
            chances([1.0, 2.0], **{name: value})  # type: ignore[arg-type]
    with pytest.raises(GenerateError, match="1 of 2 logits are NaN"):
        chances([1.0, math.nan])
    np.testing.assert_array_equal(chances([1.0, 2.0, -math.inf], temperature=1e-320), [0, 1, 0])
    with pytest.raises(GenerateError, match=r"top_k is 1\.5; a whole"):
        chances([1.0, 2.0], top_k=1.5)  # type: ignore[arg-type]
    with pytest.raises(GenerateError, match=r"logits of shape \(1, 2\)"):
        chances([[1.0, 2.0]])
    with pytest.raises(GenerateError, match="a prompt of 0"):  # at once, not at the first id
        tokens(model, [], 1)
    with pytest.raises(GenerateError, match="temperature is -1"):
        tokens(model, [1], 1, temperature=-1)
    with pytest.raises(TokenizerError, match="id 20"):
        tokens(model, [20], 1)
    with pytest.raises(TokenizerError, match="does not go with a model of 20"):
        generate(model, abc, "a")


# Published weights


def hugging(folder: Path, kind: str, **given: Any) -> Any:
    torch = pytest.importorskip("torch", reason="the peer is not installed")
    t = pytest.importorskip("transformers", reason="the peer is not installed")
    torch.manual_seed(0)
    if kind == "gpt2":
        sizes = {"vocab_size": 97, "n_positions": 32, "n_embd": 48, "n_layer": 3, "n_head": 4}
        peer = t.GPT2LMHeadModel(t.GPT2Config(**{**sizes, **given}))
    else:
        sizes = {
            "vocab_size": 97, "max_position_embeddings": 32, "hidden_size": 48,
            "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
            "num_key_value_heads": 2,
        }  # fmt: skip
        peer = t.LlamaForCausalLM(t.LlamaConfig(**{**sizes, **given}))
    for p in peer.parameters():  # not the small numbers of the beginning, which would hide much
        p.data = p.data + 0.1 * torch.randn_like(p)
    peer.eval().save_pretrained(folder)
    return peer


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("gpt2", {}),
        ("gpt2", {"n_inner": 60, "layer_norm_epsilon": 1e-3}),
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True, "rope_theta": 500.0, "head_dim": 16}),
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
    ],
)
def test_logits_equal_hugging_faces(tmp_path: Path, kind: str, given: dict[str, Any]) -> None:
    peer = hugging(tmp_path, kind, **given)
    model, ids = from_pretrained(tmp_path), np.arange(50).reshape(2, 25) * 7 % 97
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        theirs = peer(torch.tensor(ids)).logits.numpy()
    assert np.abs(theirs).max() > 1
    np.testing.assert_allclose(model(ids).numpy(), theirs, atol=1e-4)
    prompt = [5, 17, 3]
    with torch.no_grad():
        greedy = peer.generate(
            torch.tensor([prompt]), max_new_tokens=20, do_sample=False, eos_token_id=None,
            pad_token_id=0,
        )[0, 3:].tolist()  # fmt: skip
    assert list(tokens(model, prompt, 20, temperature=0)) == greedy


def test_training_goes_as_in_pytorch(tmp_path: Path) -> None:
    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    peer, torch = hugging(tmp_path, "gpt2", **off), pytest.importorskip("torch")
    model, options = from_pretrained(tmp_path), {"lr": 1e-3, "betas": (0.9, 0.99)}
    ours = AdamW(decay_groups(model, 0.1), **options)  # type: ignore[arg-type]
    matrices, vectors = ([p for p in peer.parameters() if (p.ndim > 1) == b] for b in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    theirs, losses = torch.optim.AdamW(groups, **options), []
    trainer = Trainer(model, token_loss, ours, clip_norm=1.0, progress=False)
    ids = np.random.default_rng(0).integers(0, 97, (6, 4, 33))
    for rows in ids:
        x, y = torch.tensor(rows[:, :-1]), torch.tensor(rows[:, 1:])
        theirs.zero_grad()
        loss = torch.nn.functional.cross_entropy(peer(x).logits.reshape(-1, 97), y.reshape(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
        theirs.step()
        mine = trainer.update([(Tensor(rows[:, :-1].copy()), Tensor(rows[:, 1:].copy()))])
        losses.append((mine, loss.item()))
    np.testing.assert_allclose(*zip(*losses), rtol=1e-5)
    assert losses[-1][1] < losses[0][1]


# The peer of nbs/results/gpt.json: FULL=1 pytest tests/test_gpt.py -k peer

KEPT = json.loads(Path("nbs/results/gpt.json").read_text(encoding="utf-8"))
LONG = pytest.mark.skipif(not os.environ.get("FULL"), reason="long: make test FULL=1")


@pytest.fixture(scope="module")
def peer_run() -> tuple[Any, Any, float]:
    "PyTorch's network after the run `nanogpt`, the held-back ids, and the loss on all of them."
    torch = pytest.importorskip("torch", reason="the peer is not installed")
    s = recommended("nanogpt")
    train, val, corpus, n_vocab = open_data(s)
    if n_vocab != 65 or corpus is None:
        pytest.skip("TinyShakespeare is not on this machine")
    init.manual_seed(s.seed)
    config = GPTConfig(n_vocab, s.context, s.layers, s.heads, s.width, bias=s.bias)
    theirs = torch_gpt(torch, n_vocab, s.context, s.layers, s.heads, s.width)
    with torch.no_grad():
        for p, q in zip(GPT(config).parameters(), theirs.parameters(), strict=True):
            q.copy_(torch.tensor(p.data))
    matrices, vectors = (
        [p for p in theirs.parameters() if (p.ndim > 1) == two] for two in (True, False)
    )
    groups = [
        {"params": matrices, "weight_decay": s.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=s.lr, betas=(0.9, s.beta2))

    def loss_of(x: Any, y: Any) -> Any:
        logits = theirs(torch.tensor(x.numpy()))
        return torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), torch.tensor(y.numpy()).flatten()
        )

    def rate(step: int) -> float:
        if step < s.warmup:
            return s.lr * (step + 1) / (s.warmup + 1)
        part = (step - s.warmup) / (s.steps - s.warmup)
        return s.min_lr + 0.5 * (1 + math.cos(math.pi * part)) * (s.lr - s.min_lr)

    draws = RandomPlaces(len(train), s.evaluate * s.batch_size, s.seed)
    loader, step = DataLoader(train, s.batch_size, sampler=draws, seed=s.seed), 0
    for epoch in range(s.steps // s.evaluate):
        loader.set_epoch(epoch)
        for x, y in loader:
            for group in optimizer.param_groups:
                group["lr"] = rate(step)
            optimizer.zero_grad()
            loss_of(x, y).backward()
            torch.nn.utils.clip_grad_norm_(theirs.parameters(), s.clip)
            optimizer.step()
            step += 1
    with torch.no_grad():
        pairs = [(float(loss_of(x, y)), y.size) for x, y in DataLoader(val, 4 * s.batch_size)]
    whole = sum(loss * n for loss, n in pairs) / sum(n for _, n in pairs)
    return theirs, np.asarray(corpus.val), whole


@LONG
def test_the_peer_ends_where_the_kept_run_does(peer_run: tuple[Any, Any, float]) -> None:
    assert peer_run[2] == pytest.approx(KEPT["peer"]["val_loss"], abs=1e-3)
    assert peer_run[2] == pytest.approx(KEPT["runs"][-1]["val_loss"], abs=1e-3)


@LONG
def test_the_kept_counting_is_what_plain_counting_gives() -> None:
    corpus = open_data(recommended("nanogpt"))[2]
    if corpus is None or corpus.tokenizer.n_vocab != 65:
        pytest.skip("TinyShakespeare is not on this machine")
    train, val = (corpus.tokenizer.decode(ids) for ids in (corpus.train, corpus.val))
    lower, kept = [1 / 65] * len(val), KEPT["counting"]
    for k in range(6):
        after: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for at in range(k, len(train)):
            after[train[at - k : at]][train[at]] += 1
        sums, plain, leaning, higher = {c: n.total() for c, n in after.items()}, 0.0, 0.0, []
        for at in range(k, len(val)):
            context, new = val[at - k : at], val[at]
            n, total = after[context][new], sums.get(context, 0)
            kinds = max(1, sum(count > 0 for count in after[context].values()))
            higher.append((n + kinds * lower[at]) / (total + kinds))
            plain -= math.log((n + 1) / (total + 65))
            leaning -= math.log(higher[-1])
        lower = [0.0] * k + higher
        if k:
            assert plain / len(higher) == pytest.approx(kept["one_more"][k - 1], abs=1e-5)
            assert leaning / len(higher) == pytest.approx(kept["leaning"][k - 1], abs=1e-5)


@LONG
def test_twenty_batches_of_the_peer_are_a_rough_guess(peer_run: tuple[Any, Any, float]) -> None:
    "As nanoGPT estimates its loss: 20 batches of 12 windows from anywhere, 60 times."
    torch, (theirs, ids, _), found = pytest.importorskip("torch"), peer_run, []
    rng = np.random.default_rng(0)
    for _ in range(60 * 20):
        rows = np.stack([ids[i : i + 65] for i in rng.integers(0, len(ids) - 64, 12)])
        rows = torch.tensor(rows.astype("int64"))
        with torch.no_grad():
            logits = theirs(rows[:, :-1]).flatten(0, 1)
        found.append(float(torch.nn.functional.cross_entropy(logits, rows[:, 1:].flatten())))
    guesses, kept = np.array(found).reshape(60, 20).mean(axis=1), KEPT["peer"]["twenty_batches"]
    assert guesses.mean() == pytest.approx(kept["mean"], abs=1e-3)
    assert guesses.std() == pytest.approx(kept["spread"], abs=1e-3)


def rewritten(folder: Path, change: Any, **metadata: str) -> None:
    path = folder / "model.safetensors"
    state = load_tensors(path)
    path.unlink()
    save_tensors(path, change(state), metadata or None)


def test_names_with_and_without_prefix_and_in_parts(tmp_path: Path) -> None:
    hugging(tmp_path, "gpt2")
    names = list(load_tensors(tmp_path / "model.safetensors"))
    assert all(name.startswith("transformer.") for name in names)
    ids = np.arange(10)[None]
    want = from_pretrained(tmp_path)(ids).numpy()

    def bare(state: dict[str, Any]) -> dict[str, Any]:  # as the first GPT-2 files were
        mask = np.tril(np.ones((1, 1, 32, 32), "float32"))
        return {n.removeprefix("transformer."): a for n, a in state.items()} | {
            "h.0.attn.bias": mask, "h.0.attn.masked_bias": np.float32(-1e4).reshape(())
        }  # fmt: skip

    rewritten(tmp_path, bare)
    np.testing.assert_array_equal(from_pretrained(tmp_path)(ids).numpy(), want)
    state = load_tensors(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    where = {}
    for k, name in enumerate(state):
        where[name] = f"model-{k % 2}.safetensors"
    for file in set(where.values()):
        save_tensors(tmp_path / file, {n: state[n] for n in state if where[n] == file})
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    np.testing.assert_array_equal(from_pretrained(tmp_path)(ids).numpy(), want)
    index.write_text(json.dumps({"weight_map": {"wte.weight": "../model.safetensors"}}))
    with pytest.raises(PretrainedError, match="is not a file of this folder"):
        from_pretrained(tmp_path)


def test_what_is_missing_or_mis_shaped_is_named(tmp_path: Path) -> None:
    hugging(tmp_path, "gpt2")
    rewritten(tmp_path, lambda s: {n: a for n, a in s.items() if "h.1.mlp.c_fc" not in n})
    with pytest.raises(PretrainedError, match=r"no h\.1\.mlp\.c_fc\.weight, h\.1\.mlp\.c_fc\.bias"):
        from_pretrained(tmp_path)
    hugging(tmp_path, "gpt2")
    wrong = "transformer.h.2.attn.c_attn.weight"
    rewritten(tmp_path, lambda s: {**s, wrong: np.ascontiguousarray(s[wrong].T)})
    with pytest.raises(PretrainedError, match=r"c_attn\.weight \(144, 48\); the config says \(48"):
        from_pretrained(tmp_path)
    hugging(tmp_path, "gpt2")
    path = tmp_path / "config.json"
    whole = json.loads(path.read_text())
    for change, words in (
        ({"n_layer": 4}, "no h.3.ln_1.weight"),
        ({"n_layer": 1}, r"the config has no place for h\.1\.\S+, .* and 19 more"),
        ({"n_embd": 44}, r"wte\.weight \(97, 48\).*\(97, 44\), wpe.weight .* more$"),
        ({"vocab_size": 98}, r"wte.weight \(97, 48\); the config says \(98, 48\)"),
        ({"model_type": "bert"}, "model_type is 'bert'; there are: gpt2, llama"),
        ({"activation_function": "relu"}, "activation_function is 'relu'; only 'gelu_new'"),
        ({"n_head": 5}, "5 heads don't divide width 48"),
    ):
        path.write_text(json.dumps({**whole, **change}))
        with pytest.raises(PretrainedError, match=words):
            from_pretrained(tmp_path)
    path.write_text(json.dumps({k: v for k, v in whole.items() if k != "n_embd"}))
    with pytest.raises(PretrainedError, match="there is no 'n_embd'"):
        config_of(tmp_path)
    path.write_text("[1, 2")
    with pytest.raises(PretrainedError, match="it is no JSON"):
        config_of(tmp_path)
    with pytest.raises(PretrainedError, match="can't be read"):
        from_pretrained(tmp_path / "nowhere")


def test_options_of_a_llama_that_change_the_result_are_refused(tmp_path: Path) -> None:
    hugging(tmp_path, "llama")
    path = tmp_path / "config.json"
    whole = json.loads(path.read_text())
    for change, words in (
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type is 'yarn'; only 'default'"),
        ({"num_key_value_heads": 3}, "3 heads of keys don't divide 4"),
        ({"attention_bias": True}, "attention_bias is True; only False"),
    ):
        path.write_text(json.dumps({**whole, **change}))
        with pytest.raises(PretrainedError, match=words) as info:
            from_pretrained(tmp_path)
        assert str(info.value).count(str(path)) == 1
    path.write_text(json.dumps(whole))
    bias = {"model.layers.0.self_attn.q_proj.bias": np.zeros(48, "float32")}
    rewritten(tmp_path, lambda s: {**s, **bias})
    with pytest.raises(PretrainedError, match=r"no place for layers\.0\.self_attn\.q_proj\.bias"):
        from_pretrained(tmp_path)


def test_merges_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "merges.txt").write_text("#version: 0.2\nh e\nl l\n", encoding="utf-8")
    assert tokenizer_of(tmp_path).n_vocab == 256 + 2 + 1


# stories260K: a real model

STORIES = Path(knobs.load().data or "/nowhere") / "stories260K"
real = pytest.mark.skipif(not STORIES.exists(), reason="GRADBOOK_DATA has no stories260K")


def read_llama2c(path: Path) -> tuple[list[int], dict[str, Any]]:
    raw = np.fromfile(path, "<i4", 7).tolist()
    d, h, n, heads, kv, v, t = raw
    size = d // heads
    shapes = {
        "emb": (v, d), "n1": (n, d), "q": (n, d, d), "k": (n, kv * size, d), "v": (n, kv * size, d),
        "o": (n, d, d), "n2": (n, d), "w1": (n, h, d), "w2": (n, d, h), "w3": (n, h, d),
        "n3": (d,), "cos": (t, size // 2), "sin": (t, size // 2),
    }  # fmt: skip
    flat, w = np.fromfile(path, "<f4", offset=28), {}
    for name, shape in shapes.items():
        w[name], flat = flat[: math.prod(shape)].reshape(shape), flat[math.prod(shape) :]
    assert not len(flat)
    return raw, {k: a.astype("float64") for k, a in w.items()}


def llama_numpy(raw: list[int], w: dict[str, Any], ids: list[int]) -> Any:
    "The logits after the last id: no line of this is the library's."
    d, _, layers, heads, kv, _, _ = raw
    size, n = d // heads, len(ids)

    def rms(x: Any, g: Any) -> Any:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * g

    def turned(x: Any) -> Any:  # (T, heads, size), by the tables in the file
        z = (x[..., 0::2] + 1j * x[..., 1::2]) * (w["cos"] + 1j * w["sin"])[:n, None]
        return np.stack([z.real, z.imag], -1).reshape(x.shape)

    x = w["emb"][ids]
    for i in range(layers):
        y = rms(x, w["n1"][i])
        q = turned((y @ w["q"][i].T).reshape(n, heads, size))
        k = turned((y @ w["k"][i].T).reshape(n, kv, size))
        v = (y @ w["v"][i].T).reshape(n, kv, size)
        out = np.zeros((n, heads, size))
        for h in range(heads):
            g = h // (heads // kv)
            for t in range(n):
                s = k[: t + 1, g] @ q[t, h] / math.sqrt(size)
                e = np.exp(s - s.max())
                out[t, h] = e @ v[: t + 1, g] / e.sum()
        x = x + out.reshape(n, d) @ w["o"][i].T
        y = rms(x, w["n2"][i])
        a = y @ w["w1"][i].T
        x = x + (a / (1 + np.exp(-a)) * (y @ w["w3"][i].T)) @ w["w2"][i].T
    return rms(x[-1], w["n3"]) @ w["emb"].T


@real
def test_a_story_equals_that_of_a_plain_numpy_model() -> None:
    model, tokenizer = stories260k(STORIES)
    prompt = tokenizer.encode("Once upon a time")
    assert prompt == [1, 403, 407, 261, 378]  # as llama2.c has it
    raw, w = read_llama2c(STORIES / "stories260K.bin")
    ids = list(prompt)
    for _ in range(60):
        ids.append(int(llama_numpy(raw, w, ids).argmax()))
    mine = list(tokens(model, prompt, 60, temperature=0))
    assert mine == ids[len(prompt) :]
    text = tokenizer.decode(mine)
    assert text.startswith(", there was a little girl named Lily.")
    with no_grad():
        last = model(np.array([ids]), last=True).numpy()[0, 0]
    np.testing.assert_allclose(last, llama_numpy(raw, w, ids), atol=1e-3)


@real
@given(st.text(max_size=30).filter(lambda s: not any("\ud800" <= c <= "\udfff" for c in s)))
@settings(max_examples=40, deadline=None)
def test_the_stories_tokenizer_brings_back_any_text(text: str) -> None:
    _, tokenizer = stories260k(STORIES)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@real
def test_a_cut_or_strange_file_is_refused(tmp_path: Path) -> None:
    whole = (STORIES / "stories260K.bin").read_bytes()
    path = tmp_path / "model.bin"
    for content, words in (
        (whole[:-4], "takes 1,056,540"),
        (whole + b"\0", "takes 1,056,540"),
        (b"", "no model of llama2.c"),
        (b"\xff" * 100, "no model of llama2.c"),
        (np.array([2**20] * 7, "<i4").tobytes(), "bytes; Sizes"),
    ):
        path.write_bytes(content)
        with pytest.raises(PretrainedError, match=words):
            load_llama2c(path)
    words_ = (STORIES / "tok512.bin").read_bytes()
    for content in (words_[:-1], words_ + b"\0", words_[:4], b"", words_[:8] + b"\xff" * 8):
        path.write_bytes(content)
        with pytest.raises(PretrainedError, match="512 are needed"):
            llama2c_tokenizer(path, 512)
    with pytest.raises(PretrainedError, match="500 are needed"):
        llama2c_tokenizer(STORIES / "tok512.bin", 500)


@LONG
def test_the_laptop_preset_gets_below_nanogpt(tmp_path: Path) -> None:
    settings = recommended("laptop")
    if open_data(settings)[3] != 65:
        pytest.skip("TinyShakespeare is not on this machine")
    assert train_gpt(settings, tmp_path)["val_loss"] <= 1.88


@LONG
def test_sums_it_never_saw(tmp_path: Path) -> None:
    assert train_gpt(recommended(data="adder"), tmp_path)["solved"] >= 0.99
