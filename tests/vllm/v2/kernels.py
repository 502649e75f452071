"""NumPy stand-ins for the triton kernels of a decoding step in vLLM's V2 runner (0.32), for tests on a CPU.

Each takes the launch arguments of the kernel whose name it bears and gives the same result; arguments that only steer
the launch go to `**_`. They take the place of vLLM's through its own registry (`triton_utils.dispatcher`), so nothing
in vLLM is edited. Context parallelism, block verification, draft logits and watermarks are refused.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

_GPU = "vllm.v1.worker.gpu."


def _at(address: int, count: int) -> np.ndarray:
    """Return the `count` int32 numbers at an address, of which block tables keep a list."""
    return np.ctypeslib.as_array((ctypes.c_int32 * count).from_address(address))


# -- buffers and block tables


def apply_write(output, stride, indices, starts, contents, ends, groups, **_):
    indices, starts, ends, contents = indices.numpy(), starts.numpy(), ends.numpy(), contents.numpy()
    begin = 0
    for i, end in enumerate(ends[: len(indices)].tolist()):
        text = contents[begin:end]
        if groups is None:
            output.numpy().reshape(-1)[(first := int(indices[i]) * stride + int(starts[i])) : first + len(text)] = text
        else:
            group = int(groups[i])
            first = int(indices[i]) * int(stride[group]) + int(starts[i])
            _at(int(output.numpy()[group]) + 4 * first, len(text))[:] = text
        begin = end


def gather_block_tables(rows, source, target, strides, blocks, blocks_stride, requests, **_):
    at = rows.numpy()
    for group, width in enumerate(strides.tolist() if len(at) else ()):
        held = blocks.numpy()[group][at]
        tables = _at(int(source.numpy()[group]), (int(at.max()) + 1) * width).reshape(-1, width)
        out = _at(int(target.numpy()[group]), len(at) * width).reshape(-1, width)
        for i, (row, count) in enumerate(zip(at.tolist(), held.tolist(), strict=True)):
            out[i, :count] = tables[row, :count]


def compute_slot_mappings(
    most, rows, starts, positions, tables, strides, sizes, enabled, sharded, out, stride, cp_rank, CP_SIZE, PAD_ID, **_
):
    assert CP_SIZE == 1, "context parallelism is not supported here"
    at, ends, out = rows.numpy(), starts.numpy()[: len(rows) + 1], out.numpy()
    begin, end = int(ends[0]), int(ends[-1])
    owner, place = np.repeat(at, np.diff(ends)), positions.numpy()[begin:end]
    for group, width in enumerate(strides.tolist()):
        size = int(sizes[group])
        out[group, begin:end] = PAD_ID
        mine = np.flatnonzero(owner >= 0) if enabled[group] else np.zeros(0, np.int64)
        if len(mine):
            table = _at(int(tables.numpy()[group]), (int(at.max()) + 1) * width).reshape(-1, width)
            block = table[owner[mine], place[mine] // size].astype(np.int64)
            out[group, begin + mine] = block * size + place[mine] % size
        out[group, end:most] = PAD_ID


# -- inputs and states


def prepare_prefill_inputs(
    input_ids, ahead, ahead_stride, lookahead, rows, starts, text, text_stride, prefill, computed, **_
):
    input_ids, ahead, text = input_ids.numpy(), ahead.numpy(), text.numpy()
    for i, row in enumerate(rows.tolist()):
        done, length = int(computed[row]), int(prefill[row])
        if done >= length:
            continue
        begin, end = int(starts[i]), int(starts[i + 1])
        input_ids[begin:end] = text[row, done : done + end - begin]
        for k in range(lookahead):
            at = done + end - begin + k
            ahead[k, row] = text[row, at] if at < length else 0


def prepare_pos_seq_lens(positions, lengths, rows, starts, computed, most, **_):
    at, lengths = rows.numpy(), lengths.numpy()
    counts = np.diff(starts.numpy()[: len(at) + 1])
    done, begin = computed.numpy()[at], int(starts[0])
    lengths[: len(at)] = done + counts
    lengths[len(at) : most] = 0
    place = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    positions.numpy()[begin : begin + len(place)] = np.repeat(done, counts) + place


def combine_sampled_and_draft_tokens(
    input_ids, rows, last, starts, lengths, prefill, drafts, stride, cu_logits, out, NUM_NEW_SAMPLED_TOKENS=1, **_
):
    input_ids, out, last, drafts = input_ids.numpy(), out.numpy(), last.view(-1).numpy(), drafts.numpy()
    cu_logits, starts, lengths, prefill = cu_logits.numpy(), starts.numpy(), lengths.numpy(), prefill.numpy()
    for i, row in enumerate(rows.tolist()):
        first = int(cu_logits[i])
        count = int(cu_logits[i + 1]) - first
        end, drafted = int(starts[i + 1]), count - NUM_NEW_SAMPLED_TOKENS
        out[first : first + count] = np.arange(end - count, end)
        length, prompt = int(lengths[i]), int(prefill[row])
        if length <= prompt:
            continue
        if NUM_NEW_SAMPLED_TOKENS > 0 and length - count >= prompt:
            input_ids[end - count] = last[row]
        if drafted > 0:
            input_ids[end - drafted : end] = drafts[row, :drafted]


def get_num_sampled_and_rejected(sampled, rejected, lengths, cu_logits, rows, prefill, **_):
    at = rows.numpy()
    reading = lengths.numpy()[: len(at)] < prefill.numpy()[at]
    sampled.numpy()[reading] = 0
    rejected.numpy()[:] = np.where(reading, 0, np.diff(cu_logits.numpy()) - sampled.numpy())


def post_update(
    rows,
    computed,
    last,
    counts,
    counts_stride,
    sampled,
    sampled_stride,
    num_sampled,
    num_rejected,
    starts,
    text,
    text_stride,
    total,
    **_,
):
    at = rows.numpy()
    live = np.flatnonzero(at >= 0)
    at, new, got = at[live], sampled.numpy()[live], num_sampled.numpy()[live]
    queries = np.zeros_like(got) if starts is None else np.diff(starts.numpy())[live]
    text, last, total = text.numpy(), last.view(-1).numpy(), total.numpy()
    for i in np.flatnonzero(got).tolist():
        row, tokens, length = at[i], new[i, : got[i]], total[at[i]]
        last[row] = tokens[-1]
        text[row, length : length + len(tokens)] = tokens
        total[row] = length + len(tokens)
        if counts is not None:
            np.add.at(counts.numpy()[row], tokens, 1)
    computed.numpy()[at] += queries - num_rejected.numpy()[live]


def expand_idx_mapping(rows, expanded, local, cu_logits, **_):
    counts = np.diff(cu_logits.numpy()[: len(rows) + 1])
    expanded.numpy()[:] = np.repeat(rows.numpy(), counts)
    local.numpy()[:] = np.concatenate([np.arange(count) for count in counts.tolist()] or [[]])


def gather_draft_sampled(drafts, at, input_ids, positions, indices, rows, local, prefill, count, **_):
    where = indices.numpy()
    position, step = positions.numpy()[where], local.numpy()
    placeholder = (step > 0) & (position - step < prefill.numpy()[rows.numpy()])
    drafts.numpy()[:] = np.where(placeholder, -1, input_ids.numpy()[where])
    at.numpy()[:] = position


def flatten_sampled(flat, sampled, stride, num_sampled, cu_logits, **_):
    for i, count in enumerate(num_sampled.tolist()):
        flat[int(cu_logits[i]) : int(cu_logits[i]) + count] = sampled[i, :count]


# -- sampling


def _mix(h: np.ndarray, key: np.ndarray) -> np.ndarray:
    key = key * np.uint32(0xCC9E2D51)
    key = ((key << np.uint32(15)) | (key >> np.uint32(17))) * np.uint32(0x1B873593)
    h = h ^ key
    return ((h << np.uint32(13)) | (h >> np.uint32(19))) * np.uint32(5) + np.uint32(0xE6546B64)


def _unsigned(value: Any) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value.astype(np.int64).view(np.uint64)
    return np.array(value & 0xFFFFFFFFFFFFFFFF, np.uint64)


def murmur3(seed: Any, position: Any, tokens: np.ndarray) -> np.ndarray:
    """Return 32 random bits a token: murmur3 x86-32 over (seed low, seed high, position, token).

    Seeds and positions are numbers, or int64 arrays that go with `tokens`.
    """
    seed, position = _unsigned(seed), _unsigned(position)
    h = np.zeros(1, np.uint32)
    for word in (seed, seed >> np.uint64(32), position):
        h = _mix(h, (word & np.uint64(0xFFFFFFFF)).astype(np.uint32))
    h = _mix(h, tokens.astype(np.uint32)) ^ np.uint32(16)
    h = (h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    h = (h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return h ^ (h >> np.uint32(16))


def gumbel(seed: Any, position: Any, tokens: np.ndarray) -> np.ndarray:
    """Return float32 noise: -log(-log1p(-u)), the inner logarithm by a series where u is below 1/4."""
    bits = murmur3(seed, position, tokens)
    one = np.float32(1.0)
    u = (bits >> np.uint32(16)).astype(np.float32) * np.float32(2**-16)
    u = u + ((bits & np.uint32(0xFFFF)).astype(np.float32) + np.float32(0.5)) * np.float32(2**-32)
    series = np.float32(1 / 8)
    for n in range(7, 0, -1):
        series = np.float32(1 / n) + u * series
    direct = np.log(np.maximum(one - u, np.float32(5.960464477539063e-08)))
    return -np.log(-np.where(u < 0.25, -u * series, direct))


def gumbel_sample(
    argmax, argmax_stride, best, best_stride, cache, cache_0, cache_1, cache_column, source, source_stride, logits,
    logits_stride, rows, seeds, positions, temperatures, vocab, BLOCK_SIZE, IS_DRAFTING, APPLY_TEMPERATURE, USE_FP64,
    **_,
):  # fmt: skip
    assert cache is None
    assert not USE_FP64
    at = rows.numpy()
    heat = np.where(at >= 0, temperatures.numpy()[at], np.float32(0))
    values = logits[: len(at), :vocab].float().numpy().copy()
    drawn = np.flatnonzero(heat)
    if APPLY_TEMPERATURE:
        values[drawn] /= heat[drawn, None]
    where = positions.numpy()[drawn].astype(np.int64) + IS_DRAFTING * (1 << 30)
    values[drawn] += gumbel(seeds.numpy()[at[drawn]][:, None], where[:, None], np.arange(vocab)[None, :])
    for block in range(argmax.shape[1]):
        part = values[:, block * BLOCK_SIZE : (block + 1) * BLOCK_SIZE]
        argmax.numpy()[: len(at), block] = block * BLOCK_SIZE + part.argmax(1)
        best.numpy()[: len(at), block] = part.max(1)


def temperature(logits, stride, rows, temperatures, vocab, **_):
    scale = temperatures[rows.long()].clone()
    scale[scale == 0] = 1
    logits /= scale[:, None]


def philox_uniform(seeds: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Return the first of the four numbers of Philox 4x32-10, as `tl.rand` gives it, but never zero: float32 [n]."""
    seeds, positions, low, high = _unsigned(seeds), _unsigned(positions), np.uint64(0xFFFFFFFF), np.uint64(32)
    c0, c1, c2, c3 = positions & low, positions >> high, np.uint64(0), np.uint64(0)
    k0, k1 = seeds & low, seeds >> high
    for _ in range(10):
        b, a = np.uint64(0xCD9E8D57) * c2, np.uint64(0xD2511F53) * c0
        c0, c1, c2, c3 = (b >> high) ^ c1 ^ k0, b & low, (a >> high) ^ c3 ^ k1, a & low
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
    c0 = np.where(c0 & np.uint64(0x80000000), c0 ^ low, c0)  # negative as int32: -x - 1
    return np.maximum(c0.astype(np.float32) * np.float32(4.6566127342e-10), np.float32(4.6566127342e-10))


