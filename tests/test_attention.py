"Attention against PyTorch's, against itself in other orders, and against what goes wrong."

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradbook.nn import attention as A
from gradbook.nn.attention import KVCache, MultiHeadAttention, attention_weights, causal_mask
from gradbook.nn.attention import check_causal, influence, padding_mask, rotary
from gradbook.nn.attention import scaled_dot_product_attention as sdpa
from gradbook.nn.embedding import Embedding
from gradbook.nn.module import Module
from gradbook.nn.norm import dropout
from gradbook.tensor import random
from gradbook.tensor.check import check_primitive
from gradbook.tensor.core import TABLE, GraphError, Tensor, detect_anomaly, gradients, matmul
from gradbook.tensor.core import no_grad
from gradbook.tensor.transforms import grad, hessian, jvp, vmap


def draw(*shape: int, seed: int = 0, dtype: str = "float32") -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def three(lead: tuple[int, ...], t: int, s: int, d: int, e: int, kv: tuple[int, ...] = ()) -> Any:
    kv = kv or lead
    return draw(*lead, t, d, seed=1), draw(*kv, s, d, seed=2), draw(*kv, s, e, seed=3)


CASES = {
    "plain": (three((2, 3), 5, 7, 4, 6), {}),
    "causal": (three((2, 3), 6, 6, 4, 4), {"is_causal": True}),
    "long": (three((1, 2), 700, 500, 16, 16), {}),
    "long causal": (three((2,), 600, 600, 8, 8), {"is_causal": True}),
    "bools": (three((2, 3), 5, 7, 4, 4), {"attn_mask": draw(2, 1, 5, 7) > -0.5}),
    "padding": (three((2, 3), 5, 7, 4, 4), {"attn_mask": padding_mask([4, 7], 7).numpy()}),
    "floats": (three((2, 3), 5, 7, 4, 4), {"attn_mask": draw(5, 7)}),
    "gqa": (three((2, 6), 5, 5, 4, 4, (2, 2)), {"enable_gqa": True, "is_causal": True}),
    "one kv head": (three((2, 6), 5, 8, 4, 4, (2, 1)), {"enable_gqa": True}),
    "scale": (three((2, 3), 5, 7, 4, 4), {"scale": 0.2}),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("block", [2**17, 2**8])
def test_values_and_gradients_are_torchs(
    name: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is the peer")
    if name.startswith("long") and block < 2**17:
        pytest.skip("many blocks already")
    monkeypatch.setattr(A, "BLOCK", block)
    arrays, options = CASES[name]
    ours = [Tensor(a, requires_grad=True) for a in arrays]
    theirs = [torch.tensor(a, requires_grad=True) for a in arrays]
    out = sdpa(*ours, **options)
    peer_options = {k: torch.tensor(v) if k == "attn_mask" else v for k, v in options.items()}
    peer = torch.nn.functional.scaled_dot_product_attention(*theirs, **peer_options)
    np.testing.assert_allclose(out.numpy(), peer.detach().numpy(), atol=1e-5)
    g = draw(*out.shape, seed=9)
    out.backward(g)
    peer.backward(torch.tensor(g))
    for a, b in zip(ours, theirs):
        np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), atol=2e-5)


@pytest.mark.parametrize("name", ["attend", "attend_back"])
def test_rules_hold_in_many_blocks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    "Both derivatives and both modes, with one query at a time in the second order."
    monkeypatch.setattr(A, "BLOCK", 1)
    for row in check_primitive(TABLE[name]):
        assert row.ok, row


