"""The attention tap against the maps that eager attention returns, and that it leaves nothing behind."""

import copy
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, DynamicCache, MllamaForCausalLM, StaticCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaAttention
from transformers.models.mllama.configuration_mllama import MllamaTextConfig

from geomprobe import AttentionProfile, ContextLasso, GeomprobeError, Probe
from geomprobe.capture.attention_mask import attention_mask_of
from geomprobe.capture.attention_tap import AttentionCall
from geomprobe.core import attention_summary as attention
from geomprobe.core.attention_summary import AttentionRows
from tests.accumulators.harness import FIRST, attended
from tests.capture.test_architectures import ARCHITECTURES, LENGTH, build
from tests.capture.watching import on_capture
from tests.tiny_models import hooks, padded, snapshot, tiny, token_batch

pytestmark = pytest.mark.slow  # it runs every architecture

LAYERS = ("layer_00", "layer_01", "layer_02")
TEXTS = [token_batch(1, length, seed=length)[0] for length in (LENGTH, 7, 5)]
HAS_ATTENTION = [name for name in ARCHITECTURES if name != "Mamba"]


class Maps(Probe):
    """Keeps what each site attends to, forward by forward."""

    def __init__(self, model: nn.Module, **options: Any) -> None:
        metrics = [ContextLasso(attention=True, rate=1e-6), AttentionProfile(sink_tokens=FIRST)]
        super().__init__(model, metrics, on_error="raise", **options)
        self.seen: dict[str, list[AttentionRows]] = {}
        on_capture(self, self._keep)

    def _keep(self, site: str, hidden: Tensor, attention: AttentionRows | None) -> None:
        if attention is not None:
            self.seen.setdefault(site, []).append(attention)


def assert_rows(seen: AttentionRows, weights: Tensor, where: Tensor) -> None:
    """Summaries are those of the weights ``(batch, heads, rows, columns)`` of rows ``where``."""
    assert seen.mean is not None
    torch.testing.assert_close(seen.mean[where], weights.mean(1)[where], rtol=0, atol=1e-6)
    entropy = torch.special.entr(weights).sum(-1)
    torch.testing.assert_close(of_tokens(seen, "entropy", where), entropy.movedim(1, -1)[where], rtol=0, atol=1e-5)


