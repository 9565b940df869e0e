"""`GPTTrainer`: transformers' Trainer with figures that mean the same for any batch size and any tokenizer."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from transformers.trainer_callback import ProgressCallback
from transformers.trainer_pt_utils import LengthGroupedSampler

from gpt_finetune.costs import flops_per_token
from gpt_finetune.errors import InputError
from gpt_finetune.training.callbacks import Progress
from gpt_finetune.training.lean import make_lean
from gpt_finetune.training.memory import MemoryTrainer
from gpt_finetune.training.muon import is_vector
from gpt_finetune.training.pairs import PairLoss, decoder_inputs, is_pair
from gpt_finetune.training.recompute import recomputed
from gpt_finetune.training.reliable import ReliableTrainer
from gpt_finetune.training.sampling import GroupedSampler
from gpt_finetune.training.throughput import Throughput, compute_dtype, matmul_ceiling, peak_memory_mb

if TYPE_CHECKING:
    from gpt_finetune.data.prepare import Watched

_WHOLE = "FULL_STATE_DICT"  # what FSDP saves then, any number of processes opens


class GPTTrainer(ReliableTrainer, MemoryTrainer):
    """A thin `transformers.Trainer`.

    What it changes, besides what makes it reliable (see `ReliableTrainer` and `MemoryTrainer`): matrices decay and
    vectors do not; evaluation loss is the mean over tokens, equal for any batch size and number of processes; logs
    carry perplexity, bits per byte, tokens a second, model FLOPs utilisation and peak memory.

    Args:
        *args: As `transformers.Trainer`.
        tokens_per_byte: Of the training text; turns nats a token into bits a byte in the training log.
        eval_tokens_per_byte: Of the evaluation text, end-of-text tokens counted; makes its bits per byte exact. A
            mapping by name where `eval_dataset` is one.
        watched: Other data sets, by name, that each evaluation of the run's own covers as well. Their figures stand in
            the same log, as `eval_<name>_loss` and so on; see `forgetting`.
        z_loss: Weight of the z-loss in training, see `model.loss_gpt.Terms`. Like `label_smoothing_factor` among the
            training arguments it counts in training only: the evaluation loss stays that of the data.
        **kwargs: As `transformers.Trainer`.
    """

    eval_dataset: Any
    label_smoother: Any
    compute_loss_func: Any
    # what an evaluation logs -> its name among a run's figures
    FINAL: ClassVar[dict[str, str]] = {
        "eval_loss": "eval_loss",
        "eval_perplexity": "perplexity",
        "eval_bits_per_byte": "bits_per_byte",
        "eval_tokens": "eval_tokens",
    }

    def __init__(
        self,
        *args: Any,
        tokens_per_byte: float | None = None,
        eval_tokens_per_byte: float | Mapping[str, float] | None = None,
        watched: Mapping[str, Watched] | None = None,
        z_loss: float = 0.0,
        **kwargs: Any,
    ) -> None:
        self.throughput = Throughput()
        super().__init__(*args, **kwargs)
        base = _base_model(self.model)
        if hasattr(base.config, "refuse_unknown_fields"):
            base.config.refuse_unknown_fields()  # else the first save would, when the work is done
        if self.is_fsdp_enabled and (kind := self.accelerator.state.fsdp_plugin.state_dict_type.name) != _WHOLE:
            problem = "nothing would be saved at the end but shards, beside a pickle that says what they are"
            raise InputError("fsdp_config.fsdp_state_dict_type", kind, problem, f"Set it to {_WHOLE}")
        make_lean(self.model, self.args)
        # A model that computes its loss piece by piece takes what would else ask for its whole logits.
        self._pieces = "skip_logits" in inspect.signature(base.forward).parameters
        if z_loss and not self._pieces:
            problem = f"{type(base).__name__} has no such term in its loss"
            raise InputError("train.z_loss", z_loss, problem, "Set it to 0")
        self._terms = {"z_loss": z_loss} if z_loss else {}
        if self._pieces and self.label_smoother is not None:
            self._terms["label_smoothing"] = self.label_smoother.epsilon
            self.label_smoother = None
        if is_pair(self.model) and self.compute_loss_func is None:
            self.compute_loss_func = PairLoss(self.args.label_smoothing_factor)
        if not self.args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(Progress)
        self.add_callback(self.throughput)  # last: see Throughput
        self.watched = {name: domain.rows for name, domain in (watched or {}).items()}
        named = eval_tokens_per_byte if isinstance(eval_tokens_per_byte, Mapping) else {}
        named = {**named, **{name: domain.tokens_per_byte for name, domain in (watched or {}).items()}}
        self._tokens_per_byte = {"": tokens_per_byte, **{f"eval_{name}_": ratio for name, ratio in named.items()}}
        if not isinstance(eval_tokens_per_byte, Mapping):
            self._tokens_per_byte["eval_"] = eval_tokens_per_byte
        decided = self.args.activation_checkpointing or self.args.torch_compile  # what is kept
        decided = decided or self.is_fsdp_enabled or self.is_deepspeed_enabled
        self.recomputes = getattr(self.args, "recompute", False) and not decided
        self._flops_per_token: float | None = None
        self._eval_sums = torch.zeros(2, dtype=torch.float64)  # nats, tokens

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Name the parameters that decay: matrices; norms and biases are vectors and do not."""
        return [name for name, parameter in model.named_parameters() if not is_vector(name, parameter)]

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Build the schedule; a decay without a length takes a fifth of all steps."""
        arguments = self.args.lr_scheduler_kwargs or {}
        if "num_decay_steps" in arguments and arguments["num_decay_steps"] is None:
            self.args.lr_scheduler_kwargs = {**arguments, "num_decay_steps": max(1, num_training_steps // 5)}
        return super().create_scheduler(num_training_steps, optimizer)

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        """Order the rows as transformers does; those grouped by length as seed and epoch say, see `GroupedSampler`."""
        sampler = super()._get_train_sampler(*args, **kwargs)
        if not isinstance(sampler, LengthGroupedSampler):
            return sampler
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return GroupedSampler(sampler.batch_size, sampler.lengths, seed)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Run one forward and backward pass, and count its tokens."""
        rows = inputs.get(self.model.main_input_name)
        if rows is not None:
            self.throughput.count(rows.numel() * self.accelerator.num_processes)
            if self._flops_per_token is None and hasattr(self.model.config, "head_dim"):
                self._flops_per_token = flops_per_token(self.model, rows.shape[-1])
        return super().training_step(model, {**inputs, **self._terms}, num_items_in_batch)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Compute the loss. A pair's labels are taken away for it, so what its decoder reads is made of them before."""
        if is_pair(self.model) and "labels" in inputs and "decoder_input_ids" not in inputs:
            inputs = {**inputs, **decoder_inputs(self.model, inputs["labels"])}
        with recomputed(model.training and self.recomputes):
            return super().compute_loss(model, inputs, *args, **kwargs)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """Count the items that have a label; of questions with their answers' positions, which Trainer does not."""
        if batch_samples and "start_positions" in batch_samples[0] and "labels" not in batch_samples[0]:
            batch_samples = [
                {"labels": batch["start_positions"].masked_fill(batch["end_positions"] == -100, -100)}
                for batch in batch_samples
            ]
        return super()._get_num_items_in_batch(batch_samples, device)

    # ------------------------------------------------------------------------------------------------ evaluation

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, *args: Any, **kwargs: Any
    ) -> Any:
        """Evaluate one batch, and add its loss to sums over tokens."""
        inputs = self._without_repeats(inputs)
        asked = {**inputs, "skip_logits": True} if self._pieces and prediction_loss_only else inputs
        results = super().prediction_step(model, asked, prediction_loss_only, *args, **kwargs)
        count = self._get_num_items_in_batch([inputs], self.args.device)
        if results[0] is not None and count is not None:
            # The loss came divided by the tokens of all processes, times their number: undo it, and sum locally.
            nats = results[0].double() * count / self.accelerator.num_processes if count > 0 else 0.0
            share = count / self.accelerator.num_processes
            self._eval_sums += torch.tensor([float(nats), float(share)], dtype=torch.float64)
        return results

    def _without_repeats(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Mask the rows that the last distributed batch repeats to be even, so that none counts twice."""
        state = self.accelerator.gradient_state
        names: list[str] = [name for name in ("labels", "start_positions", "end_positions") if name in inputs]
        if not names or not state.end_of_dataloader or state.remainder <= 0:
            return inputs
        masked = {name: inputs[name].clone() for name in names}
        for labels in masked.values():
            labels[max(0, state.remainder - len(labels) * self.accelerator.process_index) :] = -100
        return {**inputs, **masked}

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """Run transformers' loop; replace its mean over batches by the mean over tokens."""
        self._eval_sums.zero_()
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        sums = self.accelerator.reduce(self._eval_sums.to(self.args.device), reduction="sum")
        nats, tokens = sums.tolist()
        if tokens > 0:
            output.metrics[f"{metric_key_prefix}_loss"] = nats / tokens
            output.metrics[f"{metric_key_prefix}_tokens"] = round(tokens)
        if metric_key_prefix == "eval":
            for name in self.watched:
                watched = self.evaluation_loop(
                    self._watched_loader(name), "Evaluation", True, metric_key_prefix=f"eval_{name}"
                )
                output.metrics[f"eval_{name}_loss"] = watched.metrics[f"eval_{name}_loss"]
        return output

    def _watched_loader(self, name: str) -> Any:
        """Return the loader of a watched data set, found by name as those of a dict of evaluation sets are."""
        own, self.eval_dataset = self.eval_dataset, self.watched
        try:
            return self.get_eval_dataloader(name)
        finally:
            self.eval_dataset = own

    def final_figures(self) -> dict[str, float]:
        """Return the figures of the end: evaluation (made now, unless the last step had one), speed and memory."""
        evaluation = self._evaluated(self.state.global_step)
        if self.eval_dataset is not None and not evaluation:
            evaluation = self.evaluate()
        return self._named(evaluation) | self.summary()

    def before(self) -> dict[str, float]:
        """Return the figures of the evaluation before the first step, under the names of the final ones.

        They stand in the log's history, and so outlive a resume. Empty unless `eval_on_start` was set.
        """
        return self._named(self._evaluated(0))

    def forgetting(self) -> dict[str, dict[str, dict[str, float]]]:
        """Return the figures of each watched data set `before` the first step and `after` the last one."""
        moments = {"before": self._evaluated(0), "after": self._evaluated(self.state.global_step)}
        names = {"loss": "eval_loss", "perplexity": "perplexity", "bits_per_byte": "bits_per_byte"}
        return {
            name: {
                moment: {
                    figure: row[f"eval_{name}_{key}"] for key, figure in names.items() if f"eval_{name}_{key}" in row
                }
                for moment, row in moments.items()
            }
            for name in self.watched
        }

    def _evaluated(self, step: int) -> dict[str, float]:
        """Return what was logged of the evaluations at one step."""
        found: dict[str, float] = {}
        for row in self.state.log_history:
            if row["step"] == step and any(key.startswith("eval_") for key in row):
                found |= row
        return found

    def _named(self, evaluation: dict[str, float]) -> dict[str, float]:
        return {name: evaluation[key] for key, name in self.FINAL.items() if key in evaluation}

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save as transformers does; at the end, an adapter as one that loads on its base, without the base's tables.

        Checkpoints keep it as it is trained, to go on from. Weights spread over processes are left as they were saved.
        A schedule-free optimiser's weights are its average at the end, where no evaluation may have come before.
        """
        if not _internal_call and hasattr(self.optimizer, "eval"):
            self.optimizer.eval()
        super().save_model(output_dir, _internal_call)
        from peft import PeftModel

        spread = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if isinstance(self.model, PeftModel) and self.args.should_save and not _internal_call and not spread:
            from gpt_finetune.adaptation.saving import save_adapter

            save_adapter(self.model, output_dir or self.args.output_dir)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save as transformers does, but not its switching off of the cache, which is for training only."""
        config = self.model.config
        config.use_cache, for_training = True, config.use_cache
        try:
            super()._save(output_dir, state_dict)
        finally:
            config.use_cache = for_training

    # --------------------------------------------------------------------------------------------------- logging

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the derived figures to what Trainer logs.

        Raises:
            FloatingPointError: A loss is NaN or infinite; the run stops here, nothing is saved over.
        """
        self.leave_out_skipped(logs)
        losses = [key for key in logs if key == "loss" or (key.startswith("eval_") and key.endswith("_loss"))]
        for key in losses:
            loss, prefix = logs[key], key.removesuffix("loss")
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"{key} is {loss} at step {self.state.global_step}: lower train.learning_rate "
                    f"(now {self._get_learning_rate():.3g}) or use train.precision=float32"
                )
            if self._terms and not prefix:
                continue  # terms on top of the data's own loss have no perplexity
            if self._loss_shifts_labels:  # a language model's loss; that of a task has none either
                logs[f"{prefix}perplexity"] = math.exp(min(loss, 700.0))
            ratio = self._tokens_per_byte.get(prefix)
            if ratio is not None:
                logs[f"{prefix}bits_per_byte"] = loss / math.log(2) * ratio
        if losses:
            logs["tokens"] = float(self.throughput.tokens)
        if "loss" in logs:
            logs |= self._speed()
        super().log(logs, start_time)

    def _speed(self) -> dict[str, float]:
        figures = {"peak_memory_mb": peak_memory_mb()}
        rate = self.throughput.rate()
        if rate is not None:
            figures["tokens_per_second"] = rate
            figures |= self.utilisation(rate)
        return figures

    def utilisation(self, tokens_per_second: float) -> dict[str, float]:
        """Return model FLOPs utilisation: the share of the measured matrix-product ceiling that training uses."""
        if self._flops_per_token is None:
            return {}
        ceiling = matmul_ceiling(self.args.device.type, compute_dtype(self.args)) * self.accelerator.num_processes
        return {"mfu": tokens_per_second * self._flops_per_token / ceiling}

    def summary(self) -> dict[str, float]:
        """Return the whole run's speed and memory."""
        rate = self.throughput.average()
        figures = {"peak_memory_mb": peak_memory_mb()}
        return figures if rate is None else {"tokens_per_second": rate, **self.utilisation(rate), **figures}


def _base_model(model: nn.Module) -> nn.Module:
    """Return what an adapter is on, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
