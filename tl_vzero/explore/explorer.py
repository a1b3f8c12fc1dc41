"""Answers to what is asked, one at a time."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from threading import Lock

from torch import nn

from tl_vzero.api import METHODS
from tl_vzero.comparison.plan import plan_of
from tl_vzero.errors import InputError
from tl_vzero.explore.asked import Asked
from tl_vzero.inputs import encode, warned_before
from tl_vzero.report import make_report
from tl_vzero.report.packed import script_json
from tl_vzero.report.page import page_payload

MOST_TOKENS = 128
KEPT = 16  # answers, of 128 tokens 4 MB each; going back and a shared address then cost nothing


class Explorer:
    """The models that may be asked, and their latest answers.

    `models` are loaded models by name; `methods` those of `make_report`; `most_tokens` bounds a sentence.
    Raises InputError for a method that there is not. While it answers, nothing else may use its models: hooks act on
    whoever runs one.

    >>> import tl_vzero
    >>> explorer = Explorer({"agreement-mini": tl_vzero.load_model("agreement-mini")})
    >>> explorer.answer(Asked("agreement-mini", "the hat [MASK] here."))[:9]
    '{"data":{'
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        *,
        methods: Sequence[str] | None = None,
        most_tokens: int = MOST_TOKENS,
    ) -> None:
        self.models = dict(models)
        if methods is not None:
            plan_of(METHODS, methods, None)
        self.methods = methods
        self.most_tokens = most_tokens
        self._answers: OrderedDict[Asked, str] = OrderedDict()
        # Hooks on a model act on whoever runs it: one question at a time.
        self._lock = Lock()

    @property
    def answering(self) -> bool:
        """Whether an answer is being computed now."""
        return self._lock.locked()

    def answer(self, asked: Asked) -> str:
        """The page's payload as JSON; raises a TLVZeroError for what cannot be shown."""
        with self._lock:
            if asked not in self._answers:
                self._answers[asked] = self._computed(asked)
            self._answers.move_to_end(asked)
            while len(self._answers) > KEPT:
                self._answers.popitem(last=False)
            return self._answers[asked]

    def _computed(self, asked: Asked) -> str:
        if asked.model not in self.models:
            raise InputError(f"there is no model {asked.model[:80]!r} here: expected one of {', '.join(self.models)}")
        model = self.models[asked.model]
        with warned_before():  # whoever asks does not see this process's warnings, but the page's metadata
            for text in (asked.text, asked.corrupted):
                if text is not None:
                    self._check_length(model, text)
            report = make_report(
                model, asked.text, methods=self.methods, target=asked.target, corrupted=asked.corrupted
            )
        return script_json(page_payload(report))

    def _check_length(self, model: nn.Module, text: str) -> None:
        tokens = len(encode(model, text).sentences[0])
        if tokens > self.most_tokens:
            raise InputError(f"the sentence has {tokens} tokens: expected at most {self.most_tokens}; shorten it")