def rejection_sample(
    logits, draft_logits, drafts, cu_logits, positions, idx_mapping, rows, local, temperatures, seeds, width,
    synthetic=None, use_fp64=False, use_block_verification=False, **more,
):  # fmt: skip
    """vLLM's standard verification of certain drafts: accepted with the target's probability, else drawn without it."""
    assert draft_logits is None
    assert synthetic is None
    assert not use_fp64
    assert not use_block_verification
    assert more.get("contexts") is None
    assert not more.get("fly_window_size"), "watermarks and fly are not here"
    values, ends = logits.float().numpy(), cu_logits.numpy().astype(np.int64)
    at, slots = positions.numpy().astype(np.int64), idx_mapping.numpy()
    owner = np.repeat(np.arange(len(ends) - 1), np.diff(ends))
    heat, seed = temperatures.numpy()[slots], seeds.numpy()[slots]
    ahead = np.where(np.arange(1, len(values) + 1) < ends[owner + 1], np.roll(drafts.numpy(), -1)[: len(values)], -1)
    best, accepted = values.argmax(1), _accepted(values, ahead, heat[owner], seed[owner], at)
    sampled, count = np.zeros((len(slots), width + 1), np.int64), np.zeros(len(slots), np.int32)
    for i, (begin, end) in enumerate(zip(ends.tolist(), ends[1:].tolist(), strict=False)):
        count[i] = 1 + int(accepted[begin:end].argmin())  # of the last position nothing is ever accepted
        sampled[i, : count[i] - 1] = ahead[begin : begin + count[i] - 1]
    last = ends[:-1] + count - 1
    noisy = values[last] + gumbel(seed[:, None], at[last][:, None], np.arange(values.shape[1])[None, :])
    rejected = np.flatnonzero(ahead[last] >= 0)
    noisy[rejected, ahead[last][rejected]] = -np.inf
    sampled[np.arange(len(slots)), count - 1] = np.where(heat > 0, noisy.argmax(1), best[last])
    return torch.from_numpy(sampled), torch.from_numpy(count)


