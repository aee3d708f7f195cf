"""Breaks of one line each, put into a copy of the package, and whether the tests nearest to them notice.

A break that survives is a test that is missing. `--quick` tries a few.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Break(NamedTuple):
    """What is broken, where, and which tests should notice."""

    what: str
    file: str
    old: str
    new: str
    tests: str


BREAKS = (
    Break(
        "a model whose pass is over stays on ZeRO-3's list",
        "learner/freeing.py",
        "if module is not engine.module]",
        "]",
        "learner/test_trained_model.py",
    ),
    Break(
        "ZeRO-3's cache keeps the modules of a model that is gone",
        "learner/freeing.py",
        "                forget()\n",
        "                pass\n",
        "learner/test_trained_model.py",
    ),
    Break(
        "ranks that share rows get different ones",
        "learner/dealing.py",
        "[part for part in parts for _ in range(self.sharing)]",
        "[part for _ in range(self.sharing) for part in parts]",
        "learner/test_dealing.py",
    ),
    Break(
        "the plan leaves the masters out",
        "planning/learning.py",
        "optimiser = trained * (12 if half",
        "optimiser = trained * (8 if half",
        "planning/test_memory.py",
    ),
    Break(
        "a save without checkpoints is planned with the optimisers' states",
        "planning/learning.py",
        "    if work.checkpoints:\n",
        "    if True:\n",
        "planning/test_memory.py",
    ),
    Break(
        "a column named as a function's own parameter for the answer goes before the answer",
        "scoring/signatures.py",
        " and name not in asks.texts}",
        "}",
        "scoring/test_signatures.py",
    ),
    Break(
        "an object of an answer's decides what it equals",
        "verifiers/sandbox.py",
        "return isinstance(other, Proxy) and self._asked",
        "return self._asked",
        "verifiers/test_code.py",
    ),
    Break(
        "code in answers may read every file",
        "verifiers/lockdown.py",
        "    _confine(folder)\n",
        "",
        "verifiers/test_code.py",
    ),
    Break(
        "a mini-batch's denominator counts other tokens than it has",
        "learner/estimation.py",
        '            whole["lengths"][own].long(),\n',
        '            whole["lengths"][own].long() + 1,\n',
        "learner/test_policy_update.py",
    ),
    Break(
        "the later tokens' part of an exact KL gradient is dropped",
        "algorithms/kl.py",
        "return ratio * (own + later)",
        "return ratio * own",
        "algorithms/test_tree_kl.py",
    ),
    Break(
        "a greedy answer is learnt from",
        "gathering.py",
        "row.key.sample_index != GREEDY and row.key.prompt_id in given",
        "row.key.prompt_id in given",
        "test_gathering.py",
    ),
    Break(
        "prompts that were left out are sampled again",
        "gathering.py",
        "count=count, used=seen",
        "count=count, used=()",
        "test_gathering.py",
    ),
    Break(
        "a resumed run takes a reference from its future",
        "stages/moving_reference.py",
        "if step <= iteration), None)",
        "), None)",
        "stages/test_moving_reference.py",
    ),
    Break(
        "entropy bonus with the wrong sign",
        "learner/policy_update.py",
        "terms - now.entropy_coef * entropy",
        "terms + now.entropy_coef * entropy",
        "learner/test_policy_update.py",
    ),
    Break(
        "value_coef dropped",
        "learner/policy_update.py",
        "loss * scale + algorithm.value_coef * self._value_loss(micro, head, tokens)",
        "loss * scale + self._value_loss(micro, head, tokens)",
        "learner/test_policy_update.py",
    ),
    Break(
        "explained variance 1 +",
        "learner/recorder.py",
        "float(1.0 - (error2",
        "float(1.0 + (error2",
        "learner/test_policy_update.py",
    ),
    Break(
        "missing_eos_penalty added",
        "learner/scores.py",
        "        - algorithm.missing_eos_penalty * cut\n",
        "        + algorithm.missing_eos_penalty * cut\n",
        "learner/test_rows.py",
    ),
    Break(
        "scores never clipped",
        "learner/scores.py",
        "if algorithm.score_clip is not None:",
        "if False:",
        "learner/test_rows.py",
    ),
    Break(
        "mini-batches never shuffled",
        "learner/shards.py",
        "if mini_batches > 1 else np.arange",
        "if mini_batches > 99 else np.arange",
        "learner/test_shards.py",
    ),
    Break(
        "the samples of a prompt parted",
        "learner/shards.py",
        "budget, units=units)",
        "budget)",
        "learner/test_shards.py",
    ),
    Break(
        "_check_columns removed from scorers",
        "store/actor.py",
        "        _check_columns(batch, scorer)\n",
        "",
        "store/test_actor.py",
    ),
    Break(
        "_check_columns removed from rollouts",
        "store/actor.py",
        "        _check_columns(batch, ROLLOUT_WRITER)\n",
        "",
        "store/test_actor.py",
    ),
    Break(
        "one worker takes all prompts",
        "store/experience.py",
        "limit = min(limit, -(-self._queued() // self._sharers))",
        "limit = min(limit, self._queued())",
        "store",
    ),
    Break(
        "a lost row comes back as sample 0",
        "store/experience.py",
        "first_sample=key.sample_index)",
        "first_sample=0)",
        "store/test_experience.py",
    ),
    Break(
        "a lost worker's held-out share not asked again",
        "cluster/dealing.py",
        "            waiting.append(_asked(fleet, next(iter(fleet.ready)), share, items, call))\n",
        "",
        "cluster/test_fleet.py",
    ),
    Break(
        "what a lost worker held is not handed back",
        "cluster/fleet.py",
        "            self._service.lost(name)\n",
        "            pass\n",
        "cluster/test_fleet.py",
    ),
    Break(
        "staleness always 0",
        "evaluation/metrics.py",
        'staleness = batch.column("iteration").to_numpy() - extents.oldest',
        "staleness = extents.oldest - extents.oldest",
        "evaluation/test_metrics.py",
    ),
    Break(
        "a probe that differs stops nothing",
        "rollout/worker.py",
        "if not found.within(self._pulls.probe_tolerance):",
        "if False:",
        "rollout/test_worker.py",
    ),
    Break(
        "rollout.temperature ignored by the reference",
        "scoring/reference.py",
        "self._log_probs(rows, self._temperature)",
        "self._log_probs(rows, 1.0)",
        "stages/test_wiring.py",
    ),
    Break(
        "the same, in the wiring",
        "stages/scoring.py",
        '"temperature": config.rollout.temperature',
        '"temperature": 1.0',
        "stages/test_wiring.py",
    ),
    Break(
        "rollout.temperature ignored by the learner",
        "learner/model_spec.py",
        "PolicyModel(base, temperature=self.temperature, value_head",
        "PolicyModel(base, value_head",
        "stages/test_wiring.py",
    ),
    Break(
        "the same, in the wiring",
        "stages/wiring.py",
        "        temperature=config.rollout.temperature,\n",
        "",
        "stages/test_wiring.py",
    ),
    Break(
        "critic_units (0, 1)",
        "stages/wiring.py",
        "return (file.first_mean, source.weight / file.std) if source.normalise else (0.0, source.weight)",
        "return (0.0, 1.0)",
        "stages/test_wiring.py",
    ),
    Break(
        "kl.update removed",
        "controller.py",
        "        steering.move(state, {**stats, **told}, samples=len(rows))\n",
        "",
        "test_controller.py",
    ),
    Break(
        "verify() removed from resume",
        "stages/resume.py",
        "            verify(folder)\n",
        "            pass\n",
        "stages/test_resume.py",
    ),
    Break(
        "old learner states never deleted",
        "checkpoint.py",
        "            _forget_learner(folder)\n",
        "            pass\n",
        "stages/test_resume.py",
    ),
    Break(
        "a damaged checkpoint counts as one",
        "checkpoint.py",
        "if step == newest or _has_all(folder)]",
        "]",
        "stages/test_resume.py",
    ),
    Break(
        "a stage of a run beside that run",
        "run_folder/lock.py",
        "return above.parent if part else folder",
        "return folder",
        "run_folder/test_lock.py",
    ),
    Break(
        "a lock on a file that is no longer there",
        "run_folder/lock.py",
        "if _locks(handle, fcntl.LOCK_EX) and _is_still(run / LOCK, handle):",
        "if _locks(handle, fcntl.LOCK_EX):",
        "run_folder/test_lock.py",
    ),
    Break(
        "half a line of metrics on a full disk",
        "telemetry/trackers.py",
        "                file.truncate(whole)\n",
        "                pass\n",
        "test_files.py",
    ),
    Break(
        "evaluate's KL negated",
        "stages/evaluate.py",
        "else [a - b for a, b in",
        "else [b - a for a, b in",
        "stages/test_evaluate.py",
    ),
    Break(
        "evaluate's winner and loser swapped",
        "evaluation/results.py",
        "np.sign(a - b) + 1",
        "np.sign(b - a) + 1",
        "evaluation/test_results.py",
    ),
    Break(
        "perplexity upside down",
        "evaluation/results.py",
        "np.exp(-sum(one.plain_log_probs)",
        "np.exp(sum(one.plain_log_probs)",
        "evaluation/test_results.py",
    ),
    Break(
        "adapters published without their scale",
        "learner/published.py",
        "return self.layer.get_delta_weight(ADAPTER)",
        "return self.layer.get_delta_weight(ADAPTER) / self.layer.scaling[ADAPTER]",
        "learner/test_published.py",
    ),
    Break(
        "ranks hash one after the other, inside a gathering",
        "learner/publication.py",
        "found = self.staging.take(in_file(self.model, dict(tensors)), lasting=self.lasting), moved",
        "found = self.staging.take(in_file(self.model, dict(tensors)), lasting=self.lasting), moved\n"
        "                    encode_bucket(found[0]().items())",
        "learner/test_publication.py",
    ),
    Break(
        "a delta on whatever lies in its place",
        "store/deltas.py",
        "if one is None or two is None or one[:3] != two[:3]:",
        "if False:",
        "store/test_deltas.py",
    ),
    Break(
        "a checksum of the first piece alone",
        "store/checksums.py",
        "count).data) for count in counts]",
        "count).data[:1]) for count in counts]",
        "store/test_checksums.py",
    ),
    Break(
        "a weight that is not finite at its end goes out",
        "learner/finite.py",
        "            self._suspects.add(number)",
        "            pass",
        "learner/test_finite.py",
    ),
    Break(
        "a bucket counts as checked before it was read",
        "rollout/checked.py",
        "            check_bucket(table)\n            os.pwrite(number, key, place)",
        "            os.pwrite(number, key, place)\n            check_bucket(table)",
        "rollout/test_checked.py",
    ),
    Break(
        "a version is taken for the one that lay there before",
        "rollout/checked.py",
        'xxhash.xxh3_128(version.to_bytes(8, "little"))',
        "xxhash.xxh3_128()",
        "rollout/test_checked.py",
    ),
    Break(
        "weights that ranks hold are counted in the object store too",
        "planning/memory.py",
        'if config.weights.transport == "store" else 0.0,',
        "if True else 0.0,",
        "planning/test_memory.py",
    ),
    Break(
        "an object store that is full when all versions are there",
        "cluster/object_store.py",
        "wanted = max(LEAST_MIB * MIB, int(needed / FULL))",
        "wanted = max(LEAST_MIB * MIB, int(needed))",
        "cluster/test_object_store.py",
    ),
    Break(
        "a buffer that is filled while it is sent",
        "learner/staging.py",
        "        self._buffers.reverse()\n",
        "",
        "learner/test_publication.py",
    ),
    Break(
        "saving gathers the whole model at once",
        "learner/published.py",
        "bucket_bytes=SAVED_BUCKET_BYTES)",
        "bucket_bytes=2**60)",
        "learner/test_published.py",
    ),
    Break(
        "leave-one-out without its correction",
        "algorithms/baselines.py",
        "return (totals - answers.rewards) / others",
        "return totals / (others + 1)",
        "algorithms/test_baselines.py",
    ),
    Break(
        "a file takes its name before it is whole",
        "files.py",
        'aside = target.with_name(f".{target.name}.partial")',
        "aside = target",
        "test_files.py",
    ),
    Break(
        "a first step that learns nothing",
        "learner/schedule.py",
        "return (step + 1) / (warmup + 1)",
        "return step / (warmup + 1)",
        "learner/test_schedule.py",
    ),
    Break(
        "the KL coefficient's factor as the paper has it",
        "algorithms/kl.py",
        "math.exp(error * min(1.0, samples / self.horizon))",
        "(1.0 + error * samples / self.horizon)",
        "algorithms/test_kl.py",
    ),
    Break(
        "max_policy_kl compared with the mean of all epochs",
        "learner/policy_update.py",
        "ranks.sum(recorder.sum_of(PPO_KL) - began)",
        "ranks.sum(recorder.sum_of(PPO_KL))",
        "learner/test_policy_update.py",
    ),
    Break(
        "epochs that are left out end the schedule late",
        "learner/policy_update.py",
        "learning.skip_all(rl.epochs * len(mini_batches) - learning.number)",
        "pass",
        "learner/test_policy_update.py",
    ),
    Break(
        "gradient norms of the last step alone",
        "learner/recorder.py",
        'self.means(1.0, {f"{model}/grad_norm": torch.tensor(facts["grad_norm"], dtype=torch.float64)})',
        'self.metrics[f"{model}/grad_norm"] = facts["grad_norm"]',
        "learner/test_policy_update.py",
    ),
    Break(
        "what is held out resampled for the heads",
        "stages/reward.py",
        "kept, heads=1, seed=seed)",
        "kept, heads=config.heads, seed=seed)",
        "stages/test_reward.py",
    ),
    Break(
        "one annotator with as many voices as judgements",
        "feedback/aggregate.py",
        "once = _once_each(comparisons)",
        "once = comparisons",
        "feedback/test_aggregate.py",
    ),
    Break(
        "a margin of those who chose the other side",
        "feedback/aggregate.py",
        "and _side(one.label) == _side(label)]",
        "]",
        "feedback/test_aggregate.py",
    ),
    Break(
        "reliabilities of few votes that nothing holds back",
        "feedback/dawid_skene.py",
        "RIGHT, WRONG = 8.0, 2.0",
        "RIGHT, WRONG = 0.02, 0.01",
        "feedback/test_dawid_skene.py",
    ),
    Break(
        "four wins of four that decide",
        "evaluation/intervals.py",
        "beta.ppf((1 - SURE) / 2, wins, losses + 1)",
        "beta.ppf((1 - SURE) / 2, wins + 1, losses + 1)",
        "evaluation/test_intervals.py",
    ),
    Break(
        "a few wins among ties that decide",
        "evaluation/intervals.py",
        "    if decided > 0:\n",
        "    if decided < 0:\n",
        "evaluation/test_intervals.py",
    ),
    Break(
        "lengths that the controlled win rate does not see",
        "evaluation/length_bias.py",
        "np.tanh(d / (float(np.std(d)) or 1.0))",
        "np.zeros(len(d))",
        "evaluation/test_length_bias.py",
    ),
    Break(
        "a pattern without an end",
        "scoring/safety.py",
        "timeout=MATCH_S) is",
        "timeout=None) is",
        "scoring/test_rewards.py",
    ),
    Break(
        "braces that are fuzzy matching",
        "config/expressions.py",
        'lambda found: "\\\\{" if found[0] == "{" else found[0], pattern',
        "lambda found: found[0], pattern",
        "config/test_expressions.py",
    ),
    Break(
        "a critic that starts as a reward that is only watched",
        "config/rl.py",
        'if reward.kind == "model" and reward.weight)',
        'if reward.kind == "model")',
        "stages/test_wiring.py",
    ),
    Break(
        "what has no effect accepted",
        "config/files.py",
        'if value is not None and f"{key}."',
        'if value == "never" and f"{key}."',
        "test_config.py",
    ),
    Break(
        "a loaded state that stays in the master weights",
        "learner/optimizer_state.py",
        "    _fill_module(engine.optimizer)\n    schedules",
        "    schedules",
        "learner/test_trained_model.py",
    ),
    Break(
        "bf16 gradients added up in bf16",
        "learner/deepspeed_settings.py",
        '        "data_types": {"grad_accum_dtype": "fp32"},\n',
        "",
        "learner/test_trained_model.py",
    ),
    Break(
        "states that come back as nothing",
        "learner/host_states.py",
        "                own.copy_(piece, non_blocking=True)\n",
        "                own.zero_()\n",
        "learner/test_trained_model.py",
    ),
    Break(
        "an engine that wakes before the learner's states have left",
        "stages/turns.py",
        "            self.learner.offload()\n            self._away = True\n",
        "            self._away = True\n",
        "stages/test_turns.py",
    ),
    Break(
        "all scorers beside the first rank",
        "cluster/placement.py",
        "number % ranks, shares=(number % ranks,)",
        "0, shares=(0,)",
        "cluster/test_placement.py",
    ),
    Break(
        "bundles handed out as Ray numbers them",
        "cluster/bundles.py",
        "sorted({*moved}.intersection(numbers), key=key)",
        "sorted({*moved}.intersection(numbers))",
        "cluster/test_bundles.py",
    ),
    Break(
        "an engine over GPUs of two nodes",
        "cluster/bundles.py",
        "        if len(nodes) > 1:",
        "        if len(nodes) > 9:",
        "cluster/test_bundles.py",
    ),
    Break(
        "cores of one GPU for an engine over several",
        "cluster/placement.py",
        "    share = devices * cluster.gpu_share\n    return {",
        "    share = devices * cluster.gpu_share\n    cores = cores / devices\n    return {",
        "cluster/test_placement.py",
    ),
    Break(
        "memory that engines open in segments that grow",
        "stages/places.py",
        "if self.on_gpus and not lends",
        "if self.on_gpus",
        "stages/test_places.py",
    ),
    Break(
        "all weights of an engine over several cards on each",
        "planning/sharing.py",
        "weights / config.rollout.tensor_parallel",
        "weights",
        "planning/test_sharing.py",
    ),
    Break(
        "an engine over ranks' cards planned over nodes",
        "planning/plan.py",
        "        if len(nodes) > 1:",
        "        if len(nodes) > 9:",
        "planning/test_plan.py",
    ),
    Break(
        "pinned memory forgotten outside of the engines' turn",
        "planning/learning.py",
        "phases = {name: parts | pinned for name, parts in (phases | {GENERATE: stays}).items()}",
        "phases[GENERATE] = stays | pinned",
        "planning/test_plan.py",
    ),
    Break(
        "a run refused without what would help",
        "stages/fitting.py",
        "        changes = advice(config, machines, sizes)",
        "        changes = [MORE_CARDS]",
        "stages/test_fitting.py",
    ),
    Break(
        "pinned memory made anew each time",
        "learner/host_states.py",
        "            self._free[piece.nbytes].append(piece)\n",
        "            pass\n",
        "learner/test_trained_model.py",
    ),
    Break(
        "a frozen model that stays on the card while others have it",
        "learner/host_states.py",
        "        return self._movable(_of_module(self._engine.module), besides=set())",
        "        return iter(())",
        "learner/test_trained_model.py",
    ),
    Break(
        "learner.deepspeed unread by frozen models",
        "learner/deepspeed_settings.py",
        '**zero_buffers(hidden, 3), **given, "stage": 3}',
        '**zero_buffers(hidden, 3), "stage": 3}',
        "learner/test_trained_model.py",
    ),
    Break(
        "a component's value taken for a verdict",
        "scoring/reward.py",
        "zip(totals, verdicts.unsafe, strict=True)",
        'zip(totals, parts.get("unsafe", verdicts.unsafe), strict=True)',
        "scoring/test_rewards.py",
    ),
    Break(
        "rows scored before their company is there",
        "store/experience.py",
        "        if not chunk.missing:\n",
        "        if chunk.missing < 2:\n",
        "store/test_experience.py",
    ),
    Break(
        "perplexity at the sampling temperature",
        "scoring/reference.py",
        "self._log_probs(rows, 1.0)}",
        "self._log_probs(rows, self._temperature)}",
        "stages/test_wiring.py",
    ),
    Break(
        "a coefficient set anew that a checkpoint overrides",
        "stages/resume.py",
        "        state.kl_coef = config.algorithm.kl_coef",
        "        pass",
        "stages/test_resume.py",
    ),
    Break(
        "NaN in JSON",
        "files.py",
        "return None if isinstance(value, float) and not math.isfinite(value) else value",
        "return str(value) if isinstance(value, float) and not math.isfinite(value) else value",
        "test_files.py",
    ),
    Break(
        "a chat's answers end in eos, whatever the template says",
        "data/ends.py",
        "return self.text if self.chat is None else self.chat",
        "return self.text",
        "data/test_encoder.py",
    ),
    Break(
        "what a template adds after the end is learnt",
        "data/turns.py",
        "return Turn(start, end.end(), ended=True, asked=asked, own=own, number=number)",
        "return Turn(start, limit, ended=True, asked=asked, own=own, number=number)",
        "data/test_encoder.py",
    ),
    Break(
        "text that spells special tokens becomes them",
        "data/encoder.py",
        "checked = self.words.quotes.hide(checked)",
        "pass",
        "data/test_encoder.py",
    ),
    Break(
        "an end that the tokenizer adds stays at the end of a prompt",
        "data/words.py",
        "return whole[: start + len(words)]",
        "return whole",
        "data/test_encoder.py",
    ),
    Break(
        "answers of a comparison follow prompts cut apart",
        "data/judgements.py",
        "max(len(self._whole(one, each)[0]) for each in one.answers)",
        "len(tokens)",
        "data/test_lengths.py",
    ),
    Break(
        "a damaged Arrow table is not looked at",
        "data/tables.py",
        "        table.validate(full=True)\n",
        "",
        "data/test_tables.py",
    ),
    Break(
        "a stop string that is a token is looked for in text",
        "rollout/spec.py",
        "stops = [added[text] for text in rollout.stop if text in added]",
        "stops = []",
        "rollout/test_spec.py",
    ),
    Break(
        "KL of truncated samples",
        "stages/evaluate.py",
        "kl=None if truncated else",
        "kl=None if False else",
        "stages/test_evaluate.py",
    ),
    Break(
        "a leak that new weights hide",
        "models/proof.py",
        "difference <= self._tolerance and not self._sees_neighbours()",
        "difference <= self._tolerance",
        "models/test_proof.py",
    ),
    Break(
        "logits without what a family's forward does to them",
        "models/heads.py",
        "        names = {id(child): name for name, child in lm.named_children()}\n",
        "        return cls()\n",
        "models/test_proof.py",
    ),
    Break(
        "weights that are not in the file, made up",
        "models/loading.py",
        '    if missing:\n        raise ModelError(\n            f"{path}: {len(missing)} of',
        '    if False:\n        raise ModelError(\n            f"{path}: {len(missing)} of',
        "models/test_loading.py",
    ),
    Break(
        "buffers that are not saved",
        "models/file_names.py",
        "if buffer is not None and name not in module._non_persistent_buffers_set",
        "if False",
        "models/test_file_names.py",
    ),
    Break(
        "experts whose adapters are wrapped twice",
        "learner/adapters.py",
        'r"(\\.base_layer)+(?=\\.)"',
        'r"(\\.base_layer)(?=\\.)(?!\\.base_layer)"',
        "models/test_loading.py",
    ),
    Break(
        "rewards computed in bf16",
        "models/heads.py",
        "F.linear(hidden.float(), self.weight.float(), bias)",
        "F.linear(hidden, self.weight, self.bias).float()",
        "models/test_proof.py",
    ),
    Break(
        "padding beyond the table of positions",
        "models/packed.py",
        "np.minimum(np.arange(width - start), longest - 1)",
        "np.arange(width - start)",
        "models/test_packed.py",
    ),
    Break(
        "decoding in company whatever the family",
        "rollout/transformers_engine.py",
        "            if self._decodes_as_its_forward():\n",
        "            if True:\n",
        "rollout/test_transformers_engine.py",
    ),
    Break(
        "half a weight version is sampled from",
        "rollout/transformers_engine.py",
        "        self._weights.replaced(partial=partial)\n        found = dict(",
        "        found = dict(",
        "rollout/test_transformers_engine.py",
    ),
    Break(
        "what engines could map is copied",
        "rollout/places.py",
        "if found < 0 or address + size",
        "if True or address + size",
        "rollout/test_places.py",
    ),
    Break(
        "a digest does not see the order of words",
        "store/held.py",
        "((2 * places + 1) * ODD)",
        "ODD",
        "store/test_held.py",
    ),
    Break(
        "a partial version outlives the one that it belongs on",
        "learner/holding.py",
        "            self._held[True] = []",
        "            pass",
        "learner/test_holding.py",
    ),
    Break(
        "the shared memory of a living engine is swept",
        "cluster/shared_memory.py",
        "fcntl.LOCK_EX | fcntl.LOCK_NB",
        "fcntl.LOCK_UN",
        "cluster/test_shared_memory.py",
    ),
    Break(
        "the other processes of an engine outlive the first that died",
        "cluster/children.py",
        "            self._lost.set()\n        self.kill()\n",
        "            self._lost.set()\n",
        "cluster/test_children.py",
    ),
    Break(
        "a model cut over processes says a part of its logits",
        "models/tensor_parallel.py",
        "    return whole\n",
        "    return whole.roll(1, -1)\n",
        "scoring/test_hosts.py",
    ),
    Break(
        "a scorer at rest goes on to score",
        "scoring/worker.py",
        "        if not self._awake.is_set():\n            return\n",
        "",
        "scoring/test_worker.py",
    ),
    Break("dropout on in training", "models/wrapped.py", "        self.inner.eval()\n", "", "models/test_proof.py"),
    Break(
        "a rope that switches",
        "models/fits.py",
        "if same is not None and longest > same:",
        "if False:",
        "models/test_fits.py",
    ),
    Break("a model that sees the future", "models/proof.py", "    trial.check_causal()\n", "", "models/test_proof.py"),
    Break(
        "a reward model as policy",
        "models/roles.py",
        'if is_classifier(config) and role in ("policy", "reference", "judge"):',
        "if False:",
        "models/test_loading.py",
    ),
    Break(
        "a cluster of our own that dies ends the run",
        "stages/restarting.py",
        "            if start_anew():\n",
        "            if False:\n",
        "stages/test_restarting.py",
    ),
    Break(
        "small figures cannot be drawn",
        "run_folder/charts.py",
        "round(number * step, digits)",
        "round(number * step, 10)",
        "run_folder/test_report.py",
    ),
    Break(
        "a key that is there twice counts for its last",
        "config/files.py",
        "            if name in seen:",
        "            if False:",
        "test_config.py",
    ),
    Break(
        "a state of another version is taken as it is",
        "files.py",
        'strict=True, extra="forbid")',
        'extra="ignore")',
        "stages/test_stage_checkpoints.py",
    ),
    Break(
        "a full disk of the page's database is a server error",
        "feedback/database.py",
        'raise StorageError(f"database',
        'raise RuntimeError(f"database',
        "feedback/test_app.py",
    ),
    Break(
        "a judgement that waits for no disk",
        "feedback/database.py",
        "'NORMAL' if options.get('choosing') else 'FULL'",
        "'NORMAL' if options.get('choosing') else 'NORMAL'",
        "feedback/test_database.py",
    ),
    Break(
        "one order of tasks for everybody",
        "feedback/orders.py",
        'return _number(f"probe {annotator_id}/{judged}") % PLACES',
        'return _number(f"probe {judged}") % PLACES',
        "feedback/test_store.py",
    ),
    Break(
        "the side of answers that were turned, the wrong way round",
        "feedback/facts.py",
        "np.abs(label - seen))",
        "label)",
        "feedback/test_store.py",
    ),
    Break(
        "tasks given beyond what they need",
        "feedback/assignment.py",
        "Task.done + _BEFORE_OTHERS < Task.needed",
        "Task.done < Task.needed + _BEFORE_OTHERS",
        "feedback/test_app.py",
    ),
    Break(
        "skips that count as judgements",
        "feedback/judging.py",
        "    if verdict != SKIP:\n        connection.execute(_ONE_MORE",
        "    if True:\n        connection.execute(_ONE_MORE",
        "feedback/test_store.py",
    ),
    Break(
        "a break that is work",
        "feedback/judging.py",
        "return counted if 0 <= counted <= seconds + 1 else seconds if seconds <= BREAK_S else None",
        "return counted if 0 <= counted <= seconds + 1 else seconds",
        "feedback/test_store.py",
    ),
    Break(
        "what was taken back and is finished by others stays away",
        "feedback/assignment.py",
        "Task.done < Task.needed, Shown.undone)",
        "Task.done < Task.needed)",
        "feedback/test_store.py",
    ),
    Break(
        "buffers of a model without weights are what lay in memory",
        "models/hollow.py",
        "    model.initialize_weights()\n",
        "",
        "models/test_hollow.py",
    ),
    Break(
        "a checkpoint takes its name before the ranks have written it",
        "stages/behind.py",
        "            self._ends = ends.pop_all()\n",
        "",
        "stages/test_behind.py",
    ),
    Break(
        "one rank writes other files than the index says",
        "learner/saving.py",
        "if number % ranks == rank:",
        "if number % ranks == 0:",
        "learner/test_saving.py",
    ),
    Break(
        "a digest is of no bytes",
        "learner/writing.py",
        "            digest.update(part)\n",
        "",
        "learner/test_writing.py",
    ),
)


def copied(folder: Path) -> None:
    """The package and its tests."""
    for name in ("rlhf_dist", "tests", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)


def outcome(tests: Sequence[str], folder: Path) -> int:
    """Pytest's exit code on the copy."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        *(f"tests/{each}" for each in tests),
    ]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode < 0:
        return 1  # a crash is noticed, too
    if done.returncode not in (0, 1):
        raise SystemExit(f"pytest ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode


def tried(each: Break, folder: Path) -> dict[str, Any]:
    """Whether the tests fail on a break, and in which seconds."""
    file = folder / "rlhf_dist" / each.file
    whole = file.read_text()
    if whole.count(each.old) != 1:
        raise SystemExit(
            f"{each.file}: {each.old!r} is there {whole.count(each.old)} times; expected once ({each.what})"
        )
    file.write_text(whole.replace(each.old, each.new))
    began = time.perf_counter()
    caught = outcome([each.tests], folder) == 1
    file.write_text(whole)
    print(f"{'caught' if caught else 'SURVIVED'}: {each.what}", file=sys.stderr, flush=True)
    return {
        "break": each.what,
        "file": each.file,
        "tests": each.tests,
        "caught": "yes" if caught else "NO",
        "s": time.perf_counter() - began,
    }


def main() -> None:
    """Every break, one after the other."""
    from contract import arguments, publish

    options = arguments(__doc__ or "")
    with tempfile.TemporaryDirectory() as name:
        copied(Path(name))
        chosen = BREAKS[:: 5 if options.quick else 1]
        if outcome(sorted({each.tests for each in chosen}), Path(name)):
            raise SystemExit("the tests fail though nothing is broken; expected them to pass")
        rows = [tried(each, Path(name)) for each in chosen]
    survived = [row["break"] for row in rows if row["caught"] == "NO"]
    figures = {
        "breaks": float(len(rows)),
        "survived": float(len(survived)),
        "slowest_s": max(row["s"] for row in rows),
    }
    publish("breaks", figures, rows, options.json)


if __name__ == "__main__":
    main()
