"""The selective loss in plain torch, on any device.

Tokens pass three stages, and most of the work of a masked token is saved by the first:

1. Prescreen. `log p = z_y - logsumexp(z) <= z_y - logsumexp(z over a prefix of the vocabulary)`. A token whose bound
   lies under the objective's probability floor is masked, and is not projected any further. Byte-pair vocabularies
   are sorted by frequency, so a short prefix (a slice, no gather) settles nearly every token that will be masked.
2. Sweep. The survivors' logits, a chunk at a time, in fp32, become `exp(z - max)` in place, a few rows at a time so
   that they stay in cache, and give the statistics. The objective turns those into weights; rows of weight zero leave.
3. Products. `G = diag(w / sum exp) (exp(z - max) - sum exp * onehot(y)) dz/draw`, `dH = G @ W`, `dW = G.T @ H`,
   `db = G.sum(0)`, formed while the exponentials are there, so nothing is projected twice.
   With a gradient budget both run on the columns that carry all but that share of `sum |G|` (`head_gradients.py`).

`backward` only scales what is stored. Bytes moved by the sweep: `(C, V)` fp32 read once and written once.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from profit_sft.loss.call import AttachGradients, HeadOptions, Swept, TokenValues
from profit_sft.loss.devices import (
    accumulation_dtype,
    default_chunk_size,
    give_back_logits_memory,
    in_blocks,
    multiplies_16_bit_into_fp32,
    take_logits_memory,
)
from profit_sft.loss.head_gradients import HeadGradients
from profit_sft.objectives import ENTROPY_TOP_K, FROM_THE_HEAD, TokenStats

# Rows of the sweep that are worked on at once, so that they stay in a core's cache.
_BLOCK_BYTES = 2 * 2**20

# Prefixes of the vocabulary tried on the first tokens of a call, as shares; the cheapest is used for the others.
_PREFIX_SHARES = (1 / 32, 1 / 16, 1 / 8)
_PILOT_TOKENS = 256
_CPU_SCREENED_TOKENS = 256  # screened at a time; few, since their logits are held besides a chunk's
_FEWEST_SURVIVORS = 256  # completed together, unless the chunk size is smaller
_PREFIX_SAVING = 0.01  # of all projections, that a wider prefix must bring to be preferred to a shorter one
_MIN_SCREENED_VOCABULARY = 2048
# The bound must fail by more than rounding before a token is dropped: nats, and relative to the largest logit.
_SCREEN_MARGIN = 1e-3
_SCREEN_RELATIVE_MARGIN = 1e-5


def chunked_selective_loss(
    hidden_states: Tensor,
    lm_head_weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    num_items_in_batch: int | Tensor | None,
    per_token: dict[str, Tensor | None],
    options: HeadOptions,
    call_class: "type[ChunkedCall] | None" = None,
) -> tuple[Tensor, TokenValues]:
    """Compute the loss and the per-token values.

    Args:
        hidden_states: `(N, D)`, floating point.
        lm_head_weight: `(V, D)`.
        labels: `(N,)`, int64, checked.
        bias: `(V,)` or None.
        num_items_in_batch: Normalizer, or None to count here.
        per_token: `reference_log_probs` and `token_weights`, each `(N,)` or None.
        options: The rest.
        call_class: The backend; None is this module's.

    Returns:
        The 0-d loss, differentiable in hidden states, matrix and bias, and the values.
    """
    call = (call_class or ChunkedCall)(hidden_states, lm_head_weight, labels, bias, options)
    with torch.no_grad():
        call.all_tokens(num_items_in_batch, per_token)
    loss: Tensor = AttachGradients.apply(hidden_states, lm_head_weight, bias, call)  # type: ignore[no-untyped-call]
    return loss, call.values


class ChunkedCall:
    """One call of the loss: holds its inputs, and accumulates loss and gradients chunk by chunk."""

    def __init__(
        self, hidden_states: Tensor, lm_head_weight: Tensor, labels: Tensor, bias: Tensor | None, options: HeadOptions
    ) -> None:
        self.options = options
        # float64 inputs are computed in float64 (gradcheck); everything else in fp32.
        self.dtype = torch.float64 if torch.float64 in (hidden_states.dtype, lm_head_weight.dtype) else torch.float32
        native = multiplies_16_bit_into_fp32(hidden_states.device) and hidden_states.dtype == lm_head_weight.dtype
        self.on_cpu = hidden_states.device.type == "cpu"
        label_mask = labels != options.ignore_index
        self.rows = label_mask.nonzero().squeeze(1)  # (M,) positions with a label; syncs with the host
        self.targets = labels[self.rows]  # (M,)
        operand_dtype = lm_head_weight.dtype if native else self.dtype
        self.hidden_states = hidden_states.detach().index_select(0, self.rows).to(operand_dtype)  # (M, D)
        self.lm_head_weight = lm_head_weight.detach().to(operand_dtype)  # (V, D)
        self.bias = None if bias is None else bias.detach().to(self.dtype)  # (V,)
        self.sums = HeadGradients(
            hidden_states,
            lm_head_weight,
            bias,
            rows=self.rows,
            hidden_operand=self.hidden_states,
            weight_operand=self.lm_head_weight,
            dtype=self.dtype,
            gradient_budget=options.gradient_budget,
        )
        places = len(labels), min(options.likeliest, len(lm_head_weight))  # (N, K)
        self.values = TokenValues(
            label_mask=label_mask,
            log_probs=_blank(label_mask),
            token_weights=torch.zeros(labels.shape, dtype=torch.float32, device=labels.device),
            entropy=_blank(label_mask) if options.all_statistics or "entropy" in options.objective.needs else None,
            is_top1=torch.zeros_like(label_mask) if options.all_statistics else None,
            rank=torch.zeros_like(labels) if options.ranks else None,
            top1=torch.zeros_like(labels) if options.ranks else None,
            likeliest=labels.new_zeros(places) if options.likeliest else None,
            likeliest_log_probs=_blank(label_mask)[:, None].repeat(1, places[1]) if options.likeliest else None,
            dropped_share=torch.zeros((), device=hidden_states.device),
            largest_log_prob=torch.full((), -math.inf, dtype=self.dtype, device=hidden_states.device),
        )
        self.beside: dict[str, Tensor | None] = {}  # (M,) each: what came with the labels
        self.logits_memory: Tensor | None = None
        self.loss_sums: list[Tensor] = []  # 0-d, one a chunk; added up at the end, pairwise, which fp32 can bear
        self.loss = torch.zeros((), dtype=self.dtype, device=hidden_states.device)
        self.scale: Tensor | None = None  # still to be multiplied into the gradients

    # -- the order of things ------------------------------------------------------------------------------------

    def all_tokens(self, num_items_in_batch: int | Tensor | None, per_token: dict[str, Tensor | None]) -> None:
        """Run every label token through the stages, then normalize."""
        if num_items_in_batch is None and self.options.normalize == "all":
            num_items_in_batch = max(self.rows.numel(), 1)
        # A normalizer known beforehand is folded into the small (K, D) factors instead of the (V, D) result.
        if num_items_in_batch is not None:
            items = _on_device(num_items_in_batch, self.dtype, self.hidden_states.device)
            # A step without a label anywhere divides zero by one, not by zero.
            self.sums.inverse = 1.0 / torch.where(items == 0, torch.ones_like(items), items)
        self.beside = {
            name: None if value is None else value[self.rows].to(self.dtype) for name, value in per_token.items()
        }
        objective, known = self.options.objective, self.beside["token_weights"]
        if known is not None and "token_weights" not in objective.needs:
            self._known(known)
        elif not objective.needs & FROM_THE_HEAD:
            self._known(self._weights(slice(None)))
        elif not objective.elementwise:
            self._known(self._weights_of_whole_batch())
        elif objective.probability_floor > 0.0 and not self.options.all_statistics and self._worth_screening():
            self._screened()
        else:
            for tokens in self._chunks(torch.arange(self.rows.numel(), device=self.hidden_states.device)):
                self._chunk(tokens, self._logits(tokens))
        self._finish()

    def _weights(self, tokens: Tensor | slice, **found: Tensor | None) -> Tensor:
        """Ask the objective for the weights of some tokens, `(C,)`, of which the head has `found` the statistics."""
        beside = {name: None if value is None else value[tokens] for name, value in self.beside.items()}
        stats = TokenStats(labels=self.targets[tokens], **found, **beside)
        return self.options.objective.token_weights(stats).to(self.dtype)

    def _known(self, token_weights: Tensor) -> None:
        """Weights `(M,)` are known: project only the tokens that count, or all if their statistics are wanted."""
        self.values.token_weights[self.rows] = token_weights.float()
        tokens = torch.arange(self.rows.numel(), device=self.hidden_states.device)
        if not self.options.all_statistics:
            tokens = token_weights.nonzero().squeeze(1)  # syncs with the host
        for part in self._chunks(tokens):
            self._chunk(part, self._logits(part), token_weights[part])

    def _weights_of_whole_batch(self) -> Tensor:
        """Statistics of every token first, then the weights of all, `(M,)`."""
        found = [
            self._sweep(tokens, self._logits(tokens))
            for tokens in self._chunks(torch.arange(self.rows.numel(), device=self.hidden_states.device))
        ]

        def joined(name: str) -> Tensor | None:
            parts = [getattr(swept, name) for swept in found]
            return self.hidden_states.new_zeros(0) if not parts else None if parts[0] is None else torch.cat(parts)

        statistics = {name: joined(name) for name in FROM_THE_HEAD}
        token_weights, log_probs = self._weights(slice(None), **statistics), statistics["log_probs"]
        # A ranking may mask NaN away; it must be seen.
        assert log_probs is not None
        return torch.where(log_probs.isnan(), math.nan, token_weights)

    def _finish(self) -> None:
        if self.logits_memory is not None:
            give_back_logits_memory(self.logits_memory)
            self.logits_memory = None
        kept = self.values.token_weights != 0
        self.values.nothing_kept = self.rows.numel() > 0 and not bool(kept.any())
        inverse = self.sums.inverse
        if inverse is None:
            inverse = self.scale = 1.0 / kept.sum().clamp(min=1).to(self.dtype)
        if self.loss_sums:
            self.loss = (torch.stack(self.loss_sums).sum() * inverse).to(self.dtype)
        self.values.dropped_share = self.sums.dropped_share()

    def _chunk_size(self) -> int:
        if self.options.chunk_size is not None:
            return self.options.chunk_size
        return default_chunk_size(self.hidden_states.device, self.lm_head_weight.shape[0])

    def _chunks(self, tokens: Tensor) -> Iterator[Tensor]:
        """Split `tokens` into chunks of nearly equal size, none above the chunk size."""
        count = -(-tokens.numel() // self._chunk_size())
        yield from tokens.tensor_split(count) if count else ()

    # -- stage 1: prescreen -------------------------------------------------------------------------------------

    def _worth_screening(self) -> bool:
        return self.lm_head_weight.shape[0] >= _MIN_SCREENED_VOCABULARY and self.rows.numel() > 0

    def _screened(self) -> None:
        """Screen group by group; survivors keep the logits they have, and are completed when they fill a chunk."""
        target_logits = self._target_logits()  # (M,)
        tokens = torch.arange(self.rows.numel(), device=self.hidden_states.device)
        pilot, others = tokens[:_PILOT_TOKENS], tokens[_PILOT_TOKENS:]
        widest = self._prefix(pilot, int(_PREFIX_SHARES[-1] * self.lm_head_weight.shape[0]))  # (256, V / 8)
        width, surviving_share = self._prefix_width(pilot, widest, target_logits)
        prefix: Tensor | None = widest[:, :width] if width else None
        del widest
        if width == 0:
            for part in self._chunks(tokens):
                self._chunk(part, self._logits(part))
            return
        size = self._survivors_per_chunk(surviving_share)
        logits: Tensor | None = None  # (size, V), the first columns of the rows of `waiting` filled
        waiting: list[Tensor] = []
        group_size = _CPU_SCREENED_TOKENS if self.on_cpu else 2 * self._chunk_size()
        for group in (pilot, *(others.split(group_size) if others.numel() else ())):
            if prefix is None:
                prefix = self._prefix(group, width)
            survivors = self._may_be_kept(group, prefix, target_logits).nonzero().squeeze(1)  # syncs with the host
            while survivors.numel():
                logits = self._logits_rows(size) if logits is None else logits
                filled = sum(part.numel() for part in waiting)
                added, survivors = survivors[: size - filled], survivors[size - filled :]
                logits[filled : filled + added.numel(), :width] = prefix.index_select(0, added)
                waiting.append(group[added])
                if filled + added.numel() == size:
                    self._chunk_with_prefix(torch.cat(waiting), logits, width)
                    logits, waiting = None, []  # before the next are made
            prefix = None
        if logits is not None:
            self._chunk_with_prefix(torch.cat(waiting), logits, width)

    def _survivors_per_chunk(self, surviving_share: float) -> int:
        """Return how many survivors to wait for, so that the chunks come out about equally large.

        The share is the pilot's, which may be one odd example: not below `_FEWEST_SURVIVORS`, whatever it says.
        """
        expected = surviving_share * self.rows.numel()
        chunks = max(1, math.ceil(expected / self._chunk_size()))
        # A tenth more than expected, lest a few tokens be left for a chunk of their own.
        wanted = max(math.ceil(1.1 * expected / chunks), _FEWEST_SURVIVORS)
        return min(wanted, self._chunk_size(), self.rows.numel())

    def _chunk_with_prefix(self, tokens: Tensor, logits: Tensor, width: int) -> None:
        """Complete the logits of some tokens, of which the first `width` columns are there, and run the chunk."""
        logits = logits[: tokens.numel()]
        self.sums.matmul(
            self.hidden_states.index_select(0, tokens), self.lm_head_weight[width:].T, out=logits[:, width:]
        )
        self._transformed(logits[:, width:], slice(width, None))
        self._chunk(tokens, logits)

    def _target_logits(self) -> Tensor:
        raw = (
            self.hidden_states.to(self.dtype) * self.lm_head_weight.index_select(0, self.targets).to(self.dtype)
        ).sum(-1)  # (M,)
        return self._transformed(raw[:, None], self.targets, one_each=True).squeeze(1)

    def _prefix(self, tokens: Tensor, width: int) -> Tensor:
        """Return the first `width` logits of some tokens, `(G, width)`."""
        raw = self.sums.matmul(self.hidden_states.index_select(0, tokens), self.lm_head_weight[:width].T)
        return self._transformed(raw, slice(width))

    def _prefix_width(self, pilot: Tensor, prefix: Tensor, target_logits: Tensor) -> tuple[int, float]:
        """Try prefixes on the first tokens; return the columns of the cheapest and the share of tokens it leaves.

        0 columns if screening would not pay. Cost in projections of all columns for all tokens: the prefix for
        everyone, the rest for the survivors.
        """
        best_cost, best_width, best_share = 0.95, 0, 1.0  # a saving below 5% is not worth the extra pass
        for share in _PREFIX_SHARES:
            width = int(share * self.lm_head_weight.shape[0])
            survivors = self._may_be_kept(pilot, prefix[:, :width], target_logits).float().mean().item()
            cost = share + (1.0 - share) * survivors
            if cost < best_cost - _PREFIX_SAVING:
                best_cost, best_width, best_share = cost, width, survivors
        return best_width, best_share

    def _may_be_kept(self, tokens: Tensor, prefix: Tensor, target_logits: Tensor) -> Tensor:
        """Return the mask `(G,)`, False where the prefix alone proves p below the floor."""
        largest = prefix.amax(dim=-1)  # (G,)
        prefix_lse = torch.empty_like(largest)
        self._in_blocks(lambda part: torch.logsumexp(prefix[part], dim=-1, out=prefix_lse[part]), prefix.shape[0])
        own = target_logits[tokens]
        # The label's own term belongs to the sum whether or not the prefix holds it.
        outside = self.targets[tokens] >= prefix.shape[1]
        bound = own - torch.where(outside, torch.logaddexp(prefix_lse, own), prefix_lse)
        margin = _SCREEN_MARGIN + _SCREEN_RELATIVE_MARGIN * torch.maximum(largest.abs(), own.abs())
        # Written so that NaN survives, and is seen.
        survives = ~(bound + margin < math.log(self.options.objective.probability_floor))
        # For the warning that nothing was kept: an upper bound of what was dropped here.
        dropped = torch.where(survives, -math.inf, bound + margin)
        self.values.largest_log_prob = torch.maximum(self.values.largest_log_prob, dropped.amax())
        return survives

    # -- stage 2: sweep -----------------------------------------------------------------------------------------

    def _transformed(self, raw: Tensor, columns: slice | Tensor, *, one_each: bool = False) -> Tensor:
        """Add the bias, scale and cap, in place. `columns` are the vocabulary entries of `raw`'s columns, or rows."""
        if self.bias is not None:
            raw += self.bias[columns][:, None] if one_each else self.bias[columns]
        if self.options.logit_scale != 1.0:
            raw *= self.options.logit_scale
        cap = self.options.final_logit_softcapping
        return raw if cap is None else raw.div_(cap).tanh_().mul_(cap)

    def _logits(self, tokens: Tensor) -> Tensor:
        """Return the logits `(C, V)` fp32 of some tokens."""
        hidden_states = self.hidden_states.index_select(0, tokens)
        out = None if self.sums.native else self._logits_rows(tokens.numel())
        return self._transformed(self.sums.matmul(hidden_states, self.lm_head_weight.T, out=out), slice(None))

    def _logits_rows(self, count: int) -> Tensor:
        """Return memory for the logits of a chunk, `(count, V)`; on the CPU the same memory for every chunk."""
        vocab_size = self.lm_head_weight.shape[0]
        if not self.on_cpu:
            return torch.empty((count, vocab_size), dtype=self.dtype, device=self.hidden_states.device)
        if self.logits_memory is None or self.logits_memory.shape[0] < count:
            self.logits_memory = None  # freed before the larger one is made
            self.logits_memory = take_logits_memory(count, vocab_size, self.dtype, self.hidden_states.device)
        return self.logits_memory[:count, :vocab_size]

    def _chunk(self, tokens: Tensor, logits: Tensor, token_weights: Tensor | None = None) -> None:
        """Sweep one chunk's logits `(C, V)`, which are overwritten, and form its products."""
        largest_logits = self._note_ranks(tokens, logits) if self.options.ranks else None
        swept = self._sweep(tokens, logits)
        if self.values.likeliest_log_probs is not None and largest_logits is not None:
            log_totals = swept.largest + swept.totals.log()
            self.values.likeliest_log_probs[self.rows[tokens]] = (largest_logits - log_totals[:, None]).float()
        if token_weights is None:
            token_weights = self._weights(tokens, **swept.statistics())
        self.values.token_weights[self.rows[tokens]] = token_weights.float()
        # A masked token may have log p = -inf, and zero times that must stay zero; but NaN must not be masked away.
        counts = (token_weights != 0) | swept.log_probs.isnan()
        terms = torch.where(counts, token_weights * swept.log_probs, 0.0)
        self.loss_sums.append(-terms.sum(dtype=accumulation_dtype(terms.device)))
        if not self.sums.wanted:
            return
        kept = token_weights.nonzero().squeeze(1)  # (K,) syncs with the host
        if kept.numel():
            self._kept_gradients(tokens, logits, kept, token_weights, swept)

    def _kept_gradients(
        self, tokens: Tensor, logits: Tensor, kept: Tensor, token_weights: Tensor, swept: "Swept"
    ) -> None:
        """Form the gradients of the kept rows `(K,)` of a chunk that has been swept."""
        order = _move_to_front(logits, kept)
        exps, tokens = logits[: kept.numel()], tokens[order]
        targets = self.targets[tokens]
        exps.scatter_add_(-1, targets[:, None], swept.label_entries[order][:, None])
        factors = (token_weights * self.options.logit_scale / swept.totals)[order]  # (K,)
        scale = self.sums.range_scale(token_weights[order] * self.options.logit_scale, swept.log_probs[order])
        self.sums.add_scaled_rows(exps, tokens, targets, factors, scale)

    def _sweep(self, tokens: Tensor, logits: Tensor) -> "Swept":
        """Turn logits `(C, V)` into `exp(logits - max)`, times the cap's slope, in place; read off the statistics."""
        targets = self.targets[tokens]
        swept = self._unswept(logits)
        target_logits = logits.gather(-1, targets[:, None]).squeeze(1)  # (C,)
        self._in_blocks(lambda part: self._sweep_block(logits[part], part, swept), tokens.numel())
        self._read_off(tokens, target_logits, swept)
        return swept

    def _unswept(self, logits: Tensor) -> "Swept":
        """Return memory for what one sweep of the logits `(C, V)` reads off; None for what nobody asks for."""

        def made(wanted: bool) -> Tensor | None:
            return logits.new_empty(logits.shape[0]) if wanted else None

        needs = self.options.objective.needs
        largest, totals, log_probs, label_entries = (logits.new_empty(logits.shape[0]) for _ in range(4))
        return Swept(
            largest=largest,
            totals=totals,
            log_probs=log_probs,
            label_entries=label_entries,
            entropy=made(self.values.entropy is not None),
            topk_entropy=made("topk_entropy" in needs),
            collision=made("collision" in needs),
        )

    def _read_off(self, tokens: Tensor, target_logits: Tensor, swept: "Swept") -> None:
        """Complete `swept` with what follows from sums and maxima, and note the statistics of these tokens."""
        values, rows = self.values, self.rows[tokens]
        swept.log_probs = target_logits - swept.largest - swept.totals.log()
        # The label's share of the gradient, in units of exp(logits - max): minus the row's sum, times the slope.
        swept.label_entries = -swept.totals * self._slope(target_logits)
        values.log_probs[rows] = swept.log_probs.float()
        if tokens.numel():
            values.largest_log_prob = torch.maximum(values.largest_log_prob, swept.log_probs.amax())
        if values.entropy is not None:
            assert swept.entropy is not None
            values.entropy[rows] = swept.entropy.float()
        if values.is_top1 is not None:
            values.is_top1[rows] = target_logits >= swept.largest

    def _note_ranks(self, tokens: Tensor, logits: Tensor) -> Tensor:
        """Note the likeliest tokens, and how many are likelier than the label, before the sweep overwrites them.

        Return the logits of the likeliest, `(C, K)`.
        """
        rank, top1 = self.values.rank, self.values.top1
        assert rank is not None
        assert top1 is not None
        target_logits = logits.gather(-1, self.targets[tokens][:, None])  # (C, 1)
        likelier = torch.zeros_like(tokens)
        count = max(1, min(self.options.likeliest, logits.shape[1]))
        likeliest = torch.zeros((tokens.numel(), count), dtype=torch.int64, device=tokens.device)
        largest_logits = logits.new_empty(likeliest.shape)

        def note(part: slice) -> None:
            likelier[part] = (logits[part] > target_logits[part]).sum(dim=-1)
            largest_logits[part], likeliest[part] = logits[part].topk(count, dim=-1)

        self._in_blocks(note, tokens.numel())
        rank[self.rows[tokens]] = likelier + 1
        top1[self.rows[tokens]] = likeliest[:, 0]
        if self.values.likeliest is not None:
            self.values.likeliest[self.rows[tokens]] = likeliest
        return largest_logits

    def _slope(self, logits: Tensor) -> Tensor:
        """Derivative of the soft cap at capped logits of any shape; ones without a cap."""
        cap = self.options.final_logit_softcapping
        return torch.ones_like(logits) if cap is None else 1.0 - (logits / cap).square_()

    def _sweep_block(self, logits: Tensor, part: slice, swept: "Swept") -> None:
        """Sweep a few rows `(b, V)`, small enough to stay in cache from the first operation to the last."""
        cap = self.options.final_logit_softcapping
        slope = None if cap is None or not self.sums.wanted else self._slope(logits)
        if swept.topk_entropy is not None:
            swept.topk_entropy[part] = topk_entropy(logits)
        torch.amax(logits, dim=-1, out=swept.largest[part])
        logits.sub_(swept.largest[part][:, None])
        # A logit of -inf (a padded vocabulary) has p = 0; clamped, so that p times it is 0 and not NaN.
        shifted = None if swept.entropy is None else logits.clamp(min=-1e4)
        exps = logits.exp_()
        torch.sum(exps, dim=-1, out=swept.totals[part])
        if shifted is not None:
            assert swept.entropy is not None
            totals = swept.totals[part]
            swept.entropy[part] = totals.log() - torch.linalg.vecdot(exps, shifted) / totals
        if swept.collision is not None:
            swept.collision[part] = torch.linalg.vecdot(exps, exps) / swept.totals[part].square()
        if slope is not None:
            exps.mul_(slope)

    def _in_blocks(self, work: Callable[[slice], object], count: int) -> None:
        """Call `work` on slices of `count` rows: a few at a time on the CPU's threads, all at once elsewhere."""
        if self.on_cpu:
            in_blocks(work, count, rows_per_block=max(1, _BLOCK_BYTES // (4 * self.lm_head_weight.shape[0])))
        else:
            work(slice(0, count))

    # -- stage 3: products --------------------------------------------------------------------------------------

    def gradients(self, grad_output: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return d hidden states, d matrix, d bias, times `grad_output`, in the dtypes of the inputs."""
        return self.sums.finished(grad_output if self.scale is None else grad_output * self.scale)


def _on_device(value: float | Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    if isinstance(value, Tensor):
        return value.to(device=device, dtype=dtype)
    return torch.full((), value, dtype=dtype, device=device)  # a copy of a number would sync with the host


def _blank(label_mask: Tensor) -> Tensor:
    return torch.where(label_mask, math.nan, 0.0).to(torch.float32)  # (N,)


def _move_to_front(rows: Tensor, kept: Tensor) -> Tensor:
    """Move the kept rows to the front, in place, and return which row now lies where, `(K,)`.

    Only the rows beyond the front move, into the places of rows that are not kept, so little is copied.
    """
    order = torch.arange(kept.numel(), device=kept.device)
    beyond = kept[kept >= kept.numel()]
    if beyond.numel():
        is_kept = torch.zeros(rows.shape[0], dtype=torch.bool, device=kept.device)
        is_kept[kept] = True
        free = (~is_kept[: kept.numel()]).nonzero().squeeze(1)
        rows[free] = rows[beyond]
        order[free] = beyond
    return order


def topk_entropy(logits: Tensor) -> Tensor:
    """Entropy of the likeliest tokens, renormalized, `(b,)`, from logits `(b, V)`."""
    likeliest = logits.topk(min(ENTROPY_TOP_K, logits.shape[-1]), dim=-1).values.log_softmax(dim=-1)
    entropy: Tensor = torch.special.entr(likeliest.exp()).sum(dim=-1)
    return entropy
