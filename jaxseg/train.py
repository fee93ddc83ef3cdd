"""Training: one run from a config to a workdir with checkpoints, metrics, figures and curves."""

import contextlib
import os
import pathlib
import signal
import time
from collections.abc import Callable

import jax
from ml_collections import ConfigDict

from jaxseg import build, checkpoint, checksums, lock, record
from jaxseg import config as configs
from jaxseg.data import data_info
from jaxseg.errors import UserError
from jaxseg.evaluate import Evaluation
from jaxseg.pace import Pace
from jaxseg.process import Interrupted, catch_signals
from jaxseg.processes.facts import of_classes, of_data, of_records, of_tensors
from jaxseg.processes.group import Group
from jaxseg.score import eval_split, open_data, score_split, with_padding
from jaxseg.step import create_mesh, gather, put_batch
from jaxseg.writers import open_writers, print_line


def train(
    config: ConfigDict,
    workdir: str | os.PathLike,
    log=print_line,
    group: Group | None = None,
    *,
    best_if_damaged: bool = False,
) -> None:
    """Trains, scores and saves the run of `config` in `workdir`; goes on where a run of the same config was stopped.

    Leaves there `config.json`, `info.json`, `run.json`, `metrics.jsonl`, `events/`, `checkpoints/`, `evaluations/`,
    `figures/`, `curves.png` and the checksums `B2SUMS`. No other run trains there meanwhile, see `lock`; readers may
    read at any time. A run whose workdir is moved or deleted ends.

    Args:
      config: every field of `configs/default.py`.
      workdir: a folder that is there or is made.
      log: called with each line of text.
      group: the processes that train together, each of which calls this; None for this one alone.
      best_if_damaged: whether a run whose latest checkpoint is damaged, or was moved away, goes on from the best one;
        the damaged one is moved to `checkpoints/damaged/`.

    Raises:
      UserError: a mistake in the config, the data, the weights or the workdir, another run that trains there, a damaged
        checkpoint, or a loss that is no number.
      Interrupted: after a signal, once the state is saved.
    """
    configs.validate(config)
    # The others see what process 0 does, and end with it.
    first = jax.process_index() == 0
    with lock.hold(workdir, log) if first else contextlib.nullcontext(lambda: None) as still_there:
        _train(config, pathlib.Path(workdir), log, group, still_there, best_if_damaged)