def test_blocks_agree_with_the_whole_matrix() -> None:
    q, k, v = three((2, 2), 150, 200, 8, 8)
    mask = draw(2, 1, 150, 200) > 0
    for options in ({}, {"is_causal": True}, {"attn_mask": mask, "is_causal": True}):
        whole = matmul(attention_weights(q, k, **options), v)
        np.testing.assert_allclose(sdpa(q, k, v, **options).numpy(), whole.numpy(), atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 70), st.integers(1, 70), st.booleans(), st.integers(0, 3), st.integers(0, 10**6)
)
def test_any_length_and_mask(t: int, s: int, causal: bool, bar: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    q, k, v = (rng.normal(size=(2, n, 3)) * 3 for n in (t, s, s))
    mask = rng.random((2, t, s)) < bar / 3 if bar < 3 else None
    out = sdpa(q, k, v, mask, is_causal=causal)
    whole = matmul(attention_weights(q, k, mask, causal), v)
    np.testing.assert_allclose(out.numpy(), whole.numpy(), atol=1e-10)
    assert np.isfinite(out.numpy()).all()


def test_rows_with_nothing_to_look_at_are_zero() -> None:
    "In values, gradients and second derivatives, and nobody warns."
    q, k, v = (Tensor(a, requires_grad=True) for a in three((2,), 4, 5, 3, 3))
    mask = np.ones((4, 5), bool)
    mask[1] = False
    floats = np.where(mask, 0.0, -np.inf).astype("float32")
    for m in (mask, floats):
        with detect_anomaly(), np.errstate(all="raise", under="ignore"):
            out = sdpa(q, k, v, m)
            q.grad = None
            out.sum().backward()
        assert (out.numpy()[:, 1] == 0).all() and (q.grad.numpy()[:, 1] == 0).all()
        assert np.isfinite(q.grad.numpy()).all()
    none = sdpa(q, k, v, np.zeros((4, 5), bool))
    assert (none.numpy() == 0).all()
    first = sdpa(q.detach(), k.detach()[:, :2], v.detach()[:, :2], is_causal=True).numpy()
    assert (first[:, :2] == 0).all() and (first[:, 2:] != 0).all()
    assert (sdpa(q, k.detach()[:, :0], v.detach()[:, :0]).numpy() == 0).all()


def test_large_scores_do_not_overflow() -> None:
    q, k, v = three((1,), 3, 300, 4, 4)
    out = sdpa(q * 1e4, k * 1e2, v).numpy()
    best = (q @ k.swapaxes(-1, -2)).argmax(-1)
    np.testing.assert_allclose(out[0], v[0][best[0]], rtol=1e-6)
    half = sdpa(*(a.astype("float16") for a in (q, k, v)))
    assert half.dtype == "float16"
    np.testing.assert_allclose(half.numpy(), sdpa(q, k, v).numpy(), atol=5e-3)


def test_a_barred_row_in_float16_computes_no_infinity() -> None:
    "And a mask of floats says -inf only where it is; NaN stays NaN."
    q, k, _ = (Tensor(a.astype("float16"), requires_grad=True) for a in three((), 3, 4, 4, 4))
    mask = np.ones((3, 4), bool)
    mask[1] = False
    with np.errstate(all="raise", under="ignore"):
        p = attention_weights(q, k, mask)
        p.sum().backward()
    assert p.dtype == "float16" and (p.numpy().sum(-1).round(2) == [1, 0, 1]).all()
    assert np.isfinite(q.grad.numpy()).all()
    unknown = np.zeros((3, 4))
    unknown[2, 0] = np.nan
    assert (np.isnan(attention_weights(q, k, unknown).numpy()).any(-1) == [0, 0, 1]).all()


def test_the_dtype_is_the_common_one_whichever_way_is_taken() -> None:
    for dtypes in (("float32", "float32", "float64"), ("float16", "float16", "float32")):
        q, k, v = (a.astype(d) for a, d in zip(three((2,), 4, 5, 3, 3), dtypes))
        for mask in (None, np.ones((4, 5), bool), np.zeros((4, 5)), np.zeros((4, 5), "float16")):
            assert sdpa(q, k, v, mask).dtype == dtypes[2]
        p = sdpa(q, k, v, dropout_p=0.5, dropout_key=random.key(0))
        assert p.dtype == dtypes[2]
    assert MultiHeadAttention(8, 2, key=0)(draw(1, 3, 8), mask=np.zeros((3, 3))).dtype == "float32"


def test_groups_broadcast_over_the_batch() -> None:
    q, k, v = draw(1, 8, 3, 4), draw(2, 2, 5, 4, seed=1), draw(2, 2, 5, 4, seed=2)
    out = sdpa(q, k, v, enable_gqa=True).numpy()
    whole = sdpa(q, k.repeat(4, axis=1), v.repeat(4, axis=1)).numpy()
    np.testing.assert_allclose(out, whole, atol=1e-6)


def test_memory_grows_with_the_length_not_its_square() -> None:
    "Forward, backward and the product with a Hessian: four times as long, four times as much."

    def peak(n: int, second: bool) -> int:
        q, k, v = (Tensor(draw(1, n, 16), requires_grad=True) for _ in range(3))
        tracemalloc.start()
        if second:
            slope = grad(lambda q: (sdpa(q, k.detach(), v.detach(), is_causal=True) ** 2).sum())
            jvp(slope, (q.detach(),), (q.detach(),))
        else:
            sdpa(q, k, v, is_causal=True).sum().backward()
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    for second in (False, True):
        small, large = peak(1024, second), peak(4096, second)
        assert large < 4096 * 4096 * 4 / 4  # a quarter of one whole matrix
        assert large < 5 * small, (second, small, large)


def test_transforms() -> None:
    "`vmap` over any of the inputs, `hessian`, and derivatives of a cotangent."
    q, k, v = three((3,), 4, 4, 2, 2)
    masks = draw(3, 4, 4, seed=5) > 0
    one = np.stack([sdpa(q[0], k[0], v[0], m).numpy() for m in masks])
    many = vmap(lambda m: sdpa(q[0], k[0], v[0], m))(masks)
    np.testing.assert_allclose(many.numpy(), one, atol=1e-6)
    both = vmap(lambda a, b: sdpa(a, b, v[0], is_causal=True))(q, k)
    loop = np.stack([sdpa(a, b, v[0], is_causal=True).numpy() for a, b in zip(q, k)])
    np.testing.assert_allclose(both.numpy(), loop, atol=1e-6)
    a, b, c = (x[0].astype("float64") for x in (q, k, v))
    curved = hessian(lambda a: (sdpa(a, b, c) ** 2).sum())(a)
    naive = hessian(lambda a: (matmul(attention_weights(a, b), c) ** 2).sum())(a)
    np.testing.assert_allclose(curved.numpy(), naive.numpy(), atol=1e-10)


def with_the_matrix(q: Any, k: Any, v: Any, p: float, key: Any, **how: Any) -> Any:
    return matmul(dropout(attention_weights(q, k, **how), p, key=key), v)


@pytest.mark.parametrize("block", [2**17, 2**8])
@pytest.mark.parametrize("t, s, causal", [(5, 7, False), (67, 67, True), (9, 70, True)])
def test_dropout_in_blocks_is_that_of_the_matrix(
    t: int, s: int, causal: bool, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(A, "BLOCK", block)
    xs = [Tensor(x, requires_grad=True) for x in three((2, 3), t, s, 4, 6)]
    g, key = Tensor(draw(2, 3, t, 6, seed=4)), random.key(3)
    out = sdpa(*xs, dropout_p=0.3, is_causal=causal, dropout_key=key)
    whole = with_the_matrix(*xs, 0.3, key, is_causal=causal)
    np.testing.assert_allclose(out.numpy(), whole.numpy(), atol=2e-6)
    for a, b in zip(gradients(out, xs, g), gradients(whole, xs, g), strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=5e-6)
    assert not sdpa(*xs, dropout_p=1.0, dropout_key=key).numpy().any()


def test_transforms_of_attention_with_dropout() -> None:
    q, k, v = (Tensor(x.astype("float64")) for x in three((3,), 4, 4, 2, 2))
    how: dict[str, Any] = {"dropout_p": 0.4, "dropout_key": random.key(1), "is_causal": True}

    def plain(q: Any, k: Any, v: Any) -> Any:
        return with_the_matrix(q, k, v, 0.4, random.key(1), is_causal=True)

    many = vmap(lambda q, k: sdpa(q, k, v[0], **how))(q, k)
    one = [sdpa(a, b, v[0], **how).numpy() for a, b in zip(q, k, strict=True)]
    np.testing.assert_allclose(many.numpy(), one, atol=1e-12)
    slopes = vmap(grad(lambda q, v: (sdpa(q, k[0], v, **how) ** 2).sum()))(q, v)
    loop = [grad(lambda q, v: (plain(q, k[0], v) ** 2).sum())(a, b) for a, b in zip(q, v)]
    np.testing.assert_allclose(slopes.numpy(), [x.numpy() for x in loop], atol=1e-12)
    curved = hessian(lambda k: (sdpa(q[0], k, v[0], **how) ** 2).sum())(k[0])
    naive = hessian(lambda k: (plain(q[0], k, v[0]) ** 2).sum())(k[0])
    np.testing.assert_allclose(curved.numpy(), naive.numpy(), atol=1e-10)


@pytest.mark.parametrize("groups", [6, 2])
def test_a_layer_drops_what_its_dropout_says(groups: int) -> None:
    layer = MultiHeadAttention(12, 6, n_kv_heads=groups, causal=True, dropout=0.4, key=0)
    x = Tensor(draw(2, 9, 12))
    out = layer(x).numpy()
    q, k, v = layer.heads(x)
    k, v = (y.repeat(6 // groups, axis=1) for y in (k, v))
    layer.dropout.calls.assign_(0)  # type: ignore[union-attr]
    p = layer.dropout(attention_weights(q, k, is_causal=True))  # type: ignore[misc]
    wanted = layer.out_proj(A.side_by_side(matmul(p, v)))
    np.testing.assert_allclose(out, wanted.numpy(), atol=1e-6)
    layer.dropout.eval()  # type: ignore[union-attr]
    assert (layer(x).numpy() == layer.eval()(x).numpy()).all()


@pytest.mark.parametrize("bias", [True, False])
def test_the_module_is_torchs(bias: bool) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is the peer")
    ours = MultiHeadAttention(12, 3, bias=bias, key=0)
    peer = torch.nn.MultiheadAttention(12, 3, bias=bias, batch_first=True)
    state = {k: torch.tensor(v.numpy()) for k, v in ours.state_dict().items()}
    names = {"in_proj.weight": "in_proj_weight", "in_proj.bias": "in_proj_bias"}
    peer.load_state_dict({names.get(k, k): v for k, v in state.items()})
    x, context, pad = draw(2, 5, 12), draw(2, 7, 12, seed=1), np.arange(7) < np.array([[4], [7]])
    for other, mask in ((None, None), (context, pad[:, None, None])):
        a = Tensor(x, requires_grad=True)
        b = torch.tensor(x, requires_grad=True)
        c = b if other is None else torch.tensor(other)
        hidden = None if mask is None else torch.tensor(~pad)
        out = ours(a, other, mask=mask)
        want, weights = peer(b, c, c, key_padding_mask=hidden, average_attn_weights=False)
        np.testing.assert_allclose(out.numpy(), want.detach().numpy(), atol=1e-5)
        found = ours.weights(a, other, mask=mask)
        np.testing.assert_allclose(found.numpy(), weights.detach().numpy(), atol=1e-5)
        out.sum().backward()
        want.sum().backward()
        np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), atol=1e-5)
        for name, p in peer.named_parameters():
            own = {names.get(k, k): q for k, q in ours.named_parameters()}[name]
            np.testing.assert_allclose(own.grad.numpy(), p.grad.numpy(), atol=1e-4)


def test_rotary_sees_distances_only() -> None:
    "Also far out, also interleaved; and lengths stay."
    q, k = draw(1, 8, dtype="float64"), draw(1, 8, seed=1, dtype="float64")
    for how in (False, True):

        def at(x: Any, p: int, how: bool = how) -> Any:
            return rotary(x, [p], interleaved=how).numpy()

        first = at(q, 3) @ at(k, 1).T
        np.testing.assert_allclose(at(q, 1003) @ at(k, 1001).T, first, atol=1e-10)
        assert abs(at(q, 4) @ at(k, 1).T - first).item() > 1e-3
        np.testing.assert_allclose(np.linalg.norm(at(q, 77)), np.linalg.norm(q))
    both = np.empty_like(q)
    both[..., 0::2], both[..., 1::2] = q[..., :4], q[..., 4:]
    turned = rotary(both, [5], interleaved=True).numpy()
    halves = rotary(q, [5]).numpy()
    np.testing.assert_allclose(turned[..., 0::2], halves[..., :4])
    np.testing.assert_allclose(turned[..., 1::2], halves[..., 4:])


def test_rotary_is_llamas() -> None:
    llama = pytest.importorskip(
        "transformers.models.llama.modeling_llama", reason="transformers is the peer"
    )
    import torch

    x = draw(1, 2, 6, 8)
    angles = np.arange(6)[:, None] * 10000.0 ** (-np.arange(4) / 4)
    angles = torch.tensor(np.concatenate([angles, angles], -1)[None].astype("float32"))
    want, _ = llama.apply_rotary_pos_emb(
        torch.tensor(x), torch.tensor(x), angles.cos(), angles.sin()
    )
    np.testing.assert_allclose(rotary(x).numpy(), want.numpy(), atol=1e-5)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("base", [None, 10000.0])
@pytest.mark.parametrize("pieces", [[1] * 21, [7, 1, 1, 12]])
def test_the_cache_gives_what_the_full_pass_gives(
    kv_heads: int, base: float | None, pieces: list[int]
) -> None:
    layer = MultiHeadAttention(16, 4, n_kv_heads=kv_heads, causal=True, rope_base=base, key=0)
    x, cache, outs, start = draw(2, 21, 16), KVCache(), [], 0
    with no_grad():
        whole = layer(x).numpy()
        for n in pieces:
            outs.append(layer(x[:, start : start + n], cache=cache).numpy())
            start += n
        np.testing.assert_allclose(np.concatenate(outs, 1), whole, atol=1e-5)
        cache.truncate(10)
        again = layer(x[:, 10:13], cache=cache).numpy()
    np.testing.assert_allclose(again, whole[:, 10:13], atol=1e-5)
    assert len(cache) == 13


def test_a_cache_refuses() -> None:
    layer = MultiHeadAttention(8, 2, causal=True, key=0)
    with pytest.raises(GraphError, match="no_grad"):
        layer(draw(1, 2, 8), cache=KVCache())
    with no_grad():
        cache = KVCache(max_length=3)
        layer(draw(1, 2, 8), cache=cache)
        with pytest.raises(A.AttentionError, match="4 places, and max_length is 3"):
            layer(draw(1, 2, 8), cache=cache)
        with pytest.raises(A.AttentionError, match="take a new cache"):
            layer(draw(2, 1, 8), cache=cache)
        assert len(cache) == 2
        with pytest.raises(A.AttentionError, match="holds 2"):
            cache.truncate(5)
        k, v = Tensor(draw(1, 2, 3, 4)), Tensor(draw(1, 2, 1, 4))
        with pytest.raises(A.AttentionError, match=r"\(1, 2, 3, 4\) and values \(1, 2, 1, 4"):
            KVCache().append(k, v)
    with pytest.raises(ValueError, match="max_length is -1"):
        KVCache(-1)


def test_a_refused_call_leaves_the_cache_as_it_was() -> None:
    layer, x, cache = MultiHeadAttention(8, 2, causal=True, key=0), draw(1, 4, 8), KVCache()
    with no_grad():
        whole = layer(x).numpy()
        layer(x[:, :3], cache=cache)
        with pytest.raises(A.AttentionError, match="mask"):
            layer(x[:, 3:], mask=np.ones((1, 3), bool), cache=cache)
        assert len(cache) == 3
        np.testing.assert_allclose(layer(x[:, 3:], cache=cache).numpy(), whole[:, 3:], atol=1e-6)


def test_a_cache_needs_a_mask_or_causal() -> None:
    "Old places can't look at new ones, so without either the full pass would differ."
    layer, x = MultiHeadAttention(8, 2, key=0), draw(1, 3, 8)
    with no_grad():
        with pytest.raises(A.AttentionError, match="causal=True, or a mask"):
            layer(x, cache=KVCache())
        whole, cache = layer(x, mask=causal_mask(3)).numpy(), KVCache()
        for t in range(3):
            out = layer(x[:, t : t + 1], mask=causal_mask(1, t + 1), cache=cache).numpy()
            np.testing.assert_allclose(out[:, 0], whole[:, t], atol=1e-6)


class Model(Module):
    "Ids -> logits, with a leak of one's choice."

    def __init__(self, leak: str = "") -> None:
        self.leak = leak
        self.embedding = Embedding(10, 8, key=0)
        self.attention = MultiHeadAttention(8, 2, causal=leak != "no mask", rope_base=1e4, key=1)

    def forward(self, ids: Any) -> Tensor:
        x = self.embedding(ids)
        if self.leak == "mean over time":
            x = x - x.mean(axis=1, keepdims=True)
        if self.leak == "shifted":
            x = A.concat([x[:, 1:], x[:, :1]], axis=1)
        mask = None
        if self.leak == "mask off by one":
            self.attention.causal = False
            mask = causal_mask(ids.shape[1] + 1).numpy()[1:, :-1]
        x = x + self.attention(x, mask=mask)
        return x * x.max() if self.leak == "largest" else x


def test_the_detector() -> None:
    "Nothing is found where nothing is, every planted leak is, and the model is as it was."
    ids = np.random.default_rng(0).integers(0, 10, (2, 9))
    honest = Model()
    check_causal(honest, ids, at=honest.embedding)
    found = influence(honest, ids, at=honest.embedding)
    assert found.shape == (9, 9) and ((found > 0) == np.tri(9, dtype=bool)).all()
    assert not honest.embedding._hooks and all(p.grad is None for p in honest.parameters())
    for leak in ("no mask", "mean over time", "shifted", "mask off by one", "largest"):
        model = Model(leak)
        with pytest.raises(A.LeakError, match="comes later"):
            check_causal(model, ids, at=model.embedding)
    check_causal(lambda x: x[:, :1] + x, draw(1, 5, 2))
    with pytest.raises(A.LeakError, match="1 leaks, up to 1 ahead: output 2 depends on input 3"):
        check_causal(lambda x: x + x[:, [0, 1, 3, 3, 4]] * 0.001, draw(1, 5, 2))


def test_the_detector_says_when_it_cannot_know() -> None:
    "Without a gradient nothing was looked at, and nothing is passed."
    ids, model = np.arange(6)[None], Model("no mask")
    with no_grad(), pytest.raises(A.AttentionError, match="outside no_grad"):
        check_causal(model, ids, at=model.embedding)
    with pytest.raises(A.AttentionError, match="has no gradient"):
        influence(lambda x: x.detach(), draw(1, 5, 2))
    weight = Tensor(draw(2, 2), requires_grad=True)
    with pytest.raises(A.AttentionError, match="is one detached"):
        check_causal(lambda x: x.detach() @ weight, draw(1, 5, 2))


def test_bad_input_is_named() -> None:
    q, k, v = three((2, 4), 3, 5, 6, 6)
    for bad, words in (
        ((q, k[..., :5], v), "one size"),
        ((q, k, v[..., :4, :]), "5 keys, 4 values"),
        ((q, k[:, :2], v[:, :2]), "don't fit; enable_gqa=True lets heads share"),
        ((draw(3, 4, 3, 6), k, v), "other axes don't fit$"),
        ((q[0, 0, 0], k, v), "length, size"),
        ((q, k, v, np.ones((3, 4), bool)), r"mask \(3, 4\) for scores \(2, 4, 3, 5\)"),
        ((q, k, v, np.ones((3, 5), int)), "booleans or floats, not int64"),
        ((q, k, v, None, 0.5), "dropout_key"),
    ):
        with pytest.raises(A.AttentionError, match=words):
            sdpa(*bad)
    for bad, words in (
        ((q, k[:, :3], v[:, :3]), "4 heads .* don't share 3"),
        ((q, k[:, :2], v), r"don't share 2 of key \(2, 2, 5, 6\) and 4 of value"),
        ((draw(3, 4, 3, 6), k, v), r"query \(3, 4, 3, 6\), key \(2, 4, 5, 6\).* don't fit$"),
        ((q[0, 0], k, v), "heads, length, size"),
    ):
        with pytest.raises(A.AttentionError, match=words):
            sdpa(*bad, enable_gqa=True)
    with pytest.raises(A.AttentionError, match="5 heads don't divide dim 12"):
        MultiHeadAttention(12, 5)
    with pytest.raises(A.AttentionError, match="share"):
        MultiHeadAttention(12, 4, n_kv_heads=3)
    with pytest.raises(A.AttentionError, match=r"\(batch, length, 12\)"):
        MultiHeadAttention(12, 4)(draw(3, 12))
    with pytest.raises(A.AttentionError, match="even size"):
        rotary(draw(3, 5))
    for base in (0.0, -1.0, float("nan")):
        with pytest.raises(A.AttentionError, match="number above 0"):
            rotary(draw(3, 4), base=base)
        with pytest.raises(A.AttentionError, match="rope_base"):
            MultiHeadAttention(8, 2, rope_base=base)
    layer, mask = MultiHeadAttention(8, 2, key=0), np.ones((2, 3, 3), bool)
    for call in (layer, layer.weights):
        with pytest.raises(A.AttentionError, match=r"mask \(2, 3, 3\); \(T, S\) or \(batch"):
            call(draw(2, 3, 8), mask=mask)
    with pytest.raises(A.AttentionError, match="0 to 4"):
        padding_mask([2, 5], 4)
    with pytest.raises(TypeError):
        causal_mask(2.5)  # type: ignore[arg-type]
    assert (attention_weights(draw(2, 0), draw(4, 0)).numpy() == 0.25).all()


def test_dropout_belongs_to_training() -> None:
    layer = MultiHeadAttention(8, 2, n_kv_heads=1, dropout=0.5, key=0)
    x = draw(1, 6, 8)
    first, second = layer(x).numpy(), layer(x).numpy()
    assert np.abs(first - second).max() > 1e-3
    layer.eval()
    plain = MultiHeadAttention(8, 2, n_kv_heads=1, key=0)
    np.testing.assert_allclose(layer(x).numpy(), plain(x).numpy(), atol=1e-6)
