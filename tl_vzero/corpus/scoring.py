"""Scores of a part's sentences, by every method asked for."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from tl_vzero.comparison.plan import Planned
from tl_vzero.corpus.parts import Ready
from tl_vzero.corpus.records import Refused
from tl_vzero.errors import ModelError, PluginError, TLVZeroError
from tl_vzero.inputs import Inputs
from tl_vzero.methods.run import AskedMethod, scores_on_one_run
from tl_vzero.models.contracts import check_contracts
from tl_vzero.scores import Scores


@dataclass(frozen=True, eq=False)
class Scored:
    """Sentences with each method's scores, in order, and those that no method could score."""

    ready: list[Ready]
    by_method: dict[str, list[Scores]]
    refused: list[Refused]


@dataclass(frozen=True, eq=False)
class Scorer:
    """Methods with their options, on chosen layers; with `only_target`, of the target's row alone."""

    model: nn.Module
    plan: Sequence[Planned]
    layers: tuple[int, ...]
    only_target: bool

    def scored(self, ready: list[Ready]) -> Scored:
        """Scores of a part. Where a sentence makes a method fail, each is tried alone, and the others have theirs."""
        try:
            return Scored(ready, self._together(ready), [])
        except TLVZeroError:
            kept: list[Ready] = []
            by_method: dict[str, list[Scores]] = {each.name: [] for each in self.plan}
            refused: list[Refused] = []
            for each in ready:
                try:
                    alone = self._together([each])
                except TLVZeroError as error:
                    refused.append(Refused(each.record.position, each.record.id, str(error)))
                    continue
                kept.append(each)
                for name, own in alone.items():
                    by_method[name] += own
            return Scored(kept, by_method, refused)

    def trial(self, ready: Ready) -> dict[str, Scores]:
        """One sentence's scores; raises what a method raises that is undefined for the model."""
        return {name: own for name, (own,) in self._together([ready]).items()}

    def _together(self, ready: list[Ready]) -> dict[str, list[Scores]]:
        found: dict[str, dict[int, Scores]] = {each.name: {} for each in self.plan}
        for group in self._groups(ready):
            sentences = [replace(ready[number].sentence, row=row) for row, number in enumerate(group)]
            dest = ready[group[0]].target if self.only_target else None
            targets = [ready[number].target for number in group]
            scored = self._of_layers(sentences, dest) | self._called(sentences, dest, targets)
            for name, own in scored.items():
                found[name] |= dict(zip(group, own, strict=True))
        return {name: [own[number] for number in range(len(ready))] for name, own in found.items()}

    def _groups(self, ready: list[Ready]) -> list[list[int]]:
        """Numbers of sentences that go into one call: all, or those whose target is at one position."""
        groups: dict[int | None, list[int]] = {}
        for number, each in enumerate(ready):
            groups.setdefault(each.target if self.only_target else None, []).append(number)
        return list(groups.values())

    def _of_layers(self, sentences: list[Any], dest: int | None) -> dict[str, list[Scores]]:
        """Methods that read a layer by itself, all on the same clean runs."""
        asked = [
            AskedMethod(
                each.name, each.method.layer, destinations=None if dest is None else (dest,), options=each.options
            )
            for each in self.plan
            if each.method.layer is not None
        ]
        if not asked:
            return {}
        encoded = Inputs(tuple(sentences), single=False)
        found = scores_on_one_run(asked, self.model, check_contracts(self.model), encoded, self.layers, None)
        scored: dict[str, list[Scores]] = {}
        for name, by_row in found.items():
            if isinstance(by_row, ModelError):
                raise by_row
            scored[name] = [by_row[row] for row in range(len(sentences))]
        return scored

    def _called(self, sentences: list[Any], dest: int | None, targets: list[int | None]) -> dict[str, list[Scores]]:
        """The other methods, called as a user calls them."""
        scored: dict[str, list[Scores]] = {}
        for each in self.plan:
            if each.method.layer is not None:
                continue
            ids, beside = each.read(sentences)
            arguments: dict[str, Any] = {**each.options, **beside, "layers": self.layers}
            if "target" in each.method.needs:
                arguments["target"] = targets
            elif dest is not None and "destinations" in (each.method.options or ()):
                arguments["destinations"] = (dest,)
            scored[each.name] = _one_each(each.name, each.method(self.model, ids, **arguments), len(sentences))
        return scored


def _one_each(name: str, scored: Any, count: int) -> list[Scores]:
    """A method's answers to several sentences; another package's may be of another kind."""
    given = scored if isinstance(scored, list) else []
    if len(given) != count or not all(isinstance(each, Scores) and each.heads is None for each in given):
        raise PluginError(
            f"the method {name!r} gave {type(scored).__name__} for {count} sentences: expected a list of one Scores "
            "each, without heads"
        )
    return given