def _accepted(values, ahead, heat, seed, at) -> np.ndarray:
    """Return whether each position takes the draft that stands ahead of it: bool [N]; no draft (-1): False."""
    top = values.max(1)
    share = values[np.arange(len(values)), np.maximum(ahead, 0)] - (top + np.log(np.exp(values - top[:, None]).sum(1)))
    taken = np.where(heat > 0, share > np.log(philox_uniform(seed, at)), values.argmax(1) == ahead)
    return taken & (ahead >= 0)


# -- what some requests ask for


def _words(text: np.ndarray) -> np.ndarray:
    """Return the bits of packed words, lowest first: [..., n] int32 -> [..., 32 n] bool."""
    return ((text[..., None].astype(np.uint32) >> np.arange(32, dtype=np.uint32)) & 1).astype(bool).reshape(-1)


def bincount(rows, text, stride, prompts, prefills, prompt_mask, mask_stride, counts, counts_stride, **_):
    for row in rows.tolist():
        prompt, prefill = int(prompts[row]), int(prefills[row])
        for token in text[row, :prompt].tolist():
            prompt_mask.numpy().view(np.uint32)[row, token // 32] |= np.uint32(1 << token % 32)
        np.add.at(counts[row].numpy(), text[row, prompt:prefill].numpy(), 1)


def penalties(
    logits, stride, rows, tokens, local, repetition, frequency, presence, prompt_mask, mask_stride, counts,
    counts_stride, vocab, **_,
):  # fmt: skip
    for i, row in enumerate(rows.tolist()):
        scale, much, any_ = float(repetition[row]), float(frequency[row]), float(presence[row])
        if scale == 1 and much == 0 and any_ == 0:
            continue
        values, made = logits[i, :vocab].numpy(), counts[row, :vocab].numpy().astype(np.int64)
        before = int(local[i])
        np.add.at(made, tokens[i - before + 1 : i + 1].numpy(), 1)
        seen = made > 0
        if scale != 1:
            factor = np.where(_words(prompt_mask[row].numpy())[:vocab] | seen, np.float32(scale), np.float32(1))
            values *= np.where(values > 0, 1 / factor, factor)
        values -= np.float32(much) * made.astype(np.float32)
        values -= np.float32(any_) * seen.astype(np.float32)


def topk_log_softmax(output, logits, stride, ids, ids_stride, topk, vocab, **_):
    output.copy_(torch.log_softmax(logits[:, :vocab].float(), -1).gather(-1, ids[:, :topk]))


def ranks(output, logits, stride, tokens, vocab, BLOCK_SIZE, **_):
    """Of a token that cannot be, a rejected draft, the kernel counts the empty places of its last block, too."""
    chosen = logits.gather(-1, tokens[:, None].long())
    output.copy_((logits[:, :vocab] >= chosen).sum(-1) + chosen.isneginf()[:, 0] * (-vocab % BLOCK_SIZE))


def prompt_token_ids(out, starts, rows, computed, text, stride, **_):
    for i, row in enumerate(rows.tolist()):
        begin, end, first = int(starts[i]), int(starts[i + 1]), int(computed[row]) + 1
        known = text[row, first : first + end - begin]
        out[begin : begin + len(known)] = known


def bad_words(
    logits, stride, rows, words, words_stride, offsets, offsets_stride, counts, text, text_stride, prompts, totals,
    input_ids, local, **_,
):  # fmt: skip
    for i, row in enumerate(rows.tolist()):
        step = int(local[i])
        made = text[row, int(prompts[row]) : int(totals[row])].tolist() + input_ids[i - step + 1 : i + 1].tolist()
        for word in range(int(counts[row])):
            *prefix, last = words[row, int(offsets[row, word]) : int(offsets[row, word + 1])].tolist()
            if made[len(made) - len(prefix) :] == prefix:
                logits[i, last] = float("-inf")


def grammar_bitmask(logits, stride, places, cu_logits, masks, masks_stride, vocab, MASK_STRIDE, **_):
    for i, place in enumerate(places.tolist()):
        request, position = divmod(place, MASK_STRIDE)
        first, last = int(cu_logits[request]), int(cu_logits[request + 1])
        if position < last - first:
            allowed = torch.from_numpy(_words(masks[i].numpy())[:vocab])
            logits[first + position, :vocab].masked_fill_(~allowed, float("-inf"))


def bias(
    logits, stride, vocab, rows, allowed_counts, allowed, allowed_stride, bias_counts, biased, biased_stride, biases,
    biases_stride, positions, least, stop_counts, restore, stops, stops_stride, CHECK_ALL_MASKED_ROWS, **_,
):  # fmt: skip
    assert not CHECK_ALL_MASKED_ROWS, "min_tokens with structured output is not supported here"
    for i, row in enumerate(rows.tolist()):
        values = logits[i, :vocab]
        if (count := int(allowed_counts[row])) > 0:
            kept = allowed[row, :count].long()
            before = values[kept].clone()
            values.fill_(float("-inf"))
            values[kept] = before
        if (count := int(bias_counts[row])) > 0:
            values[biased[row, :count].long()] += biases[row, :count]
        if (count := int(stop_counts[row])) > 0 and int(positions[i]) + 1 < int(least[row]):
            values[stops[row, :count].long()] = float("-inf")


KERNELS = {
    _GPU + "buffer_utils._apply_write_kernel": apply_write,
    _GPU + "block_table._gather_block_tables_kernel": gather_block_tables,
    _GPU + "block_table._compute_slot_mappings_kernel": compute_slot_mappings,
    _GPU + "input_batch._prepare_prefill_inputs_kernel": prepare_prefill_inputs,
    _GPU + "input_batch._prepare_pos_seq_lens_kernel": prepare_pos_seq_lens,
    _GPU + "input_batch._combine_sampled_and_draft_tokens_kernel": combine_sampled_and_draft_tokens,
    _GPU + "input_batch._get_num_sampled_and_rejected_kernel": get_num_sampled_and_rejected,
    _GPU + "input_batch._post_update_kernel": post_update,
    _GPU + "input_batch._expand_idx_mapping_kernel": expand_idx_mapping,
    _GPU + "spec_decode.rejection_sampler._gather_draft_sampled_kernel": gather_draft_sampled,
    _GPU + "spec_decode.rejection_sampler._flatten_sampled_kernel": flatten_sampled,
    _GPU + "sample.gumbel._gumbel_sample_kernel": gumbel_sample,
    _GPU + "sample.gumbel._temperature_kernel": temperature,
    _GPU + "sample.penalties._bincount_kernel": bincount,
    _GPU + "sample.penalties._penalties_kernel": penalties,
    _GPU + "sample.logprob._topk_log_softmax_kernel": topk_log_softmax,
    _GPU + "sample.logprob._ranks_kernel": ranks,
    _GPU + "sample.prompt_logprob._prompt_logprobs_token_ids_kernel": prompt_token_ids,
    _GPU + "sample.bad_words._bad_words_kernel": bad_words,
    _GPU + "sample.logit_bias._bias_kernel": bias,
    _GPU + "structured_outputs._apply_grammar_bitmask_kernel": grammar_bitmask,
}


@contextmanager
def in_place(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Launches reach these functions for the duration of the block; call before an engine starts."""
    from vllm.triton_utils import dispatcher
    from vllm.v1.worker.gpu.spec_decode import rejection_sampler

    # vLLM looks through all modules for copies of the kernels, and breaks on those that its n-grams load.
    hidden = {
        name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in ("numba", "llvmlite")
    }
    try:
        dispatcher.register_kernels(KERNELS)
    finally:
        sys.modules.update(hidden)
    patch.setattr(rejection_sampler, "rejection_sample", rejection_sample)
    yield
