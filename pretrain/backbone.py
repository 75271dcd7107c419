"""A frozen encoder-decoder language model, and what the pipeline needs of every family."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from corpora.common.errors import MachineError, UserError
from corpora.common.hub import hub_reachable
from corpora.tokenizer import Tokenizer
from pretrain.backbone_loading import Keeping, gathered, load_weights
from pretrain.distributed import Processes
from pretrain.fingerprint import tensors_fingerprint, weight_files_fingerprint
from pretrain.settings import Weights
from pretrain.t5_forward import decode, encode
from pretrain.weight_files import WEIGHTS, weight_files

FAMILIES = {"t5": "T5 1.0, 1.1, LM-adapted, Flan-T5", "mt5": "mT5"}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Backbone:
    """A frozen T5-shaped model in eval mode.

    Attributes:
        model: the transformers model; no parameter asks for a gradient.
        name: what it was loaded from.
        d_model: width D.
        vocab_size: V of the logits.
        pad_id, start_id: ids of the padding and of the decoder's first position.
        weights: how the blocks' linear layers are held: `full`, `int8`, `nf4` or `fp8`.
    """

    def __init__(
        self, model: Any, name: str, stored: frozenset[str] | None = None, weights: Weights = "full"
    ) -> None:
        """Freeze a model.

        Args:
            model: a transformers T5 or mT5.
            name: folder or hub name; its tokenizer lies there.
            stored: names of the model's tensors when they are those of the files there, at most rounded or
                quantised; None for a model that is in no file.
            weights: how the blocks' linear layers are held.
        """
        self.model = model.eval().requires_grad_(False)
        self.name = name
        self.weights = weights
        self._stored = stored
        config = model.config
        self.d_model = int(config.d_model)
        self.vocab_size = int(config.vocab_size)
        self.pad_id = int(config.pad_token_id)
        start = getattr(config, "decoder_start_token_id", None)
        self.start_id = (
            int(start) if start is not None else self.pad_id
        )  # a bare T5Config has none; T5 starts with pad

    @property
    def embedding_device(self) -> torch.device:
        """Device of the embedding table, where input ids belong."""
        return self.model.get_input_embeddings().weight.device

    @contextlib.contextmanager
    def embedding_table(self) -> Iterator[torch.Tensor]:
        """[V, D] the whole input embedding table, for a while; under ZeRO 3 every process must ask."""
        weight_VD = self.model.get_input_embeddings().weight
        with gathered(weight_VD):
            yield weight_VD.detach()

    @functools.cached_property
    def embedding_rms(self) -> float:
        """Root mean square of the whole input embedding table: the unit of prompts' learning rates."""
        total = 0.0
        with self.embedding_table() as weight_VD:
            for rows in weight_VD.split(8192):  # a float64 copy of a large table would not fit
                total += float(rows.double().square().sum())
            rms = (total / weight_VD.numel()) ** 0.5
        if not 0 < rms < float("inf"):
            raise UserError(
                f"the embedding table of the backbone {self.name} has an RMS of {rms}; expected a trained one"
            )
        return rms

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over tensor names, shapes, dtypes and a fixed sample of each tensor's bytes, as hex.

        Of the weights as they are stored: loading in bfloat16 or quantised makes no other backbone of them.
        """
        found = weight_files_fingerprint(self.name, set(self._stored)) if self._stored else None
        return found or tensors_fingerprint(self.model.state_dict())

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that lies beside the weights."""
        return Tokenizer.load(self.name)

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Refuse a tokenizer that does not fit.

        Raises:
            UserError: its ids exceed the embedding table, or the tokenizer beside the weights is another one.
        """
        rows = self.model.get_input_embeddings().weight.shape[0]
        rows = rows or self.vocab_size  # sharded under ZeRO 3
        if tokenizer.size > rows:
            raise UserError(
                f"the tokenizer {tokenizer.name} has {tokenizer.size} ids, the backbone {self.name} embeds {rows}; "
                "take the backbone's own tokenizer"
            )
        folder = Path(self.name)
        if (folder / "spiece.model").is_file() or (folder / "tokenizer.json").is_file():
            own = self.tokenizer()
            if own.fingerprint != tokenizer.fingerprint:
                raise UserError(
                    f"the tokenizer {tokenizer.name} (fingerprint {tokenizer.fingerprint[:12]}) is not the one of the "
                    f"backbone {self.name} (fingerprint {own.fingerprint[:12]}); build with the backbone's tokenizer"
                )

    def embed(self, ids_BL: torch.Tensor) -> torch.Tensor:
        """Input embeddings, [B, L, D], of `ids_BL` [B, L]; without a gradient."""
        with torch.no_grad():
            embeds: torch.Tensor = self.model.get_input_embeddings()(ids_BL)
        return embeds

    def encode(self, embeds_BLD: torch.Tensor, mask_BL: torch.Tensor) -> torch.Tensor:
        """Encoder states, [B, L, D].

        Args:
            embeds_BLD: [B, L, D] input embeddings, the prompt among them.
            mask_BL: [B, L] true where a token stands, false on padding.
        """
        return encode(self.model, embeds_BLD, mask_BL)

    def decode(
        self, states_BLD: torch.Tensor, mask_BL: torch.Tensor, decoder_ids_BT: torch.Tensor, first: int = 0
    ) -> torch.Tensor:
        """Logits, [B, T - first, V], of the decoder's positions given encoder states.

        Args:
            states_BLD: [B, L, D] from `encode`.
            mask_BL: [B, L] as given to `encode`.
            decoder_ids_BT: [B, T] decoder inputs, the first column `start_id`.
            first: first position of which logits are made.
        """
        return self.logits(self.decoder_output(states_BLD, mask_BL, decoder_ids_BT)[:, first:])

    def decoder_output(
        self, states_BLD: torch.Tensor, mask_BL: torch.Tensor, decoder_ids_RT: torch.Tensor
    ) -> torch.Tensor:
        """What `logits` reads, [R, T, D].

        Args:
            states_BLD: [B, L, D] from `encode`.
            mask_BL: [B, L] as given to `encode`.
            decoder_ids_RT: [R, T] decoder inputs, R = B x r: r rows of each example, which lie together.
        """
        return decode(self.model, states_BLD, mask_BL, decoder_ids_RT)

    def logits(self, output: torch.Tensor) -> torch.Tensor:
        """[..., V] of some of the decoder's positions, [..., D]."""
        config = self.model.config
        if config.model_type == "t5" and config.scale_decoder_outputs:
            # T5 1.0 shares its head with the embedding, scaled (Raffel et al.); mT5 never scales.
            output = output * self.d_model**-0.5
        logits: torch.Tensor = self.model.lm_head(output)
        return logits

    def target_logits(
        self, embeds_BLD: torch.Tensor, mask_BL: torch.Tensor, decoder_ids_BT: torch.Tensor
    ) -> torch.Tensor:
        """Logits, [B, T, V]: `encode`, then `decode`. Equal to the plain model's on the same inputs."""
        return self.decode(self.encode(embeds_BLD, mask_BL), mask_BL, decoder_ids_BT)


