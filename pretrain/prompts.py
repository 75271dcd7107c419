"""Soft prompts: where they start, how they enter the input, and the bank that trains many at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence

import numpy as np
import numpy.typing as npt
import torch

from corpora.common.errors import UserError, nearest
from corpora.common.progress import say
from corpora.tokenizer import LETTERS, SPACE, Tokenizer
from pretrain.backbone import Backbone

MARKUP = re.compile(f"{SPACE}?<.*>")  # mT5 spells its sentinels with a space before them
FREQUENT = 5000  # most frequent words that `vocabulary` samples from (Lester et al. 2021)
HARDLY = 1e-4  # x embedding RMS; after three updates at the usual rates prompts have moved by 0.03 or more
BETAS = (0.9, 0.999)  # of Adam; the released code leaves the library's defaults


def insert_prompts(
    prompts_KPD: torch.Tensor, embeds_BLD: torch.Tensor, mask_BL: torch.Tensor, prompt_ids_B: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Put each example's prompt before its input embeddings.

    Args:
        prompts_KPD: [K, P, D] soft prompts, in the backbone's embedding space.
        embeds_BLD: [B, L, D] input embeddings.
        mask_BL: [B, L] true where a token stands.
        prompt_ids_B: [B] which of the K prompts each example uses.

    Returns:
        [B, P + L, D] in the dtype of `embeds_BLD`, and its mask [B, P + L].

    Raises:
        ValueError: the widths differ.
    """
    if prompts_KPD.shape[2] != embeds_BLD.shape[2]:
        raise ValueError(
            f"prompts are {prompts_KPD.shape[2]} wide, the input embeddings {embeds_BLD.shape[2]}"
        )
    # The gradient of prompts_KPD[ids] is added up by several threads in any order on a CPU, and resuming is to be
    # exact; index_select's is added up in the order of the rows.
    own_BPD = prompts_KPD.index_select(0, prompt_ids_B).to(embeds_BLD.dtype)
    ones_BP = torch.ones(own_BPD.shape[:2], dtype=mask_BL.dtype, device=mask_BL.device)
    return torch.cat([own_BPD, embeds_BLD], dim=1), torch.cat([ones_BP, mask_BL], dim=1)


