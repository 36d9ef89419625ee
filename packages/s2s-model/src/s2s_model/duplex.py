"""The duplex speech-to-speech model as Lightning trains it: steps, optimizer, validation, checkpoints.

What it computes is in `network.py`, how it answers in `answering.py`.
"""

import logging
from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning import Callback, LightningModule, Trainer
from omegaconf import DictConfig
from torch import Tensor

from s2s_data.batch import DuplexBatch
from s2s_model.answering import AnsweringNetwork
from s2s_model.config import ModelConfig
from s2s_model.param_groups import build_optimizers, follow_config, parameter_groups, trained_weights
from s2s_model.step_window import StepWindow, is_distributed
from s2s_model.validation import ValidationLosses, ValOutput
from s2s_model.verdicts import Verdicts, divide_gradients, forget, judges_itself, skip_where
from s2s_parallel.buffers import tracking_norms
from s2s_parallel.config import ParallelConfig
from s2s_parallel.fsdp import gather, release
from s2s_parallel.gradients import clip_divisor, clip_norm, clip_value, total_norm
from s2s_parallel.parallelize import parallelize

log = logging.getLogger(__name__)


class _Cleaning(Callback):
    """Leaves no memory of generation behind after an exception."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        assert isinstance(pl_module, DuplexS2SModel)
        pl_module.release_graphs()


class DuplexS2SModel(AnsweringNetwork, LightningModule):
    """Listens while it speaks.

    Args:
        config: the `model:` section; unknown keys are refused.
        frame_length_s: seconds of a frame, on which encoder and codec must agree.
        parallel: how training lays the model out on its devices; Lightning's strategy says on which.
        llm_dtype: as `DuplexNetwork` takes it.

    Raises:
        ValueError: a part can't be built, or its rates don't fit; the message quotes both.
    """

    def __init__(
        self,
        config: ModelConfig | DictConfig | dict[str, Any],
        frame_length_s: float = 0.08,
        parallel: ParallelConfig | None = None,
        llm_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(config, frame_length_s, llm_dtype)
        self._parallel = parallel or ParallelConfig()
        self._laid_out_on: list[Any] = []  # the mesh (or None for one device), once it is done
        self._window = StepWindow()
        self._verdicts = Verdicts()
        self._norm: Tensor | None = None  # of the step's gradients, where it is known
        self._device_judges = False  # whether the optimizer itself skips the step
        self._stepping: list[torch.optim.Optimizer] = []  # those that are about to take a step, or just took it
        self._num_nonfinite_steps = 0
        self._running: list[Tensor] | None = None  # statistics that training steps change, once they were looked for
        self._statistics: list[tuple[Tensor, Tensor]] = []  # these, and as they were before the step
        self._validation = ValidationLosses()

    # --- training ------------------------------------------------------------------------------------------

    def training_step(self, batch: DuplexBatch, batch_idx: int) -> Tensor:
        """Loss of one batch, to be divided by the valid frames of all ranks and batches of the optimizer step."""
        sums = self(batch)
        objective = sums.objective(self.cfg)
        divisor, mean_frames = self._window.add(objective, sums.num_frames, batch["cut_ids"])
        # The mean over ranks of sums over the mean frame count is the loss over all frames of all ranks.
        losses = {"loss": objective, **sums.named()}
        means = {f"train_{name}": value.detach() / mean_frames for name, value in losses.items()}
        size = len(batch["cut_ids"])
        self.log_dict(means, sync_dist=True, batch_size=size)
        num_places = batch["target_tokens"].shape[0] * max(batch["target_tokens"].shape[1] - 1, 1)
        self.log_dict(
            {
                "num_frames": sums.num_frames.float(),
                "padding_share": 1 - sums.num_frames / num_places,
                "learning_rate": self._on_device(self._learning_rate()),
            },
            batch_size=size,
        )
        # Lightning divides by the number of batches of the step; the window divides by their frames instead.
        loss: Tensor = objective / divisor * self._num_batches_of_a_step()
        return loss

    def on_train_start(self) -> None:
        """Look for running statistics anew; warn of adapters to an LLM that knows nothing."""
        self._running = None
        if self.cfg.lora is not None and not self.cfg.pretrained_weights and self.global_step == 0:
            log.warning(
                "model.lora trains adapters only, and model.pretrained_weights is false: the LLM's own weights stay "
                "as they were drawn"
            )

    def on_train_batch_start(self, batch: DuplexBatch, batch_idx: int) -> None:
        """Keep the running statistics as they are before a step: a skipped one mustn't leave NaN in them."""
        if self._window.is_new:
            if self._running is None:
                self._running = [buffer for norm in tracking_norms(self) for buffer in norm.buffers(recurse=False)]
            self._statistics = [(buffer, buffer.clone()) for buffer in self._running]

    def on_train_batch_end(self, outputs: Any, batch: DuplexBatch, batch_idx: int) -> None:
        """Free the gradients of a step that was taken: Lightning would keep them through the next forward."""
        if self._window.is_new:
            while self._stepping:
                optimizer = self._stepping.pop()
                optimizer.zero_grad(set_to_none=True)
                forget(optimizer)

    def _num_batches_of_a_step(self) -> int:
        return int(self.trainer.accumulate_grad_batches) if self._trainer is not None else 1

    def _learning_rate(self) -> float:
        if self._trainer is None:
            return float("nan")
        optimizer = self.optimizers()
        return float(optimizer.param_groups[0]["lr"]) if not isinstance(optimizer, list) else float("nan")

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Bring the gradients to all frames of the step; drop them if a loss wasn't finite, on every rank alike.

        Raises:
            FloatingPointError: more than `model.max_nonfinite_steps` steps were dropped.
        """
        self._verdicts.read()
        self._stepping.append(optimizer)
        self._norm, self._device_judges = None, judges_itself(optimizer)
        if self._trainer is not None and getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            self._judge_scaled(optimizer)
        elif self._device_judges:
            self._let_judge(optimizer)
        else:
            self._judge(optimizer)
        self.log("nonfinite_steps", self._on_device(self._num_nonfinite_steps), batch_size=1)

    def _on_device(self, number: float) -> Tensor:
        """For Lightning to log, which copies a plain number to the device while the host waits."""
        return torch.full((), number, dtype=torch.float32, device=self.device)

    def _judge_scaled(self, optimizer: torch.optim.Optimizer) -> None:
        """fp16's scaler skips the step by itself, and needs the gradients to see why."""
        self.report_spreads()
        cuts = self._window.nonfinite_cuts()
        if cuts is None:
            self._window.rescale(trained_weights(optimizer))
        else:
            self._undo_statistics()
            self._count_nonfinite(cuts, self.global_step)
        self._window.close()

    def _judge(self, optimizer: torch.optim.Optimizer) -> None:
        norm = total_norm(trained_weights(optimizer))  # before the host waits, so that it waits once
        self.report_spreads()
        cuts = self._window.nonfinite_cuts()
        if cuts is None and not bool(torch.isfinite(norm)):  # all ranks agree on it
            cuts = self._window.cut_ids()
        if cuts is None:
            self._norm = norm * self._window.rescale(trained_weights(optimizer)).to(norm.device)
        else:
            optimizer.zero_grad(set_to_none=True)  # with no gradient at all the step changes nothing
            self._undo_statistics()
            self._count_nonfinite(cuts, self.global_step)
        self._window.close()

    def _let_judge(self, optimizer: torch.optim.Optimizer) -> None:
        """As `_judge`, by the device; the host learns of it at the next step."""
        norm = total_norm(trained_weights(optimizer))
        self._norm = norm * self._window.rescale(trained_weights(optimizer)).to(norm.device)
        bad = (self._window.has_nonfinite() | ~torch.isfinite(norm)).float()
        skip_where(optimizer, bad)
        for buffer, kept in self._statistics:
            buffer.copy_(torch.where(bad > 0, kept, buffer))
        window, step, spreads = self._window, self.global_step, self.take_spreads()
        self._window = StepWindow()

        def judge(figures: list[float]) -> None:
            self.warn_of_spreads(figures[1:], spreads)
            if figures[0]:
                self._count_nonfinite(window.nonfinite_cuts() or window.cut_ids(), step)

        self._verdicts.add(torch.stack([bad, *(spread_B.max().float() for spread_B, _ in spreads)]), judge)

    def _undo_statistics(self) -> None:
        for buffer, kept in self._statistics:
            buffer.copy_(kept)

    def _count_nonfinite(self, cuts: list[str], step: int) -> None:
        self._num_nonfinite_steps += 1
        what = f"train_loss or its gradient isn't finite at step {step} on cuts {', '.join(cuts)}"
        if self._num_nonfinite_steps > self.cfg.max_nonfinite_steps:
            raise FloatingPointError(
                f"{what}, after {self._num_nonfinite_steps - 1} such steps: model.max_nonfinite_steps is "
                f"{self.cfg.max_nonfinite_steps}. Look at these cuts, or lower model.optimizer.lr"
            )
        log.warning("%s: the step is skipped (%d so far)", what, self._num_nonfinite_steps)

    def on_train_end(self) -> None:
        """Read what is left to read."""
        self._verdicts.read()

    def configure_callbacks(self) -> list[Callback]:
        """What cleans up after a validation that was cut short."""
        return [_Cleaning()]

    def configure_optimizers(self) -> Any:
        """The optimizer and scheduler of `model.optimizer`, `model.param_groups` and `model.lr_scheduler`."""
        return build_optimizers(
            self, self.cfg.optimizer, self.cfg.lr_scheduler, self.cfg.param_groups, self.cfg.decay_norms_and_biases
        )

    def configure_model(self) -> None:
        """Lay the model out on Lightning's device mesh, once.

        Raises:
            ValueError: it can't be, or it lies on another mesh already.
        """
        if not self._laid_out_on:
            if self._parallel.cuda_graphs:
                self._check_alone()
                self.graph()
            parallelize(self, self.parts(), self.device_mesh, self._parallel)
            self.compiles_losses = self._parallel.compile
            self._laid_out_on.append(self.device_mesh)
        elif self._laid_out_on[0] != self.device_mesh:
            raise ValueError(
                f"the model is laid out on {self._laid_out_on[0] or 'one device'} and can't move to "
                f"{self.device_mesh or 'one device'}: build it anew for another trainer, and load its checkpoint"
            )

    def _check_alone(self) -> None:
        if is_distributed() and torch.distributed.get_world_size() > 1:
            raise ValueError(
                f"parallel.cuda_graphs is for one GPU, and {torch.distributed.get_world_size()} processes train: set "
                "parallel.cuda_graphs=false, or trainer.devices=1"
            )

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the norm over all devices, or by value; torch's own can't where some gradients are sharded."""
        if not gradient_clip_val:
            return
        parameters = trained_weights(optimizer)
        if gradient_clip_algorithm == "value":
            clip_value(parameters, gradient_clip_val)
        elif self._norm is not None and self._device_judges:  # the optimizer scales them as it reads them
            divide_gradients(optimizer, clip_divisor(self._norm, gradient_clip_val))
        else:
            clip_norm(parameters, gradient_clip_val, self._norm)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the count of skipped steps."""
        self._verdicts.read()
        checkpoint["num_nonfinite_steps"] = self._num_nonfinite_steps

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Let the config, not the checkpoint, say how it goes on: a run may get more steps, or another rate."""
        self._num_nonfinite_steps = checkpoint.get("num_nonfinite_steps", 0)
        self._follow_config(checkpoint)
        of_config = {"base_lrs", "decay_steps", *(self.cfg.lr_scheduler or {})} - {"last_epoch"}  # where it stands
        for state in checkpoint.get("lr_schedulers", []):
            for key in of_config & state.keys():
                del state[key]

    def _follow_config(self, checkpoint: dict[str, Any]) -> None:
        states = checkpoint.get("optimizer_states", [])
        own = parameter_groups(self, self.cfg.param_groups, self.cfg.decay_norms_and_biases)
        if states and len(states[0]["param_groups"]) != len(own):
            raise ValueError(
                f"the checkpoint's optimizer has {len(states[0]['param_groups'])} parameter groups, this config makes "
                f"{len(own)}: set model.param_groups and model.decay_norms_and_biases as in that run (a run of "
                "s2s_model 0.1 had one group: model.decay_norms_and_biases=true)"
            )
        for state in states:
            for change in follow_config(state["param_groups"], own, self.cfg.optimizer):
                log.warning("%s, as the config has it now", change)

    # --- validation ----------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Forget the sums of the validation before; gather sharded weights, as answers differ in length."""
        self._verdicts.read()
        self._validation = ValidationLosses()
        gather(self)

    @torch.no_grad()
    def validation_step(self, batch: dict[str, DuplexBatch | None], batch_idx: int) -> dict[str, ValOutput]:
        """Losses, generated text and audio of one batch of each data set that has one left."""
        outputs = {}
        for name, dataset_batch in batch.items():
            if dataset_batch is None or not dataset_batch["cut_ids"]:
                continue
            outputs[name] = self._validate(name, dataset_batch)
        return outputs

    def _validate(self, name: str, batch: DuplexBatch) -> ValOutput:
        sums, statistics = self.loss_and_statistics(batch)
        self.report_spreads()
        objective = sums.objective(self.cfg)
        self._validation.add(name, sums, objective)
        answer = self.answer(batch["source_audio"], batch["source_audio_lens"], compile=self._parallel.compile)
        codes_BTK, code_lens = self.target_codes(batch)
        ceiling_BS, ceiling_lens = self.audio_codec.decode(codes_BTK, code_lens)
        return ValOutput(
            text_loss=sums.text,
            audio_loss=sums.audio,
            loss=objective,
            num_frames=sums.num_frames,
            statistics=statistics,
            text=answer["text"],
            text_tokens=answer["tokens_text"],
            text_turns=answer["text_turns"],
            audio=answer["audio"],
            audio_lens=answer["audio_len"],
            ceiling_audio=ceiling_BS,
            ceiling_audio_lens=ceiling_lens,
            sample_rate=self.target_sample_rate,
        )

    def on_validation_epoch_end(self) -> None:
        """Log the losses of each data set and over all, exact over ranks."""
        self._end_validation()
        self._validation.log("val", self.device, self.log)

    def _end_validation(self) -> None:
        self.release_graphs()
        release(self)

    def test_step(self, batch: dict[str, DuplexBatch | None], batch_idx: int) -> dict[str, ValOutput]:
        """As `validation_step`."""
        return self.validation_step(batch, batch_idx)

    def on_test_epoch_start(self) -> None:
        """As for validation."""
        self.on_validation_epoch_start()

    def on_test_epoch_end(self) -> None:
        """As for validation, with `test` in the names."""
        self._end_validation()
        self._validation.log("test", self.device, self.log)

    # --- in and out ----------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path, *, with_codec: bool = True) -> None:
        """Write weights, config, tokenizer and codec to `folder`; see `s2s_model.pretrained.save`."""
        from s2s_model.pretrained import save

        save(self, Path(folder), with_codec=with_codec)

    @classmethod
    def load_from_checkpoint(cls, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: Lightning's checkpoint of a run is read with the run's config."""
        raise ValueError(
            "a checkpoint is read with its run: hatch run train:export RUN OUT, then from_pretrained(OUT); for NeMo's, "
            "from_nemo(CHECKPOINT)"
        )

    @classmethod
    def from_pretrained(cls, name_or_folder: str | Path, **overrides: Any) -> "DuplexS2SModel":
        """Load what `save_pretrained` wrote; see `s2s_model.pretrained.load`."""
        from s2s_model.pretrained import load

        return load(name_or_folder, **overrides)

    @classmethod
    def from_nemo(cls, checkpoint: str | Path, **overrides: Any) -> "DuplexS2SModel":
        """Load a checkpoint of NeMo's DuplexS2SModel; see `s2s_model.from_nemo.load_nemo_checkpoint`."""
        from s2s_model.from_nemo import load_nemo_checkpoint

        return load_nemo_checkpoint(checkpoint, **overrides)
