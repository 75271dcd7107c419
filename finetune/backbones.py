"""The frozen backbones of a run: what is asked of them before they compute, and where they compute."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from corpora.tokenizer import Tokenizer
from finetune.memory import fitting_tokens, give_back_memory
from finetune.methods import METHODS
from finetune.settings import FewshotSettings
from finetune.tune import TuneOptions
from pretrain.backbone import Backbone, load_backbone
from pretrain.distributed import keep_freed_memory
from pretrain.forward import ForwardOptions, PromptedBackbone
from pretrain.quantise import check_weights
from pretrain.settings import Weights

CPU_TOKENS = 8192  # under way at a time


@dataclass(frozen=True)
class Size:
    """What a backbone's files hold."""

    d_model: int
    weights: int  # numbers


class Backbones:
    """Loads `main` and `lm` when they are asked for, and keeps one on the device only as long as it computes."""

    def __init__(self, settings: FewshotSettings) -> None:
        """Load nothing yet."""
        self.settings = settings
        self._backbones: dict[str, Backbone] = {}
        self._sizes: dict[str, Size] = {}
        self._nets: dict[str, PromptedBackbone] = {}
        self._options: dict[str, TuneOptions] = {}  # of backbones that compute
        self._tokenizers: dict[str, Tokenizer] = {}

    def backbone(self, which: str) -> Backbone:
        """The frozen backbone `main` or `lm`: on the CPU, to be asked what it is, until `net` takes it to where it computes.

        Raises:
            UserError: it is not given, cannot be loaded, or cannot be held as the settings say.
        """
        settings = self.settings
        if which not in self._backbones:
            check_weights(self._held(which), self._dtype, torch.device(settings.resolved_device))
            backbone = load_backbone(settings.needs(which), self._dtype)
            n = sum(parameter.numel() for parameter in backbone.model.parameters())
            self._backbones[which], self._sizes[which] = backbone, Size(backbone.d_model, n)
        return self._backbones[which]

    @property
    def _dtype(self) -> str:
        return self.settings.dtype or "float32"

    def _held(self, which: str) -> Weights:
        """How a backbone's weights are held while it computes; full tuning loads its own, in full."""
        methods = [METHODS[name] for name in self.settings.methods]
        prompts = any(spec.trains == "prompt" and spec.backbone == which for spec in methods)
        return self.settings.weights if prompts else "full"

    def size(self, which: str) -> Size:
        """A backbone's width and number of weights, however they are held."""
        if which not in self._sizes:
            self.backbone(which)
        return self._sizes[which]

    def net(self, which: str) -> PromptedBackbone:
        """The backbone as prompts are tuned on it: frozen, examples end to end, on the device of the run.

        It stays there until `let_go`.
        """
        if which not in self._nets:
            settings, held = self.settings, self._held(which)
            if held == "full":
                self.backbone(which).model.to(settings.resolved_device)
            else:  # straight from its files: quantising what is rounded already would add an error
                self.size(which)
                self._backbones[which] = load_backbone(
                    settings.needs(which), self._dtype, settings.resolved_device, held
                )
            on_gpu = torch.device(settings.resolved_device).type == "cuda"
            if not on_gpu:
                keep_freed_memory()  # threads that ask the system for memory wait for each other
            options = ForwardOptions("flex", compiled=True) if on_gpu else ForwardOptions()
            self._nets[which] = PromptedBackbone(self._backbones[which], options).requires_grad_(False).eval()
        return self._nets[which]

    def let_go(self, which: str) -> None:
        """Free what a backbone that computed takes: its stage is over. Who asks for it again has it loaded again."""
        if self._nets.pop(which, None) is not None:
            del self._backbones[which]
            self._options.pop(which, None)
            give_back_memory()

    def options(self, which: str) -> TuneOptions:
        """What all cells on a backbone share.

        On a CPU 8,192 tokens under way at a time, shared by the threads: two take 7 % less time for it than with 4,096, and as long as
        with 14,000, at 2.6M weights in bfloat16. On a GPU as many as its memory holds beside the backbone, once that is there.
        """
        if which not in self._nets:
            return self._make_options(which)
        if which not in self._options:  # before anything is computed, which would leave less memory free
            self._options[which] = self._make_options(which)
        return self._options[which]

    def _make_options(self, which: str) -> TuneOptions:
        settings, device = self.settings, torch.device(self.settings.resolved_device)
        tokens = settings.batch_tokens
        if tokens is None and device.type == "cuda" and which in self._nets:
            tokens = fitting_tokens(self._nets[which].backbone, torch.cuda.mem_get_info(device)[0])
        return TuneOptions(
            eval_every=settings.eval_every,
            batch_tokens=tokens or CPU_TOKENS,
            weight_decay=settings.weight_decay,
            ft_weight_decay=settings.ft_weight_decay,
            clip=settings.clip,
            count=settings.count,
            length_normalised=settings.length_normalised,
            patience=settings.patience,
        )

    def tokenizer(self, which: str) -> Tokenizer:
        """The tokenizer beside a backbone."""
        if which not in self._tokenizers:
            backbone = self.backbone(which)
            tokenizer = backbone.tokenizer()
            backbone.check_tokenizer(tokenizer)
            self._tokenizers[which] = tokenizer
        return self._tokenizers[which]