def load_backbone(
    name_or_path: str | Path,
    dtype: str = "float32",
    device: str | torch.device = "cpu",
    weights: Weights = "full",
    processes: Processes | None = None,
    deepspeed_config: dict[str, Any] | None = None,
) -> Backbone:
    """Load a frozen backbone, each tensor straight from its file to where it is kept.

    Args:
        name_or_path: a folder or a hub name of a T5 or mT5 model.
        dtype: `float32` or `bfloat16`.
        device: where its weights go.
        weights: how the blocks' linear layers are held; `full`: in `dtype`.
        processes: those that share the backbone, every one of which must call this; None: all of it is this one's.
        deepspeed_config: of the job. At ZeRO 3 no process ever holds more than its part and one tensor; where
            processes share layers, each reads no more of them than its part.

    Raises:
        UserError: nothing is there, it is of a family that is not supported, weights are missing or spoilt, or they
            cannot be held or shared in that way.
        MachineError: memory does not suffice, a file may not be read, or the hub cannot be reached.
    """
    from transformers import AutoConfig, MT5ForConditionalGeneration, T5ForConditionalGeneration

    name, device = str(name_or_path), torch.device(device)
    if dtype not in DTYPES:
        raise UserError(f'dtype is "{dtype}"; expected one of {", ".join(DTYPES)}')
    offline = not Path(name).is_dir() and not hub_reachable()
    # `runs/backbone` beside a folder `runs` is a mistyped path; `google/t5-v1_1-small` is none.
    hub_only = offline and name.count("/") == 1 and name[0] not in "/.~" and not Path(name).parent.exists()
    with _reasons(
        f"cannot load the backbone {name}; expected a folder or hub name of a T5 or mT5", offline, hub_only
    ):
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, local_files_only=offline)
    if config.model_type not in FAMILIES:
        known = "; ".join(f"{family} ({members})" for family, members in FAMILIES.items())
        raise UserError(f'the backbone {name} is a "{config.model_type}"; supported: {known}')
    kind = MT5ForConditionalGeneration if config.model_type == "mt5" else T5ForConditionalGeneration
    keeping = Keeping(DTYPES[dtype], device, weights, processes, deepspeed_config)
    keeping.check(config, name)
    with _reasons(f"cannot load the weights of the backbone {name}", offline, hub_only), _quiet():
        files = weight_files(name, offline)
        if not files:
            raise FileNotFoundError(f"no {' or '.join(WEIGHTS)}")
        model, stored = load_weights(kind, config, files, keeping, name)
    return Backbone(model, name, stored, weights)


@contextlib.contextmanager
def _reasons(what: str, offline: bool = False, hub_only: bool = False) -> Iterator[None]:
    """Turn what libraries raise while they load into one line.

    Args:
        what: what failed.
        offline: the name is no folder and the hub cannot be reached.
        hub_only: so it is, and the name can hardly be meant as a folder: the machine is at fault, not the user.
    """
    try:
        yield
    except (UserError, MachineError):
        raise
    except Exception as error:  # transformers, safetensors and torch.load raise kinds of their own
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        machine = isinstance(error, MemoryError | torch.OutOfMemoryError | PermissionError)
        if offline and isinstance(error, OSError):
            reason = "there is no such folder, and the hub cannot be reached"
        raise (MachineError if machine or hub_only else UserError)(f"{what} ({reason})") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from warnings about untied heads, and from bars where nobody watches."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
