"""The numbers of a backbone that memory and time depend on, known without its weights."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from pydantic import Field

from corpora.common.errors import UserError, nearest
from corpora.common.files import read_json
from corpora.common.hub import hub_reachable
from corpora.common.settings import Settings, make_settings

KNOWN = Path(__file__).with_name("shapes.yaml")


class Shape(Settings):
    """A T5-shaped model, by the names of its config.json.

    Attributes:
        name: what it was found by.
    """

    name: str
    d_model: int = Field(ge=1)  # D
    d_kv: int = Field(ge=1)  # width of a head
    num_heads: int = Field(ge=1)  # H
    d_ff: int = Field(ge=1)  # F
    num_layers: int = Field(ge=1)  # of the encoder
    num_decoder_layers: int = Field(ge=1)
    vocab_size: int = Field(ge=1)  # V
    gated: bool  # two products into the feed-forward layer, one through the activation
    tied: bool  # the head is the embedding table

    @property
    def inner(self) -> int:
        """I: width of all heads together."""
        return self.num_heads * self.d_kv

    @property
    def encoder_block(self) -> int:
        """Weights of the linear layers of one encoder block: query, key, value, output, feed-forward."""
        return 4 * self.d_model * self.inner + (3 if self.gated else 2) * self.d_model * self.d_ff

    @property
    def decoder_block(self) -> int:
        """The same of one decoder block, with its cross attention."""
        return self.encoder_block + 4 * self.d_model * self.inner

    @property
    def read_weights(self) -> int:
        """Of cross attention's keys and values, which stay plain when others are quantised: none are made."""
        return self.num_decoder_layers * 2 * self.d_model * self.inner

    @property
    def linear_weights(self) -> int:
        """Weights that can be split: all linear layers but the head."""
        return self.num_layers * self.encoder_block + self.num_decoder_layers * self.decoder_block

    @property
    def other_weights(self) -> int:
        """Embedding table, head, norms and the tables of the relative position bias (32 distances a head)."""
        tables = (1 if self.tied else 2) * self.vocab_size * self.d_model
        norms = (2 * self.num_layers + 3 * self.num_decoder_layers + 2) * self.d_model
        return tables + norms + 2 * 32 * self.num_heads

    @property
    def weights(self) -> int:
        """All of them."""
        return self.linear_weights + self.other_weights


@functools.cache
def known_shapes() -> dict[str, Shape]:
    """Published shapes by hub name."""
    import yaml

    shapes = {}
    for entry in yaml.safe_load(KNOWN.read_text(encoding="utf-8")):
        for name in entry.pop("names"):
            shapes[name] = make_settings(Shape, {"name": name, **entry}, str(KNOWN))
    return shapes


def shape_of_config(config: dict[str, Any], name: str) -> Shape:
    """The shape that a config.json states.

    Args:
        config: its fields.
        name: of the backbone.

    Raises:
        UserError: it is of another family, or a number is missing.
    """
    if config.get("model_type") not in ("t5", "mt5"):
        raise UserError(f'the backbone {name} is a "{config.get("model_type")}"; supported: t5, mt5')
    fields = {key: config[key] for key in Shape.model_fields if key in config and key != "name"}
    fields.setdefault("num_decoder_layers", config.get("num_layers"))
    projection = str(config.get("feed_forward_proj", "relu"))
    tied = bool(config.get("tie_word_embeddings", True))
    return make_settings(
        Shape, {**fields, "name": name, "gated": projection.startswith("gated-"), "tied": tied}, name
    )


def find_shape(backbone: str) -> Shape:
    """The shape of a backbone.

    Args:
        backbone: a folder, a name in `shapes.yaml`, or another hub name (its config.json is fetched).

    Raises:
        UserError: there is no such folder and the name is unknown here and to the hub.
    """
    folder = Path(backbone)
    if folder.is_dir():
        return shape_of_config(read_json(folder / "config.json"), backbone)
    if backbone in known_shapes():
        return known_shapes()[backbone]
    if hub_reachable() and backbone.count("/") <= 1:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError

        try:
            return shape_of_config(read_json(hf_hub_download(backbone, "config.json")), backbone)
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"backbone: {backbone} has no config.json on the hub ({reason}){nearest(backbone, known_shapes())}"
            ) from error
    raise UserError(
        f"backbone: {backbone} is neither a folder nor a shape known here, and the hub cannot be asked"
        f"{nearest(backbone, known_shapes())}"
    )
