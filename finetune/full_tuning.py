"""Full-model tuning: every weight trains, one cell at a time, each from the backbone's own weights."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch

from finetune.score import score_items
from finetune.tune import Outcome, Trial, TuneOptions
from pretrain.backbone import Backbone
from pretrain.batching import collate, example_losses, micro_batches


class FullTuner:
    """A trainable copy of a backbone that goes back to the backbone's weights before each trial."""

    def __init__(self, backbone: Backbone) -> None:
        """Copy the weights.

        Args:
            backbone: the frozen model, in float32: the copy is the master copy of the weights.
        """
        self.original = backbone
        self.tuned = Backbone(copy.deepcopy(backbone.model), backbone.name)
        self.tuned.model.requires_grad_(True)
        self.tuned.model.eval()  # no dropout, as in prompt tuning

    def load(self, weights: dict[str, torch.Tensor] | None = None) -> Backbone:
        """Set the copy to `weights`, or back to the backbone's own."""
        source = weights if weights is not None else dict(self.original.model.named_parameters())
        with torch.no_grad():
            for name, parameter in self.tuned.model.named_parameters():
                parameter.copy_(source[name])
        return self.tuned

    def weights(self) -> dict[str, torch.Tensor]:
        """A copy of the weights as they are."""
        return {name: p.detach().clone() for name, p in self.tuned.model.named_parameters()}

    def tune(
        self, trial: Trial, options: TuneOptions, advance: Callable[[int], None] = lambda n: None
    ) -> Outcome:
        """Train all weights on one trial.

        AdamW at a constant rate; weight decay spares vectors (the layer norms).

        Returns:
            Its outcome; `best` holds all weights at the chosen step.
        """
        backbone = self.load()
        parameters = list(backbone.model.parameters())
        optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in parameters if p.ndim > 1], "weight_decay": options.ft_weight_decay},
                {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=trial.learning_rate,
            fused=True,  # one pass over the weights: on a CPU an update takes a third of the time
        )
        outcome = Outcome()
        due = set(trial.due(options))
        for step in range(len(trial.order) + 1):
            if step in due:
                scores = score_items(
                    backbone,
                    trial.verbalizer,
                    trial.dev,
                    None,
                    batch_tokens=options.batch_tokens,
                    length_normalised=options.length_normalised,
                )
                outcome.evaluated(step, scores, self.weights)
            if step == len(trial.order) or outcome.diverged is not None:
                advance(len(trial.order) - step)
                break
            optimizer.zero_grad(set_to_none=True)
            if outcome.train_loss(self._backward(backbone, trial, step, options), step):
                if options.clip:
                    torch.nn.utils.clip_grad_norm_(parameters, options.clip)
                optimizer.step()
                advance(1)
        return outcome

    def _backward(self, backbone: Backbone, trial: Trial, step: int, options: TuneOptions) -> float:
        """Mean loss of one step's batch; gradients are left in the weights."""
        items = [trial.train[position] for position in trial.order[step]]
        targets = trial.renderer.target_ids(items)
        total = 0.0
        for group in micro_batches([len(item.input_ids) for item in items], options.batch_tokens):
            batch = collate(
                [items[i].input_ids for i in group],
                [0] * len(group),
                [targets[i] for i in group],
                pad_id=backbone.pad_id,
                start_id=backbone.start_id,
                count=options.count,
                example_weights=[1.0 / len(items)] * len(group),
            ).to(backbone.embedding_device)
            # `Backbone.embed` takes no gradient; here the table trains too.
            embeds_BLD = backbone.model.get_input_embeddings()(batch.input_ids_BL)
            logits_BTV = backbone.target_logits(embeds_BLD, batch.mask_BL, batch.decoder_ids_BT)
            loss = (example_losses(logits_BTV, batch) * batch.example_weights_B).sum()
            loss.backward()
            total += float(loss.detach())
        return total
