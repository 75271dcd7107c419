"""A frozen encoder-decoder language model, and what the pipeline needs of every family."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any

import torch

from corpora.common.errors import UserError
from corpora.tokenizer import Tokenizer

FAMILIES = ("t5", "mt5")  # T5 1.0, 1.1, LM-adapted, Flan-T5; mT5
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SAMPLE_BYTES = 4096  # of each tensor that the fingerprint reads, spread over the tensor: seconds at 11B


class Backbone:
    """A frozen T5-shaped model in eval mode.

    Attributes:
        model: the transformers model; no parameter asks for a gradient.
        name: what it was loaded from.
        d_model: width D.
        vocab_size: V of the logits.
        pad_id, start_id: ids of the padding and of the decoder's first position.
    """

    def __init__(self, model: Any, name: str) -> None:
        self.model = model.eval().requires_grad_(False)
        self.name = name
        config = model.config
        self.d_model = int(config.d_model)
        self.vocab_size = int(config.vocab_size)
        self.pad_id = int(config.pad_token_id)
        start = config.decoder_start_token_id
        self.start_id = (
            int(start) if start is not None else self.pad_id
        )  # a bare T5Config has none; T5 starts with pad

    @property
    def embedding_device(self) -> torch.device:
        """Device of the embedding table, where input ids belong."""
        return self.model.get_input_embeddings().weight.device

    @functools.cached_property
    def embedding_rms(self) -> float:
        """Root mean square of the whole input embedding table: the unit of prompts' learning rates."""
        weight_VD = self.model.get_input_embeddings().weight.detach()
        total = 0.0
        for rows in weight_VD.split(8192):  # a float64 copy of a large table would not fit
            total += float(rows.double().square().sum())
        return (total / weight_VD.numel()) ** 0.5

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over tensor names, shapes, dtypes and a fixed sample of each tensor's bytes, as hex.

        A tensor that appears under several names counts once, under the first in the alphabet.
        """
        return tensors_fingerprint(self.model.state_dict())

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
        states: torch.Tensor = self.model.encoder(
            inputs_embeds=embeds_BLD, attention_mask=mask_BL.long(), return_dict=True
        ).last_hidden_state
        return states

    def decode(
        self, states_BLD: torch.Tensor, mask_BL: torch.Tensor, decoder_ids_BT: torch.Tensor
    ) -> torch.Tensor:
        """Logits, [B, T, V], of the decoder's positions given encoder states.

        Args:
            states_BLD: [B, L, D] from `encode`.
            mask_BL: [B, L] as given to `encode`.
            decoder_ids_BT: [B, T] decoder inputs, the first column `start_id`.
        """
        output = self.model.decoder(
            input_ids=decoder_ids_BT,
            encoder_hidden_states=states_BLD,
            encoder_attention_mask=mask_BL.long(),
            use_cache=False,
            return_dict=True,
        ).last_hidden_state
        if getattr(self.model.config, "scale_decoder_outputs", False):
            output = (
                output * self.d_model**-0.5
            )  # T5 1.0 shares its head with the embedding, scaled (Raffel et al.)
        logits: torch.Tensor = self.model.lm_head(output)
        return logits

    def target_logits(
        self, embeds_BLD: torch.Tensor, mask_BL: torch.Tensor, decoder_ids_BT: torch.Tensor
    ) -> torch.Tensor:
        """Logits, [B, T, V]: `encode`, then `decode`. Equal to the plain model's on the same inputs."""
        return self.decode(self.encode(embeds_BLD, mask_BL), mask_BL, decoder_ids_BT)


def tensors_fingerprint(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 of named tensors by names, shapes, dtypes and a fixed sample of bytes, as hex; aliases count once."""
    digest = hashlib.sha256()
    seen: set[tuple[int, tuple[int, ...], tuple[int, ...]]] = set()
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        identity = (tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()))
        if identity in seen:
            continue
        seen.add(identity)
        flat = tensor.reshape(-1)
        step = max(1, flat.numel() * flat.element_size() // SAMPLE_BYTES)
        sample = flat[::step].contiguous().cpu().view(torch.uint8).numpy().tobytes()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(sample)
    return digest.hexdigest()


def load_backbone(
    name_or_path: str | Path, dtype: str = "float32", device: str | torch.device = "cpu"
) -> Backbone:
    """Load a frozen backbone.

    Args:
        name_or_path: a folder or a hub name of a T5 or mT5 model.
        dtype: `float32` or `bfloat16`.
        device: where its weights go.

    Raises:
        UserError: nothing is there, or it is of a family that is not supported.
    """
    from transformers import AutoConfig, MT5ForConditionalGeneration, T5ForConditionalGeneration

    name = str(name_or_path)
    if dtype not in DTYPES:
        raise UserError(f'dtype is "{dtype}"; expected one of {", ".join(DTYPES)}')
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"cannot load the backbone {name}: {reason}") from error
    if config.model_type not in FAMILIES:
        raise UserError(f'the backbone {name} is a "{config.model_type}"; supported: {", ".join(FAMILIES)}')
    kind = MT5ForConditionalGeneration if config.model_type == "mt5" else T5ForConditionalGeneration
    try:
        model = kind.from_pretrained(name, dtype=DTYPES[dtype], trust_remote_code=False)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"cannot load the weights of the backbone {name}: {reason}") from error
    return Backbone(model.to(device), name)
