"""The gradients of one call of the loss, added up chunk by chunk: dH = G W, dW = G^T H, db = G^T 1.

`G` is the gradient of the raw logits, on the rows of kept tokens. Not all of it takes part, or not in fp32:

    columns beyond the gradient budget      left out, and their share is noted
    columns that carry next to nothing      multiplied in bf16, see `columns`
    the others                              multiplied as they are
"""

import torch
from torch import Tensor

from profit_sft.loss.columns import add_products, fp32_columns, largest_values, multiplies_bf16_fast, take_columns
from profit_sft.loss.devices import accumulation_dtype

# With a larger share of the columns within the budget, copying them costs more than the others' products. Time against
# the exact loss by share (CPU, V = 49,152, D = 576, N = 1,024): 31%: 0.65, 66%: 0.91, 83%: 1.11, 99%: 1.30.
_LARGEST_COLUMN_SHARE = 0.75


class HeadGradients:
    """Accumulators `(N, D)`, `(V, D)` and `(V,)`, of which those that are not wanted are None.

    Args:
        hidden_states: `(N, D)`, the input of the loss.
        lm_head_weight: `(V, D)`, the same.
        bias: `(V,)`, the same, or None.
        rows: `(M,)`, positions with a label.
        hidden_operand: `(M, D)`, the rows of hidden_states in the dtype products are made of.
        weight_operand: `(V, D)`, lm_head_weight in that dtype.
        dtype: Of the sums.
        gradient_budget: Share of `sum |G|` that may be left out; 0.0 rules out bf16, too, None does not.
    """

    def __init__(
        self,
        hidden_states: Tensor,
        lm_head_weight: Tensor,
        bias: Tensor | None,
        *,
        rows: Tensor,
        hidden_operand: Tensor,
        weight_operand: Tensor,
        dtype: torch.dtype,
        gradient_budget: float | None,
    ) -> None:
        recording, device = torch.is_grad_enabled(), hidden_states.device
        wants_bias = bias is not None and bias.requires_grad and recording
        self.rows, self.hidden_states, self.lm_head_weight, self.dtype = rows, hidden_operand, weight_operand, dtype
        self.input_dtypes = hidden_states.dtype, lm_head_weight.dtype, None if bias is None else bias.dtype
        self.native = weight_operand.dtype != dtype  # 16-bit operands, products in fp32
        self.gradient_budget = gradient_budget or 0.0
        self.wants_weight = lm_head_weight.requires_grad and recording
        self.d_hidden: Tensor | None = None  # (N, D)
        if hidden_states.requires_grad and recording:
            self.d_hidden = torch.zeros(hidden_states.shape, dtype=dtype, device=device)
        self.d_weight: Tensor | None = None  # (V, D), made by the first chunk that has something to put there
        self.d_bias = torch.zeros(lm_head_weight.shape[0], dtype=dtype, device=device) if wants_bias else None  # (V,)
        self.wanted = self.d_hidden is not None or self.wants_weight or wants_bias
        self._may_round = gradient_budget != 0.0 and multiplies_bf16_fast(weight_operand)
        self.inverse: Tensor | None = None  # 1 / normalizer, if it is known before the gradients are formed
        self._dropped_mass = torch.zeros((), dtype=accumulation_dtype(device), device=device)
        self._total_mass = torch.zeros_like(self._dropped_mass)

    def dropped_share(self) -> Tensor:
        """Return the share of `sum |G|` left out so far, 0-d fp32."""
        return (self._dropped_mass / self._total_mass.clamp(min=1e-30)).float()

    def range_scale(self, token_weights: Tensor, log_probs: Tensor) -> Tensor | float:
        """Return the power of two that brings the largest entry of a chunk's gradient near 1, for fp16 operands.

        fp16 holds nothing below 6e-8: unscaled, the gradient of tokens of small weight would be lost on the way into
        the products. The other dtypes have fp32's range, and need no scale.

        Args:
            token_weights: `(K,)`, the kept tokens' weights times the scale of the logits.
            log_probs: `(K,)`, of their labels.
        """
        if self.lm_head_weight.dtype != torch.float16:
            return 1.0
        # No entry of a token's gradient is larger than w (1 - p); of that, fp32 knows about six digits of 1.
        largest = (token_weights.abs() * (-torch.expm1(log_probs)).clamp(min=1e-6)).amax()
        return torch.exp2(-largest.log2().round().clamp(-100.0, 100.0))

    def add_scaled_rows(
        self, exps: Tensor, tokens: Tensor, targets: Tensor, factors: Tensor, scale: Tensor | float = 1.0
    ) -> None:
        """Add one chunk whose gradient is `factors[:, None] * exps`.

        The factors go into the small operands and results, which saves a pass over `exps`.

        Args:
            exps: `(K, V)`. Overwritten. Positive but for the labels' entries.
            tokens: `(K,)`, places among the label tokens.
            targets: `(K,)`, their labels.
            factors: `(K,)`.
            scale: Of `range_scale`.
        """
        magnitudes = factors.abs()
        if self.native:
            # 16-bit operands: the factors go in before the rounding, or fp16 would overflow.
            exps.mul_((factors * scale)[:, None])
            factors, magnitudes = torch.ones_like(factors) / scale, factors.sign() / scale
        if self.d_bias is not None:
            self.add_to_d_bias(_column_sums(exps, factors))
        if self.gradient_budget == 0.0 and not self._may_round:
            self._add(exps, tokens, factors, None, scale)
            return
        # All entries but the labels' are positive, so that one pass gives the column sums of absolute values.
        mass = _column_sums(exps, magnitudes)  # (V,)
        label = exps.gather(-1, targets[:, None]).squeeze(1) * magnitudes  # (K,), not positive
        mass.index_add_(0, targets, -2.0 * label)
        columns = None
        if self.gradient_budget > 0.0:
            columns = self.within_budget(mass)
            mass = mass if columns is None else mass[columns]
        inner = None
        if self._may_round:
            inner = fp32_columns(
                mass, tokens.numel() * self.lm_head_weight.shape[1], gradient_budget=self.gradient_budget
            )
        if inner is not None:
            self._add_in_two_precisions(exps, tokens, factors, columns, inner)
        elif columns is not None:
            self._add(take_columns(exps, columns), tokens, factors, columns, scale)
        else:
            self._add(exps, tokens, factors, None, scale)

    def within_budget(self, mass: Tensor) -> Tensor | None:
        """Return about the fewest columns that carry all but the budget's share of `mass`, and note what is left out.

        None where they are so many that to choose them costs more than it saves; then nothing is left out.

        Args:
            mass: `(V,)`, `sum_k |G_kv|`. Syncs with the host.
        """
        mass = mass.clamp(min=0.0)
        total = mass.sum(dtype=self._total_mass.dtype)
        columns, left_out = largest_values(mass, self.gradient_budget * total)
        self._total_mass += total
        if columns.numel() > _LARGEST_COLUMN_SHARE * mass.numel():
            return None
        self._dropped_mass += left_out
        return columns

    def add_columns(self, gradient: Tensor, tokens: Tensor, columns: Tensor | None, scale: Tensor | float) -> None:
        """Add one chunk's gradient, over `scale`.

        Args:
            gradient: `(K, U)`, in the dtype of the operands.
            tokens: `(K,)`, places among the label tokens.
            columns: `(U,)`, or None for all of the vocabulary.
            scale: What the gradient was multiplied by.
        """
        inverse = self._inverse() / scale
        if self.d_hidden is not None:
            head = self.lm_head_weight if columns is None else self.lm_head_weight.index_select(0, columns)
            self.d_hidden[self.rows[tokens]] = self.matmul(gradient, head) * inverse
        if self.wants_weight:
            self._add_to_d_weight(
                self.matmul(gradient.T, self.hidden_states.index_select(0, tokens)) * inverse, columns
            )

    def add_to_d_bias(self, sums: Tensor) -> None:
        """Add one chunk's `sum_k G_kv`, `(V,)`."""
        assert self.d_bias is not None
        self.d_bias += sums * self._inverse()

    def finished(self, grad_output: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return dH, dW and db, times `grad_output`, in the dtypes of the inputs."""
        if self.wants_weight and self.d_weight is None:
            self.d_weight = self._no_d_weight()
        # Reading one scalar is free on the CPU; elsewhere it would sync, and the multiplication is the cheaper one.
        unscaled = grad_output.device.type == "cpu" and grad_output.item() == 1.0
        found = []
        for gradient, dtype in zip((self.d_hidden, self.d_weight, self.d_bias), self.input_dtypes, strict=True):
            if gradient is not None and not unscaled:
                gradient = gradient.mul_(grad_output)
            found.append(gradient if gradient is None or dtype is None else gradient.to(dtype))
        return found[0], found[1], found[2]

    def matmul(self, left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
        """Matrix product with fp32 sums and output, of 16-bit operands where the device has that."""
        if self.native:
            product = torch.mm(left.to(right.dtype), right, out_dtype=torch.float32)
            return product if out is None else out.copy_(product)
        return torch.mm(left, right) if out is None else torch.mm(left, right, out=out)

    def _inverse(self) -> Tensor | float:
        """Return one over the normalizer, or 1 if that is to be divided out later."""
        return 1.0 if self.inverse is None else self.inverse

    def _add(
        self, exps: Tensor, tokens: Tensor, factors: Tensor, columns: Tensor | None, scale: Tensor | float
    ) -> None:
        if self.native:
            self.add_columns(exps.to(self.lm_head_weight.dtype), tokens, columns, scale)
            return
        factors = (factors * self._inverse())[:, None]
        if self.d_hidden is not None:
            head = self.lm_head_weight if columns is None else self.lm_head_weight.index_select(0, columns)
            self.d_hidden[self.rows[tokens]] = torch.mm(exps, head).mul_(factors)
        if self.wants_weight:
            scaled = self.hidden_states.index_select(0, tokens) * factors
            if columns is None and self.d_weight is not None:
                self.d_weight.addmm_(exps.T, scaled)  # without a buffer for the product
            else:
                self._add_to_d_weight(torch.mm(exps.T, scaled), columns)

    def _add_in_two_precisions(
        self, exps: Tensor, tokens: Tensor, factors: Tensor, columns: Tensor | None, inner: Tensor
    ) -> None:
        """Multiply the columns of which `inner` says where they are in fp32, and the others in bf16."""
        factors = (factors * self._inverse())[:, None]
        rows = None
        if self.d_hidden is not None:
            rows = torch.zeros(
                (tokens.numel(), self.lm_head_weight.shape[1]), dtype=self.dtype, device=exps.device
            )  # (K, D)
        if self.wants_weight and self.d_weight is None:
            self.d_weight = self._no_d_weight()
        add_products(
            exps,
            columns,
            inner,
            lm_head_weight=self.lm_head_weight,
            hidden_states=self.hidden_states.index_select(0, tokens) * factors,
            d_hidden=rows,
            d_weight=self.d_weight,
        )
        if self.d_hidden is not None:
            assert rows is not None
            self.d_hidden[self.rows[tokens]] = rows.mul_(factors)

    def _no_d_weight(self) -> Tensor:
        return torch.zeros(self.lm_head_weight.shape, dtype=self.dtype, device=self.lm_head_weight.device)

    def _add_to_d_weight(self, product: Tensor, columns: Tensor | None) -> None:
        if columns is not None:
            if self.d_weight is None:
                self.d_weight = self._no_d_weight()
            else:
                product += self.d_weight.index_select(0, columns)
            # On the CPU index_add_ runs on one thread: 80 ms against 16 for these two, for 6,000 rows of 576.
            self.d_weight.index_copy_(0, columns, product)
        elif self.d_weight is None:
            self.d_weight = product
        else:
            self.d_weight += product


def _column_sums(rows: Tensor, factors: Tensor) -> Tensor:
    """Return `rows.T @ factors`, `(V,)`."""
    return torch.mv(_with_padding(rows).T, factors)[: rows.shape[1]]


def _with_padding(rows: Tensor) -> Tensor:
    """Return the rows with the padding between them, which is zero: contiguous, where torch would make a copy."""
    return rows.as_strided((rows.shape[0], rows.stride(0)), (rows.stride(0), 1)) if rows.shape[0] > 1 else rows
