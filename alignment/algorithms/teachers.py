"""The teachers of a distillation: which one a tree belongs to, what it says, and how that reaches the loss.

Made for every step anew, or once for all rows and kept in a file. Shapes: N scored positions, K most probable tokens,
H hidden width of the widest teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import cast

import numpy as np
import torch

from alignment.data.epochs import trees_fingerprint
from alignment.data.soft_targets import KEY_LENGTH, SoftTargetFile
from alignment.distributed import barrier, gather_objects, rank, world_size
from alignment.errors import UserError
from alignment.models.score import at_scored
from alignment.models.soft_head import FullTargets, Targets, TeacherHead, TopKTargets
from alignment.models.teacher import HIDDEN, IDS, LOG_P, LocalTeacher, Teacher
from alignment.packing import BFLOAT16
from alignment.types import PackedBatch, Segment, Tree

DEFAULT = "default"
"""The teacher of rows whose task has none of its own."""
NUMBER = "teacher"
"""Column: which of several teachers a position belongs to."""
CHUNK = 64
"""Rows per rank between two writes to disk: what a kill can cost."""


class Teachers:
    """by_task: a teacher for each task, under `default` the one for all others.

    top_k: compare its K most probable tokens and the rest; 0 = the whole vocabulary, which only a local teacher can.
    temperature: of the teacher's distribution. Raises UserError for settings that do not go together.
    """

    def __init__(self, by_task: Mapping[str, Teacher], vocabulary: int, top_k: int = 0, temperature: float = 1.0):
        self.by_task, self.vocabulary, self.top_k, self.temperature = dict(by_task), vocabulary, top_k, temperature
        self.all = list({id(teacher): teacher for teacher in by_task.values()}.values())
        remote = [teacher.name for teacher in self.all if not isinstance(teacher, LocalTeacher)]
        if remote and not top_k:
            raise UserError(f"teacher_top_k: the server {remote[0]} gives only some log-probabilities; say how many")
        if not 0 <= top_k <= vocabulary:
            raise UserError(f"teacher_top_k: {top_k} is not valid, it has to be 0 to {vocabulary}")

    @property
    def identity(self) -> str:
        """Changes with any of the teachers and with the tasks they have."""
        named = sorted((task, teacher.name, teacher.identity) for task, teacher in self.by_task.items())
        return sha256(repr(named).encode()).hexdigest()[:16]

    def of(self, task: object) -> Teacher:
        """Raises UserError when there is none."""
        teacher = self.by_task.get(str(task), self.by_task.get(DEFAULT))
        if teacher is None:
            known = ", ".join(sorted(self.by_task))
            raise UserError(f"teachers: none for the task {task!r}; known are {known}. Add one, or one as `{DEFAULT}`")
        return teacher

    def check(self, tasks: Sequence[object], source: str) -> None:
        """Raises UserError, naming the row, for the first one whose task has no teacher."""
        for number, task in enumerate(tasks, 1):
            try:
                self.of(task)
            except UserError as error:
                raise UserError(f"{source}, row {number}: {error}") from error

    # --- before the loss --------------------------------------------------------------------------------------------

    def add_targets(self, trees: Sequence[Tree], tasks: Sequence[object]) -> None:
        """Write into the columns of every scored segment what the tree's teacher says there."""
        for number, teacher in enumerate(self.all):
            own = [tree for tree, task in zip(trees, tasks, strict=True) if self.of(task) is teacher]
            if self.top_k:
                teacher.add_top_k(own, self.top_k, self.temperature)
                continue
            cast(LocalTeacher, teacher).add_hidden(own, self._width, self._bfloat16)
            if len(self.all) > 1:
                for segment in _scored_segments(own):
                    segment.columns[NUMBER] = np.broadcast_to(np.float32(number), len(segment.token_ids))

    def add_blanks(self, trees: Sequence[Tree]) -> None:
        """The columns of trees that no teacher is asked about."""
        widths = {IDS: self.top_k, LOG_P: self.top_k + 1} if self.top_k else {HIDDEN: self._width}
        for segment in _scored_segments(trees):
            for name, width in widths.items():
                zero = BFLOAT16.type(0) if name == HIDDEN and self._bfloat16 else np.float32(0)
                segment.columns[name] = np.broadcast_to(zero, (len(segment.token_ids), width))
            if not self.top_k and len(self.all) > 1:
                segment.columns[NUMBER] = np.broadcast_to(np.float32(0), len(segment.token_ids))

    @property
    def _width(self) -> int:
        return max(cast(LocalTeacher, teacher).width for teacher in self.all)

    @property
    def _bfloat16(self) -> bool:
        """Whether hidden states are kept in that type: those of all teachers lie in one column."""
        return all(cast(LocalTeacher, teacher).bfloat16 for teacher in self.all)

    # --- in the loss ------------------------------------------------------------------------------------------------

    def targets(self, micro: PackedBatch) -> tuple[PackedBatch, Targets]:
        """What the columns of a packed row say; its scored positions come back in the order of the teachers."""
        if self.top_k:
            return micro, TopKTargets(micro.columns[IDS].long(), micro.columns[LOG_P])
        if len(self.all) == 1:
            return micro, FullTargets([self._part(self.all[0], micro.columns[HIDDEN])])
        order_N = micro.columns[NUMBER].argsort(stable=True)
        micro = _reordered(micro, order_N)
        counts = torch.bincount(micro.columns[NUMBER].long(), minlength=len(self.all)).tolist()
        hidden = micro.columns[HIDDEN].split(counts)
        return micro, FullTargets([self._part(teacher, h) for teacher, h in zip(self.all, hidden, strict=True)])

    def _part(self, teacher: Teacher, hidden_NH: torch.Tensor) -> TeacherHead:
        local = cast(LocalTeacher, teacher)
        return TeacherHead(local.head, hidden_NH[:, : local.width])