def word_pieces(tokenizer: Tokenizer) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Ids and spellings of the pieces that are words or parts of words, most frequent first.

    Left out: punctuation, the bare space, padding, end, unknown, and what is spelt `<...>` (sentinels, bytes,
    control pieces). Sentencepiece orders its pieces by falling probability, so low ids are the frequent ones.
    """
    special = {tokenizer.pad_id, tokenizer.eos_id, tokenizer.unk_id}
    words = [
        (number, piece)
        for number, piece in enumerate(tokenizer.pieces(range(tokenizer.size)))
        if number not in special and any(map(str.isalnum, piece)) and not MARKUP.fullmatch(piece)
    ]
    return np.array([number for number, _ in words], dtype=np.int64), [piece for _, piece in words]


def _embedding_rows(backbone: Backbone, ids: np.ndarray) -> torch.Tensor:
    with backbone.embedding_table() as weight_VD:
        return weight_VD[torch.from_numpy(ids).to(weight_VD.device)].float().cpu()


def _normal(
    backbone: Backbone, tokenizer: Tokenizer, prompt_len: int, rng: np.random.Generator, words: Sequence[str]
) -> torch.Tensor:
    drawn = rng.standard_normal((prompt_len, backbone.d_model)) * backbone.embedding_rms
    return torch.from_numpy(drawn.astype(np.float32))


def _vocabulary(
    backbone: Backbone, tokenizer: Tokenizer, prompt_len: int, rng: np.random.Generator, words: Sequence[str]
) -> torch.Tensor:
    known = word_pieces(tokenizer)[0][:FREQUENT]
    return _embedding_rows(backbone, rng.choice(known, size=prompt_len, replace=len(known) < prompt_len))


def _label_words(
    backbone: Backbone, tokenizer: Tokenizer, prompt_len: int, rng: np.random.Generator, words: Sequence[str]
) -> torch.Tensor:
    rows = _vocabulary(backbone, tokenizer, prompt_len, rng, words)
    letters = dict(zip(LETTERS, tokenizer.letters, strict=True)) if set(words) <= set(LETTERS) else {}
    for row, word in enumerate(words[:prompt_len]):
        ids = (letters[word],) if letters else tokenizer.word_ids(word)  # options are bare letters
        rows[row] = _embedding_rows(backbone, np.array(ids, dtype=np.int64)).mean(0)
    return rows


Initialiser = Callable[[Backbone, Tokenizer, int, np.random.Generator, Sequence[str]], torch.Tensor]
INITIALISERS: dict[str, Initialiser] = {
    "normal": _normal,  # N(0, RMS of the embedding table)
    "vocabulary": _vocabulary,  # embeddings sampled from the 5,000 most frequent words
    "label_words": _label_words,  # a row a label word (mean of its pieces), the rest as `vocabulary`
}


def init_prompt(
    name: str,
    backbone: Backbone,
    tokenizer: Tokenizer,
    prompt_len: int,
    rng: np.random.Generator,
    words: Sequence[str] = (),
) -> torch.Tensor:
    """Make the start of a prompt.

    Args:
        name: `normal`, `vocabulary` or `label_words`.
        backbone: whose embedding space the prompt lives in.
        tokenizer: of the backbone.
        prompt_len: P.
        rng: what is drawn from.
        words: label words, for `label_words`; a row each, the mean of its pieces, and the other rows are sampled
            as `vocabulary` does (Lester et al. 2021).

    Returns:
        [P, D] float32 on the CPU.

    Raises:
        UserError: an unknown name.
    """
    if name not in INITIALISERS:
        raise UserError(f'"{name}" is no initialisation of a prompt{nearest(name, INITIALISERS)}')
    return INITIALISERS[name](backbone, tokenizer, prompt_len, rng, words)


class PromptBank:
    """K prompts that train side by side, each as if it were alone, with an AdamW over all of them.

    What AdamW sees is `u = prompt / embedding_rms`: learning rate, weight decay, clip and eps are in units of the
    backbone's own embedding scale, so one setting serves every backbone (method: the scale trap).

    Attributes:
        prompts_KPD: [K, P, D] float32 leaf that asks for a gradient, in the backbone's embedding space.
    """

    def __init__(
        self,
        prompts_KPD: torch.Tensor,
        learning_rates_K: Sequence[float],
        weight_decay: float = 0.0,
        clip: float = 0.0,
        eps: float = 1e-8,
        embedding_rms: float = 1.0,
    ) -> None:
        """Make a bank.

        Args:
            prompts_KPD: where the prompts start; copied.
            learning_rates_K: K learning rates, x embedding RMS.
            weight_decay: decoupled, in u's space.
            clip: largest norm of each prompt's own gradient in u's space; 0 turns clipping off.
            eps: of Adam, in u's space.
            embedding_rms: RMS of the backbone's embedding table.

        Raises:
            ValueError: K differs between prompts and rates.
        """
        if len(learning_rates_K) != len(prompts_KPD):
            raise ValueError(f"{len(prompts_KPD)} prompts with {len(learning_rates_K)} learning rates")
        device = prompts_KPD.device
        self.prompts_KPD = prompts_KPD.detach().float().clone().requires_grad_(True)
        self.learning_rates_K = torch.tensor(list(learning_rates_K), dtype=torch.float64, device=device)
        self.weight_decay, self.clip, self.eps, self.rms = weight_decay, clip, eps, embedding_rms
        self._mean_KPD = torch.zeros_like(self.prompts_KPD, requires_grad=False)
        self._square_KPD = torch.zeros_like(self._mean_KPD)
        self._steps_K = torch.zeros(len(prompts_KPD), dtype=torch.int64, device=device)

    @property
    def updates_K(self) -> torch.Tensor:
        """[K] int64: how many updates each prompt has had."""
        return self._steps_K

    def largest_gradient_K(self) -> torch.Tensor:
        """[K] the largest entry of each prompt's mean gradient so far in u's space: 0 where none ever came."""
        return self._mean_KPD.abs().flatten(1).amax(1)

    @torch.no_grad()
    def place(self, k: int, prompt_PD: torch.Tensor, learning_rate: float) -> None:
        """Put another prompt into place `k`, as if it had begun alone: no update, no moments."""
        self.prompts_KPD[k] = prompt_PD.to(self.prompts_KPD)
        self.learning_rates_K[k] = learning_rate
        self._mean_KPD[k] = 0.0
        self._square_KPD[k] = 0.0
        self._steps_K[k] = 0

    def zero_grad(self) -> None:
        """Forget the gradient."""
        self.prompts_KPD.grad = None

    @torch.no_grad()
    def step(
        self, lr_scale_K: torch.Tensor | float | None = None, active_K: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Update the active prompts with their gradients.

        Args:
            lr_scale_K: [K] or one factor of the learning rates, for schedules.
            active_K: [K] bool; the others keep prompt, moments and count of updates as they are.

        Returns:
            [K] norms of the prompts' gradients in u's space, before clipping.
        """
        grad = self.prompts_KPD.grad
        if grad is None:
            raise ValueError("the prompts have no gradient: no loss was propagated")
        k = len(grad)
        active = torch.ones(k, dtype=torch.bool, device=grad.device) if active_K is None else active_K
        grad_KPD = grad * self.rms  # d loss / d u
        norms_K = grad_KPD.flatten(1).norm(dim=1)
        if self.clip > 0:
            grad_KPD = grad_KPD * (self.clip / (norms_K + 1e-6)).clamp(max=1.0)[:, None, None]
        rates_K = self.learning_rates_K if lr_scale_K is None else self.learning_rates_K * lr_scale_K
        count_K = self._steps_K + 1
        mean_KPD = torch.lerp(self._mean_KPD, grad_KPD, 1 - BETAS[0])
        square_KPD = self._square_KPD * BETAS[1] + grad_KPD.square() * (1 - BETAS[1])

        def shaped(values_K: torch.Tensor) -> torch.Tensor:
            return values_K.to(torch.float32)[:, None, None]

        correction1_K, correction2_K = (1 - beta ** count_K.double() for beta in BETAS)
        denominator = square_KPD.sqrt() / shaped(correction2_K.sqrt()) + self.eps
        moved_KPD = self.prompts_KPD * shaped(1 - rates_K * self.weight_decay)
        moved_KPD -= shaped(rates_K * self.rms / correction1_K) * mean_KPD / denominator
        chosen = active[:, None, None]
        self._mean_KPD = torch.where(chosen, mean_KPD, self._mean_KPD)
        self._square_KPD = torch.where(chosen, square_KPD, self._square_KPD)
        self._steps_K = torch.where(active, count_K, self._steps_K)
        self.prompts_KPD.copy_(torch.where(chosen, moved_KPD, self.prompts_KPD))
        return norms_K

    def state(self) -> dict[str, torch.Tensor]:
        """Everything that training goes on from, as tensors."""
        return {
            "prompts": self.prompts_KPD.detach().clone(),
            "mean": self._mean_KPD.clone(),
            "square": self._square_KPD.clone(),
            "steps": self._steps_K.clone(),
        }

    @torch.no_grad()
    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from what `state` gave.

        Raises:
            ValueError: the shapes are those of another bank.
        """
        if state["prompts"].shape != self.prompts_KPD.shape:
            raise ValueError(
                f"state of prompts {tuple(state['prompts'].shape)}, bank {tuple(self.prompts_KPD.shape)}"
            )
        self.prompts_KPD.copy_(state["prompts"])
        self._mean_KPD.copy_(state["mean"])
        self._square_KPD.copy_(state["square"])
        self._steps_K.copy_(state["steps"])


def check_prompts_train(
    start_KPD: torch.Tensor, bank: PromptBank, names: Sequence[str] = (), only: Collection[int] | None = None
) -> None:
    """Refuse to go on with prompts that do not train; warn when they hardly do.

    Call it after the first few updates. Prompts that had no update yet are left out.

    Args:
        start_KPD: [K, P, D] the prompts before the first update.
        bank: the bank after a few updates.
        names: what to call the K prompts in messages.
        only: numbers of the prompts to check; None: all.

    Raises:
        UserError: a prompt's gradient has always been zero, or it has not moved or is not finite.
    """
    moved_K = (bank.prompts_KPD.detach() - start_KPD).flatten(1).square().mean(1).sqrt() / bank.rms
    felt_K = bank.largest_gradient_K()
    for k, (moved, felt, updates) in enumerate(
        zip(moved_K.tolist(), felt_K.tolist(), bank.updates_K.tolist(), strict=True)
    ):
        if not updates or (only is not None and k not in only):
            continue
        rate = float(bank.learning_rates_K[k])
        name = f"prompt {names[k] if names else k}"
        if felt == 0:  # weight decay alone moves it, and that is no learning
            raise UserError(
                f"{name} does not train: its gradient has been zero for {updates} updates; expected a loss that depends "
                "on it; check that its examples hold the mask <X> and that their labels count in the loss"
            )
        if not 0 < moved < float("inf"):  # NaN too
            raise UserError(
                f"{name} does not train: after {updates} updates at {rate:g} x embedding RMS it has moved by "
                f"{moved:g}; {'raise' if moved == 0 else 'lower'} the learning rate"
            )
        if moved < HARDLY:
            say(
                f"warning: {name} hardly moves ({moved:.1e} x embedding RMS so far at learning rate {rate:g}); "
                "rates are in units of the embedding RMS, usual ones lie between 0.03 and 1"
            )