@contextmanager
def no_weights(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if no implementation returned weights: they are computed from q and k."""
    with monkeypatch.context() as patch:
        patch.setattr("geomprobe.capture.attention_tap._weights", lambda *given: None)
        yield


@torch.no_grad()
@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", HAS_ATTENTION)
def test_maps_of_every_architecture(name: str, implementation: str, recomputed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    eager = build(name, attn_implementation="eager")
    if recomputed and (implementation == "sdpa" or name == "Falcon"):
        pytest.skip("SDPA returns no weights; Falcon keeps q and k to itself")
    try:
        model = build(name, attn_implementation=implementation)
    except ValueError:
        pytest.skip(f"{name} has no {implementation}")
    model.load_state_dict(eager.state_dict())
    if name == "Falcon" and implementation == "sdpa":
        with pytest.raises(GeomprobeError, match="load the model with attn_implementation='eager'"):
            Maps(model).attach()
        return
    batches = [padded(TEXTS, "left"), padded(TEXTS, "right"), {"input_ids": token_batch(2, LENGTH)}]
    for batch in batches:
        maps = eager(**batch, output_attentions=True, use_cache=False).attentions
        bare = model(**batch, use_cache=False).logits
        with no_weights(monkeypatch) if recomputed else contextmanager(lambda: iter([None]))(), Maps(model) as probe:
            assert torch.equal(model(**batch, use_cache=False).logits, bare)
        tokens = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
        assert set(probe.seen) == {*LAYERS, "final_norm"}
        for site, weights in zip((*LAYERS, "final_norm"), (*maps, maps[-1]), strict=True):
            assert_rows(probe.seen[site][0], weights, tokens)


@torch.no_grad()
@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="PyTorch compiles flex attention for AVX2 on")
@pytest.mark.parametrize("name", ["Llama", "Gemma 2"])  # Gemma 2: windows, soft caps
def test_maps_of_flex_attention(name: str) -> None:
    eager, model = build(name, attn_implementation="eager"), build(name, attn_implementation="flex_attention")
    model.load_state_dict(eager.state_dict())
    batch = padded(TEXTS, "left")
    maps = eager(**batch, output_attentions=True, use_cache=False).attentions
    with Maps(model) as probe:
        model(**batch, use_cache=False)
    for site, weights in zip(LAYERS, maps, strict=True):
        assert_rows(probe.seen[site][0], weights, batch["attention_mask"].bool())


@contextmanager
def emulated_flash(model: Any) -> Iterator[None]:
    """``model`` with the masks and options that flash attention is given; what it computes then does not matter here."""
    ALL_ATTENTION_FUNCTIONS["flash_attention_2"] = lambda module, query, *rest, **options: (
        query.transpose(1, 2).contiguous(),
        None,
    )
    model.config._attn_implementation = "flash_attention_2"
    try:
        yield
    finally:
        del ALL_ATTENTION_FUNCTIONS["flash_attention_2"]


@torch.no_grad()
@pytest.mark.parametrize("name", ["Llama", "Mistral", "Gemma 2"])
@pytest.mark.parametrize("layout", ["left", "right", "packed"])
def test_maps_from_the_masks_of_flash_attention(name: str, layout: str) -> None:
    """The first layer's, whose q and k do not hang on what attention gave before."""
    eager = build(name, attn_implementation="eager")
    if layout == "packed":
        positions = torch.cat([torch.arange(len(text)) for text in TEXTS]).unsqueeze(0)
        batch = {"input_ids": torch.cat(TEXTS).unsqueeze(0), "position_ids": positions}
    else:
        batch = padded(TEXTS, layout)
    first = eager(**batch, output_attentions=True, use_cache=False).attentions[0]
    model = build(name)
    model.load_state_dict(eager.state_dict())
    with emulated_flash(model), Maps(model) as probe:
        model(**batch, use_cache=False)
    assert_rows(probe.seen["layer_00"][0], first, batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool())


@torch.no_grad()
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", ["GPT-NeoX", "Llama", "Mistral", "Gemma 3 (text)", "GPT-OSS", "Falcon"])
def test_generation_gives_a_row_per_step_and_the_maps_of_the_finished_text(name: str, cache: str) -> None:
    model = build(name, attn_implementation="eager" if name in ("GPT-OSS", "Falcon") else "sdpa")
    batch = padded(TEXTS, "left")
    del batch["position_ids"]
    how = {"do_sample": False, "max_new_tokens": 6, "cache_implementation": cache, "disable_compile": True}
    with Maps(model) as probe:
        output = model.generate(**batch, **how)
    eager = build(name, attn_implementation="eager")
    eager.load_state_dict(model.state_dict())
    whole = output[:, :-1]
    mask = torch.nn.functional.pad(batch["attention_mask"], (0, 5), value=1)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    maps = eager(whole, attention_mask=mask, position_ids=positions, output_attentions=True, use_cache=False).attentions
    for site, weights in zip(LAYERS, maps, strict=True):
        seen = probe.seen[site]
        assert [rows.entropy.shape[-1] for rows in seen] == [LENGTH, 1, 1, 1, 1, 1]
        joined = AttentionRows.joined(seen)
        assert_rows(joined, weights, mask.bool())
        twin = summaries(weights, mask.bool())
        for what in ("first", "distance", "octaves", "picks"):
            torch.testing.assert_close(of_tokens(joined, what, mask.bool()), twin[what], rtol=1e-4, atol=1e-4)


def of_tokens(rows: AttentionRows, what: str, tokens: Tensor) -> Tensor:
    """A summary in the rows that are tokens, as :func:`summaries` gives it."""
    values: Tensor = getattr(rows, what)
    return (values.movedim(-1, 1) if what in ("entropy", "first", "distance") else values)[tokens]


def summaries(weights: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    """Of weights ``(batch, heads, T, T)`` in the rows that are tokens, written out from the definitions."""
    position = tokens.cumsum(1) - 1
    back = (position.unsqueeze(-1) - position.unsqueeze(-2)).clamp_min(0)
    begins = torch.stack([(position == k) & tokens for k in range(FIRST)], 1).unsqueeze(-2)  # (batch, K, 1, columns)
    mean = weights.mean(1)
    octave = torch.where(back > 0, back.clamp_min(1).double().log2().floor().long() + 1, 0)
    places = 1 + (tokens.shape[1] - 1).bit_length()
    return {
        "first": (weights.unsqueeze(2) * begins.unsqueeze(1)).sum(-1).movedim(-1, 1)[tokens],
        "distance": (weights * back.unsqueeze(1)).sum(-1).movedim(1, -1)[tokens],
        "picks": (mean > attention.PICKED).sum(-1)[tokens].to(mean),
        "octaves": torch.stack([(mean * (octave == k)).sum(-1) for k in range(places)], -1)[tokens],
    }


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("entries", [1 << 19, 60], ids=["one chunk", "chunks"])
def test_summaries_are_those_of_the_maps_in_chunks_of_any_size(
    side: str, entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_ENTRIES", entries)
    model, batch = build("Mistral"), padded(TEXTS, side)
    eager = build("Mistral", attn_implementation="eager")
    eager.load_state_dict(model.state_dict())
    maps = eager(**batch, output_attentions=True, use_cache=False).attentions
    tokens = batch["attention_mask"].bool()
    with Maps(model) as probe, Maps(eager) as given:
        model(**batch, use_cache=False)
        eager(**batch, use_cache=False)
    for seen in (probe.seen, given.seen):
        for site, weights in zip(LAYERS, maps, strict=True):
            rows, twin = seen[site][0], summaries(weights, tokens)
            assert_rows(rows, weights, tokens)
            for what in ("first", "distance"):
                torch.testing.assert_close(of_tokens(rows, what, tokens), twin[what], rtol=1e-5, atol=1e-5)
            for what in ("picks", "octaves"):
                torch.testing.assert_close(of_tokens(rows, what, tokens), twin[what], rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("entries", [1 << 19, 60], ids=["one chunk", "chunks"])
@pytest.mark.parametrize("name", ["GPT-NeoX", "Llama", "Mistral", "Gemma 2", "GPT-2", "OPT", "Cohere"])
def test_largest_logits_are_those_that_enter_the_softmax_of_eager(
    name: str, entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_ENTRIES", entries)
    eager, batch, scores = build(name, attn_implementation="eager"), padded(TEXTS, "left"), list[Tensor]()
    softmax = torch.nn.functional.softmax

    def kept(given: Tensor, *rest: Any, **options: Any) -> Tensor:
        scores.append(given.amax(-1))
        return softmax(given, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr("torch.nn.functional.softmax", kept)
        eager(**batch, use_cache=False)
    assert len(scores) == len(LAYERS)
    tokens = batch["attention_mask"].bool()
    for implementation in ("eager", "sdpa") if name != "Gemma 2" else ("eager",):
        model = build(name, attn_implementation=implementation)
        model.load_state_dict(eager.state_dict())
        bare = model(**batch, use_cache=False).logits
        with Probe(model, [AttentionProfile(logits=True)], on_error="raise") as probe:
            assert torch.equal(model(**batch, use_cache=False).logits, bare)
        reading = probe.read()
        for site, top in zip(LAYERS, scores, strict=True):
            targets = top.movedim(1, -1)[tokens & (tokens.cumsum(1) > 1)].double()
            curve = reading.curve("attention_top_logit_by_head", site)
            assert curve.mean == pytest.approx(targets.mean(0).tolist(), rel=1e-4, abs=1e-5)
            assert reading[f"attention_top_logit/{site}"] == pytest.approx(float(targets.mean()), rel=1e-4, abs=1e-5)


def test_logits_that_cannot_be_observed_are_refused() -> None:
    model = build("Falcon", attn_implementation="eager")
    with pytest.raises(GeomprobeError, match="so its logits cannot be observed: leave logits=True"):
        Probe(model, [AttentionProfile(logits=True)]).attach()


@torch.no_grad()
def test_packed_texts_attend_as_alone() -> None:
    model = tiny("llama")
    ids = torch.cat(TEXTS).unsqueeze(0)
    positions = torch.cat([torch.arange(len(text)) for text in TEXTS]).unsqueeze(0)
    with Maps(model) as probe:
        model(ids, position_ids=positions, use_cache=False)
    packed = probe.seen["layer_01"][0]
    start = 0
    for text in TEXTS:
        with Maps(model) as probe:
            model(text.unsqueeze(0), use_cache=False)
        alone, end = probe.seen["layer_01"][0], start + len(text)
        for what in ("entropy", "first", "distance"):
            torch.testing.assert_close(getattr(packed, what)[..., start:end], getattr(alone, what), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(packed.octaves[:, start:end, : alone.octaves.shape[-1]], alone.octaves, rtol=1e-4, atol=1e-5)
        start = end


def test_training_with_dropout_and_checkpointing_changes_no_gradient() -> None:
    batch, grads = token_batch(2, LENGTH), []
    for watched in (False, True):
        for implementation in ("eager", "sdpa"):
            model = tiny("llama", attention_dropout=0.5, attn_implementation=implementation).train()
            model.gradient_checkpointing_enable({"use_reentrant": False})
            torch.manual_seed(0)
            if watched:
                with Maps(model) as probe:
                    model(batch, labels=batch, use_cache=False).loss.backward()
                quiet = tiny("llama", attn_implementation="eager").eval()
                quiet.load_state_dict(model.state_dict())
                with torch.no_grad():
                    first = quiet(batch, output_attentions=True, use_cache=False).attentions[0]
                assert_rows(probe.seen["layer_00"][0], first, torch.ones_like(batch).bool())  # as before dropout
                assert [len(rows) for rows in probe.seen.values()] == [1] * len(probe.seen)  # no replay
            else:
                model(batch, labels=batch, use_cache=False).loss.backward()
            grads.append([parameter.grad for parameter in model.parameters()])
    half = len(grads) // 2
    for bare, beside in zip(grads[:half], grads[half:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(bare, beside, strict=True))


def registry() -> dict[str, Any]:
    return {**ALL_ATTENTION_FUNCTIONS, **vars(ALL_ATTENTION_FUNCTIONS)}


def test_everything_is_put_back() -> None:
    before, model = registry(), tiny("llama")
    kept = snapshot(model)
    other = tiny("gpt_neox")
    own = lambda *arguments, **options: arguments  # noqa: E731
    ALL_ATTENTION_FUNCTIONS["mine"] = own
    try:
        first, second = Maps(model).attach(), Maps(other).attach()
        assert registry() != before
        first.close()
        with torch.no_grad():
            other(token_batch())  # goes on being watched
            model(token_batch())
        second.close()
        assert set(second.seen) == {*second.sites} - {"embed"}
        assert not first.seen
        assert ALL_ATTENTION_FUNCTIONS["mine"] is own
    finally:
        del ALL_ATTENTION_FUNCTIONS["mine"]
    assert registry() == before
    assert snapshot(model) == kept
    with pytest.raises(RuntimeError, match="out of"), Maps(model):
        raise RuntimeError("out of the loop")
    assert registry() == before
    dropped = Maps(third := tiny("llama")).attach()
    assert registry() != before
    del dropped, third
    gc.collect()
    assert registry() == before  # a probe that was dropped with its model


def test_attaching_that_fails_half_way_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, before = tiny("llama"), registry()
    kept = snapshot(model)
    monkeypatch.setattr("geomprobe.capture.dynamo_ops.register", lambda capture: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        Maps(model).attach()
    assert registry() == before
    assert snapshot(model) == kept


@torch.no_grad()
def test_an_entry_that_another_puts_there_meanwhile_is_used_and_stays() -> None:
    model, before, calls = tiny("llama"), registry(), []
    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def theirs(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments[0])
        return sdpa(*arguments, **options)

    try:
        with Maps(model) as probe:
            ALL_ATTENTION_FUNCTIONS["sdpa"] = theirs
            model(token_batch())
        assert len(calls) == 3
        assert len(probe.seen) == 4
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is theirs
    finally:
        del ALL_ATTENTION_FUNCTIONS["sdpa"]
    assert registry() == before


@torch.no_grad()
def test_a_copy_of_a_watched_model_is_not_watched() -> None:
    model = tiny("llama")
    with Maps(model) as probe:
        copy.deepcopy(model)(token_batch())
    assert not probe.seen


class OwnEager(LlamaAttention):  # type: ignore[misc]
    """Attention of a user's own file, with an eager function of its own, and arguments by name."""

    def forward(self, hidden_states: Tensor, **options: Any) -> Any:
        function = ALL_ATTENTION_FUNCTIONS.get_interface("eager", self.quiet)
        states = self.q_proj(hidden_states).view(*hidden_states.shape[:-1], -1, self.head_dim).transpose(1, 2)
        return function(self, query=states, key=states, value=states, attention_mask=None, scaling=1.0)

    @staticmethod
    def quiet(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any) -> Any:
        weights = torch.full((*query.shape[:3], key.shape[2]), 1 / key.shape[2])
        return (weights @ value).transpose(1, 2).flatten(2), weights


@torch.no_grad()
@pytest.mark.parametrize("watched", [False, True])
def test_a_models_own_eager_function_is_called_as_it_calls_it(watched: bool) -> None:
    """Also that of a model that nobody watches, while another is watched."""
    model = tiny("llama")
    for layer in model.model.layers:
        layer.self_attn.__class__ = OwnEager
    bare = model(ids := token_batch(2, LENGTH)).logits
    with Maps(model if watched else tiny("gpt_neox")) as probe:
        assert torch.equal(model(ids).logits, bare)
    assert bool(probe.seen) == watched
    if watched:
        assert_rows(probe.seen["layer_01"][0], torch.full((2, 4, LENGTH, LENGTH), 1 / LENGTH), torch.ones_like(ids).bool())


@torch.no_grad()
def test_layers_that_share_their_attention_have_each_their_own() -> None:
    model = tiny("llama")
    model.model.layers[2].self_attn = model.model.layers[0].self_attn
    eager = tiny("llama", attn_implementation="eager")
    eager.load_state_dict(model.state_dict())
    ids = token_batch(2, LENGTH)
    maps = [weights.mean(1) for weights in eager(ids, output_attentions=True, use_cache=False).attentions]
    with Maps(model) as probe:
        model(ids, use_cache=False)
    for site, expected in zip(LAYERS, maps, strict=True):
        torch.testing.assert_close(probe.seen[site][0].mean, expected, rtol=0, atol=1e-6)


@torch.no_grad()
def test_models_that_share_layers_are_watched_one_at_a_time() -> None:
    model, other = tiny("llama"), tiny("llama")
    other.model.layers = model.model.layers
    with Maps(model) as probe:
        with pytest.raises(GeomprobeError, match="close that probe first"):
            Maps(other).attach()
        model(token_batch(), use_cache=False)
    assert len(probe.seen) == 4
    assert hooks(other) == []
    with Maps(other) as probe:
        other(token_batch(), use_cache=False)
    assert len(probe.seen) == 4


@torch.no_grad()
def test_layers_without_attention_and_those_that_look_at_an_encoder_have_none() -> None:
    hybrid = tiny(
        "qwen3_next",
        layer_types=["linear_attention", "full_attention", "linear_attention"],
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    )
    with Maps(hybrid) as probe:
        hybrid(token_batch(), use_cache=False)
    assert list(probe.seen) == ["layer_01"]
    with Maps(hybrid, sites=[0, "final_norm"]) as probe:
        hybrid(token_batch(), use_cache=False)
    assert not probe.seen
    crossing = MllamaForCausalLM(
        MllamaTextConfig(
            vocab_size=64,
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=64,
            cross_attention_layers=[1],
            pad_token_id=0,
        )
    ).eval()
    with Maps(crossing) as probe:
        crossing(token_batch(2, LENGTH), cross_attention_states=torch.randn(2, 30, 32), use_cache=False)
    assert set(probe.seen) == {"layer_00", "layer_02", "final_norm"}


@torch.no_grad()
def test_where_there_is_no_attention_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GeomprobeError, match="MambaModel has no attention to measure"):
        Maps(build("Mamba")).attach()
    model = tiny("llama")
    kept_to_itself = pytest.raises(GeomprobeError, match=r"neither gets its attention function from Transformers")
    with Maps(model) as probe, kept_to_itself:
        monkeypatch.setattr("transformers.models.llama.modeling_llama.ALL_ATTENTION_FUNCTIONS", AttentionInterface())
        model(token_batch())
    assert probe.fault is not None


@pytest.mark.parametrize("part", ["rows", "of"])
def test_a_fault_in_the_tap_leaves_the_model_alone(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch, before = tiny("llama"), token_batch(), registry()
    with torch.no_grad():
        bare = model(batch).logits
        monkeypatch.setattr(AttentionCall, part, lambda *arguments, **options: 1 / 0)
        with Probe(model, [AttentionProfile()]):
            with pytest.warns(RuntimeWarning, match="ZeroDivisionError"):
                logits = model(batch).logits
            assert torch.equal(logits, bare)
            assert registry() == before  # taken off


@torch.no_grad()
@pytest.mark.parametrize("metric", [AttentionProfile(), ContextLasso(penalty=0.01, attention=True)], ids=str)
def test_numbers_do_not_hang_on_padding_batch_or_how_texts_arrive(metric: Any) -> None:
    model = tiny("llama")
    with Probe(model, [metric], on_error="raise") as alone:
        for text in TEXTS:
            model(text.unsqueeze(0), use_cache=False)
    expected = alone.read()
    ways: list[dict[str, Any]] = [padded(TEXTS, "left"), padded(TEXTS, "right"), {}]
    for batch in ways:
        with Probe(model, [metric], on_error="raise") as probe:
            if batch:
                model(**batch, use_cache=False)
            else:
                for text in TEXTS:
                    cache = DynamicCache(config=model.config)
                    for part in (text[:3], text[3:4], text[4:]):
                        model(part.unsqueeze(0), past_key_values=cache)
        assert dict(probe.read()) == pytest.approx(dict(expected), rel=1e-3, abs=1e-3, nan_ok=True)


@torch.no_grad()
def test_a_text_fed_again_at_every_step_is_counted_once() -> None:
    model = tiny("llama", eos_token_id=None)
    ids = token_batch(2, LENGTH)
    with Probe(model, [AttentionProfile()], on_error="raise") as probe:
        output = model.generate(ids, attention_mask=torch.ones_like(ids), use_cache=False, do_sample=False, max_new_tokens=4)
    with Probe(model, [AttentionProfile()], on_error="raise") as whole:
        model(output[:, :-1], use_cache=False)
    assert dict(probe.read()) == pytest.approx(dict(whole.read()), rel=1e-4, abs=1e-5, nan_ok=True)


@torch.no_grad()
def test_a_static_cache_filled_at_once() -> None:
    """SDPA is given no mask then, and more keys than there are tokens."""
    model = tiny("llama")
    ids = token_batch(2, LENGTH)
    with Maps(model) as plain:
        model(ids, use_cache=False)
    with Maps(model) as probe:
        model(ids, past_key_values=StaticCache(config=model.config, max_cache_len=40))
    for site, rows in plain.seen.items():
        torch.testing.assert_close(probe.seen[site][0].mean, rows[0].mean)
        torch.testing.assert_close(probe.seen[site][0].octaves, rows[0].octaves)


def test_a_padding_mask_of_more_columns_than_there_are_keys_ends_with_them() -> None:
    """A window has dropped the oldest keys."""
    mask = attention_mask_of("flash_attention_2", torch.tensor([[1, 1, 1, 0, 1, 1]]), 1, 4, True, None, None)
    mask.hide(slice(0, 1), scores := torch.zeros(1, 1, 1, 4))
    assert (scores == 0).flatten().tolist() == [True, False, True, True]


def test_the_slow_twin_of_the_harness_agrees() -> None:
    """What stands in for a tap in the harness of accumulators is the same function of scores."""
    from geomprobe.core.rows import Rows

    rows = Rows(torch.randn(2, 9, 8, generator=torch.Generator().manual_seed(0)))
    unit = rows.unit().double().unsqueeze(1)
    query = torch.cat([unit, -3 * unit], 1)
    layout = attention.Layout.of(rows.mask, 9)
    mask = attention_mask_of("sdpa", None, 9, 9, True, None, None)
    request = attention.AttentionRequest(FIRST, maps=True, logits=True)
    fast, slow = attention.from_scores(query, unit, layout, mask, scale=1.0, request=request), attended(rows)
    for what in ("entropy", "first", "distance", "picks", "mean", "top"):
        torch.testing.assert_close(getattr(fast, what), getattr(slow, what), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(fast.octaves[..., : slow.octaves.shape[-1]], slow.octaves, rtol=1e-12, atol=1e-12)