def _scored_segments(trees: Sequence[Tree]) -> list[Segment]:
    return [s for tree in trees for s in tree.segments if s.scored is not None and s.scored.any()]


def _reordered(micro: PackedBatch, order_N: torch.Tensor) -> PackedBatch:
    return replace(
        micro,
        score_index_N=micro.score_index_N[order_N],
        score_target_N=micro.score_target_N[order_N],
        score_token_N=micro.score_token_N[order_N],
        score_row_N=micro.score_row_N[order_N],
        columns={name: column[order_N] for name, column in micro.columns.items()},
    )


# --- kept in a file ---------------------------------------------------------------------------------------------------


class StoredTargets:
    """The targets of rows that come again every epoch, in a file.

    A row is found by the fingerprint of its tokens and masks and its teacher, so a change of the rows, the template or
    the tokenizer makes it a new one. Raises UserError when the file was made with other teachers or settings.
    """

    def __init__(self, path: Path, teachers: Teachers):
        if not teachers.top_k:
            raise UserError("soft_targets: storing needs teacher_top_k above 0: whole vocabularies are too large")
        self.teachers = teachers
        made_with = {"teachers": teachers.identity, "divergence_temperature": str(teachers.temperature)}
        remedy = "delete it to ask the teacher again, or name another soft_targets_file"
        self.file = SoftTargetFile(path, teachers.top_k, made_with, remedy)

    def fill(self, trees: Sequence[Tree], tasks: Sequence[object], say: Callable[[str], None] = print) -> None:
        """Ask the teachers about the rows that the file lacks and add them, every rank a share."""
        todo = {key: (tree, task) for tree, task in zip(trees, tasks, strict=True)
                if (key := self._key(tree, task)) not in self.file}  # fmt: skip
        keys = list(todo)
        for start in range(0, len(keys), CHUNK * world_size()):
            own = keys[start : start + CHUNK * world_size()][rank() :: world_size()]
            copies = [bare(todo[key][0]) for key in own]
            self.teachers.add_targets(copies, [todo[key][1] for key in own])
            new = gather_objects([(key, *_of_tree(tree)) for key, tree in zip(own, copies, strict=True)])
            if rank() == 0:
                self.file.append(new)
                say(f"soft targets: {min(start + len(new), len(keys))}/{len(keys)} rows")
        barrier()
        self.file.refresh()

    def add_targets(self, trees: Sequence[Tree], tasks: Sequence[object]) -> None:
        """As Teachers.add_targets, from the file. Raises UserError for a row that it does not have."""
        for tree, task in zip(trees, tasks, strict=True):
            key = self._key(tree, task)
            if key not in self.file:
                raise UserError(f"{self.file.path} lacks a row of this run: {self.file.remedy}")
            ids, log_p = self.file.read(key)
            start = 0
            for segment in _scored_segments([tree]):
                assert segment.scored is not None
                end = start + int(segment.scored.sum())
                segment.columns[IDS] = at_scored(segment, ids[start:end])
                segment.columns[LOG_P] = at_scored(segment, log_p[start:end])
                start = end

    def _key(self, tree: Tree, task: object) -> str:
        parts = (trees_fingerprint([tree]), self.teachers.of(task).name)
        return sha256(repr(parts).encode()).hexdigest()[:KEY_LENGTH]


def bare(tree: Tree) -> Tree:
    """The tree without columns; the tokens are shared."""
    return Tree([replace(segment, columns={}) for segment in tree.segments], tree.atomic)


def _of_tree(tree: Tree) -> tuple[np.ndarray, np.ndarray]:
    segments = _scored_segments([tree])
    ids, log_p = (np.concatenate([s.columns[name][s.scored] for s in segments]) for name in (IDS, LOG_P))
    return ids.astype(np.int32), log_p