def _train(
    config: ConfigDict,
    workdir: pathlib.Path,
    log: Callable[[str], object],
    group: Group | None,
    still_there: Callable[[], None],
    best_if_damaged: bool,
) -> None:
    # ------------------------------------------------------------------------------------------------ what is asked for
    info = data_info(config.data.name, config.data.version, config.data.dir)
    if group:
        # Before anything that all of them do together, which one that takes another way would leave them waiting in.
        has = {"has checkpoints": checkpoint.has_any(workdir)}
        group.agree({"config": configs.flatten(config), "classes": of_classes(info), "workdir": has})
    build.check_score(config, info)
    model = configs.build_model(config, info.num_classes)
    config, weights, notes = build.read_weights(
        config, model, workdir, info.class_names, best_if_damaged=best_if_damaged
    )
    if checkpoint.has_any(workdir):
        configs.check_same(config, workdir)
        notes += filter(None, [checksums.note(workdir)])
    mesh = create_mesh()
    build.check_batch_sizes(config, mesh)

    # ------------------------------------------------------------------------------------------- data, network, state
    dataset = open_data(config)
    if group:
        # Here those wait who had nothing to prepare.
        group.agree(of_data(dataset, dataset.splits), lambda: {"data": of_records(dataset, dataset.splits)})
        tensors = of_tensors(weights.tensors if weights else {})
        group.agree({"config": configs.flatten(config), "weights": tensors})
    if checkpoint.has_any(workdir):
        configs.check_same_classes(dataset.info, workdir, config)
        configs.check_same_data(dataset, workdir, config)
    split = eval_split(config, dataset)
    config = with_padding(config, dataset, split, workdir)
    num_images = dataset.lengths[dataset.train_split]
    num_steps, eval_every = configs.num_steps(config, num_images), configs.eval_every(config, num_images)
    steps = build.create_steps(config, model, dataset, weights, mesh, num_steps)
    state = steps.state

    with (
        # Until all is closed: a second signal is not to come between.
        (group.catch_signals if group else catch_signals)() as signalled,
        record.disk_errors(workdir),
        checkpoint.Checkpoints(record.make_workdir(workdir), still_there=still_there) as checkpoints,
        contextlib.ExitStack() as stack,
    ):
        # ---------------------------------------------------------------------------------------- where it goes on
        start, kind, lines = checkpoints.where_to_go_on(best_if_damaged=best_if_damaged)
        notes, progress = [*notes, *lines], record.FRESH
        if group:
            group.agree({"workdir": {f"{kind} checkpoint": start}})
        if kind == "best" and jax.process_index() == 0:
            checkpoints.move_away("latest")
        if start > num_steps:
            raise UserError(f"{workdir} is trained to step {start} already, beyond train.num_steps {num_steps}")
        if start:
            state, progress = checkpoints.restore(state, kind)
            progress = record.from_checkpoint(progress, checkpoints.folder / kind / str(start))
        writers = stack.enter_context(
            open_writers(
                workdir,
                num_steps=num_steps,
                resume_step=start,
                scored_step=progress["evaluated"],
                log=log,
                enabled=jax.process_index() == 0,
            )
        )
        run = record.Record(
            config,
            workdir,
            dataset,
            mesh,
            checkpoints,
            writers,
            progress,
            start=start,
            num_steps=num_steps,
            split=split,
            still_there=still_there,
        )
        progress = run.progress
        run.greet(model, gather(state.eval_variables, mesh))
        stack.enter_context(run.stopped_by_errors())
        for line in notes:
            writers.message(line)
        for name in checkpoints.half_written:
            writers.message(f"stepped over the half-written checkpoint {name}")
        if start:
            writers.message(f"going on from step {start}")

        # ------------------------------------------------------------------------------------------------- the loop
        pace = Pace(group) if group else None
        images = None
        if config.data.on_device:
            started = time.perf_counter()
            images = build.open_resident(config, dataset, mesh)
            size, took = f"{images.nbytes / 2**20:.0f} MiB", time.perf_counter() - started
            writers.message(f"{len(images.ids)} training images, {size}, decoded on the device in {took:.1f} s")
        batches = stack.enter_context(contextlib.closing(build.train_batches(config, dataset, start, images)))
        run.start_clock()
        for step in range(start, num_steps + 1):
            if step > start:
                batch = next(batches) if pace is None else pace.wait_for(batches)
                state, losses = steps.train(state, images(batch) if images is not None else put_batch(batch, mesh))
                run.step(losses, batch["ids"])

            still_there()
            if step > start and (step % config.train.log_every == 0 or step == num_steps):
                run.flush()
                run.row(step, steps.learning_rate(state))
                for line in pace.slow() if pace else ():
                    writers.message(line)

            stopped = signalled()  # asked once: what comes later waits for the next step
            evaluating = step > progress["evaluated"] and _due(step, eval_every, num_steps)
            saving = step > start and _due(step, config.train.checkpoint_every, num_steps)
            if evaluating or saving or stopped:
                run.flush()
                run.check(state, step)
            if evaluating and not stopped:
                try:
                    scored = _score(config, dataset, split, steps, state, mesh, signalled)
                except Interrupted as interrupted:
                    stopped = interrupted.number
                else:
                    still_there()
                    score, is_best = run.evaluation(step, *scored)
                    if group:  # one decides for all, though each has the same numbers
                        own = [score, is_best, {key: progress[key] for key in record.DECIDED}]
                        score, is_best, decided = group.decided(own)
                        progress.update(decided)
                    state = steps.note_evaluation(state, score if run.lower_is_better else -score)
                    if is_best:
                        checkpoints.save("best", state, progress)
            stale = 0 < config.train.patience <= progress["stale"] and not stopped
            if step > start and (saving or stopped or stale):
                checkpoints.save("latest", state, progress)
            if evaluating or saving:
                run.status("running")
                run.start_clock()
                if pace:
                    pace.restart()
            if stopped:
                checkpoints.wait()
                saved = f"step {step} is saved, start again to go on" if step else "no step was done yet"
                writers.message(f"stopped by {signal.Signals(stopped).name}; {saved}")
                raise Interrupted(stopped)
            if stale:
                writers.message(f"stopped early: {progress['stale']} evaluations without a better {config.train.best}")
                break

        checkpoints.wait()
        run.finish("finished" if step == num_steps else "stopped early")


def _due(step: int, every: int, num_steps: int) -> bool:
    return step == num_steps or bool(every and step and step % every == 0)


def _score(
    config, dataset, split: str, steps: build.Steps, state, mesh, signalled: Callable[[], int]
) -> tuple[Evaluation, float]:
    """The scores of a split and the seconds they took.

    Raises:
      Interrupted: a signal came. There is nothing to show: the run that goes on from here does it again.
    """

    def on_batch(images: int) -> None:
        if number := signalled():
            raise Interrupted(number)

    started = time.perf_counter()
    variables = gather(state.eval_variables, mesh)
    result = score_split(config, dataset, split, steps.evaluate, variables, mesh, on_batch)
    return result, time.perf_counter() - started
