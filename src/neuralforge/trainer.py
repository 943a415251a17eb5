# SPDX-License-Identifier: Apache-2.0
"""The training loop: a generator of events around `Session.loss_and_grads` and AdamW.

A step is up to `gradient_accumulation_steps` micro-batches of one epoch. Its gradient is the sum over them divided by
their trained tokens, so any split of a batch gives the same step. Everything random is a function of the seed and the
place in the data, so a run that resumes gives the same bytes as one that never stopped.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import checkpoint, cost, heldout, optim, schedules
from .batches import Encoded, collate
from .config import LoraConfig, TrainConfig
from .errors import ConfigError, NonFiniteLossError, OutputError, RestartNeeded
from .events import COMPILE_BUDGET, Done, Eval, Event, Restart, Sample, Saved, Start, Step, Warning
from .files import make_folder
from .formats import hf, peft
from .interrupt import signals_call
from .job import Job, open_job
from .plan import Plan, plan
from .progress import live_progress
from .report import write_report
from .run import Run, number, outcome
from .weights import ParamSet

if TYPE_CHECKING:
    from .model import Model
    from .records import Row

log = logging.getLogger("neuralforge")

MAX_ROLLBACKS = 3


class Trainer:
    """Fine-tunes a model: `train` runs to the end, `start` hands out the same run as a stream of events.

    Args:
        model: the base; it is not changed, and an adapter in use is left out.
        args: how to train.
        peft_config: the adapter to train; None trains all weights.
        train_dataset: rows to learn.
        eval_dataset: held-out rows, for evaluation, early stopping and the choice of the best checkpoint.
        callbacks: functions of one event.

    Raises:
        ConfigError: the settings need held-out rows and there are none.
    """

    def __init__(
        self,
        model: Model,
        args: TrainConfig,
        *,
        peft_config: LoraConfig | None = None,
        train_dataset: Iterable[Row],
        eval_dataset: Iterable[Row] | None = None,
        callbacks: Sequence[Callable[[Event], None]] = (),
    ) -> None:
        _check_evaluation(args, eval_dataset)
        self.model = model
        self.args = args
        self.peft_config = peft_config
        self.train_dataset = train_dataset
        self.eval_dataset = eval_dataset
        self.callbacks = tuple(callbacks)
        self.run: Run | None = None
        self._stopping = False

    def train(self, *, resume_from_checkpoint: str | Path | bool = "auto", progress: bool = True) -> Run:
        """Train to the end, or until SIGINT or SIGTERM: then the micro-step is finished and a checkpoint saved.

        A second SIGINT raises KeyboardInterrupt at once. Signals are handled in the main thread only.

        Args:
            resume_from_checkpoint: see `start`.
            progress: show a live view in a notebook or, on standard error, in a terminal; elsewhere nothing is shown.

        Returns:
            The run; its status is "interrupted" after a signal.

        Raises:
            NeuralForgeError: as `start`.
        """
        view = live_progress(sys.stderr) if progress else None
        try:
            with signals_call(self.stop):
                for event in self.start(resume_from_checkpoint=resume_from_checkpoint):
                    if view:
                        view(event)
        finally:
            if view:
                view.close()
        assert self.run is not None
        return self.run

    def plan(self) -> Plan:
        """What `train` will need: peak memory, time, rows that are cut. Reads no weights; see `plan.plan`."""
        return plan(
            self.model,
            self.args,
            peft_config=self.peft_config,
            train_dataset=self.train_dataset,
            eval_dataset=self.eval_dataset,
        )

    def stop(self) -> None:
        """Ask the run to save a checkpoint after the present micro-step and end; may be called from any thread."""
        self._stopping = True

    def start(self, *, resume_from_checkpoint: str | Path | bool = "auto") -> Iterator[Event]:
        """The run as a stream of events; `self.run` holds the outcome after the last one.

        Closing the stream early ends the run without saving; its last checkpoint stays. However it ends, `run.html` in
        `output_dir` shows the run.

        Args:
            resume_from_checkpoint: "auto" goes on from the newest whole checkpoint in `output_dir` if there is one; True
                insists on one; a path names one, and newer ones in `output_dir` are deleted; False starts over, and
                deletes checkpoints and events of an older run in `output_dir` once model and data are open.

        Raises:
            ConfigError: the checkpoint belongs to another run (model, tokenizer, data or settings differ).
            DataError: rows cannot be used.
            NonFiniteLossError: NaN or infinity again after three roll-backs; the message names the rows.
            OutputError: something cannot be written; checkpoints written before are whole.
            RestartNeeded: on the Neural Engine; the same run goes on in a new process, after a `Restart` event.
        """
        try:
            job = open_job(
                self.model,
                self.args,
                peft_config=self.peft_config,
                train_rows=self.train_dataset,
                eval_rows=self.eval_dataset,
                resume=resume_from_checkpoint,
            )
        except RestartNeeded as needed:  # nothing has changed: there is nothing to save, and no log
            yield self._hand_out(Restart(0, COMPILE_BUDGET, compiles=needed.compiles))
            raise
        try:
            yield from self._go(job)
        except RestartNeeded as needed:
            yield self._leave(job, needed)
            raise
        finally:
            self._stopping = False
            job.close()
            _write_page(job)

    def _go(self, job: Job) -> Iterator[Event]:
        yield from self._announce(job)
        while not self._stopping:
            if _evaluation_due(job):
                yield from self._evaluate(job)
            elif _save_due(job):
                yield self._save(job)
            elif _finished(job):
                break
            else:
                yield from self._micro_step(job)
        yield from self._finish(job)

    def _leave(self, job: Job, needed: RestartNeeded) -> Event:
        """Save the state for a new process; what the session could not do has changed nothing."""
        s = job.state
        if s.micros and job.saved != s:
            job.save()
        needed.saved = (s.micros, s.evaluated)
        return self._tell(job, Restart(s.step, COMPILE_BUDGET, s.lr_scale, needed.compiles))

    def _tell(self, job: Job, event: Event) -> Event:
        """Write an event down and hand it to the callbacks."""
        job.log.write(event)
        job.events.append(event)
        return self._hand_out(event)

    def _hand_out(self, event: Event) -> Event:
        for callback in self.callbacks:
            callback(event)
        return event

    def _announce(self, job: Job) -> Iterator[Event]:
        model, c, counts = self.model, self.model.config, job.train.counts
        step = job.state.step
        start = Start(
            model=model.path,
            params=c.num_parameters,
            trainable=job.session.params.size,
            layers=c.num_hidden_layers,
            dim=c.hidden_size,
            hidden=c.intermediate_size,
            heads=c.num_attention_heads,
            seq=self.args.max_length,
            vocab=c.vocab_size,
            total_steps=job.total,
            rows=counts.rows,
            tokens=counts.tokens,
            backend=model.backend.name,
            dtype=model.dtype,
            threads=model.threads,
            resumed_from=step,
            lora=None if self.peft_config is None else asdict(self.peft_config) | {"target_modules": self.peft_config.modules},
        )
        yield self._tell(job, start)
        for problem in job.problems:
            yield self._tell(job, Warning(step, f"{problem}; an older checkpoint is used"))
        for what, data in (("training", job.train), ("held-out", job.held_out)):
            if data is not None and data.counts.too_long:
                yield self._tell(job, _overflow_warning(step, what, data, self.args))
        longest, context = int(job.train.lengths.max()), c.max_position_embeddings
        if longest > context:
            hint = f"max_length={context} keeps to what it knows"
            yield self._tell(job, Warning(step, f"rows of {longest} tokens in a model made for {context}", hint=hint))
        if model.adapter is not None:
            hint = "to go on with it, resume the run that made it"
            yield self._tell(job, Warning(step, "the adapter in use is left out; training works on the base", hint=hint))
        if step and _finished(job):
            hint = "resume_from_checkpoint=False starts over"
            yield self._tell(job, Warning(step, "this run has already come to its end", hint=hint))

    def _micro_step(self, job: Job) -> Iterator[Event]:
        """Add the gradient of one micro-batch; at the end of the accumulation also make the optimiser step."""
        started, s, order = time.perf_counter(), job.state, job.order(job.state.epoch)
        batch = collate(job.train.examples, order[s.micro])
        seed = _dropout_seed(self.args.seed, s.micros)
        loss, tokens = job.session.loss_and_grads(batch, seed=seed, fresh=job.window == 0)
        s.window_loss += loss
        s.window_tokens += tokens
        s.window_flops += cost.training_flops(
            self.model.config, batch, adapter=job.session.params.size if self.peft_config else 0
        )
        s.micro += 1
        s.micros += 1
        if job.window and s.micro < len(order):
            s.window_seconds += time.perf_counter() - started
        else:
            event = self._optimise(job, started)
            if not isinstance(event, Step) or event.step % self.args.logging_steps == 0 or event.step == job.total:
                yield self._tell(job, event)

    def _optimise(self, job: Job, started: float) -> Event:
        s, params, order = job.state, job.session.params, job.order(job.state.epoch)
        scale = 1.0 / max(1, s.window_tokens)
        loss, norm = s.window_loss * scale, optim.global_norm(job.grads, scale=scale)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return self._not_finite(job, loss, started)
        rate = s.lr_scale * schedules.learning_rate(self.args, s.step, job.total)
        factor = scale * optim.clip_factor(norm, max_norm=self.args.max_grad_norm)
        job.moments = optim.update(
            params,
            job.grads,
            job.moments,
            lr=rate,
            config=self.args,
            grad_scale=factor,
            threads=self.model.threads,
            rounded=job.session.rounded,
        )
        job.session.update(params, is_rounded=True)
        s.updates = job.moments.step
        epoch, tokens, flops = s.epoch + s.micro / len(order), s.window_tokens, s.window_flops
        seconds = s.window_seconds + time.perf_counter() - started
        s.close_step(seconds=seconds, trained=True, epoch_ends=s.micro == len(order))
        return Step(
            step=s.step,
            total=job.total,
            epoch=epoch,
            loss=number(s.loss),
            lr=rate,
            grad_norm=norm,
            tokens=tokens,
            ms=1000 * seconds,
            best_loss=number(s.best_loss),
            tflops=flops / seconds / 1e12,
        )

    def _not_finite(self, job: Job, loss: float, started: float) -> Event:
        """Skip this step; when the last one was skipped too, go back with half the rate, but not a fourth time."""
        s, order = job.state, job.order(job.state.epoch)
        what = "the loss" if not math.isfinite(loss) else "a gradient"
        reason = f"{what} of step {s.step + 1} is NaN or infinite in {job.window_sources()}"
        if not s.skipped:
            seconds = s.window_seconds + time.perf_counter() - started
            s.close_step(seconds=seconds, trained=False, epoch_ends=s.micro == len(order))
            return Warning(s.step, f"{reason}; the step is skipped", hint="look at these rows")
        if s.rollbacks == MAX_ROLLBACKS:
            hint = "look at these rows, or use a lower learning_rate or max_grad_norm"
            raise NonFiniteLossError(f"{reason}, again after {MAX_ROLLBACKS} roll-backs", hint=hint)
        job.roll_back()
        return Restart(job.state.step, reason, job.state.lr_scale)

    def _evaluate(self, job: Job) -> Iterator[Event]:
        """Held-out loss and a sample; nothing is counted when the run is asked to stop before its end."""
        assert job.held_out is not None
        a, s = self.args, job.state
        result = heldout.mean_loss(
            job.session,
            job.held_out,
            max_length=a.max_length,
            batch_size=a.per_device_train_batch_size,
            stopping=lambda: self._stopping,
        )
        if result is None:
            return
        loss, tokens, batches = result
        prompt, text = heldout.sample(
            job.session, self.model, job.held_out.examples[0]
        )  # may need a restart: count nothing yet
        yield self._tell(job, Eval(s.step, loss, tokens, batches, best=s.evaluated_to(loss)))
        yield self._tell(job, Sample(s.step, prompt, text))

    def _save(self, job: Job) -> Event:
        path = job.save()
        return self._tell(job, Saved(job.state.step, str(path), "checkpoint", number(job.state.loss)))

    def _finish(self, job: Job) -> Iterator[Event]:
        """Save what was learnt and say how it went."""
        s, adapter = job.state, None
        status = "interrupted" if self._stopping else "completed" if s.step == job.total else "early_stopped"
        loaded = False
        if status != "interrupted":
            loaded, warning = self._load_best(job)
            if warning:
                yield self._tell(job, warning)
        elif s.micros and job.saved != s:
            yield self._save(job)
        if self.peft_config is not None:
            params = ParamSet(
                job.session.params.shapes, n_decay=job.session.params.n_decay, flat=job.session.params.flat.copy()
            )
            adapter = peft.Adapter(self.peft_config, self.model.config, params, self.model.path, self.model.fingerprint)
        if status != "interrupted":
            yield self._save_result(job, adapter, loaded=loaded)
        speed = s.flops / s.seconds / 1e12 if s.seconds else 0.0
        done = Done(s.step, number(s.loss), s.seconds, status, s.tokens, speed)
        self._tell(job, done)
        self.run = outcome(job, status, adapter, loaded=loaded)
        yield done

    def _load_best(self, job: Job) -> tuple[bool, Warning | None]:
        """Put the parameters of the best evaluation in place; (whether they are there now, what went wrong)."""
        best = job.best_path
        if best is None or not self.args.load_best_model_at_end:
            return False, None
        if job.state.best_step == job.state.step:
            return True, None
        try:
            checkpoint.restore(checkpoint.load(best), {"params": job.session.params})
        except OutputError as e:
            return False, Warning(job.state.step, f"{e.message}; the last state is saved instead of the best")
        job.session.update(job.session.params)
        return True, None

    def _save_result(self, job: Job, adapter: peft.Adapter | None, *, loaded: bool) -> Event:
        """Write the adapter, or the whole model with its tokenizer."""
        s, params = job.state, job.session.params
        folder = job.folder / ("model" if adapter is None else "adapter")
        if adapter is None:
            self.model.tokenizer.save(make_folder(folder))
            hf.save_model(folder, self.model.config, {name: params[name] for name in params})
        else:
            adapter.save_pretrained(folder)
        loss = s.best_eval if loaded else s.loss
        return self._tell(job, Saved(s.best_step if loaded else s.step, str(folder), folder.name, number(loss)))


def _write_page(job: Job) -> None:
    """A page that cannot be written is no reason to lose the run."""
    try:
        write_report(job.folder)
    except OutputError as e:
        log.warning("%s", e)


def _check_evaluation(args: TrainConfig, eval_dataset: object) -> None:
    hint = "pass eval_dataset, for example from data.split(eval=0.1)"
    if eval_dataset is None and args.eval_strategy == "steps":
        raise ConfigError("eval_strategy='steps': there are no held-out rows", hint=hint)
    if args.early_stopping_patience and (eval_dataset is None or args.eval_strategy == "no"):
        what = f"early_stopping_patience={args.early_stopping_patience}: nothing is evaluated"
        raise ConfigError(what, hint=f"{hint}, and an eval_strategy")


def _evaluation_due(job: Job) -> bool:
    """After an epoch or each `eval_steps`, and always after the last step, once."""
    s, a = job.state, job.args
    if job.held_out is None or s.evaluated == s.step:
        return False
    regular = s.micro == 0 if a.eval_strategy == "epoch" else s.step % a.eval_steps == 0
    return regular or s.step == job.total


def _save_due(job: Job) -> bool:
    """After each `save_steps`, a new best evaluation and the end, when this very state is not on disk."""
    s, a = job.state, job.args
    if job.window or s.step == 0 or job.saved == s:
        return False
    regular = a.save_steps > 0 and s.step % a.save_steps == 0
    return regular or s.best_step == s.step or _finished(job)


def _finished(job: Job) -> bool:
    patience = job.args.early_stopping_patience
    return job.state.step == job.total or 0 < patience <= job.state.bad_evals


def _overflow_warning(step: int, what: str, data: Encoded, args: TrainConfig) -> Warning:
    c = data.counts
    fates = {"dropped": c.dropped, "truncated": c.truncated, "split": c.split}
    became = ", ".join(f"{count} {fate}" for fate, count in fates.items() if count)
    message = f"{c.too_long} of {c.rows} {what} rows are longer than max_length={args.max_length}: {became}"
    return Warning(step, message, hint=f"the longest, {c.worst[0][0]}, has {c.worst[0][1]} tokens")


def _dropout_seed(seed: int, micros: int) -> int:
    """63 bits that belong to one micro-step of one run."""
    return int(np.random.SeedSequence((seed, micros)).generate_state(1, np.uint64)[0] >> 1)
