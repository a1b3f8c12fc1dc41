"""The main job: one sentence, Value Zeroing beside every other method and beside the effects on the prediction."""

from tl_vzero.report.make import make_report
from tl_vzero.report.report import Report
from tl_vzero.report.translation import Translation, generate

__all__ = ["Report", "Translation", "generate", "make_report"]
